"""Perturbations: an input under a mask, from untouched where the mask is 1 to without information where it is 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LearnpropError
from ...maps import per_axis, smooth
from .random_streams import RandomStreams

STRONGEST = 0.5
"""Largest standard deviation of `Noise`, as a share of a channel's range."""

LEVELS = 8
"""Number of blurs, the untouched input included."""

BLUR_SIGMA = 20 / 224
"""Standard deviation of the strongest blur, as a fraction of the sides (see `per_axis`)."""


class Perturbation(ABC):
    """One input ``(B, C, *spatial)`` or ``(B, F)`` with what takes its place.

    Attributes:
        draws: Whether what takes the place is drawn anew at every call.
    """

    draws = False

    def restart(self) -> None:  # noqa: B027 - most draw nothing
        """Begin to draw from the start again."""

    @abstractmethod
    def __call__(self, masks: Tensor, rows: Tensor, streams: Tensor | None = None) -> Tensor:
        """Inputs ``(R, ...)`` of some samples under masks.

        Args:
            masks: ``(R, *spatial)`` or ``(R, F)``, in [0, 1].
            rows: The sample of each row, ``(R,)``.
            streams: The stream of random numbers of each row, ``(R,)``; one for all by default.
        """

    def change(self, masks: Tensor, rows: Tensor) -> Tensor:
        """What a perturbation everywhere takes from some samples, ``(R, ...)`` in the shape of an input.

        Args:
            masks: They give shape and type only, ``(R, *spatial)`` or ``(R, F)``.
            rows: The sample of each row, ``(R,)``.
        """
        return self(torch.ones_like(masks), rows) - self(torch.zeros_like(masks), rows)


class Fade(Perturbation):
    """``m x + (1 - m) baseline``.

    Args:
        inputs: ``(B, ...)``.
        baseline: A number, or a tensor that broadcasts to the inputs.

    Raises:
        LearnpropError: For a baseline that does not.
    """

    def __init__(self, inputs: Tensor, baseline: float | Tensor = 0.0) -> None:
        self.inputs = inputs
        filled = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device)
        try:
            self.baseline = filled.detach().expand_as(inputs)
        except RuntimeError as error:
            raise LearnpropError(
                f"baseline {tuple(filled.shape)} does not broadcast to the input {tuple(inputs.shape)}"
            ) from error

    def __call__(self, masks: Tensor, rows: Tensor, streams: Tensor | None = None) -> Tensor:
        """Inputs mixed with the baseline, ``(R, ...)``: the mask is the weight of the input."""
        if self.inputs.dim() > 2:
            masks = masks[:, None]
        return torch.lerp(self.baseline[rows], self.inputs[rows], masks.to(self.inputs.dtype))


class Blur(Perturbation):
    """The mask chooses between the input and blurs of it, `LEVELS` of them up to `BLUR_SIGMA`, linear in between.

    The border's values are repeated beyond it, so that a constant stays what it is.

    Args:
        inputs: ``(B, C, *spatial)``.
    """

    def __init__(self, inputs: Tensor) -> None:
        exact = inputs if inputs.dtype is torch.float64 else inputs.float()
        flat = exact.flatten(0, 1)
        sigmas = per_axis(BLUR_SIGMA, inputs.shape[2:])
        levels = [
            smooth(flat, [sigma * (1 - n / (LEVELS - 1)) for sigma in sigmas]).reshape(inputs.shape)
            for n in range(LEVELS)
        ]
        self.dtype, self.shape = inputs.dtype, tuple(inputs.shape[1:])
        # Channels last, so that a pixel of a level is one row of a table.
        self.table = torch.stack(levels, 1).flatten(3).transpose(2, 3).reshape(-1, inputs.shape[1])

    def __call__(self, masks: Tensor, rows: Tensor, streams: Tensor | None = None) -> Tensor:
        """Inputs ``(R, ...)`` as blurred as the mask says, between the two nearest levels."""
        blurred: Tensor = _Blurred.apply(masks.flatten(1), self.table, rows)
        return blurred.reshape(len(masks), *self.shape).to(self.dtype)


class _Blurred(torch.autograd.Function):
    """Looks the two nearest levels up; keeps the masks alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, masks: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(masks, table, rows)
        below, above, between = _levels(masks, table, rows)
        return torch.lerp(below, above, between[..., None]).transpose(1, 2).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        masks, table, rows = ctx.saved_tensors
        below, above, _ = _levels(masks, table, rows)
        slope = (above.sub_(below).transpose(1, 2) * gradient).sum(1)
        return slope.mul_(LEVELS - 1), None, None


def _levels(masks: Tensor, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pixels = masks.shape[1]
    place = masks * (LEVELS - 1)
    level = place.floor().clamp_(0, LEVELS - 2)
    index = (rows[:, None] * LEVELS + level.long()) * pixels + torch.arange(pixels, device=masks.device)
    return F.embedding(index, table), F.embedding(index + pixels, table), place - level


class Noise(Perturbation):
    """A random colour with noise stands where the mask is 0, drawn anew at every call, in the range of each channel.

    No fixed surrounding can be used by the mask to make evidence of its own shape: what it keeps must work in any. All
    samples of a stream see the same numbers, so that none depends on the others.

    Args:
        inputs: ``(B, C, *spatial)`` or ``(B, F)``.
        seed: The seed of the draws.
    """

    draws = True

    def __init__(self, inputs: Tensor, seed: int = 0) -> None:
        self.inputs, self._streams = inputs, RandomStreams(seed)
        space = tuple(range(2, inputs.dim()))
        low, high = (
            (inputs.amin(space, True), inputs.amax(space, True)) if space else inputs.aminmax(dim=1, keepdim=True)
        )
        self.low, self.width = low, high - low

    def restart(self) -> None:
        """Begin to draw the same colours and noise again."""
        self._streams.restart()

    def __call__(self, masks: Tensor, rows: Tensor, streams: Tensor | None = None) -> Tensor:
        """Inputs under masks, beside colours and noise that all rows of a stream share."""
        (fill,) = self._streams.draw(lambda generator: (self._fill(generator).to(self.inputs),), streams)
        if self.inputs.dim() > 2:
            masks = masks[:, None]
        return torch.lerp(self.low[rows] + self.width[rows] * fill, self.inputs[rows], masks.to(self.inputs.dtype))

    def _fill(self, generator: torch.Generator) -> Tensor:
        """Values in [0, 1] in the shape of an input."""
        shape = tuple(self.inputs.shape[1:])
        colour = torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator)
        strength = STRONGEST * torch.rand((), generator=generator)
        return (colour + strength * torch.randn(shape, generator=generator)).clamp(0.0, 1.0)

    def change(self, masks: Tensor, rows: Tensor) -> Tensor:
        """What the input is more than the median of each channel, ``(R, ...)``.

        Noise has no fixed value to count from, and in an image the median is mostly the background's.
        """
        inputs = self.inputs[rows]
        flat = inputs.flatten(2) if inputs.dim() > 2 else inputs
        median = flat.median(-1, keepdim=True).values
        return inputs - (median.reshape(*median.shape, *[1] * (inputs.dim() - 3)) if inputs.dim() > 2 else median)


class UserPerturbation(Perturbation):
    """A perturbation of the user's own: ``(inputs (R, ...), masks (R, 1, *spatial) or (R, F)) -> (R, ...)``."""

    def __init__(self, inputs: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.inputs, self.function = inputs, function

    def __call__(self, masks: Tensor, rows: Tensor, streams: Tensor | None = None) -> Tensor:
        """What the function makes of inputs and masks, ``(R, ...)``.

        Raises:
            LearnpropError: If that has another shape than the inputs.
        """
        inputs = self.inputs[rows]
        changed = self.function(inputs, masks[:, None] if inputs.dim() > 2 else masks)
        if not isinstance(changed, Tensor) or changed.shape != inputs.shape:
            found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise LearnpropError(f"perturbation gave {found} for inputs {tuple(inputs.shape)}; it must keep the shape")
        return changed


def perturbation_of(kind: Any, inputs: Tensor, baseline: Any, seed: int = 0) -> Perturbation:
    """A perturbation of one input.

    Args:
        kind: ``"blur"``, ``"fade"``, ``"noise"``, a function, or None: fade where a baseline is given or there is no
            space, else blur.
        inputs: ``(B, C, *spatial)`` or ``(B, F)``.
        baseline: What fading ends at; None for 0.
        seed: The seed of ``"noise"``.

    Raises:
        LearnpropError: For an unknown kind, a blur without space, or a baseline that is not faded to.
    """
    if kind is None:
        kind = "fade" if baseline is not None or inputs.dim() < 3 else "blur"
    if baseline is not None and kind != "fade":
        raise LearnpropError(f"baselines are what perturbation='fade' ends at; leave them out, or {kind!r}")
    if kind == "fade":
        return Fade(inputs, 0.0 if baseline is None else baseline)
    if kind == "blur":
        if inputs.dim() < 3:
            raise LearnpropError(f"perturbation='blur' needs (B, C, *spatial), got {tuple(inputs.shape)}; use 'fade'")
        return Blur(inputs)
    if kind == "noise":
        return Noise(inputs, seed)
    if not callable(kind):
        raise LearnpropError(
            f"unknown perturbation {kind!r}; choose 'blur', 'fade', 'noise' or a function (inputs, masks)"
        )
    return UserPerturbation(inputs, kind)
