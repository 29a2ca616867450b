"""Remove and debias (ROAD): pixels are removed by what their neighbours predict, not by a visible patch of colour.

Rong, Leemann, Borisov, Kasneci, Kasneci: *A Consistent and Efficient Evaluation Strategy for Attribution Methods*, ICML
2022. A pixel set to a constant shows where it was removed, and that shape alone can tell the class. Noisy linear
imputation hides it: a removed pixel is the weighted mean of its neighbours, plus a little noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.chunks import rows_together
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.baselines import normal_draws
from captum_learnprop.evaluation.checks import require_batch_size, require_maps
from captum_learnprop.evaluation.faithfulness import (
    OUTPUTS,
    Model,
    pixel_ranks,
    target_curve,
)
from zennit_rules.core.scalars import plain

PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
"""Shares of pixels that are removed."""

ORDERS = ("morf", "lerf")
"""Most relevant pixels first, least relevant first."""

MAX_FACTORS = 2**25
"""Numbers held at once in each of the two lists of factors of `linear_imputation`: half a gibibyte together."""


def _is_highest(outputs: Tensor) -> Tensor:
    return F.one_hot(outputs.argmax(1), outputs.shape[1]).double()


QUANTITIES: dict[str, Callable[[Tensor], Tensor]] = {**OUTPUTS, "accuracy": _is_highest}
"""What is read off the outputs: as on deletion curves, or whether the target's output is the highest (the paper's)."""


@torch.no_grad()
def road(
    model: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    order: str = "morf",
    noise: float = 0.01,
    output: str = "softmax",
    seed: int = 0,
    internal_batch_size: int = 256,
) -> Tensor:
    """Returns the mean of the target's quantity over shares of pixels removed by noisy linear imputation, ``(B,)``.

    Lower is better with the most relevant pixels first, higher is better with the least relevant first; in [0, 1] for
    probabilities.

    Formula:
        ``mean over p of f_t(imputed(x, the round(p / 100 * H * W) first pixels of the order) + noise * N(0, 1))``, see
        `linear_imputation`.

    Source:
        Rong et al., *A Consistent and Efficient Evaluation Strategy for Attribution Methods*, ICML 2022.

    Args:
        model: maps inputs to ``(B, classes)``; a module must be in evaluation mode, otherwise batches mix.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``, higher is more relevant; ties in reading order.
        targets: ``(B,)`` int64 class of each map.
        percentages: of pixels removed, each in [0, 100); at least one pixel stays.
        order: ``"morf"``, most relevant pixels first, or ``"lerf"``.
        noise: standard deviation of what is added to removed pixels, in units of the inputs.
        output: ``"softmax"``, ``"sigmoid"``, ``"logit"``, or ``"accuracy"``: 1 where the target scores highest.
        seed: of the noise, which is the same for every sample; torch's global generator is not used.
        internal_batch_size: how many changed inputs are imputed and go through the model together.

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, a target does not exist, or an option is out of range.

    Example:
        >>> inputs = torch.arange(9.0).reshape(1, 1, 3, 3)  # a pixel for each class, the last is 8
        >>> model, targets = torch.nn.Flatten().eval(), torch.tensor([8])
        >>> road(model, inputs, inputs[:, 0], targets, percentages=[20], noise=0.0, output="logit")
        tensor([4.6667])
    """
    curve = road_curve(
        model, inputs, maps, targets,
        percentages=percentages, order=order, noise=noise, output=output, seed=seed,
        internal_batch_size=internal_batch_size,
    )  # fmt: skip
    return curve.mean(1)


@torch.no_grad()
def road_curve(
    model: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    order: str = "morf",
    noise: float = 0.01,
    output: str = "softmax",
    seed: int = 0,
    internal_batch_size: int = 256,
) -> Tensor:
    """Returns the target's quantity at each percentage, ``(B, len(percentages))``: what `road` is the mean of.

    Arguments are those of `road`.

    Formula:
        ``f_t(imputed(x, the round(p / 100 * H * W) first pixels of the order) + noise * N(0, 1))`` at each ``p``.

    Source:
        Rong et al., *A Consistent and Efficient Evaluation Strategy for Attribution Methods*, ICML 2022.

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, a target does not exist, or an option is out of range.

    Example:
        >>> inputs = torch.arange(9.0).reshape(1, 1, 3, 3)  # a pixel for each class, the last is 8
        >>> model, targets = torch.nn.Flatten().eval(), torch.tensor([8])
        >>> road_curve(model, inputs, inputs[:, 0], targets, percentages=[0, 20], noise=0.0, output="logit")
        tensor([[8.0000, 4.6667]])
    """
    require_maps(inputs, maps, targets)
    noise, internal_batch_size = plain(noise), plain(internal_batch_size)
    require_batch_size(internal_batch_size)
    counts = _counts(percentages, inputs[0, 0].numel()).to(inputs.device)
    if order not in ORDERS:
        raise LearnpropError(f"unknown order {order!r}; choose one of {', '.join(ORDERS)}")
    if output not in QUANTITIES:
        raise LearnpropError(f"unknown output {output!r}; choose one of {', '.join(QUANTITIES)}")
    if not noise >= 0:
        raise LearnpropError(f"noise is a standard deviation, at least 0, got {noise}")
    ranks = pixel_ranks(maps, lowest_first=order == "lerf")
    draws = noise * normal_draws((len(counts), *inputs.shape[1:]), inputs, seed)

    def changed(sample: Tensor, step: Tensor) -> Tensor:
        removed = ranks[sample] < counts[step, None, None, None]
        imputed = linear_imputation(inputs[sample], removed)
        return torch.where(removed, imputed + draws[step], imputed)

    together = rows_together(internal_batch_size, inputs.shape[1:], inputs.device)
    return target_curve(model, changed, QUANTITIES[output], targets, len(counts), together)


@torch.no_grad()
def linear_imputation(images: Tensor, removed: Tensor) -> Tensor:
    """Returns images ``(B, C, H, W)`` whose removed pixels are the weighted mean of their neighbours, all at once.

    ``x_i = sum_j w_ij x_j / sum_j w_ij`` for every removed pixel i over the neighbours j inside the image, removed or
    not, with ``w = 1/6`` for the four direct neighbours and ``1/12`` for the four diagonal ones. Solved exactly, in
    float64: times ``sum_j w_ij`` the equations are symmetric and positive definite, and each row of pixels meets the
    next one only, so a Cholesky factorisation goes from row to row. That takes ``H * W^3`` operations per image.

    Args:
        images: ``(B, C, H, W)``, finite.
        removed: ``(B, 1, H, W)`` or ``(B, H, W)`` bool; at least one pixel of each image is not removed.

    Raises:
        LearnpropError: shapes do not fit, or nothing is left of an image.

    Example:
        >>> images, removed = torch.arange(9.0).reshape(1, 1, 3, 3), torch.zeros(1, 3, 3, dtype=torch.bool)
        >>> removed[0, 1, 1] = True
        >>> linear_imputation(images.square(), removed)[0, 0, 1]
        tensor([ 9.0000, 22.6667, 25.0000])
    """
    removed = _require_removed(images, removed)
    if images.shape[3] > images.shape[2]:  # the shorter side makes the smaller blocks
        return linear_imputation(images.mT, removed.mT).mT.contiguous()
    chunk = max(1, MAX_FACTORS // (images.shape[2] * images.shape[3] ** 2))
    solved = [
        _solve(some.double(), mask[:, 0]) for some, mask in zip(images.split(chunk), removed.split(chunk), strict=True)
    ]
    return torch.where(removed, torch.cat(solved).to(images), images)


def _solve(images: Tensor, removed: Tensor) -> Tensor:
    """Removed pixels ``(B, C, H, W)`` of float64 images, 0 elsewhere, for a mask ``(B, H, W)``."""
    height, width = removed.shape[1:]
    beside, across = _couplings(width, images)
    known = images.masked_fill(removed[:, None], 0.0)
    right = _neighbour_sum(known, beside, across).masked_fill(~removed[:, None], 0.0).permute(2, 0, 3, 1)
    total = _neighbour_sum(torch.ones_like(known[:1, :1]), beside, across)[:, 0]
    diagonal = torch.where(removed, total, 1.0)
    mask = removed.to(images)

    lower: list[Tensor] = []
    link: list[Tensor] = []
    solution: list[Tensor] = []
    for row in range(height):
        block = torch.diag_embed(diagonal[:, row]) - beside * _outer(mask[:, row], mask[:, row])
        values = right[row]
        if row:
            block = block - link[-1].mT @ link[-1]
            values = values + link[-1].mT @ solution[-1]
        lower.append(torch.linalg.cholesky(block))
        solution.append(torch.linalg.solve_triangular(lower[-1], values, upper=False))
        if row + 1 < height:
            between = across * _outer(mask[:, row], mask[:, row + 1])
            link.append(torch.linalg.solve_triangular(lower[-1], between, upper=False))
    for row in reversed(range(height)):
        values = solution[row] if row + 1 == height else solution[row] + link[row] @ solution[row + 1]
        solution[row] = torch.linalg.solve_triangular(lower[row].mT, values, upper=True)
    return torch.stack(solution).permute(1, 3, 0, 2)


def _couplings(width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``(W, W)`` between the pixels of one row, and between those of two rows that touch."""
    near = torch.ones(width - 1, dtype=like.dtype, device=like.device)
    neighbours = torch.diag(near, 1) + torch.diag(near, -1)
    return neighbours / 6, torch.eye(width, dtype=like.dtype, device=like.device) / 6 + neighbours / 12


def _neighbour_sum(values: Tensor, beside: Tensor, across: Tensor) -> Tensor:
    """``sum_j w_ij x_j`` over the neighbours inside the image, ``(B, C, H, W)``."""
    rows = values @ across
    above = F.pad(rows, (0, 0, 1, 0))[..., :-1, :]
    below = F.pad(rows, (0, 0, 0, 1))[..., 1:, :]
    return values @ beside + above + below


def _outer(first: Tensor, second: Tensor) -> Tensor:
    return first[:, :, None] * second[:, None, :]


def _counts(percentages: Sequence[float], pixels: int) -> Tensor:
    shares = torch.as_tensor(list(percentages), dtype=torch.float64)
    if not len(shares) or not ((shares >= 0) & (shares < 100)).all():
        raise LearnpropError(f"percentages must be one or more numbers in [0, 100), got {list(percentages)}")
    counts = (shares * pixels / 100).round().long()
    return counts.clamp(max=pixels - 1)


def _require_removed(images: Tensor, removed: Tensor) -> Tensor:
    """The mask as ``(B, 1, H, W)``."""
    if images.dim() != 4 or not images.numel():
        raise LearnpropError(f"images must be (B, C, H, W) and not empty, got {tuple(images.shape)}")
    expected = (len(images), 1, *images.shape[2:])
    if removed.dtype != torch.bool or tuple(removed.shape) not in (expected, expected[:1] + expected[2:]):
        raise LearnpropError(f"removed must be bool {expected}, got {removed.dtype} {tuple(removed.shape)}")
    if (lost := removed.flatten(1).all(1)).any():
        raise LearnpropError(f"image {int(lost.nonzero()[0])} has no pixel left; nothing can be imputed from")
    return removed.reshape(expected)
