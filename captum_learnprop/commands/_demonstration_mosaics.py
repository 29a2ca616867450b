"""Mosaics of four photographs of different classes, each asked for the class of one.

What is in the other three quarters cannot be evidence for it: ground truth without a drawn outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from captum_learnprop.scenes import photographs

GRID = 2
"""Photographs along each side of a mosaic."""

SEEN = ("chelsea", "coffee", "motorcycle_left", "camera")
"""An Egyptian cat, an espresso, a moped, and a camera on a tripod, by their names in scikit-image. In mosaics of these
EfficientNet-Lite0 sees all four as a rule; the rocket that is there as well it does not."""

SMALLEST = 0.75
"""The least share of a photograph's side that a mosaic shows."""


@dataclass(frozen=True)
class Square:
    """The central square of a photograph.

    Attributes:
        pixels: ``(3, S, S)`` in [0, 1], of any side.
        target: Its ImageNet class.
    """

    pixels: Tensor
    target: int

    def at(self, size: int) -> Tensor:
        """Returns the photograph at another size, ``(3, size, size)``."""
        return _resized(self.pixels, size)


@dataclass(frozen=True)
class Mosaics:
    """Mosaics with the class in each of their quarters.

    Attributes:
        images: ``(N, 3, H, W)`` in [0, 1].
        targets: ``(N, 4)``, in reading order.
    """

    images: Tensor
    targets: Tensor


def read_squares() -> tuple[Square, ...]:
    """Returns the photographs that mosaics are made of, in the order of `SEEN`.

    Raises:
        LearnpropError: scikit-image is not installed, or has no such file.
    """
    found = {photograph.name: photograph for photograph in photographs.whole()}
    return tuple(Square(_square(found[name].image()), found[name].target) for name in SEEN)


def make_mosaics(squares: Sequence[Square], count: int, *, size: int, seed: int) -> Mosaics:
    """Returns mosaics of four different photographs each, every one cropped and mirrored at random.

    Args:
        squares: Four photographs or more.
        count: How many mosaics; the first ones do not depend on it.
        size: Height and width of a mosaic, an even number.
        seed: Decides which photographs are where, and their crops.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = torch.tensor([square.target for square in squares])
    images, targets = [], []
    for _ in range(count):
        chosen = torch.randperm(len(squares), generator=generator)[: GRID**2]
        cells = [_cell(squares[index].pixels, size // GRID, generator) for index in chosen]
        rows = [torch.cat(cells[row * GRID : (row + 1) * GRID], dim=2) for row in range(GRID)]
        images.append(torch.cat(rows, dim=1))
        targets.append(classes[chosen])
    return Mosaics(torch.stack(images), torch.stack(targets))


def _square(image: Image.Image) -> Tensor:
    pixels: Tensor = transforms.convert_image_dtype(transforms.pil_to_tensor(image), torch.float32)
    square: Tensor = transforms.center_crop(pixels, [min(image.size)])
    return square


def _cell(photograph: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Returns a random square of a photograph, mirrored in half of the cases."""
    share, across, down, mirrored = torch.rand(4, generator=generator).tolist()
    whole = photograph.shape[-1]
    side = round(whole * (SMALLEST + (1 - SMALLEST) * share))
    top, left = round(down * (whole - side)), round(across * (whole - side))
    cell = _resized(photograph[:, top : top + side, left : left + side], size)
    return cell.flip(-1) if mirrored < 0.5 else cell


def _resized(pixels: Tensor, size: int) -> Tensor:
    return F.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)


__all__ = ["GRID", "SEEN", "Mosaics", "Square", "make_mosaics", "read_squares"]
