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


FLATNESS = 1e-3
"""The variance, of images scaled to [0, 1], below which `follow_outlines` takes a place for flat and smooths evenly."""


def follow_outlines(maps: Tensor, images: Tensor, radius: float | Sequence[float]) -> Tensor:
    """Smoothing of maps ``(B, *spatial)`` that stops at the outlines of what the images show, differentiable in maps.

    In every window a map is replaced by the linear function of the image's channels that fits it best; where windows
    overlap, their functions are averaged. Flat regions become even, and edges of the map move to edges of the image.
    It is linear in the map. What it draws is the picture: use it where a map should cover objects, and look at the map
    without it where the question is what the model reacts to.

    Source: the guided filter, He et al.: *Guided Image Filtering* (TPAMI 2013).

    Args:
        maps: ``(B, *spatial)``.
        images: ``(B, C, *spatial)``, in whatever range; their contrast is brought to that of [0, 1].
        radius: Half the side of the windows in pixels, one for all axes or one for each, as `per_axis` gives them. 0
            along all axes leaves the maps as they are.

    Raises:
        LearnpropError: Shapes do not fit each other, or a radius is negative.
    """
    axes = maps.shape[1:]
    radii = [radius] * len(axes) if not isinstance(radius, Sequence) else list(radius)
    if len(radii) != len(axes) or not all(one >= 0 for one in radii):
        raise LearnpropError(
            f"radius must be at least 0 pixels, one for all or for each of {tuple(axes)}, got {radius}"
        )
    if images.ndim != maps.ndim + 1 or images.shape[0] != maps.shape[0] or images.shape[2:] != axes:
        raise LearnpropError(f"images {tuple(images.shape)} must be (B, C, *spatial) for maps {tuple(maps.shape)}")
    windows = [int(one + 0.5) for one in radii]
    if not any(windows):
        return maps
    dims = tuple(range(1, images.ndim))
    low, high = images.amin(dims, keepdim=True), images.amax(dims, keepdim=True)
    guide = ((images - low) / torch.where(high > low, high - low, 1.0)).to(maps.dtype)
    channels = list((guide - guide.mean(dims[1:], keepdim=True)).unbind(1))
    means = [_window_mean(channel, windows) for channel in channels]
    around = _window_mean(maps, windows)
    right = [_window_mean(c * maps, windows) - m * around for c, m in zip(channels, means, strict=True)]
    matrix = [
        [_window_mean(a * b, windows) - m * n + FLATNESS * (a is b) for b, n in zip(channels, means, strict=True)]
        for a, m in zip(channels, means, strict=True)
    ]
    slopes = _solve(matrix, right)
    level = around - sum(slope * mean for slope, mean in zip(slopes, means, strict=True))
    followed = _window_mean(level, windows)
    for slope, channel in zip(slopes, channels, strict=True):
        followed = followed + _window_mean(slope, windows) * channel
    return followed


def _window_mean(values: Tensor, radii: Sequence[int]) -> Tensor:
    """Returns the mean over the part of each window that is in the image, ``(B, *spatial)``."""
    for dim, radius in enumerate(radii, start=1):
        if not radius:
            continue
        side = values.shape[dim]
        place = torch.arange(side, device=values.device)
        first, behind = (place - radius).clamp(min=0), (place + radius + 1).clamp(max=side)
        sums = F.pad(values.movedim(dim, -1).cumsum(-1), (1, 0))
        values = ((sums[..., behind] - sums[..., first]) / (behind - first)).movedim(-1, dim)
    return values


def _solve(matrix: list[list[Tensor]], right: list[Tensor]) -> list[Tensor]:
    """Returns the solutions of positive definite equations, one for each position: by elimination, without pivots."""
    matrix, right = [list(row) for row in matrix], list(right)
    count = len(right)
    for at in range(count):
        for below in range(at + 1, count):
            factor = matrix[below][at] / matrix[at][at]
            right[below] = right[below] - factor * right[at]
            for column in range(at + 1, count):
                matrix[below][column] = matrix[below][column] - factor * matrix[at][column]
    for at in reversed(range(count)):
        for column in range(at + 1, count):
            right[at] = right[at] - matrix[at][column] * right[column]
        right[at] = right[at] / matrix[at][at]
    return right


def postprocess(
    attribution: Tensor, sign: str, smoothing: float, outlines: float = 0.0, images: Tensor | None = None
) -> Tensor:
    """The map ``(B, *spatial)`` of an attribution ``(B, C, *spatial)``, differentiable.

    Features of a table ``(B, F)`` have no channels and no neighbours: the map is ``(B, F)``, and not smoothed.

    Args:
        attribution: Signed values.
        sign: One of `SIGNS`, which `reduce_channels` describes.
        smoothing: Sigma of `smooth`, as a fraction of the sides (see `per_axis`).
        outlines: Radius of `follow_outlines`, as a fraction of the sides; 0 for none.
        images: What the outlines are of, ``(B, C, *spatial)``.

    Raises:
        LearnpropError: For an unknown sign, another shape, a negative smoothing, or outlines of no images.
    """
    if attribution.dim() == 2:
        return reduce_channels(attribution[:, None], sign)
    spatial = attribution.shape[2:]
    maps = smooth(reduce_channels(attribution, sign), per_axis(smoothing, spatial))
    if not outlines:
        return maps
    if images is None:
        raise LearnpropError(f"outlines={outlines:g} are those of images: pass images=, the inputs that were explained")
    return follow_outlines(maps, images, per_axis(outlines, spatial))


__getattr__ = renamed(__name__, {"MapError": "LearnpropError", "finished": "postprocess"})
