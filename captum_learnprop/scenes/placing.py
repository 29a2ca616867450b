"""Places for the objects of a scene: one in each part of the picture, or anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from captum_learnprop.errors import LearnpropError

OBJECTS = (1, 2, 4)
"""Numbers of objects that a scene can have."""

SIZES = {1: (0.375, 0.5), 2: (0.375, 0.5), 4: (0.28125, 0.375)}
"""Usual longer sides of objects in sides of the scene, by the number of objects: 84 to 112 of 224 pixels for two."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int

    def slices(self) -> tuple[slice, slice]:
        """Returns its rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def check_layout(objects: int, sizes: tuple[float, float], overlapping: bool) -> None:
    """Checks that objects of such sizes find room.

    Raises:
        LearnpropError: They do not, or the number of objects is another than one, two or four.
    """
    if objects not in OBJECTS:
        raise LearnpropError(f"a scene has 1, 2 or 4 objects, got {objects!r}")
    low, high = sizes
    most = 0.5 if objects > 1 else 1.0
    if not 0.05 <= low <= high <= most:
        raise LearnpropError(
            f"sizes are shares of the scene's side, from 0.05 to {most:g} for {objects} object(s) and the smaller "
            f"first, got {sizes}"
        )
    if overlapping and objects == 1:
        raise LearnpropError("one object has nothing to overlap with: give objects=2 or 4, or overlapping=False")


def fitted(aspect: float, longer: float, cell: Box) -> tuple[int, int]:
    """Returns width and height of an object inside a cell, in pixels.

    Args:
        aspect: Its width over its height.
        longer: The longer side that is wanted.
        cell: The room that there is.
    """
    width, height = longer * min(1.0, aspect), longer / max(1.0, aspect)
    scale = min(1.0, cell.width / width, cell.height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def cells(objects: int, size: int, generator: torch.Generator) -> list[Box]:
    """Returns the part of the scene that each object goes to: all, a half or a quarter, in random order.

    Parts do not touch, so that neither do objects.
    """
    if objects == 1:
        return [Box(0, 0, size, size)]
    gap = max(1, round(size / 224))
    half = size // 2 - gap
    ends = (0, size - half)
    if objects == 2:
        upright = float(torch.rand((), generator=generator)) < 0.5
        halves = [Box(0, end, size, half) if upright else Box(end, 0, half, size) for end in ends]
        return [halves[index] for index in torch.randperm(2, generator=generator).tolist()]
    quarters = [Box(left, top, half, half) for top in ends for left in ends]
    return [quarters[index] for index in torch.randperm(4, generator=generator).tolist()]


def placed(width: int, height: int, cell: Box, generator: torch.Generator) -> Box:
    """Returns a random place for an object inside a cell."""
    across, down = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    left = cell.left + int(across * (cell.width - width + 1))
    return Box(left, cell.top + int(down * (cell.height - height + 1)), width, height)


def layouts(
    shapes: list[tuple[int, int]], rooms: list[Box], generator: torch.Generator, most: int
) -> Iterator[list[Box]]:
    """Yields random places for all objects of a scene, ``most`` times."""
    for _ in range(most):
        yield [placed(*shape, room, generator) for shape, room in zip(shapes, rooms, strict=True)]
