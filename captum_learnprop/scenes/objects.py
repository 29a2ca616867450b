"""Objects made up for scenes: ten textured patches, and ten figures composed of five parts each."""

from __future__ import annotations

from functools import lru_cache
from math import pi, radians

import torch
from torch import Tensor

from captum_learnprop.scenes.drawing import (
    SIZE,
    Drawing,
    Layer,
    background,
    box_coordinates,
    draw_noise,
    place_shapes,
    uniform,
)

PATCH_PIXELS = (12.0, 16.0)
"""Range of the edge of a patch, in pixels."""

PARTS = ("tail", "left wing", "right wing", "body", "head")
"""The parts of a figure, in the order in which they are painted and in which masks hold them."""

FIGURE_RADIUS = (18.0, 22.0)
"""Range of half the height of a figure, in pixels."""

STRAY_PARTS = 3
"""Parts of no figure in each scene of parts."""

# Two colours, light and dark, per palette. A class has its palette and its pattern; each palette and each
# pattern belongs to two classes, so that neither alone tells the class.
_PALETTES = torch.tensor(
    [
        [[0.95, 0.85, 0.30], [0.75, 0.15, 0.10]],
        [[0.65, 0.95, 0.35], [0.05, 0.40, 0.10]],
        [[0.45, 0.75, 1.00], [0.10, 0.10, 0.70]],
        [[1.00, 0.60, 0.90], [0.50, 0.05, 0.50]],
        [[0.95, 0.95, 0.95], [0.08, 0.08, 0.08]],
    ]
)

_PART_COLOURS = torch.tensor(
    [[0.90, 0.75, 0.15], [0.20, 0.30, 0.85], [0.85, 0.20, 0.15], [0.15, 0.65, 0.30]]  # yellow, blue, red, green
)
# The colours of the two variants of each part, chosen such that every colour occurs in several places.
_VARIANT_COLOURS = torch.tensor([[2, 0], [1, 2], [3, 1], [0, 3], [1, 2]])
# Where the parts are, x and y, and their half width, in units of half the height of a figure.
_OFFSETS = torch.tensor([[0.0, 0.66], [-0.55, -0.02], [0.55, -0.02], [0.0, 0.05], [0.0, -0.64]])
_RADII = torch.tensor([0.40, 0.46, 0.46, 0.46, 0.34])
_FLIP_ORDER = torch.tensor([2, 3, 1, 4, 0])


def part_variants() -> Tensor:
    """Which variant, 0 or 1, of each part a class has: ``(10, 5)`` int64, columns in the order of `PARTS`.

    The ten states of a Johnson counter of five bits: from each class to the next one part changes, and the
    tenth returns to the first. So a class differs from two others in one part only, which are the two parts it
    cannot be told without; from two more in two parts, and so on: the importance of parts is graded.
    """
    labels = torch.arange(10)[:, None]
    return ((labels > _FLIP_ORDER) & (labels <= _FLIP_ORDER + 5)).long()


def draw_patch(sizes: Tensor, centres: Tensor, targets: Tensor, generator: torch.Generator) -> Layer:
    """Patches with the pattern and the two colours of their class, jittered.

    Args:
        sizes: ``(N,)`` edges in pixels.
        centres: ``(N, 2)`` in pixels.
        targets: ``(N,)`` int64 classes.
        generator: source of the jitter.
    """
    count = len(targets)
    x, y = box_coordinates(sizes, centres)
    inside = ((x.abs() <= 1.0) & (y.abs() <= 1.0))[:, None].float()
    jitter = 0.04 * torch.randn(count, 2, 3, generator=generator)
    phase = uniform((count, 1, 1), -0.6, 0.6, generator)
    light, dark = (_PALETTES[(targets + targets // 5) % 5] + jitter).clamp(0.0, 1.0)[..., None, None].unbind(1)
    share = _pattern(x, y, targets % 5, phase)[:, None]
    return Layer(inside, dark + share * (light - dark))


def _pattern(x: Tensor, y: Tensor, kinds: Tensor, phase: Tensor) -> Tensor:
    """Share of the light colour ``(N, 64, 64)`` in [0, 1]: stripes in three directions, checks, rings."""
    wave = 2.0 * pi
    patterns = (
        lambda x, y, p: (wave * y + p).sin(),
        lambda x, y, p: (wave * x + p).sin(),
        lambda x, y, p: (0.8 * wave * (x + y) + p).sin(),
        lambda x, y, p: 1.5 * (0.8 * wave * x + p).sin() * (0.8 * wave * y + p).sin(),
        lambda x, y, p: (1.3 * wave * (x.square() + y.square()).sqrt() + p).sin(),
    )
    share = torch.empty(len(x), SIZE, SIZE)
    for kind, pattern in enumerate(patterns):
        rows = (kinds == kind).nonzero().flatten()
        share[rows] = pattern(x[rows], y[rows], phase[rows]).expand(-1, SIZE, SIZE)
    return (0.5 + share).clamp_(0.0, 1.0)


def draw_figures(count: int, generator: torch.Generator) -> Drawing:
    """Figures of random classes over a background with stray parts."""
    targets = torch.randint(10, (count, 1), generator=generator)
    base = _scatter_parts(background(count, generator), generator)
    radius = uniform((count, 1), *FIGURE_RADIUS, generator)
    middle = radius + torch.rand(count, 2, generator=generator) * (SIZE - 2.0 * radius)
    angle = uniform((count,), -radians(20.0), radians(20.0), generator)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(count, 2, 2)
    variants = part_variants()[targets[:, 0]]
    layers = []
    for part in range(len(PARTS)):
        offset = _OFFSETS[part] + uniform((count, 2), -0.04, 0.04, generator)
        centres = middle + radius * (rotation @ offset[..., None])[..., 0]
        turn = angle + uniform((count,), -radians(8.0), radians(8.0), generator)
        radii = radius[:, 0] * _RADII[part] * uniform((count,), 0.92, 1.08, generator)
        parts = torch.full((count,), part)
        layers.append(_part_layer(parts, variants[:, part], radii, centres, turn, generator))
    return Drawing(base, layers, tuple(range(len(PARTS))), targets, draw_noise(base, generator))


def _scatter_parts(images: Tensor, generator: torch.Generator) -> Tensor:
    """Paint parts of any kind at any place and angle, in the sizes and colours that parts have."""
    count = len(images)
    for _ in range(STRAY_PARTS):
        parts = torch.randint(len(PARTS), (count,), generator=generator)
        variants = torch.randint(2, (count,), generator=generator)
        radii = _RADII[parts] * uniform((count,), *FIGURE_RADIUS, generator)
        centres = torch.rand(count, 2, generator=generator) * SIZE
        angle = uniform((count,), -pi, pi, generator)
        images = _part_layer(parts, variants, radii, centres, angle, generator).over(images)
    return images


def _part_layer(
    parts: Tensor, variants: Tensor, radii: Tensor, centres: Tensor, angles: Tensor, generator: torch.Generator
) -> Layer:
    coverage = place_shapes(_shapes()[parts, variants], radii, centres, angles)
    jitter = 0.06 * torch.randn(len(parts), 3, generator=generator)
    colour = (_PART_COLOURS[_VARIANT_COLOURS[parts, variants]] + jitter).clamp(0.0, 1.0)
    return Layer(coverage, colour[..., None, None])


@lru_cache(maxsize=1)
def _shapes() -> Tensor:
    """Distances to the edge, ``(5, 2, 32, 32)``, of both variants of each part; the head of a figure is up."""
    middles = (torch.arange(32) + 0.5) / 16.0 - 1.0
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    disc = (x.square() + y.square()).sqrt() - 0.9
    fan = _polygon(x, y, [(0.9, -0.45, 0.42), (-0.9, -0.45, 0.42), (0.0, 1.0, 0.85)])
    fork = torch.maximum(fan, -_polygon(x, y, [(0.9, -0.35, -0.02), (-0.9, -0.35, -0.02)]))
    oval = ((x / 0.62).square() + (y / 0.95).square()).sqrt().sub(1.0) * 0.62
    block = torch.maximum(x.abs() - 0.5, y.abs() - 0.85)
    crown = _polygon(x, y, [(0.85, -0.5, 0.42), (-0.85, -0.5, 0.42), (0.0, 1.0, 0.75)])
    crescent = torch.maximum(disc, 0.95 - ((x - 0.55).square() + (y - 0.55).square()).sqrt())
    blade = _polygon(x, y, [(-0.4, -0.9, 0.45), (-0.4, 0.9, 0.45), (1.0, 0.0, 0.85)])
    wings = torch.stack([crescent, blade])
    pairs = [torch.stack([fan, fork]), wings, wings.flip(-1), torch.stack([oval, block]), torch.stack([disc, crown])]
    # Shapes end before the edge of the template, whose values continue outside.
    return torch.maximum(torch.stack(pairs), torch.maximum(x.abs(), y.abs()) - 0.86)


def _polygon(x: Tensor, y: Tensor, edges: list[tuple[float, float, float]]) -> Tensor:
    """Distance to a convex polygon given by outward normals and distances from the origin."""
    return torch.stack([(a * x + b * y) / (a * a + b * b) ** 0.5 - d for a, b, d in edges]).amax(0)
