"""Does a map rank the parts of an object as the model does? True importance by removing each part.

After Hesse, Schaub-Meyer, Roth: *FunnyBirds: A Synthetic Vision Dataset for a Part-Based Analysis of Explainable
AI Methods*, ICCV 2023, section 4 ("single deletion"): the importance of a part is how much the output falls when
the same scene is drawn without it, and maps are judged by the rank correlation of their mass with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_learnprop.chunks import rows_together
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.checks import require_batch_size, require_order, require_targets
from captum_learnprop.evaluation.faithfulness import OUTPUTS
from captum_learnprop.forward import output_of, warn_of_training
from zennit_rules.core.scalars import plain


@torch.no_grad()
def part_drops(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    without: Tensor,
    targets: Tensor,
    *,
    output: str = "softmax",
    internal_batch_size: int = 256,
) -> Tensor:
    """Returns how much the target's quantity falls without each part, ``(M, P)``; negative where it rises.

    Formula:
        ``f_t(x) - f_t(x without part p)``.

    Source:
        Hesse, Schaub-Meyer, Roth, *FunnyBirds*, ICCV 2023, section 4.

    Args:
        model: maps images to ``(M, classes)``; a module must be in evaluation mode, otherwise batches mix.
        images: ``(M, C, H, W)``, with all parts.
        without: ``(M, P, C, H, W)``, the same images without each part.
        targets: ``(M,)`` int64 classes.
        output: ``"softmax"`` or ``"sigmoid"`` probability, or ``"logit"``.
        internal_batch_size: how many images go through the model together.

    Raises:
        LearnpropError: shapes do not fit or an option is out of range.

    Example:
        >>> images = torch.tensor([[[[3.0, 1.0]]]])
        >>> without = torch.tensor([[[[[0.0, 1.0]]], [[[3.0, 0.0]]]]])  # two parts of a pixel each
        >>> drops = part_drops(torch.nn.Flatten().eval(), images, without, torch.tensor([0]), output="logit")
        >>> drops
        tensor([[3., 0.]])
    """
    if images.dim() != 4 or not images.numel():
        raise LearnpropError(f"images must be (M, C, H, W) and not empty, got {tuple(images.shape)}")
    count = len(images)
    if without.dim() != 5 or (count, *images.shape[1:]) != (len(without), *without.shape[2:]):
        raise LearnpropError(
            f"without must be (M, P, C, H, W) for images {tuple(images.shape)}, got {tuple(without.shape)}"
        )
    require_targets(targets, count)
    if output not in OUTPUTS:
        raise LearnpropError(f"unknown output {output!r}; choose one of {', '.join(OUTPUTS)}")
    internal_batch_size = plain(internal_batch_size)
    require_batch_size(internal_batch_size)
    together = rows_together(internal_batch_size, images.shape[1:], images.device)
    warn_of_training(model)
    shown = torch.cat([images[:, None], without], 1)
    asked = targets.repeat_interleave(shown.shape[1])
    values = [
        OUTPUTS[output](output_of(model, (rows,))).gather(1, classes[:, None])[:, 0]
        for rows, classes in zip(shown.flatten(0, 1).split(together), asked.split(together), strict=True)
    ]
    quantities = torch.cat(values).reshape(count, -1)
    return quantities[:, :1] - quantities[:, 1:]


def part_correlation(maps: Tensor, parts: Tensor, drops: Tensor) -> Tensor:
    """Returns Spearman's rank correlation between a map's sum in each part and the part's drop, ``(M,)`` in [-1, 1].

    Higher is better. Equal values share their mean rank, as in ``scipy.stats.spearmanr``. Where all sums or all drops
    are equal there is no ranking: 0. Negative values of the map count against a part; clamp them first to leave them
    out.

    Formula:
        ``corr over parts p of (rank(sum_{i in p} m_i), rank(drop_p))``.

    Source:
        Hesse, Schaub-Meyer, Roth, *FunnyBirds*, ICCV 2023, section 4 ("single deletion").

    Args:
        maps: ``(M, H, W)`` or ``(M, 1, H, W)``, higher is more relevant.
        parts: ``(M, P, H, W)`` bool, the visible pixels of each part, at least two parts.
        drops: ``(M, P)``, from `part_drops`.

    Raises:
        LearnpropError: shapes do not fit, masks are not bool, or a value is not finite.

    Example:
        >>> images = torch.tensor([[[[3.0, 1.0]]]])
        >>> without = torch.tensor([[[[[0.0, 1.0]]], [[[3.0, 0.0]]]]])  # two parts of a pixel each
        >>> drops = part_drops(torch.nn.Flatten().eval(), images, without, torch.tensor([0]), output="logit")
        >>> parts = torch.tensor([[[[True, False]], [[False, True]]]])
        >>> part_correlation(torch.tensor([[[2.0, 1.0]]]), parts, drops)
        tensor([1.], dtype=torch.float64)
    """
    if parts.dim() != 4 or parts.dtype != torch.bool or parts.shape[1] < 2:
        raise LearnpropError(
            f"parts must be bool of shape (M, P, H, W), 2 parts at least, got {parts.dtype} of {tuple(parts.shape)}"
        )
    count, number, height, width = parts.shape
    if tuple(maps.shape) not in ((count, height, width), (count, 1, height, width)):
        raise LearnpropError(
            f"maps must be {(count, height, width)} for parts {tuple(parts.shape)}, got {tuple(maps.shape)}"
        )
    if drops.shape != (count, number):
        raise LearnpropError(
            f"drops must be {(count, number)} for parts {tuple(parts.shape)}, got {tuple(drops.shape)}"
        )
    for name, values in (("map", maps), ("row of drops", drops)):
        require_order(values, name)
    mass = (maps.detach().reshape(count, 1, height, width).double() * parts).sum((2, 3))
    first, second = (_ranks(values) - (number - 1) / 2 for values in (mass, drops.double()))
    spread = (first.square().sum(1) * second.square().sum(1)).sqrt()
    correlation = (first * second).sum(1) / spread.clamp(min=torch.finfo(torch.float64).tiny)
    return correlation.clamp(-1.0, 1.0)


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, 0 the lowest, ``(M, P)`` float64; equal values share their mean rank."""
    pairs = values[:, :, None] - values[:, None, :]
    return ((pairs > 0).double() + 0.5 * (pairs == 0).double()).sum(2) - 0.5
