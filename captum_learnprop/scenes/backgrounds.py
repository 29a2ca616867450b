"""Photographed backgrounds: which split a photograph belongs to, and square pieces of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import printable
from captum_learnprop.images import ImageFile, find_images, image_size, read_image
from captum_learnprop.scenes.scenes import SPLITS
from captum_learnprop.scenes.splits import SHARES, shared_out

KEPT_SIDES, KEPT_SIDES_OF_FEW = 3, 5
"""The shorter side of a photograph after reading, in sides of a scene; more where splits share one photograph."""

MOST_OF_A_SIDE = 2.0
"""The largest piece that is cut out, in sides of a scene: enough to look like a place."""

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """What a split may cut out of one photograph.

    Attributes:
        image: The photograph.
        start, stop: The part along its longer side, as shares of it.
    """

    image: ImageFile
    start: float = 0.0
    stop: float = 1.0


def find_backgrounds(folder: Path) -> list[ImageFile]:
    """Finds photographs in a folder and its sub-folders.

    Raises:
        LearnpropError: The folder is missing or holds none.
    """
    try:
        found = find_images(folder, recursive=True)
    except LearnpropError as error:
        raise LearnpropError(f"no backgrounds: {error}; give a folder of photographs") from error
    # A copy of a photograph could lie in another split.
    return list({image.sha256(): image for image in reversed(found)}.values())[::-1]


def check_sizes(images: Sequence[ImageFile], size: int) -> None:
    """Checks that no photograph is smaller than a scene, by the beginnings of the files.

    Raises:
        LearnpropError: One is.
    """
    for image in images:
        width, height = image_size(image.path)
        if min(width, height) < size:
            raise LearnpropError(
                f"the background {printable(image.id)} has {width} x {height} pixels, a scene {size} x {size}: "
                "take it out of the folder, or draw smaller scenes"
            )


def regions(images: Sequence[ImageFile], size: int) -> tuple[dict[str, list[Region]], str | None]:
    """Shares photographs out; of fewer than three, splits get different parts of the same ones.

    Args:
        images: The photographs.
        size: Side of a scene in pixels.

    Returns:
        Regions by split, and a sentence about what splits share; None if nothing.
    """
    by_id = {image.id: image for image in images}
    shares = shared_out(list(by_id))
    if shares is not None:
        return {split: [Region(by_id[name]) for name in names] for split, names in shares.items()}, None
    width_needed = min(SHARES) * min(KEPT_SIDES_OF_FEW * size * _aspect(image) for image in images)
    if width_needed >= size and all(min(SHARES) * max(image_size(image.path)) >= size for image in images):
        edges = (0.0, SHARES[0], SHARES[0] + SHARES[1], 1.0)
        parts = zip(SPLITS, edges, edges[1:], strict=False)
        return {split: [Region(image, low, high) for image in images] for split, low, high in parts}, (
            f"training, validation and test use different parts of the same {len(images)} background(s)"
        )
    return {split: [Region(image) for image in images] for split in SPLITS}, (
        f"training, validation and test share their background(s): {len(images)} are too few to split; give at least 3"
    )


def _aspect(image: ImageFile) -> float:
    width, height = image_size(image.path)
    return max(width, height) / min(width, height)


def read_region(region: Region, size: int) -> Image.Image:
    """Reads a region, no larger than scenes of ``size`` pixels need it.

    Raises:
        UnreadableImageError: The file is damaged.
    """
    image = read_image(region.image.path)
    whole = (region.start, region.stop) == (0.0, 1.0)
    shorter = min(min(image.size), (KEPT_SIDES if whole else KEPT_SIDES_OF_FEW) * size)
    scale = shorter / min(image.size)
    kept = (max(shorter, round(image.width * scale)), max(shorter, round(image.height * scale)))
    image = image.resize(kept, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if whole:
        return image
    longer = max(kept)
    start, stop = round(region.start * longer), round(region.stop * longer)
    return image.crop((start, 0, stop, image.height) if image.width >= image.height else (0, start, image.width, stop))


def cut_piece(image: Image.Image, size: int, numbers: Sequence[float]) -> Pixels:
    """Cuts a square piece out of a region and brings it to a scene's size.

    Args:
        image: The region, at least ``size`` pixels on each side.
        size: Side of the scene in pixels.
        numbers: Three in [0, 1): how large the piece is, and where it lies.

    Returns:
        ``(size, size, 3)`` float32 in [0, 255].
    """
    largest = min(image.width, image.height, MOST_OF_A_SIDE * size)
    side = size + numbers[0] * (largest - size)
    left, top = numbers[1] * (image.width - side), numbers[2] * (image.height - side)
    piece = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(piece, dtype=np.float32)
