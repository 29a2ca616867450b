"""Masks: an attribution turned into values in [0, 1] that keep or remove input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import LearnpropError
from ..evaluation.maps import smooth

Mask = Callable[[Tensor], Tensor]


class MaxMask:
    """Strength of the attribution over channels, divided by its largest value in the sample.

    ``m = r / max(r)`` with ``r = max_c |a|``, ``sum_c |a|`` or ``sum_c max(a, 0)``; then, if asked for, smoothed and
    raised to a power below 1. Channels are dimension 1 of inputs with at least three dimensions; ``(B, F)`` inputs
    have none. A sample without any attribution gets the mask 0.

    The plain form belongs to the LPR-reconstruction. Its masks are so spiky that a few pixels decide the masked output,
    and gates learn to pick adversarial ones; smoothing and a square root make masks that cover objects.

    Args:
        reduce: ``"max"`` (the LPR-reconstruction's), ``"sum"`` or ``"positive"``.
        sigma: Gaussian smoothing of ``r`` over space, as a fraction of the input's shorter side; 0 for none.
        power: Exponent applied to ``r / max(r)``.

    Raises:
        LearnpropError: For an unknown ``reduce``, a negative ``sigma`` or a ``power`` that is not positive.
    """

    def __init__(self, reduce: str = "max", *, sigma: float = 0.0, power: float = 1.0) -> None:
        if reduce not in ("max", "sum", "positive"):
            raise LearnpropError(f"MaxMask(reduce={reduce!r}): choose 'max', 'sum' or 'positive'")
        if sigma < 0 or not power > 0:
            raise LearnpropError(f"MaxMask(sigma={sigma}, power={power}): sigma must be >= 0 and power > 0")
        self.reduce, self.sigma, self.power = reduce, sigma, power

    def __repr__(self) -> str:
        return f"MaxMask({self.reduce!r}, sigma={self.sigma}, power={self.power})"

    def __call__(self, attribution: Tensor) -> Tensor:
        """Mask ``(B, 1, *spatial)`` (or ``(B, F)``) of a signed attribution ``(B, C, *spatial)`` (or ``(B, F)``)."""
        strength = attribution.clamp(min=0) if self.reduce == "positive" else attribution.abs()
        if attribution.ndim > 2:
            over_channels = torch.amax if self.reduce == "max" else torch.sum
            strength = over_channels(strength, dim=1, keepdim=True)
            if self.sigma:
                strength = smooth(strength[:, 0], self.sigma * min(strength.shape[2:]))[:, None]
        dims = tuple(range(1, strength.ndim))
        top = strength.amax(dim=dims, keepdim=True) if dims else strength
        ratio = strength / torch.where(top > 0, top, torch.ones_like(top))
        return ratio if self.power == 1 else _raised(ratio, self.power)


def _raised(ratio: Tensor, power: float) -> Tensor:
    """``ratio ** power`` with 0 and 1 kept and a finite slope at 0."""
    return ((ratio + _SOFT) ** power - _SOFT**power) / ((1 + _SOFT) ** power - _SOFT**power)


_SOFT = 1e-4
