"""Regions: the parts of an image, or the features of a table, that are removed together.

Unions of boxes are blind to what the image shows, unions of superpixels follow it: whole parts of objects go at once,
and their outlines stay. Half of each tell good maps from bad ones best (`docs/concepts/objective.md`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.superpixels import random_superpixels

REGION_SIDES = (1 / 16, 1 / 2)
"""The range of the side of a box, as a share of the image's side, drawn log-uniformly: from a stroke to an object. For
the features of a table, which have no order, it is the share that is removed."""

MAX_BOXES = 4
"""The most boxes of a region, a union of boxes of one scale: one box alone cannot tell parts from wholes."""

KINDS = ("both", "boxes", "superpixels")
"""What regions are unions of; ``"both"`` is by turns boxes and superpixels, of small images boxes alone (see
`FOLLOWED_SIDE`). Of anything but images with two dimensions, boxes."""

FOLLOWED_SIDE = 96
"""The shorter side from which on ``"both"`` has superpixels. In smaller images they are no finer than what is to be
found: with 48 regions, filled with other images, gates find the strokes of digits of 64 pixels with an average
precision of .84, with as many boxes of .87 (validation, one seed)."""

_BITS = 8


def random_regions(image: Tensor, count: int, generator: torch.Generator, kind: str = "both") -> Tensor:
    """Returns random regions of an image, ``(count, *spatial)`` bool, or of a table's row, ``(count, F)``; none empty.

    Args:
        image: ``(C, *spatial)``, or the features ``(F,)``, which are removed as `random_features` draws them.
        count: How many regions.
        generator: What draws.
        kind: One of `KINDS`.

    Raises:
        LearnpropError: The kind is unknown.
    """
    if kind not in KINDS:
        raise LearnpropError(f"unknown regions {kind!r}; choose one of {', '.join(KINDS)}")
    if image.dim() == 1:
        return random_features(count, len(image), generator)
    spatial = tuple(image.shape[1:])
    large = len(spatial) == 2 and min(spatial) >= FOLLOWED_SIDE
    follow = {"boxes": 0, "both": count // 2 * large, "superpixels": count * (len(spatial) == 2)}[kind]
    boxes = box_regions(random_boxes(count - follow, spatial, generator), spatial)
    if not follow:
        return boxes
    regions = random_superpixels(image, follow, generator)
    if kind == "both":  # by turns: the first ones of them are of both kinds as well
        every = boxes.new_empty(count, *spatial)
        every[::2], every[1::2] = boxes, regions
        return every
    return regions


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


def packed(regions: Tensor) -> Tensor:
    """Returns regions ``(..., *spatial)`` bool of an image as bits, ``(..., bytes)`` uint8: an eighth of the memory.

    Args:
        regions: ``(D, *spatial)`` bool.

    >>> packed(torch.tensor([[True, False, True, False, False, False, False, False, True]]))
    tensor([[5, 1]], dtype=torch.uint8)
    """
    bits = regions.flatten(1)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % _BITS)).unflatten(1, (-1, _BITS))
    return (bits * _weights(bits.device)).sum(2, dtype=torch.uint8)


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns what `packed` took: ``(..., D, *spatial)`` bool, of tables ``(..., D, F)``.

    Args:
        bits: ``(..., D, bytes)`` uint8.
        shape: The shape of an image ``(C, *spatial)``, or of a row of a table ``(F,)``.
    """
    spatial = shape if len(shape) == 1 else shape[1:]
    found = (bits[..., None] & _weights(bits.device)).bool().flatten(-2)
    return found[..., : math.prod(spatial)].unflatten(-1, spatial)


def _weights(device: torch.device) -> Tensor:
    return 2 ** torch.arange(_BITS, dtype=torch.uint8, device=device)
