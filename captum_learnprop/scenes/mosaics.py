"""Mosaics of whole photographs: a grid of four, of which a map should find the cell of the asked class.

After Arias-Duart et al., *Focus! Rating XAI Methods and Finding Biases*, 2022: the ground truth costs nothing but
the class of each photograph.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captum_learnprop.errors import LearnpropError, SceneWarning
from captum_learnprop.files import printable
from captum_learnprop.images import read_image
from captum_learnprop.scenes.labelled_files import LabelledFile, copies, digest, read_table
from captum_learnprop.scenes.scenes import Scenes, label_rows
from captum_learnprop.scenes.source import check_draw, scene_generator
from captum_learnprop.scenes.splits import by_classes, share_out_objects

CELLS = 4
"""Photographs in a mosaic, two rows of two."""

LEAST_OF_A_SIDE = 0.8
"""The smallest square that is cut out of a photograph, in its shorter side: what it shows must stay in it."""

KEPT_SIDES = 2
"""The shorter side of a photograph after reading, in sides of a cell."""

DRAWING = 1
"""Grows when the same files and arguments give other scenes than before."""

Photograph = Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class MosaicSource:
    """Scenes of four photographs of different classes, one in each quarter.

    Photographs are shared out to splits as `CutoutSource` shares cut-outs: splits share none, nor a class where there
    are twelve classes; with fewer, `caveats` says what they share, and `draw` warns.

    Args:
        photographs: Folder of photographs.
        labels: CSV file with the header ``file,class`` (or ``file,imagenet_class``); files are relative to
            ``photographs``.
    """

    photographs: Path
    labels: Path

    def __post_init__(self) -> None:
        """Takes paths as text, too; files are read when scenes are drawn."""
        for name in ("photographs", "labels"):
            object.__setattr__(self, name, Path(getattr(self, name)))

    @property
    def name(self) -> str:
        """``"mosaics"``."""
        return "mosaics"

    @property
    def kind(self) -> str:
        """``"grid"``."""
        return "grid"

    @property
    def questions_per_scene(self) -> int:
        """Four, one for each cell."""
        return CELLS

    def draw(self, count: int, *, split: str = "train", seed: int = 0, size: int = 224) -> Scenes:
        """Returns ``count`` mosaics; `SceneSource.draw` says what the arguments are.

        Raises:
            LearnpropError: An argument is out of range; a file is missing, unreadable or smaller than a cell; there
                are fewer than four classes.
        """
        check_draw(count, split, size)
        for caveat in self.caveats(size):
            warnings.warn(caveat, SceneWarning, stacklevel=2)
        by_class = self._shares[0][split]
        pictures = {
            each.id: _kept(read_image(each.path), each.id, size) for members in by_class.values() for each in members
        }
        return _draw(by_class, pictures, count, split, seed, size, self.class_range())

    def check(self, size: int) -> None:
        """Reads all photographs once.

        Raises:
            LearnpropError: As of `draw`.
        """
        _ = self._shares
        for each in self._files:
            _kept(read_image(each.path), each.id, size)

    def caveats(self, size: int) -> tuple[str, ...]:
        """Returns what splits share, in sentences; nothing where they share nothing."""
        return tuple(text for text in (self._shares[1], copies(self._files)) if text is not None)

    def identity(self) -> dict[str, Any]:
        """Returns a digest of the photographs with their classes."""
        return {"source": self.name, "drawing": DRAWING, "photographs": digest(self._files)}

    def class_range(self) -> int:
        """Returns 1 + the highest class of the table."""
        return 1 + max(each.target for each in self._files)

    @cached_property
    def _files(self) -> list[LabelledFile]:
        return read_table(self.labels, self.photographs)

    @cached_property
    def _shares(self) -> tuple[dict[str, dict[int, list[LabelledFile]]], str | None]:
        return share_out_objects(self._files, CELLS, "photograph")


def make_mosaics(
    photographs: Path | Sequence[Photograph],
    labels: Path | Sequence[int],
    count: int,
    *,
    split: str = "train",
    seed: int = 0,
    size: int = 224,
) -> Scenes:
    """Returns mosaics of four photographs of different classes, with the cell of each as its mask.

    Args:
        photographs: Folder of photographs, or photographs in memory: PIL images, or arrays ``(H, W, 3)`` or ``(H, W)``
            of uint8, as ``skimage.data`` has them. Those in memory are not shared out: each split may show all.
        labels: CSV file with the header ``file,class``, or the class of each photograph in memory.
        count: How many mosaics.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        seed: Seed of the draw; mosaic ``i`` of a seed does not depend on ``count``.
        size: Height and width of a mosaic in pixels.

    Returns:
        Scenes with images ``(count, 3, size, size)``, masks and cells ``(count, 4, size, size)``.

    Raises:
        LearnpropError: An argument is out of range; there are fewer than four classes; a photograph is missing,
            unreadable or smaller than a cell, or has no class.

    >>> photographs = [np.full((40, 60, 3), value, dtype=np.uint8) for value in (0, 80, 160, 240)]
    >>> mosaics = make_mosaics(photographs, [7, 1, 4, 2], 3, size=32)
    >>> mosaics
    Scenes(3 scenes of 4 objects, (3, 32, 32), cells)
    >>> float(mosaics.images[0][:, mosaics.masks[0, mosaics.targets[0] == 7][0]].max())
    0.0
    """
    if isinstance(photographs, (str, Path)):
        if not isinstance(labels, (str, Path)):
            raise LearnpropError("photographs in a folder need a CSV file with file,class as labels")
        return MosaicSource(Path(photographs), Path(labels)).draw(count, split=split, seed=seed, size=size)
    check_draw(count, split, size)
    if isinstance(labels, (str, Path)) or len(labels) != len(photographs):
        raise LearnpropError(f"{len(photographs)} photographs need as many classes as labels, one each")
    if min(labels, default=0) < 0:
        raise LearnpropError(f"classes are numbers from 0 on, got {min(labels)}")
    names = [f"photograph {index}" for index in range(len(photographs))]
    pictures = {name: _kept(_as_image(each), name, size) for name, each in zip(names, photographs, strict=True)}
    members = [LabelledFile(name, Path(), int(target)) for name, target in zip(names, labels, strict=True)]
    return _draw(by_classes(members, CELLS, "photograph"), pictures, count, split, seed, size, 1 + max(labels))


def _draw(
    by_class: dict[int, list[LabelledFile]],
    pictures: dict[str, Image.Image],
    count: int,
    split: str,
    seed: int,
    size: int,
    classes: int,
) -> Scenes:
    images = torch.empty(count, 3, size, size)
    targets = torch.empty(count, CELLS, dtype=torch.int64)
    cells = _cells(size)
    known = sorted(by_class)
    for index in range(count):
        generator = scene_generator(seed, split, index)
        chosen = [known[number] for number in torch.randperm(len(known), generator=generator)[:CELLS].tolist()]
        targets[index] = torch.tensor(chosen)
        numbers = torch.rand(CELLS, 5, generator=generator, dtype=torch.float64).tolist()
        for cell, target, (choice, *place) in zip(cells, chosen, numbers, strict=True):
            picture = pictures[by_class[target][int(choice * len(by_class[target]))].id]
            rows, columns = cell
            images[index, :, rows, columns] = _cut(picture, rows.stop - rows.start, columns.stop - columns.start, place)
    masks = torch.zeros(CELLS, size, size, dtype=torch.bool)
    for mask, (rows, columns) in zip(masks, cells, strict=True):
        mask[rows, columns] = True
    every = masks.expand(count, -1, -1, -1)
    return Scenes(images, label_rows(targets, classes), every.clone(), targets, cells=every.clone())


def _cells(size: int) -> list[tuple[slice, slice]]:
    """Returns rows and columns of the quarters, in reading order."""
    halves = (slice(0, size // 2), slice(size // 2, size))
    return [(rows, columns) for rows in halves for columns in halves]


def _cut(picture: Image.Image, height: int, width: int, place: Sequence[float]) -> Tensor:
    """Returns a square of a photograph ``(3, height, width)``, mirrored or not, by four numbers in [0, 1)."""
    side = (LEAST_OF_A_SIDE + (1 - LEAST_OF_A_SIDE) * place[0]) * min(picture.size)
    left, top = place[1] * (picture.width - side), place[2] * (picture.height - side)
    square = picture.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    if place[3] < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.asarray(square, dtype=np.float32)).permute(2, 0, 1) / 255


def _kept(picture: Image.Image, name: str, size: int) -> Image.Image:
    """Returns a photograph no larger than mosaics need it."""
    cell = size - size // 2
    if min(picture.size) < cell:
        raise LearnpropError(
            f"{printable(name)} has {picture.width} x {picture.height} pixels, a cell {cell} x {cell}: "
            "take it out of the table, or make smaller mosaics"
        )
    scale = min(1.0, KEPT_SIDES * cell / min(picture.size))
    kept = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(kept, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _as_image(photograph: Photograph) -> Image.Image:
    if isinstance(photograph, Image.Image):
        return photograph.convert("RGB")
    values = np.asarray(photograph)
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise LearnpropError(
            f"a photograph is a PIL image or an array (H, W, 3) or (H, W) of uint8, got {values.dtype} {values.shape}"
        )
    return Image.fromarray(values).convert("RGB")
