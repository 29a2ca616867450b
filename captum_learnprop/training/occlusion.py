"""Occlusion: what a model loses when random parts of an image, or of the features of a table, are removed.

For each training image a set of random regions is removed once, without gradient, and the drop of the explained
quantity is kept. A map is good when its mass inside a region correlates with the drop, over the regions of one image
(`terms.OcclusionRegression`). The model is never run on anything that depends on the map, so a map cannot be
optimised *against* the model.

What replaces a region is drawn at random: colours and noise, never a fixed baseline, which an evaluation might use.
Every image has random numbers of its own, made from the seed and its index: what it loses does not depend on the
images it is measured with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError as LearnpropError
from captum_learnprop.forward import output_of
from captum_learnprop.training.quantities import Quantity
from zennit_rules._moved import renamed

REGION_SIDES = (1 / 16, 1 / 2)
"""The range of the side of a box, as a share of the image's side, drawn log-uniformly: from a stroke to an object. For
the features of a table, which have no order, it is the share that is removed."""

MAX_BOXES = 4
"""The most boxes of a region, a union of boxes of one scale: one box alone cannot tell parts from wholes."""


def generator_of(seed: int, index: int) -> torch.Generator:
    """Returns the random numbers of image ``index`` under ``seed``; neighbours get unrelated ones."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


@torch.no_grad()
def measure_drops(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    targets: Tensor,
    boxes: Tensor,
    quantity: Quantity,
    *,
    low: Tensor,
    high: Tensor,
    generator: torch.Generator,
    internal_batch_size: int = 256,
) -> Tensor:
    """Returns what each target of one image, or row of a table, loses by each deletion: ``(K, D)`` float32.

    Args:
        model: Maps images to ``(B, classes)``, in evaluation mode.
        image: The image ``(C, *spatial)``, or the features ``(F,)``.
        targets: Classes ``(K,)`` int64; they share the deletions, and with them the passes of the model.
        boxes: Regions, D of them, as `random_regions` draws them.
        quantity: What is explained, one of `quantities.QUANTITIES`.
        low: The lowest value of a fill for each channel, ``(C,)``; for a table ``(F,)``.
        high: The highest, in the same shape.
        generator: Draws the fills.
        internal_batch_size: How many changed images go through the model together.
    """
    regions = regions_of(boxes, tuple(image.shape)).to(image.device)
    fills = random_fills(len(regions), tuple(image.shape), low, high, generator).to(image)
    changed = torch.where(regions[:, None] if image.dim() > 1 else regions, fills, image[None])
    after = torch.cat([output_of(model, (part,)) for part in changed.split(internal_batch_size)])
    before = output_of(model, (image[None],))
    drops = [
        quantity(before, target.reshape(1)) - quantity(after, target.expand(len(after)))
        for target in targets.to(image.device)
    ]
    return torch.stack(drops).float()


def random_regions(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Returns `random_boxes` for an image ``(C, *spatial)``, `random_features` for the features ``(F,)`` of a table."""
    return random_features(count, shape[0], generator) if len(shape) == 1 else random_boxes(count, shape[1:], generator)


def regions_of(boxes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns what `random_regions` gave, ``(..., D, *)``, as ``(..., D, *spatial)`` or ``(..., D, F)`` bool.

    Args:
        boxes: Boxes, which take little memory, or features, which are regions as they are.
        shape: The shape of an image ``(C, *spatial)``, or of a row of a table ``(F,)``.
    """
    return boxes if len(shape) == 1 else box_regions(boxes, shape[1:])


def random_boxes(count: int, spatial: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Returns regions as unions of 1 to `MAX_BOXES` boxes of one random scale each.

    Args:
        count: How many regions.
        spatial: Size of the images in pixels, one to three dimensions.
        generator: What draws.

    Returns:
        Boxes ``(count, MAX_BOXES, dims, 2)`` int32: first pixel and length per dimension. A box may begin before the
        image or end behind it, by all but one pixel: so every pixel is removed equally often. Boxes that are not used
        have length 0.
    """
    low, high = (math.log(side) for side in REGION_SIDES)
    dims = len(spatial)
    side = (low + (high - low) * torch.rand(count, 1, 1, generator=generator)).exp()
    stretch = torch.rand(count, MAX_BOXES, dims, generator=generator) - 0.5
    aspect = 2.0 ** (stretch - stretch.mean(dim=2, keepdim=True))
    used = torch.arange(MAX_BOXES) < torch.randint(1, MAX_BOXES + 1, (count, 1), generator=generator)
    size = torch.tensor(spatial, dtype=torch.float32)
    length = torch.minimum((side * aspect * size).clamp(min=1), size).round()
    start = (torch.rand(count, MAX_BOXES, dims, generator=generator) * (size + length - 1)).floor() - length + 1
    return torch.stack([start, length * used[..., None]], dim=3).int()


def random_features(count: int, features: int, generator: torch.Generator) -> Tensor:
    """Returns regions of the features of a table, which have no order: ``(count, features)`` bool, none empty.

    Each takes a random share of the features, log-uniform in `REGION_SIDES`, at least one.
    """
    low, high = (math.log(side) for side in REGION_SIDES)
    share = (low + (high - low) * torch.rand(count, 1, generator=generator)).exp()
    ranks = torch.rand(count, features, generator=generator).argsort(1).argsort(1)
    return ranks < (share * features).round().clamp(min=1)


def box_regions(boxes: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """Returns the pixels inside the boxes ``(..., boxes, dims, 2)``: ``(..., *spatial)`` bool, none empty."""
    region = torch.ones((), dtype=torch.bool, device=boxes.device)
    for dim, size in enumerate(spatial):
        position = torch.arange(size, device=boxes.device)
        start, length = boxes[..., dim, 0, None], boxes[..., dim, 1, None]
        inside = (position >= start) & (position < start + length)  # (..., boxes, size)
        place: tuple[Any, ...] = (..., *(None,) * dim, slice(None), *(None,) * (len(spatial) - 1 - dim))
        region = region & inside[place]
    return region.any(dim=-1 - len(spatial))


def random_fills(count: int, shape: tuple[int, ...], low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Returns what replaces regions: a random colour plus noise, ``(count, C, *spatial)`` in [low, high].

    Features of a table are channels each: ``(count, F)``.
    """
    ones = (1,) * (len(shape) - 1)
    colour = torch.rand(count, shape[0], *ones, generator=generator)
    strength = 0.5 * torch.rand(count, 1, *ones, generator=generator)
    fill = (colour + strength * torch.randn(count, *shape, generator=generator)).clamp(0.0, 1.0)
    low, high = low.cpu().float().reshape(-1, *ones), high.cpu().float().reshape(-1, *ones)
    return low + (high - low) * fill


def region_mass(maps: Tensor, regions: Tensor) -> Tensor:
    """Returns the sum of maps ``(B, *spatial)``, or ``(B, F)``, in their regions ``(B, D, *spatial)``: ``(B, D)``."""
    return torch.bmm(regions.flatten(2).to(maps.dtype), maps.flatten(1)[..., None])[..., 0]


__getattr__ = renamed(__name__, {"OcclusionError": "LearnpropError"})
