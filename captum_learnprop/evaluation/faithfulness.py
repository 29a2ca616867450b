"""Do the pixels that a map ranks highest decide the output? Deletion, insertion, and the area between two orders.

Petsiuk, Das, Saenko: *RISE: Randomized Input Sampling for Explanation of Black-box Models*, BMVC 2018, section 4.3.
Pixels are ranked by the map. Deletion replaces them by a baseline from the highest rank on: a faithful map makes the
output fall early, so lower is better. Insertion starts at the baseline and puts pixels back: higher is better.

Samek, Binder, Montavon, Lapuschkin, Müller: *Evaluating the Visualization of What a Deep Neural Network Has Learned*,
TNNLS 2017, remove the most relevant pixels first (MoRF, which is deletion). Schulz, Sixt, Tombari, Landgraf:
*Restricting the Flow*, ICLR 2020, compare with the opposite order, the least relevant first (LeRF): the area between
the two curves does not reward a baseline that breaks every image at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from captum_learnprop.chunks import rows_together
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.baselines import Baseline, fill_values
from captum_learnprop.evaluation.checks import require_batch_size, require_maps
from captum_learnprop.forward import output_of, warn_of_training
from zennit_rules.core.scalars import plain_fields

if TYPE_CHECKING:
    from typing_extensions import Unpack

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "sigmoid": torch.sigmoid,
    "logit": lambda logits: logits,
}
"""How the model's output becomes the quantity on the curve: classes that exclude each other, classes that
do not, raw."""

Model = Callable[[Tensor], Tensor]
"""Inputs ``(B, C, H, W)`` to outputs ``(B, classes)``. A module must be in evaluation mode, otherwise batches mix."""


class CurveOptions(TypedDict, total=False):
    """Keyword arguments that all functions of this module share; see `deletion` for their meaning and defaults."""

    baseline: Baseline
    steps: int
    output: str
    relative: bool
    seed: int
    internal_batch_size: int


@dataclass(frozen=True)
class _Options:
    """`CurveOptions` with their defaults, checked."""

    baseline: Baseline = 0.0
    steps: int = 32
    output: str = "softmax"
    relative: bool = False
    seed: int = 0
    internal_batch_size: int = 256

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.output not in OUTPUTS:
            raise LearnpropError(f"unknown output {self.output!r}; choose one of {', '.join(OUTPUTS)}")
        if self.relative and self.output == "logit":
            raise LearnpropError("relative=True needs output='softmax' or 'sigmoid': a logit can be zero or negative")
        require_batch_size(self.internal_batch_size)


@torch.no_grad()
def deletion(model: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **options: Unpack[CurveOptions]) -> Tensor:
    """Returns the area under the target's curve while the highest-ranked pixels are replaced by the baseline, ``(B,)``.

    Lower is better; in [0, 1] for probabilities.

    Formula:
        ``mean over k = 1..steps of (c_{k-1} + c_k) / 2`` (trapezoids on a width of 1) with ``c_k`` the target's
        quantity after ``round(k * H * W / steps)`` pixels, all channels of each, were replaced.

    Source:
        Petsiuk, Das, Saenko, *RISE*, BMVC 2018, section 4.3.

    Args:
        model: maps inputs to ``(B, classes)``; a module must be in evaluation mode, otherwise batches mix.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``; higher is replaced earlier, among equal values the pixel that comes
            first in reading order.
        targets: ``(B,)`` int64 class of each map.
        **options:
            baseline (0.0): a number, a tensor that broadcasts to the inputs, a function of the inputs, or ``"zero"``,
            ``"mean"``, ``"blur"`` or ``"noise"``; see `captum_learnprop.evaluation.baselines.fill_values`.

            steps (32): how often pixels are replaced, 1 to ``H * W``. Each costs one forward pass.

            output ("softmax"): ``"softmax"`` or ``"sigmoid"`` probability, or ``"logit"``.

            relative (False): divide each curve by the quantity of the unchanged input, so that samples with low
            confidence count as much as others. Only for probabilities: a logit can be zero or negative.

            seed (0): of the baseline ``"noise"``.

            internal_batch_size (256): how many changed inputs go through the model together, at most; on a processor
            fewer large ones (see `captum_learnprop.chunks`).

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, a target does not exist, or an option is out of range.

    Example:
        >>> inputs, maps = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[1.0, 0.0]]])  # a pixel for each class
        >>> deletion_curve(torch.nn.Flatten().eval(), inputs, maps, torch.tensor([0]), steps=2, output="logit")
        tensor([[2., 0., 0.]])
        >>> deletion(torch.nn.Flatten().eval(), inputs, maps, torch.tensor([0]), steps=2, output="logit")
        tensor([0.5000])
    """
    return area(deletion_curve(model, inputs, maps, targets, **options))


@torch.no_grad()
def insertion(model: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **options: Unpack[CurveOptions]) -> Tensor:
    """Returns the area under the target's curve while the highest-ranked pixels are put into the baseline, ``(B,)``.

    Higher is better; in [0, 1] for probabilities. RISE starts from a blurred image: ``baseline="blur"``.

    Formula:
        ``mean over k = 1..steps of (c_{k-1} + c_k) / 2`` with ``c_k`` the target's quantity after ``round(k * H * W /
        steps)`` pixels, all channels of each, took the place of the baseline's.

    Source:
        Petsiuk, Das, Saenko, *RISE*, BMVC 2018, section 4.3.

    Args:
        model: maps inputs to ``(B, classes)``; a module must be in evaluation mode, otherwise batches mix.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``; higher is put back earlier.
        targets: ``(B,)`` int64 class of each map.
        **options: those of `deletion`.

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, a target does not exist, or an option is out of range.

    Example:
        >>> inputs, maps = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[1.0, 0.0]]])  # a pixel for each class
        >>> insertion(torch.nn.Flatten().eval(), inputs, maps, torch.tensor([0]), steps=2, output="logit")
        tensor([1.5000])
    """
    return area(insertion_curve(model, inputs, maps, targets, **options))


@torch.no_grad()
def morf_lerf_area(
    model: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **options: Unpack[CurveOptions]
) -> Tensor:
    """Returns the area between the curves of the two orders, LeRF minus MoRF, ``(B,)`` in [-1, 1] for probabilities.

    Higher is better. Zero in expectation for a random map, whatever the baseline, and exactly zero for a constant one.
    Also called area between perturbation curves (ABPC). It costs twice as much as `deletion`.

    Formula:
        ``area(lerf_curve) - area(morf_curve)``, each as in `deletion`.

    Source:
        Samek et al., TNNLS 2017; Schulz, Sixt, Tombari, Landgraf, *Restricting the Flow*, ICLR 2020.

    Args:
        model: maps inputs to ``(B, classes)``; a module must be in evaluation mode, otherwise batches mix.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``, higher is more relevant.
        targets: ``(B,)`` int64 class of each map.
        **options: those of `deletion`.

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, a target does not exist, or an option is out of range.

    Example:
        >>> inputs, maps = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[1.0, 0.0]]])  # a pixel for each class
        >>> morf_lerf_area(torch.nn.Flatten().eval(), inputs, maps, torch.tensor([0]), steps=2, output="logit")
        tensor([1.])
    """
    least_first = lerf_curve(model, inputs, maps, targets, **options)
    return area(least_first) - area(morf_curve(model, inputs, maps, targets, **options))


def area(curves: Tensor) -> Tensor:
    """Returns the trapezoidal area ``(B,)`` under curves ``(B, steps + 1)`` on a width of 1.

    Example:
        >>> area(torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([0.7500])
    """
    return ((curves[:, :-1] + curves[:, 1:]) / 2).mean(1)


@torch.no_grad()
def deletion_curve(
    model: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **options: Unpack[CurveOptions]
) -> Tensor:
    """Returns the curve ``(B, steps + 1)`` behind `deletion`, from the unchanged input to the baseline.

    Arguments are those of `deletion`.

    Formula:
        ``c_k``, the target's quantity after ``round(k * H * W / steps)`` pixels were replaced, ``k = 0..steps``.

    Source:
        Petsiuk, Das, Saenko, *RISE*, BMVC 2018, section 4.3.

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, a target does not exist, or an option is out of range.

    Example:
        >>> inputs, maps = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[1.0, 0.0]]])  # a pixel for each class
        >>> deletion_curve(torch.nn.Flatten().eval(), inputs, maps, torch.tensor([0]), steps=2, output="logit")
        tensor([[2., 0., 0.]])
    """
    return _curve(model, inputs, maps, targets, _Options(**options))


morf_curve = deletion_curve
"""Most relevant first: another name of `deletion_curve`, beside `lerf_curve`."""


@torch.no_grad()
def lerf_curve(model: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **options: Unpack[CurveOptions]) -> Tensor:
    """Returns the curve ``(B, steps + 1)`` while the lowest-ranked pixels are replaced by the baseline.

    Arguments are those of `deletion`.

    It goes from the unchanged input to the baseline; among equal values the first in reading order is replaced first.

    Formula:
        ``c_k``, the target's quantity after the ``round(k * H * W / steps)`` lowest pixels were replaced, ``k =
        0..steps``.

    Source:
        Schulz, Sixt, Tombari, Landgraf, *Restricting the Flow*, ICLR 2020.

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, a target does not exist, or an option is out of range.

    Example:
        >>> inputs, maps = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[1.0, 0.0]]])  # a pixel for each class
        >>> lerf_curve(torch.nn.Flatten().eval(), inputs, maps, torch.tensor([0]), steps=2, output="logit")
        tensor([[2., 2., 0.]])
    """
    return _curve(model, inputs, maps, targets, _Options(**options), lowest_first=True)


@torch.no_grad()
def insertion_curve(
    model: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **options: Unpack[CurveOptions]
) -> Tensor:
    """Returns the curve ``(B, steps + 1)`` behind `insertion`, from the baseline to the unchanged input.

    Arguments are those of `deletion`.

    Formula:
        ``c_k``, the target's quantity after ``round(k * H * W / steps)`` pixels were put back, ``k = 0..steps``.

    Source:
        Petsiuk, Das, Saenko, *RISE*, BMVC 2018, section 4.3.

    Raises:
        LearnpropError: shapes do not fit, a map is not finite, a target does not exist, or an option is out of range.

    Example:
        >>> inputs, maps = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[1.0, 0.0]]])  # a pixel for each class
        >>> insertion_curve(torch.nn.Flatten().eval(), inputs, maps, torch.tensor([0]), steps=2, output="logit")
        tensor([[0., 2., 2.]])
    """
    return _curve(model, inputs, maps, targets, _Options(**options), insert=True)


def _curve(
    model: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    options: _Options,
    *,
    insert: bool = False,
    lowest_first: bool = False,
) -> Tensor:
    require_maps(inputs, maps, targets)
    pixels = inputs[0, 0].numel()
    if not 1 <= options.steps <= pixels:
        raise LearnpropError(f"steps must be between 1 and the number of pixels {pixels}, got {options.steps}")
    fill = fill_values(options.baseline, inputs, options.seed)
    start, end = (fill, inputs) if insert else (inputs, fill)
    ranks = pixel_ranks(maps, lowest_first=lowest_first)
    counts = torch.linspace(0, pixels, options.steps + 1, dtype=torch.float64).round().long().to(inputs.device)

    def changed(sample: Tensor, step: Tensor) -> Tensor:
        replaced = ranks[sample] < counts[step, None, None, None]
        return torch.where(replaced, end[sample], start[sample])

    quantity = OUTPUTS[options.output]
    together = rows_together(options.internal_batch_size, inputs.shape[1:], inputs.device)
    curve = target_curve(model, changed, quantity, targets, options.steps + 1, together)
    unchanged = -1 if insert else 0
    return curve / curve[:, unchanged, None] if options.relative else curve


def target_curve(
    model: Model,
    changed: Callable[[Tensor, Tensor], Tensor],
    quantity: Callable[[Tensor], Tensor],
    targets: Tensor,
    points: int,
    internal_batch_size: int,
) -> Tensor:
    """Returns the target's quantity on each point of each sample's curve, ``(B, points)``.

    Args:
        model: inputs to outputs ``(n, classes)``.
        changed: ``(samples (n,), points (n,)) -> (n, C, H, W)``, the inputs on these points.
        quantity: of `OUTPUTS`.
        targets: ``(B,)``.
        points: of each curve.
        internal_batch_size: the largest ``n``.

    Raises:
        LearnpropError: the outputs are not ``(n, classes)``, or a target is not one of the classes.
    """
    warn_of_training(model)
    sample = torch.arange(len(targets), device=targets.device).repeat_interleave(points)
    point = torch.arange(points, device=targets.device).repeat(len(targets))
    values: list[Tensor] = []
    for rows, steps in zip(sample.split(internal_batch_size), point.split(internal_batch_size), strict=True):
        outputs = output_of(model, (changed(rows, steps),))
        if outputs.dim() != 2 or len(outputs) != len(rows):
            raise LearnpropError(f"the model must give (B, classes), got {tuple(outputs.shape)} for B = {len(rows)}")
        if not values and not ((targets >= 0) & (targets < outputs.shape[1])).all():
            raise LearnpropError(f"targets must be classes 0 to {outputs.shape[1] - 1}, got {targets.tolist()}")
        values.append(quantity(outputs).gather(1, targets[rows, None])[:, 0])
    return torch.cat(values).reshape(len(targets), points)


def pixel_ranks(maps: Tensor, *, lowest_first: bool = False) -> Tensor:
    """Returns the rank of each pixel, ``(B, 1, H, W)``, 0 the highest (or the lowest); ties in reading order.

    Example:
        >>> pixel_ranks(torch.tensor([[[0.2, 0.9, 0.2]]]))
        tensor([[[[1, 0, 2]]]])
    """
    order = maps.flatten(1).sort(dim=1, descending=not lowest_first, stable=True).indices
    ranks = torch.empty_like(order)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ranks.scatter_(1, order, places)
    return ranks.reshape(len(maps), 1, *maps.shape[-2:])
