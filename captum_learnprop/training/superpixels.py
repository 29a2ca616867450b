"""Superpixels: random regions of one image that follow what it shows.

Unions of them tell good maps from bad ones better than boxes do (`docs/concepts/objective.md`): a box that cuts through
an object measures what its outline is worth, a superpixel what the object is worth.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import per_axis, smooth
from captum_learnprop.training.occlusion import box_regions, random_boxes

SCALES = (10, 25, 60, 150)
"""About how many superpixels an image has, one of which is drawn for each region: from a part of it to a stroke."""

MOST_PARTS = 4
"""The most superpixels of a region: one alone cannot tell parts from wholes."""

CONTRAST = 10.0
"""What the whole range of values weighs against the distance of two neighbouring superpixels: compactness 10 of
scikit-image's `slic`."""

GRAIN = 0.01
"""The width of the smoothing before, as a fraction of the sides: without it superpixels of textures fall to dust."""

ROUNDS = 8
"""The rounds of moving superpixels to the mean of their pixels; Achanta et al. need 10, after 8 few pixels move."""

POSITIONS = 1 << 16
"""The positions that are sorted into superpixels, 256 x 256: larger images are reduced first, which bounds memory."""


def random_superpixels(image: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns regions as unions of 1 to `MOST_PARTS` superpixels of one random scale each.

    Signals of one dimension have no outlines, and get `occlusion.random_boxes`.

    Args:
        image: The image ``(C, *spatial)``, of any number of channels and in any range.
        count: How many regions.
        generator: What draws. It draws the same numbers for every image of the same size.

    Returns:
        Regions ``(count, *spatial)`` bool on the CPU, none empty.

    Raises:
        LearnpropError: The image has no space.
    """
    if image.dim() < 2:
        raise LearnpropError(f"superpixels are of images (C, *spatial), got {tuple(image.shape)}")
    spatial = tuple(image.shape[1:])
    if len(spatial) == 1:
        return box_regions(random_boxes(count, spatial, generator), spatial)
    labels = [superpixels(image, scale) for scale in SCALES]
    scales = torch.randint(len(SCALES), (count,), generator=generator).tolist()
    parts = torch.randint(1, MOST_PARTS + 1, (count,), generator=generator).tolist()
    places = torch.rand(count, 2 * max(SCALES), generator=generator)
    regions = []
    for scale, most, place in zip(scales, parts, places, strict=True):
        present = labels[scale].unique()
        regions.append(torch.isin(labels[scale], present[place[: len(present)].argsort()[:most]]))
    return torch.stack(regions)


def superpixels(image: Tensor, count: int) -> Tensor:
    """Returns the superpixel of each position, ``(*spatial)`` int64 on the CPU.

    Positions are grouped by what they show and where they are, by k-means from a regular grid: SLIC (Achanta et al.:
    *SLIC Superpixels Compared to State-of-the-art Superpixel Methods*, TPAMI 2012) for any number of channels and
    dimensions, without its last step, which joins what is left over in other places.

    Args:
        image: The image ``(C, *spatial)``.
        count: About how many superpixels there are.
    """
    calm = smooth(image.detach().cpu().double(), per_axis(GRAIN, image.shape[1:]))
    small = _reduced(calm)
    spatial = tuple(small.shape[1:])
    spacing = _spacing(spatial, count)
    cells = [max(1, min(side, round(side / spacing))) for side in spatial]
    where = torch.stack(torch.meshgrid(*(torch.arange(side) for side in spatial), indexing="ij")).flatten(1)
    label = torch.zeros_like(where[0])
    for axis, side, number in zip(where, spatial, cells, strict=True):
        label = label * number + axis * number // side
    features = torch.cat([CONTRAST * _contrast(small).flatten(1), where / spacing]).float().T
    centres = features.new_zeros(math.prod(cells), features.shape[1])
    for _ in range(ROUNDS):
        centres = _means(features, label, centres)
        label = (centres.square().sum(1) - 2 * features @ centres.T).argmin(1)
    found = label.reshape(1, 1, *spatial).double()
    return F.interpolate(found, size=image.shape[1:], mode="nearest")[0, 0].long()


def _spacing(spatial: tuple[int, ...], count: int) -> float:
    """Returns the distance of neighbouring superpixels; along an axis that is shorter there is one of them."""
    sides = sorted(spatial)
    while len(sides) > 1 and sides[0] ** len(sides) < math.prod(sides) / count:
        sides.pop(0)
    return float((math.prod(sides) / count) ** (1 / len(sides)))


def _means(features: Tensor, label: Tensor, centres: Tensor) -> Tensor:
    """Returns the mean feature of each superpixel; one that has lost all its pixels stays where it was."""
    sums = torch.zeros_like(centres).index_add_(0, label, features)
    sizes = label.bincount(minlength=len(centres))[:, None]
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)


def _contrast(image: Tensor) -> Tensor:
    """Returns the image with its values in [0, 1], and each channel's share in a distance equal."""
    low, high = image.aminmax()
    return (image - low) / torch.where(high > low, high - low, 1.0) / len(image) ** 0.5


def _reduced(image: Tensor) -> Tensor:
    """Returns an image of at most about `POSITIONS` positions, with the same proportions."""
    spatial = image.shape[1:]
    share = (POSITIONS / math.prod(spatial)) ** (1 / len(spatial))
    if share >= 1:
        return image
    size = [max(1, round(side * share)) for side in spatial]
    pool: Any = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
    reduced: Tensor = pool(image, size)
    return reduced
