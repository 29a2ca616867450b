"""Maps of attributions: one value per pixel, smoothed or not.

Scores and objectives rank or sum pixels, so they need one value for each. How signs and channels are
reduced and how much a map is smoothed changes every score: compare methods under the same choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError
from zennit_rules._moved import renamed

SIGNS = ("absolute", "positive", "signed")
"""Ways to reduce channels, see `reduce_channels`."""

SHORT = 0.5
"""Share of the longest side: an axis that is shorter is no axis of the same picture."""


def reduce_channels(attribution: Tensor, sign: str = "absolute") -> Tensor:
    """One value per position from an attribution ``(B, C, *spatial)``: ``(B, *spatial)``, differentiable.

    Args:
        attribution: Signed values, ``(B, C, *spatial)``.
        sign: ``"absolute"``, the sum of absolute values over channels; ``"positive"``, the positive part of
            the sum; ``"signed"``, the sum.

    Raises:
        LearnpropError: For an unknown sign, or another shape.
    """
    if attribution.dim() < 3:
        raise LearnpropError(f"attribution must be (B, C, *spatial), got {tuple(attribution.shape)}")
    if sign == "absolute":
        return attribution.abs().sum(1)
    if sign == "positive":
        return attribution.sum(1).clamp(min=0.0)
    if sign == "signed":
        return attribution.sum(1)
    raise LearnpropError(f"unknown sign {sign!r}; choose one of {', '.join(SIGNS)}")


def per_axis(fraction: float, spatial: Sequence[int]) -> tuple[float, ...]:
    """A fraction of the sides of an input, in pixels, for each axis of ``spatial``.

    Axes of about one length count pixels of one kind, those of a picture, and share a scale: a fraction of the shortest
    of them. An axis of less than `SHORT` times the longest is of another kind (electrodes beside samples in time, the
    slices of a stack): its scale is a fraction of its own side, and it does not change those of the others.
    """
    longest = max(spatial)
    common = min(side for side in spatial if side >= SHORT * longest)
    return tuple(fraction * min(side, common) for side in spatial)


def smooth(maps: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Gaussian smoothing of maps ``(B, *spatial)`` by ``sigma`` pixels, differentiable; 0 leaves them as they are.

    The kernel reaches 3 sigma; beyond the border the border's values are repeated. An axis of length 1 stays.

    Args:
        maps: ``(B, *spatial)``.
        sigma: Standard deviation in pixels, one for all axes or one for each, as `per_axis` gives them.

    Raises:
        LearnpropError: If a sigma is negative, or there is not one per axis.
    """
    axes = maps.shape[1:]
    sigmas = [sigma] * len(axes) if not isinstance(sigma, Sequence) else list(sigma)
    if len(sigmas) != len(axes) or not all(one >= 0 for one in sigmas):
        raise LearnpropError(f"sigma must be at least 0 pixels, one for all or for each of {tuple(axes)}, got {sigma}")
    for dim, (one, side) in enumerate(zip(sigmas, axes, strict=True), start=1):
        radius = int(3 * one + 0.5)
        if radius == 0 or side == 1:
            continue
        span = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
        kernel = torch.exp(-0.5 * (span / one) ** 2)
        kernel = (kernel / kernel.sum())[None, None]
        rows = maps.movedim(dim, -1)
        padded = F.pad(rows.reshape(-1, 1, side), (radius, radius), mode="replicate")
        maps = F.conv1d(padded, kernel).reshape(rows.shape).movedim(-1, dim)
    return maps


def postprocess(attribution: Tensor, sign: str, smoothing: float) -> Tensor:
    """The map ``(B, *spatial)`` of an attribution ``(B, C, *spatial)``, differentiable.

    Features of a table ``(B, F)`` have no channels and no neighbours: the map is ``(B, F)``, and not smoothed.

    Args:
        attribution: Signed values.
        sign: One of `SIGNS`, which `reduce_channels` describes.
        smoothing: Sigma of `smooth`, as a fraction of the sides (see `per_axis`).

    Raises:
        LearnpropError: For an unknown sign, another shape or a negative smoothing.
    """
    if attribution.dim() == 2:
        return reduce_channels(attribution[:, None], sign)
    return smooth(reduce_channels(attribution, sign), per_axis(smoothing, attribution.shape[2:]))


__getattr__ = renamed(__name__, {"MapError": "LearnpropError", "finished": "postprocess"})
