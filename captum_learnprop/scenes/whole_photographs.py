"""Whole photographs with an ImageNet class, from the wheel of scikit-image, and mosaics of them.

A mosaic has four photographs of different classes, one in each quarter, and is asked for the class of one: what is in
the other three quarters cannot be evidence for it. Nothing is downloaded: the files are those inside the wheel.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from captum_learnprop.errors import LearnpropError

GRID = 2
"""Photographs along each side of a mosaic."""

SMALLEST = 0.75
"""The least share of a photograph's shorter side that a mosaic shows."""


@dataclass(frozen=True)
class Photograph:
    """A photograph in the wheel of scikit-image.

    Attributes:
        file: Name of its file.
        target: Its ImageNet class, 0 to 999.
        left: Where the square that is shown begins, as a share of the room that it has along the longer side.
    """

    file: str
    target: int
    left: float = 0.5


PHOTOGRAPHS = (
    Photograph("chelsea.png", 285),
    Photograph("coffee.png", 967),
    Photograph("motorcycle_left.png", 665),
    Photograph("camera.png", 872),
)
"""An Egyptian cat, an espresso, a moped, and a camera on a tripod. In mosaics of these EfficientNet-Lite0 sees all four
as a rule; the rocket, which is in the wheel as well, it does not."""


@dataclass(frozen=True)
class Mosaics:
    """Mosaics of photographs, each with one question for each of its quarters.

    Attributes:
        images: ``(N, 3, H, W)`` in [0, 1].
        targets: ``(N, 4)``, the class in each quarter, in reading order.
    """

    images: Tensor
    targets: Tensor


def read_photographs() -> tuple[Tensor, ...]:
    """Returns the pixels of `PHOTOGRAPHS` in their order, squares ``(3, S, S)`` in [0, 1] of any side.

    Raises:
        LearnpropError: scikit-image is not installed, or has no such file.
    """
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise LearnpropError("the photographs need scikit-image: pip install 'captum-learnprop[photos]'")
    folder = Path(found.origin).with_name("data")
    return tuple(_square(folder / photograph.file, photograph.left) for photograph in PHOTOGRAPHS)


def make_mosaics(photographs: tuple[Tensor, ...], count: int, *, size: int, seed: int) -> Mosaics:
    """Returns mosaics of four different photographs each, every one cropped and mirrored at random.

    Args:
        photographs: Those of `read_photographs`.
        count: How many mosaics; the first ones do not depend on it.
        size: Height and width of a mosaic, divisible by `GRID`.
        seed: Decides which photographs are where, and their crops.

    Raises:
        LearnpropError: The size cannot be divided.
    """
    if size % GRID:
        raise LearnpropError(f"the size of a mosaic must be divisible by {GRID}, got {size}")
    generator = torch.Generator().manual_seed(seed)
    classes = torch.tensor([photograph.target for photograph in PHOTOGRAPHS])
    images, targets = [], []
    for _ in range(count):
        chosen = torch.randperm(len(photographs), generator=generator)[: GRID**2]
        cells = [_cell(photographs[index], size // GRID, generator) for index in chosen]
        rows = [torch.cat(cells[row * GRID : (row + 1) * GRID], dim=2) for row in range(GRID)]
        images.append(torch.cat(rows, dim=1))
        targets.append(classes[chosen])
    return Mosaics(torch.stack(images), torch.stack(targets))


def resized(photograph: Tensor, size: int) -> Tensor:
    """Returns a photograph ``(3, S, S)`` in [0, 1] as ``(3, size, size)``."""
    return F.interpolate(photograph[None], (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _square(path: Path, left: float) -> Tensor:
    try:
        with Image.open(path) as file:
            pixels = transforms.convert_image_dtype(transforms.pil_to_tensor(file.convert("RGB")), torch.float32)
    except OSError as error:
        raise LearnpropError(
            f"scikit-image has no photograph {path.name} that can be read ({error}); install it anew: "
            "pip install --force-reinstall --no-deps scikit-image"
        ) from error
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, start = round(left * (height - side)), round(left * (width - side))
    square: Tensor = pixels[:, top : top + side, start : start + side]
    return square


def _cell(photograph: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Returns a random square of a photograph, mirrored in half of the cases."""
    share, across, down, mirrored = torch.rand(4, generator=generator).tolist()
    whole = photograph.shape[-1]
    side = round(whole * (SMALLEST + (1 - SMALLEST) * share))
    top, left = round(down * (whole - side)), round(across * (whole - side))
    cell = resized(photograph[:, top : top + side, left : left + side], size)
    return cell.flip(-1) if mirrored < 0.5 else cell


__all__ = ["GRID", "PHOTOGRAPHS", "Mosaics", "Photograph", "make_mosaics", "read_photographs", "resized"]
