"""How scenes are painted: backgrounds, clutter, and layers that can be left out again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import radians

import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = 64
"""Height and width of a scene in pixels."""

DIGIT_PIXELS = (20.0, 28.0)
"""Range of the height of a digit in a scene, in pixels."""

FRAGMENTS = 5
"""Pieces of other digits in each scene."""

DIGIT_CONTRAST = (0.35, 0.65)
FRAGMENT_CONTRAST = (0.2, 0.5)
"""How much lighter or darker than the mean of the scene something is painted; the ranges overlap on purpose."""

NOISE = 0.02
"""Standard deviation of the noise over all pixels of a finished scene."""


@dataclass(frozen=True)
class Layer:
    """Something painted over what is below it.

    Attributes:
        coverage: ``(N, 1, 64, 64)`` in [0, 1], how much of the pixel it hides.
        colour: ``(N, 3, 1, 1)`` or ``(N, 3, 64, 64)`` in [0, 1].
    """

    coverage: Tensor
    colour: Tensor

    def over(self, images: Tensor) -> Tensor:
        """Returns images ``(N, 3, H, W)`` with the layer on top, in new memory."""
        # In place, because new memory for large batches costs more than the arithmetic.
        return (self.colour - images).mul_(self.coverage).add_(images)


@dataclass(frozen=True)
class Drawing:
    """``N`` scenes before they are flattened: what is below, the layers from the lowest to the highest, the noise.

    Attributes:
        base: ``(N, 3, 64, 64)``, background and clutter.
        layers: objects, parts and distractors.
        objects: which layers are the objects or parts, ``L`` of them; the others are distractors.
        targets: ``(N, K)`` int64 classes.
        noise: ``(N, 3, 64, 64)``, added last.
        cells: ``(N, L, 64, 64)`` bool, the region that belongs to each object, or None.
    """

    base: Tensor
    layers: list[Layer]
    objects: tuple[int, ...]
    targets: Tensor
    noise: Tensor
    cells: Tensor | None = None

    def render(self, leave_out: Collection[int] = ()) -> Tensor:
        """Returns images ``(N, 3, 64, 64)`` in [0, 1] without some of the layers, all else equal.

        Args:
            leave_out: Numbers of layers, from 0, the lowest; others have no influence.
        """
        images = self.base
        for index, layer in enumerate(self.layers):
            if index not in leave_out:
                images = layer.over(images)
        return (images + self.noise).clamp_(0.0, 1.0)

    def masks(self) -> Tensor:
        """Returns the visible pixels of every layer, ``(N, layers, 64, 64)`` bool.

        They are at least half covered by it, and by no later one.

        Raises:
            RuntimeError: There are no layers.
        """
        masks: list[Tensor] = []
        for layer in self.layers:
            covered = layer.coverage >= 0.5
            masks = [mask & ~covered for mask in masks] + [covered]
        return torch.cat(masks, 1)


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Returns uniform random numbers of a shape in ``[low, high)``, float32 on the CPU.

    Args:
        shape: Any.
        low: Lower bound.
        high: Upper bound.
        generator: Draws them; its state moves on.
    """
    return low + (high - low) * torch.rand(shape, generator=generator)


def draw_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns normal noise of the images' shape ``(N, 3, H, W)`` with the standard deviation `NOISE`."""
    return torch.randn(images.shape, generator=generator).mul_(NOISE)


def background(count: int, generator: torch.Generator, size: int = SIZE) -> Tensor:
    """Returns a base colour, blobs and coloured noise at three scales, ``(N, 3, size, size)`` in [0, 1].

    Args:
        count: ``N``.
        generator: Draws colours and noise.
        size: Height and width in pixels, at least 16: blobs have the same share of the picture at every size.
    """
    image = uniform((count, 3, 1, 1), 0.25, 0.75, generator).expand(count, 3, size, size)
    for cells, strength in ((4, 0.14), (10, 0.08), (32, 0.05)):
        cells = cells * size // SIZE
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        image = F.interpolate(noise, size=size, mode="bicubic", align_corners=False).mul_(strength).add_(image)
    return image.clamp_(0.0, 1.0)


def scatter_fragments(images: Tensor, digits: Tensor, generator: torch.Generator, number: int = FRAGMENTS) -> Tensor:
    """Returns images with pieces of digits: windows of half the sides, turned by any angle, in digits' colours.

    Args:
        images: ``(N, 3, size, size)`` in [0, 1]; they stay as they are.
        digits: Sources ``(M, side, side)`` in [0, 1], of at least 8 pixels.
        generator: Draws sources, windows, sizes, places, angles and colours.
        number: Pieces in each image.
    """
    count, size = len(images), images.shape[-1]
    half, step = digits.shape[-1] // 2, digits.shape[-1] // 8
    for _ in range(number):
        sources = digits[torch.randint(len(digits), (count,), generator=generator)]
        windows = sources.unfold(1, half, step).unfold(2, half, step)[:, :5, :5].flatten(1, 2)
        # Windows at the empty border of a source would paint nothing: draw among the inner ones.
        row, column = torch.randint(1, 4, (2, count), generator=generator)
        pieces = windows[torch.arange(count), 5 * row + column]
        sizes = uniform((count,), DIGIT_PIXELS[0] / 2, DIGIT_PIXELS[1] / 2, generator)
        centres = torch.rand(count, 2, generator=generator) * size
        coverage = place_strokes(pieces, sizes, centres, radians(180.0), generator, size)
        images = Layer(coverage, random_colour(images, FRAGMENT_CONTRAST, generator)).over(images)
    return images


def place_strokes(
    sources: Tensor,
    sizes: Tensor,
    centres: Tensor,
    max_angle: float,
    generator: torch.Generator,
    size: int = SIZE,
) -> Tensor:
    """Returns the coverage ``(N, 1, size, size)`` in [0, 1] of strokes, each turned, sheared and stretched at random.

    Args:
        sources: Strokes ``(N, h, w)`` in [0, 1].
        sizes: ``(N,)``, heights in pixels.
        centres: ``(N, 2)``, x and y in pixels.
        max_angle: Largest turn in radians, to both sides.
        generator: Draws angles, shears and aspects.
        size: Height and width of the canvas in pixels.
    """
    count = len(sources)
    angle = uniform((count,), -max_angle, max_angle, generator)
    shear = uniform((count,), -0.15, 0.15, generator)
    aspect = uniform((count,), 0.9, 1.1, generator)
    scale = size / sizes
    cos, sin = angle.cos() * scale, angle.sin() * scale
    linear = torch.stack([torch.stack([cos * aspect, sin + shear * scale], 1), torch.stack([-sin, cos / aspect], 1)], 1)
    ink = _sample(sources[:, None], linear, centres, size, mode="bicubic", padding="zeros")
    # A steep ramp turns the soft 8 x 8 strokes into strokes with an edge one to two pixels wide.
    return ink.sub_(0.25).div_(0.3).clamp_(0.0, 1.0)


def place_shapes(distances: Tensor, radii: Tensor, centres: Tensor, angles: Tensor) -> Tensor:
    """Returns the coverage ``(N, 1, 64, 64)`` in [0, 1] of shapes given by distances to their edge, one pixel wide.

    Args:
        distances: ``(N, h, w)``, negative inside, in units of half the width of the template.
        radii: ``(N,)``, half the width of the template in pixels.
        centres: ``(N, 2)``, x and y in pixels.
        angles: ``(N,)``, clockwise turn in radians.
    """
    scale = SIZE / (2.0 * radii)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    linear = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    sampled = _sample(distances[:, None], linear, centres, SIZE, mode="bilinear", padding="border")
    return sampled.mul_(-radii[:, None, None, None]).add_(0.5).clamp_(0.0, 1.0)


def box_coordinates(sizes: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Returns coordinates x ``(N, 1, 64)`` and y ``(N, 64, 1)`` of the pixels in a square box: -1 and 1 at its edges.

    Args:
        sizes: ``(N,)`` edge lengths in pixels.
        centres: ``(N, 2)``, x and y in pixels.
    """
    middles = torch.arange(SIZE) + 0.5
    x, y = ((middles - centres[:, [axis]]) * (2.0 / sizes[:, None]) for axis in range(2))
    return x[:, None, :], y[:, :, None]


def random_colour(images: Tensor, contrasts: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Returns one colour per image ``(N, 3, 1, 1)`` in [0, 1], lighter or darker than its mean by a contrast.

    Args:
        images: ``(N, 3, H, W)`` in [0, 1]; the darker one is, the likelier its colour is lighter.
        contrasts: Lowest and highest difference from the mean, before a random tint.
        generator: Draws the colours.
    """
    count = len(images)
    mean = images.mean((2, 3), keepdim=True)
    lighter = torch.rand(count, 1, 1, 1, generator=generator) < (1.0 - mean.mean(1, keepdim=True))
    contrast = uniform((count, 1, 1, 1), *contrasts, generator)
    tint = 0.12 * torch.randn(count, 3, 1, 1, generator=generator)
    return (mean + torch.where(lighter, contrast, -contrast) + tint).clamp(0.0, 1.0)


def separate(sizes: Tensor, generator: torch.Generator, candidates: int = 64) -> Tensor:
    """Returns centres ``(N, 2, 2)`` (box, then x and y) in pixels of two boxes that do not touch.

    Args:
        sizes: ``(N, 2)``, edge lengths in pixels; two together at most `SIZE`, so that opposite corners hold them.
        generator: Draws the candidates.
        candidates: Pairs of places that are tried for each scene.
    """
    room = (SIZE - sizes)[:, None, :, None]
    centres = sizes[:, None, :, None] / 2 + torch.rand(len(sizes), candidates, 2, 2, generator=generator) * room
    gap = (centres[:, :, 0] - centres[:, :, 1]).abs().amax(-1) - sizes.mean(1, keepdim=True)
    # The first candidate that fits; where none does (about 1 scene in 1,000), opposite corners, which
    # always fit.
    best = (gap >= 0).float().argmax(1)
    chosen = centres[torch.arange(len(sizes)), best]
    corners = torch.stack([sizes[:, :1] / 2, SIZE - sizes[:, 1:] / 2], 1).expand(-1, 2, 2)
    return torch.where((gap >= 0).any(1)[:, None, None], chosen, corners)


def _sample(sources: Tensor, linear: Tensor, centres: Tensor, size: int, *, mode: str, padding: str) -> Tensor:
    """Sources ``(N, 1, h, w)`` on a canvas ``(N, 1, size, size)``; ``linear`` maps offsets on the canvas to theirs."""
    offset = -linear @ (2.0 * centres / size - 1.0)[..., None]
    grid = F.affine_grid(torch.cat([linear, offset], 2), [len(sources), 1, size, size], align_corners=False)
    return F.grid_sample(sources, grid, mode=mode, padding_mode=padding, align_corners=False)
