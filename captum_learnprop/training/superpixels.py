"""Superpixels: regions that follow what an image shows.

Source: SLIC, Achanta et al., TPAMI 2012, as scikit-image has it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SEGMENTS = (10, 25, 60, 150)
"""The numbers of superpixels that an image is cut into: from about an object to about a stroke."""

MAX_SEGMENTS = 4
"""The most superpixels of a region, all of one scale."""

_LEAST_PIXELS = 4
"""Scales whose superpixels would have fewer pixels are left out: they follow nothing."""

_COMPACTNESS = 8.0
"""The weight of nearness against likeness of colour, in units of the CIELAB space that scikit-image compares in."""


_GRID = 1e4
"""The compactness that leaves a grid."""

LONGEST_SIDE = 128
"""Longer images are cut up at half of their size, a third, ...: outlines of superpixels are then true to two pixels, to
three, ..., and a photograph of 224 pixels takes a quarter of the time."""


def random_superpixels(image: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns unions of 1 to `MAX_SEGMENTS` superpixels of one random scale each: ``(count, H, W)`` bool, none empty.

    None takes more than half of the superpixels, where there are two.

    Args:
        image: ``(C, H, W)``, of any number of channels and any range; colours are compared after each channel was
            brought to [0, 1].
        count: How many regions.
        generator: What draws.
    """
    scales = superpixels(image)
    regions = []
    for _ in range(count):
        labels = scales[int(torch.randint(len(scales), (), generator=generator))]
        total = int(labels.max()) + 1
        wanted = 1 + int(torch.randint(MAX_SEGMENTS, (), generator=generator))
        member = torch.zeros(total, dtype=torch.bool)
        member[torch.randperm(total, generator=generator)[: min(wanted, max(1, total // 2))]] = True
        regions.append(member[labels])
    return torch.stack(regions)


def superpixels(image: Tensor) -> list[Tensor]:
    """Returns the superpixels of an image at each scale: labels from 0 on, ``(H, W)`` int64.

    An image too small for any of `SEGMENTS` is one superpixel per pixel.

    Args:
        image: ``(C, H, W)``.
    """
    height, width = image.shape[1:]
    step = math.ceil(max(height, width) / LONGEST_SIDE)
    shown = _shown(image, step)
    scales = [segments for segments in SEGMENTS if shown[..., 0].size >= _LEAST_PIXELS * segments]
    if not scales:
        return [torch.arange(height * width).reshape(height, width)]
    return [_enlarged(_cut(shown, segments), step, height, width) for segments in scales]


def _shown(image: Tensor, step: int) -> np.ndarray:
    """Returns ``(H / step, W / step, C)`` in [0, 1], rounded up."""
    pixels = image.detach().cpu().double()
    pixels = torch.nn.functional.avg_pool2d(pixels[None], step, ceil_mode=True)[0]
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    shown: np.ndarray = ((pixels - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
    return shown


def _cut(shown: np.ndarray, segments: int) -> np.ndarray:
    from skimage.segmentation import slic

    colour = shown.shape[2] == 3
    compactness = _COMPACTNESS if colour else _COMPACTNESS / 100  # channels of their own are in [0, 1], not [0, 100]
    for each in (compactness, _GRID):  # noise has no parts: it ends as one superpixel, or as a grid
        labels: np.ndarray = slic(
            shown, n_segments=segments, start_label=0, convert2lab=colour, channel_axis=-1, compactness=each
        )
        if labels.max() > 0:
            break
    return labels


def _enlarged(labels: np.ndarray, step: int, height: int, width: int) -> Tensor:
    small = torch.from_numpy(labels).long()
    return small.repeat_interleave(step, 0).repeat_interleave(step, 1)[:height, :width]
