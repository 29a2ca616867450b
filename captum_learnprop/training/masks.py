"""Masks: an attribution turned into values in [0, 1] that keep or remove input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import LearnpropError

Mask = Callable[[Tensor], Tensor]


class MaxMask:
    """Strength of the attribution over channels, divided by its largest value in the sample.

    ``m = r / max(r)`` with ``r = max_c |a|``, ``sum_c |a|`` or ``sum_c max(a, 0)``. Channels are dimension 1 of inputs
    with at least three dimensions; ``(B, F)`` inputs have none. A sample without any attribution gets the mask 0.

    Args:
        reduce: ``"max"`` (the LPR-reconstruction's), ``"sum"`` or ``"positive"``.

    Raises:
        LearnpropError: For an unknown ``reduce``.
    """

    def __init__(self, reduce: str = "max") -> None:
        if reduce not in ("max", "sum", "positive"):
            raise LearnpropError(f"MaxMask(reduce={reduce!r}): choose 'max', 'sum' or 'positive'")
        self.reduce = reduce

    def __repr__(self) -> str:
        return f"MaxMask({self.reduce!r})"

    def __call__(self, attribution: Tensor) -> Tensor:
        """Mask ``(B, 1, *spatial)`` (or ``(B, F)``) of a signed attribution ``(B, C, *spatial)`` (or ``(B, F)``)."""
        strength = attribution.clamp(min=0) if self.reduce == "positive" else attribution.abs()
        if attribution.ndim > 2:
            over_channels = torch.amax if self.reduce == "max" else torch.sum
            strength = over_channels(strength, dim=1, keepdim=True)
        dims = tuple(range(1, strength.ndim))
        top = strength.amax(dim=dims, keepdim=True) if dims else strength
        return strength / torch.where(top > 0, top, torch.ones_like(top))
