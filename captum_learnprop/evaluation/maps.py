"""From an attribution to a map: one value per pixel, smoothed or not.

Scores and objectives rank or sum pixels, so they need one value for each. How signs and channels are
reduced and how much a map is smoothed changes every score: compare methods under the same choices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError

SIGNS = ("absolute", "positive", "signed")
"""Ways to reduce channels, see `reduce_channels`."""


class MapError(LearnpropError):
    """Attributions, maps or masks that nothing can be computed from."""


def reduce_channels(attribution: Tensor, sign: str = "absolute") -> Tensor:
    """One value per position from an attribution ``(B, C, *spatial)``: ``(B, *spatial)``, differentiable.

    Args:
        attribution: signed, ``(B, C, *spatial)``.
        sign: ``"absolute"``, the sum of absolute values over channels; ``"positive"``, the positive part of
            the sum; ``"signed"``, the sum.
    """
    if attribution.dim() < 3:
        raise MapError(f"attribution must be (B, C, *spatial), got {tuple(attribution.shape)}")
    if sign == "absolute":
        return attribution.abs().sum(1)
    if sign == "positive":
        return attribution.sum(1).clamp(min=0.0)
    if sign == "signed":
        return attribution.sum(1)
    raise MapError(f"unknown sign {sign!r}; choose one of {', '.join(SIGNS)}")


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of maps ``(B, *spatial)`` by ``sigma`` pixels, differentiable; 0 leaves them as they are.

    The kernel reaches 3 sigma; beyond the border the border's values are repeated.
    """
    if sigma < 0:
        raise MapError(f"sigma must be at least 0 pixels, got {sigma}")
    radius = int(3 * sigma + 0.5)
    if radius == 0:
        return maps
    span = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (span / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    for dim in range(1, maps.dim()):
        rows = maps.movedim(dim, -1)
        padded = F.pad(rows.reshape(-1, 1, rows.shape[-1]), (radius, radius), mode="replicate")
        maps = F.conv1d(padded, kernel).reshape(rows.shape).movedim(-1, dim)
    return maps


def finished(attribution: Tensor, sign: str, smoothing: float) -> Tensor:
    """The map ``(B, *spatial)`` of an attribution ``(B, C, *spatial)``, differentiable.

    Args:
        attribution: signed.
        sign: see `reduce_channels`.
        smoothing: sigma of `smooth` as a fraction of the shorter side.
    """
    return smooth(reduce_channels(attribution, sign), smoothing * min(attribution.shape[2:]))
