"""Do the pixels that a map ranks highest decide the output? Deletion and insertion.

Petsiuk, Das, Saenko: *RISE: Randomized Input Sampling for Explanation of Black-box Models*, BMVC 2018,
section 4.3. Pixels are ranked by the map. Deletion replaces them by a baseline from the highest rank on: a
faithful map makes the output fall early, so lower is better. Insertion starts at the baseline and puts
pixels back: higher is better.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_learnprop.evaluation.maps import MapError

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "sigmoid": torch.sigmoid,
    "logit": lambda logits: logits,
}
"""How the model's output becomes the quantity on the curve: classes that exclude each other, classes that
do not, raw."""


@torch.no_grad()
def deletion(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    steps: int = 32,
    output: str = "softmax",
    relative: bool = False,
    internal_batch_size: int = 256,
) -> Tensor:
    """Area under the target's curve while the highest-ranked pixels are replaced by the baseline, ``(B,)``;
    lower is better.

    ``mean over k = 1..steps of (c_{k-1} + c_k) / 2`` (trapezoids on a width of 1) with ``c_k`` the target's
    quantity after ``round(k * H * W / steps)`` pixels, all channels of each, were replaced.

    Args:
        model: maps inputs to ``(B, classes)``; a module must be in evaluation mode, otherwise batches mix.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, H, W)`` or ``(B, 1, H, W)``, higher is more relevant. Among equal values the pixel that
            comes first in reading order is replaced first.
        targets: ``(B,)`` int64 class of each map.
        baseline: a number or a tensor that broadcasts to the inputs, e.g. blurred inputs.
        steps: how often pixels are replaced, 1 to ``H * W``. Each costs one forward pass.
        output: ``"softmax"`` or ``"sigmoid"`` probability, or ``"logit"``.
        relative: divide each curve by the quantity of the unchanged input, so that samples with low
            confidence count as much as others. Only for probabilities: a logit can be zero or negative.
        internal_batch_size: how many changed inputs go through the model together.

    Raises:
        MapError: shapes do not fit, a map is not finite, or an option is out of range.
    """
    curves = deletion_curve(
        model, inputs, maps, targets,
        baseline=baseline, steps=steps, output=output, relative=relative,
        internal_batch_size=internal_batch_size,
    )  # fmt: skip
    return area(curves)


@torch.no_grad()
def insertion(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    steps: int = 32,
    output: str = "softmax",
    relative: bool = False,
    internal_batch_size: int = 256,
) -> Tensor:
    """Area under the target's curve while the highest-ranked pixels are put into the baseline, ``(B,)``;
    higher is better.

    Arguments and errors are those of `deletion`. RISE starts from a blurred image: pass it as ``baseline``.
    """
    curves = insertion_curve(
        model, inputs, maps, targets,
        baseline=baseline, steps=steps, output=output, relative=relative,
        internal_batch_size=internal_batch_size,
    )  # fmt: skip
    return area(curves)


def area(curves: Tensor) -> Tensor:
    """Trapezoidal area ``(B,)`` under curves ``(B, steps + 1)`` on a width of 1."""
    return ((curves[:, :-1] + curves[:, 1:]) / 2).mean(1)


@torch.no_grad()
def deletion_curve(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    steps: int = 32,
    output: str = "softmax",
    relative: bool = False,
    internal_batch_size: int = 256,
) -> Tensor:
    """The curve ``(B, steps + 1)`` behind `deletion`, from the unchanged input to the baseline."""
    _check(inputs, maps, targets, steps, output, relative, internal_batch_size)
    fill = _as_inputs(baseline, inputs)
    curve = _curve(model, inputs, fill, _ranks(maps), targets, steps, OUTPUTS[output], internal_batch_size)
    return curve / curve[:, :1] if relative else curve


@torch.no_grad()
def insertion_curve(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    steps: int = 32,
    output: str = "softmax",
    relative: bool = False,
    internal_batch_size: int = 256,
) -> Tensor:
    """The curve ``(B, steps + 1)`` behind `insertion`, from the baseline to the unchanged input."""
    _check(inputs, maps, targets, steps, output, relative, internal_batch_size)
    fill = _as_inputs(baseline, inputs)
    curve = _curve(model, fill, inputs, _ranks(maps), targets, steps, OUTPUTS[output], internal_batch_size)
    return curve / curve[:, -1:] if relative else curve


def _curve(
    model: Callable[[Tensor], Tensor],
    start: Tensor,
    end: Tensor,
    ranks: Tensor,
    targets: Tensor,
    steps: int,
    quantity: Callable[[Tensor], Tensor],
    internal_batch_size: int,
) -> Tensor:
    """The target's quantity while the pixels of ``start`` become those of ``end`` in the order of their
    ranks."""
    batch, pixels = len(start), ranks[0].numel()
    counts = torch.linspace(0, pixels, steps + 1, dtype=torch.float64).round().long().to(start.device)
    sample = torch.arange(batch, device=start.device).repeat_interleave(steps + 1)
    changed = counts.repeat(batch)
    values = []
    for rows, count in zip(sample.split(internal_batch_size), changed.split(internal_batch_size), strict=True):
        replaced = ranks[rows] < count[:, None, None, None]
        outputs = quantity(model(torch.where(replaced, end[rows], start[rows])))
        values.append(outputs.gather(1, targets[rows, None])[:, 0])
    return torch.cat(values).reshape(batch, steps + 1)


def _ranks(maps: Tensor) -> Tensor:
    """Rank of each pixel, 0 the highest, ``(B, 1, H, W)``; a stable sort breaks ties by reading order."""
    order = maps.flatten(1).sort(dim=1, descending=True, stable=True).indices
    ranks = torch.empty_like(order)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ranks.scatter_(1, order, places)
    return ranks.reshape(len(maps), 1, *maps.shape[-2:])


def _as_inputs(baseline: float | Tensor, inputs: Tensor) -> Tensor:
    if not isinstance(baseline, Tensor):
        return torch.full_like(inputs, baseline)
    try:
        return baseline.to(inputs).expand_as(inputs)
    except RuntimeError as error:
        raise MapError(
            f"baseline {tuple(baseline.shape)} does not broadcast to inputs {tuple(inputs.shape)}"
        ) from error


def _check(
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    steps: int,
    output: str,
    relative: bool,
    internal_batch_size: int,
) -> None:
    if inputs.dim() != 4 or not inputs.numel():
        raise MapError(f"inputs must be (B, C, H, W) and not empty, got {tuple(inputs.shape)}")
    batch, _, height, width = inputs.shape
    if tuple(maps.shape) not in ((batch, height, width), (batch, 1, height, width)):
        raise MapError(
            f"maps must be {(batch, height, width)} or {(batch, 1, height, width)} for inputs "
            f"{tuple(inputs.shape)}, got {tuple(maps.shape)}; sum colour channels first"
        )
    bad = ~maps.flatten(1).isfinite().all(1)
    if bad.any():
        raise MapError(f"map {int(bad.nonzero()[0])} has NaN or infinite values; no ranking exists")
    if targets.shape != (batch,) or targets.dtype != torch.int64:
        raise MapError(f"targets must be int64 of shape ({batch},), got {targets.dtype} of {tuple(targets.shape)}")
    if not 1 <= steps <= height * width:
        raise MapError(f"steps must be between 1 and the number of pixels {height * width}, got {steps}")
    if output not in OUTPUTS:
        raise MapError(f"unknown output {output!r}; choose one of {', '.join(OUTPUTS)}")
    if relative and output == "logit":
        raise MapError("relative=True needs output='softmax' or 'sigmoid': a logit can be zero or negative")
    if internal_batch_size < 1:
        raise MapError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
