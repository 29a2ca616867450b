"""Does the map lie on the object? Scores of a map against ground-truth pixels.

Every function takes maps ``(B, H, W)`` or ``(B, 1, H, W)``, higher meaning more relevant, and boolean masks
of the same shape, and returns one float64 value per map, ``(B,)``. Each score is 1 at best and 0 at worst.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.checks import require_order


def average_precision(maps: Tensor, masks: Tensor) -> Tensor:
    """Returns the area under the precision-recall curve of "this pixel belongs to the object", ``(B,)`` in (0, 1].

    Equal values enter together, as in ``sklearn.metrics.average_precision_score``: a constant map scores the share of
    object pixels, whatever their order.

    Formula:
        ``AP = sum_k (R_k - R_{k-1}) P_k`` over the distinct values of the map as thresholds, from high to low, with
        precision ``P_k`` and recall ``R_k`` of the pixels at or above the k-th value.

    Args:
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``.
        masks: the object, bool, of the same shape; at least one pixel each.

    Raises:
        LearnpropError: shapes differ, a map is not finite, or a mask is empty.

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> masks = torch.tensor([[[True, False], [True, False]]])
        >>> average_precision(maps, masks)  # (1/1 + 2/3) / 2
        tensor([0.8333], dtype=torch.float64)
    """
    scores, positive = _flatten(maps, masks)
    _require_pixels(positive, "masks")
    order = scores.sort(dim=1, descending=True, stable=True).indices
    ranked = scores.gather(1, order)
    hits = positive.gather(1, order).double().cumsum(1)
    last = _last_of_ties(ranked)
    taken = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=torch.float64)
    # Recall moves only where a group of ties ends: there, by the hits since the end of the previous group.
    reached = torch.where(last, hits, torch.zeros_like(hits)).cummax(1).values
    gained = torch.diff(reached, dim=1, prepend=torch.zeros_like(reached[:, :1]))
    return (gained * hits / taken).sum(1) / hits[:, -1]


def class_auc(maps: Tensor, masks: Tensor, other_masks: Tensor) -> Tensor:
    """Returns the probability that a pixel of the asked object outranks a pixel of the others, ``(B,)`` in [0, 1]; 0.5
    is chance.

    The background does not count. A tie counts one half, as in ``sklearn.metrics.roc_auc_score``, which is the expected
    value over random orders of the tied pixels.

    Formula:
        ``AUC = mean over pixels i of the object and j of the others of [m_i > m_j] + [m_i = m_j] / 2``: the area under
        the ROC curve, or Mann-Whitney statistic.

    Args:
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``.
        masks: the asked object, bool, of the same shape.
        other_masks: the other objects, bool, of the same shape; disjoint from ``masks``.

    Raises:
        LearnpropError: shapes differ, a map is not finite, a mask is empty, or the two masks share pixels.

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> masks = torch.tensor([[[True, False], [True, False]]])
        >>> class_auc(maps, masks, ~masks)  # of four pairs of pixels three are in order
        tensor([0.7500], dtype=torch.float64)
    """
    scores, positive = _flatten(maps, masks)
    _, negative = _flatten(maps, other_masks)
    _require_pixels(positive, "masks")
    _require_pixels(negative, "other_masks")
    if (positive & negative).any():
        raise LearnpropError("masks and other_masks share pixels; a pixel can belong to one object only")
    order = scores.sort(dim=1, stable=True).indices
    ranked = scores.gather(1, order)
    hits = positive.gather(1, order).double()
    below = negative.gather(1, order).double().cumsum(1)
    # Negatives below a group of ties, and negatives up to its end; their mean counts each tie one half.
    first = torch.searchsorted(ranked.contiguous(), ranked.contiguous(), side="left")
    final = torch.searchsorted(ranked.contiguous(), ranked.contiguous(), side="right") - 1
    before = torch.where(first > 0, below.gather(1, (first - 1).clamp(min=0)), torch.zeros_like(below))
    outranked = (before + below.gather(1, final)) / 2
    return (hits * outranked).sum(1) / (positive.sum(1).double() * negative.sum(1).double())


def pointing_game(maps: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    """Returns whether the highest pixel lies on the object, ``(B,)`` in [0, 1].

    Where several pixels share the highest value the score is the share of them that hits: the expected
    value over a random choice. So a constant map scores the share of the image that the object covers, not
    what lies at the corner.

    Formula:
        ``sum_i [m_i = max m] [i in object] / sum_i [m_i = max m]``; with a tolerance the object is grown by that
        radius.

    Source:
        Zhang et al., *Top-down Neural Attention by Excitation Backprop*, ECCV 2016.

    Args:
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``.
        masks: the object, bool, of the same shape.
        tolerance: a hit is also a pixel at most this many pixels away in Euclidean distance (15 in the
            paper's images).

    Raises:
        LearnpropError: shapes differ, a map is not finite, a mask is empty, or the tolerance is negative.

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> masks = torch.tensor([[[True, False], [True, False]]])
        >>> pointing_game(maps, masks)
        tensor([1.], dtype=torch.float64)
    """
    if tolerance < 0:
        raise LearnpropError(f"tolerance must be at least 0 pixels, got {tolerance}")
    scores, positive = _flatten(maps, masks)
    _require_pixels(positive, "masks")
    if tolerance:
        positive = _dilate(masks.reshape(len(masks), 1, *masks.shape[-2:]), tolerance).flatten(1)
    highest = scores == scores.amax(1, keepdim=True)
    return (highest & positive).sum(1).double() / highest.sum(1)


def relevance_mass(maps: Tensor, masks: Tensor) -> Tensor:
    """Returns the share of the map's positive mass that lies on the object, ``(B,)`` in [0, 1].

    Formula:
        ``sum_{i in object} max(m_i, 0) / sum_i max(m_i, 0)``; 0 for a map without positive values.

    Source:
        Arras, Osman, Samek, *CLEVR-XAI*, Information Fusion 2022, section 3.2.

    Args:
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``.
        masks: the object, bool, of the same shape.

    Raises:
        LearnpropError: shapes differ, a map is not finite, or a mask is empty.

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> masks = torch.tensor([[[True, False], [True, False]]])
        >>> relevance_mass(maps, masks)  # (4 + 2) / 10
        tensor([0.6000], dtype=torch.float64)
    """
    scores, positive = _flatten(maps, masks)
    _require_pixels(positive, "masks")
    mass = scores.double().clamp(min=0.0)
    # Divide by the maximum first: sums of very small values would be lost in the guard against zero.
    mass = mass / mass.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    total = mass.sum(1)
    inside = (mass * positive).sum(1)
    return torch.where(total > 0, inside / total.clamp(min=1.0), torch.zeros_like(total))


def relevance_rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """Returns the share of the K highest pixels that lie on the object of K pixels, ``(B,)`` in [0, 1].

    Where pixels with the K-th highest value compete for the last places, the score is its expected value over a random
    choice among them: a constant map scores the share of the image that the object covers.

    Formula:
        ``|top_K(m) & object| / K`` with ``K = |object|``.

    Source:
        Arras, Osman, Samek, *CLEVR-XAI*, Information Fusion 2022.

    Args:
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``.
        masks: the object, bool, of the same shape.

    Raises:
        LearnpropError: shapes differ, a map is not finite, or a mask is empty.

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> masks = torch.tensor([[[True, False], [True, False]]])
        >>> relevance_rank_accuracy(maps, masks)  # of the two highest pixels one is on it
        tensor([0.5000], dtype=torch.float64)
    """
    scores, positive = _flatten(maps, masks)
    _require_pixels(positive, "masks")
    size = positive.sum(1, keepdim=True)
    last = scores.sort(dim=1, descending=True).values.gather(1, size - 1)
    above, tied = scores > last, scores == last
    places = (size - above.sum(1, keepdim=True)).double()
    share = (tied & positive).sum(1, keepdim=True) / tied.sum(1, keepdim=True).double()
    return (((above & positive).sum(1, keepdim=True) + places * share) / size)[:, 0]


def grid_pointing(maps: Tensor, cells: Tensor, grid: int = 2) -> Tensor:
    """Returns the share of a mosaic's positive attribution in the asked cell, ``(B,)`` in [0, 1] (grid pointing game).

    The mosaic has ``grid x grid`` images of distinct classes and was explained for the class of one cell; chance is
    ``1 / grid^2``. The papers sum or average signed channels first: ``reduce_channels(attribution, "signed")``.

    Formula:
        ``sum_{i in cell} max(m_i, 0) / sum_i max(m_i, 0)``; 0 for a map without positive values, at any scale.

    Source:
        Böhle, Fritz, Schiele, *Convolutional Dynamic Alignment Networks*, CVPR 2021; Rao, Böhle, Schiele, *Towards
        Better Understanding Attribution Methods*, CVPR 2022.

    Args:
        maps: of mosaics, ``(B, H, W)`` or ``(B, 1, H, W)``, with H and W divisible by ``grid``.
        cells: ``(B,)`` int64, the cell of the explained class, 0 to ``grid^2 - 1`` in reading order.
        grid: cells per side.

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, or a cell does not exist.

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> grid_pointing(maps, cells=torch.tensor([0]))
        tensor([0.4000], dtype=torch.float64)
    """
    height, width = maps.shape[-2:] if maps.dim() in (3, 4) else (0, 0)
    if grid < 1 or height < 1 or width < 1 or height % grid or width % grid:
        raise LearnpropError(f"maps {tuple(maps.shape)} cannot be cut into {grid} x {grid} cells")
    if cells.shape != maps.shape[:1] or cells.dtype != torch.int64:
        raise LearnpropError(f"cells must be int64 of shape ({len(maps)},), got {cells.dtype} of {tuple(cells.shape)}")
    if not ((cells >= 0) & (cells < grid**2)).all():
        raise LearnpropError(f"cells must be 0 to {grid**2 - 1}, got {cells.tolist()}")
    every = torch.arange(grid**2, device=maps.device).reshape(grid, grid)
    every = every.repeat_interleave(height // grid, 0).repeat_interleave(width // grid, 1)
    own = every == cells.to(maps.device)[:, None, None]
    return relevance_mass(maps, own if maps.dim() == 3 else own[:, None].expand_as(maps))


def _flatten(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps and masks as ``(B, H * W)``, checked."""
    if maps.shape != masks.shape:
        raise LearnpropError(f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} differ in shape")
    if maps.dim() not in (3, 4) or (maps.dim() == 4 and maps.shape[1] != 1) or not maps.numel():
        raise LearnpropError(
            f"maps must be (B, H, W) or (B, 1, H, W) and not empty, got {tuple(maps.shape)}; sum colour channels first"
        )
    if masks.dtype != torch.bool:
        raise LearnpropError(f"masks must be bool, got {masks.dtype}; compare with a threshold, e.g. masks > 0.5")
    require_order(maps, "map")
    return maps.detach().flatten(1), masks.flatten(1)


def _require_pixels(masks: Tensor, name: str) -> None:
    empty = ~masks.any(1)
    if empty.any():
        raise LearnpropError(
            f"{name}[{int(empty.nonzero()[0])}] has no pixel; the score is not defined, leave the map out"
        )


def _last_of_ties(ranked: Tensor) -> Tensor:
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    return last


def _dilate(masks: Tensor, radius: int) -> Tensor:
    """Masks ``(B, 1, H, W)`` grown by a disc of a radius in pixels."""
    span = torch.arange(-radius, radius + 1, device=masks.device, dtype=torch.float32)
    disc = (span[:, None] ** 2 + span[None] ** 2 <= radius**2).float()
    return F.conv2d(masks.float(), disc[None, None], padding=radius) > 0.5
