"""Scenes of cut-out photographs on photographed backgrounds: exact ground truth for any classifier of photographs.

A cut-out is a picture whose alpha channel says where the object is. Pasted on a background, its visible pixels are
the answer to "where is this class?", which no annotation of an ordinary photograph gives to the pixel.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from captum_learnprop.errors import LearnpropError, SceneWarning
from captum_learnprop.files import printable
from captum_learnprop.images import read_cutout
from captum_learnprop.scenes.backgrounds import (
    Region,
    check_sizes,
    cut_piece,
    find_backgrounds,
    read_region,
    regions,
)
from captum_learnprop.scenes.labelled_files import LabelledFile, copies, digest, read_table
from captum_learnprop.scenes.placing import SIZES, Box, cells, check_layout, fitted, layouts
from captum_learnprop.scenes.scenes import Scenes, label_rows
from captum_learnprop.scenes.source import check_draw, scene_generator
from captum_learnprop.scenes.splits import share_out_objects

VISIBLE = 16
"""Alpha of 255 from which on a pixel counts to the object's frame: a soft shadow does, dust of a scanner does not."""

LEAST_SHARE = 0.01
"""The share of its frame that an object must fill."""

FAIR_SHARE = 0.5
"""The share of its pixels that an object keeps at least where objects overlap."""

TRIES = 200
"""Layouts that are tried until every object keeps its `FAIR_SHARE`."""

DRAWING = 1
"""Grows when the same files and arguments give other scenes than before."""

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class CutoutSource:
    """Scenes of one, two or four cut-outs of different classes on a background.

    Training, validation and test share no object and no background, nor a class where there are enough classes.
    With too few for that, `caveats` says what they share, and `draw` warns:

    * at least three times ``objects`` classes: no class is in two splits (60, 20 and 20 % of the classes);
    * else, where ``objects`` classes have three cut-outs each: every split has all these classes, and cut-outs of
      its own (cut-outs of other classes are left out);
    * else, at least twice ``objects`` classes: test has classes of its own, training and validation share theirs;
    * else all splits share all cut-outs.

    Args:
        cutouts: Folder of pictures with an alpha channel.
        labels: CSV file with the header ``file,class`` (or ``file,imagenet_class``); files are relative to ``cutouts``.
        backgrounds: Folder of photographs, sub-folders too, each at least as large as a scene. Of fewer than three,
            splits get different parts.
        objects: How many objects a scene has: 1, 2 (one in each half) or 4 (one in each quarter).
        sizes: Range of the objects' longer side in sides of the scene; by default .375 to .5 (84 to 112 of 224
            pixels), for four objects three quarters of that.
        overlapping: Objects lie anywhere, later ones cover earlier ones; each keeps at least half of its pixels.

    Raises:
        LearnpropError: The number of objects or their sizes are out of range.
    """

    cutouts: Path
    labels: Path
    backgrounds: Path
    objects: int = 2
    sizes: tuple[float, float] | None = None
    overlapping: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers; files are read when scenes are drawn."""
        for name in ("cutouts", "labels", "backgrounds"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        check_layout(self.objects, self._sizes, self.overlapping)

    @property
    def name(self) -> str:
        """``"cutouts"``."""
        return "cutouts"

    @property
    def kind(self) -> str:
        """``"pairs"`` for several objects, ``"digits"`` for one."""
        return "digits" if self.objects == 1 else "pairs"

    @property
    def questions_per_scene(self) -> int:
        """One for each object."""
        return self.objects

    def draw(self, count: int, *, split: str = "train", seed: int = 0, size: int = 224) -> Scenes:
        """Returns ``count`` scenes; `SceneSource.draw` says what the arguments are.

        Raises:
            LearnpropError: An argument is out of range; a file is missing, unreadable, without alpha channel, without
                object or smaller than the scene; there are fewer classes than objects.
        """
        check_draw(count, split, size)
        backgrounds, caveats = self._regions(size)
        for caveat in caveats:
            warnings.warn(caveat, SceneWarning, stacklevel=2)
        plans = [self._plan(index, split, seed, len(backgrounds[split])) for index in range(count)]
        wanted = {each.id: each for plan in plans for each in plan.files}
        pictures = {name: _read_object(each, self._sizes[1] * size) for name, each in wanted.items()}
        scenes = _empty_scenes(plans, size, self.class_range())
        # One background after the other, so that one is in memory at a time.
        for number, region in enumerate(backgrounds[split]):
            mine = [plan for plan in plans if plan.background == number]
            photograph = read_region(region, size) if mine else None
            for plan in mine:
                assert photograph is not None
                image = cut_piece(photograph, size, plan.piece)
                masks = self._paste(image, [pictures[each.id] for each in plan.files], plan)
                _check_visible(masks, plan)
                pixels = torch.from_numpy(np.rint(image.clip(0, 255))).permute(2, 0, 1) / 255
                scenes.images[plan.index] = pixels
                scenes.masks[plan.index] = torch.from_numpy(masks)
        return scenes

    def check(self, size: int) -> None:
        """Reads all cut-outs and backgrounds once.

        Raises:
            LearnpropError: As of `draw`.
        """
        self._regions(size)
        for image in find_backgrounds(self.backgrounds):
            read_region(Region(image), size)
        for each in self._files:
            _read_object(each, self._sizes[1] * size)

    def caveats(self, size: int) -> tuple[str, ...]:
        """Returns what splits share, in sentences; nothing where they share nothing."""
        return self._regions(size)[1]

    def identity(self) -> dict[str, Any]:
        """Returns the options, and digests of the cut-outs with their classes and of the backgrounds."""
        return {
            "source": self.name,
            "drawing": DRAWING,
            "objects": self.objects,
            "sizes": list(self._sizes),
            "overlapping": self.overlapping,
            "cutouts": digest(self._files),
            "backgrounds": digest(find_backgrounds(self.backgrounds)),
        }

    def class_range(self) -> int:
        """Returns 1 + the highest class of the table."""
        return 1 + max(each.target for each in self._files)

    @property
    def _sizes(self) -> tuple[float, float]:
        return SIZES.get(self.objects, (0.375, 0.5)) if self.sizes is None else self.sizes

    @cached_property
    def _files(self) -> list[LabelledFile]:
        return read_table(self.labels, self.cutouts)

    @cached_property
    def _copies(self) -> str | None:
        return copies(self._files)

    @cached_property
    def _shares(self) -> tuple[dict[str, dict[int, list[LabelledFile]]], str | None]:
        return share_out_objects(self._files, self.objects)

    def _regions(self, size: int) -> tuple[dict[str, list[Region]], tuple[str, ...]]:
        images = find_backgrounds(self.backgrounds)
        check_sizes(images, size)
        shares, about_backgrounds = regions(images, size)
        return shares, tuple(each for each in (self._shares[1], self._copies, about_backgrounds) if each is not None)

    def _plan(self, index: int, split: str, seed: int, backgrounds: int) -> _Plan:
        """Draws what a scene shows."""
        by_class = self._shares[0][split]
        generator = scene_generator(seed, split, index)
        order = torch.randperm(len(by_class), generator=generator)[: self.objects].tolist()
        classes = sorted(by_class)
        members = [by_class[classes[number]] for number in order]
        numbers = torch.rand(4 + 3 * self.objects, generator=generator, dtype=torch.float64).tolist()
        choice, longer, flip = (numbers[4 + part :: 3] for part in range(3))
        low, high = self._sizes
        return _Plan(
            index=index,
            generator=generator,
            background=int(numbers[0] * backgrounds),
            piece=numbers[1:4],
            files=[each[int(number * len(each))] for each, number in zip(members, choice, strict=True)],
            longer=[low + number * (high - low) for number in longer],
            flipped=[number < 0.5 for number in flip],
        )

    def _paste(self, image: Pixels, pictures: Sequence[Image.Image], plan: _Plan) -> Mask:
        """Lays objects over a background in place; returns their visible pixels ``(K, size, size)``."""
        size = len(image)
        whole = Box(0, 0, size, size)
        rooms = [whole] * self.objects if self.overlapping else cells(self.objects, size, plan.generator)
        aspects = [picture.width / picture.height for picture in pictures]
        shapes = [
            fitted(aspect, longer * size, room)
            for aspect, longer, room in zip(aspects, plan.longer, rooms, strict=True)
        ]
        layers = [
            _resized(picture, shape, flip) for picture, shape, flip in zip(pictures, shapes, plan.flipped, strict=True)
        ]
        tries = TRIES if self.overlapping else 1
        boxes, masks = _fairest(layers, layouts(shapes, rooms, plan.generator, tries), size)
        for layer, box in zip(layers, boxes, strict=True):
            rows, columns = box.slices()
            image[rows, columns] = layer[..., :3] + (1 - layer[..., 3:] / 255) * image[rows, columns]
        return masks


@dataclass(frozen=True)
class _Plan:
    """What a scene shows, before any picture is read."""

    index: int
    generator: torch.Generator
    background: int
    piece: list[float]
    files: list[LabelledFile]
    longer: list[float]
    flipped: list[bool]


def make_cutout_scenes(
    cutouts: Path,
    labels: Path,
    backgrounds: Path,
    count: int,
    *,
    objects: int = 2,
    split: str = "train",
    seed: int = 0,
    size: int = 224,
    sizes: tuple[float, float] | None = None,
    overlapping: bool = False,
) -> Scenes:
    """Returns scenes of cut-outs of different classes on backgrounds, with a mask for each object.

    Args:
        cutouts: Folder of pictures with an alpha channel.
        labels: CSV file with the header ``file,class`` (or ``file,imagenet_class``); files are relative to ``cutouts``.
        backgrounds: Folder of photographs, each at least as large as a scene.
        count: How many scenes.
        objects: How many objects a scene has: 1, 2 (one in each half) or 4 (one in each quarter).
        split: ``"train"``, ``"validation"`` or ``"test"``; `CutoutSource` says how files are shared out.
        seed: Seed of the draw; scene ``i`` of a seed does not depend on ``count``.
        size: Height and width of the scenes in pixels.
        sizes: Range of the objects' longer side in sides of the scene; by default .375 to .5, for four objects three
            quarters of that.
        overlapping: Objects lie anywhere, later ones cover earlier ones; each keeps at least half of its pixels.

    Returns:
        Scenes with images ``(count, 3, size, size)`` and masks ``(count, objects, size, size)``.

    Raises:
        LearnpropError: An argument is out of range; a file is missing, unreadable, without alpha channel, without
            object or smaller than the scene; there are fewer classes than objects.
    """
    source = CutoutSource(cutouts, labels, backgrounds, objects, sizes, overlapping)
    return source.draw(count, split=split, seed=seed, size=size)


def _read_object(each: LabelledFile, longest: float) -> Image.Image:
    """Reads a cut-out, trimmed to what is visible and with premultiplied colours, no larger than scenes need it."""
    name = printable(each.id)
    picture = read_cutout(each.path)
    alpha = picture.getchannel("A")
    frame = alpha.point(lambda value: 255 * (value >= VISIBLE)).getbbox()
    solid = np.asarray(alpha) > 127
    if frame is None or solid.sum() < LEAST_SHARE * (frame[2] - frame[0]) * (frame[3] - frame[1]):
        raise LearnpropError(f"{name} holds no object: its alpha channel is (almost) empty; take it out of the table")
    if solid.all():
        raise LearnpropError(
            f"{name} is opaque everywhere, so that nothing says where the object is: make its surroundings transparent"
        )
    picture = picture.crop(frame).convert("RGBa")
    scale = min(1.0, 2 * longest / max(picture.size))
    kept = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(kept, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _resized(picture: Image.Image, shape: tuple[int, int], flipped: bool) -> Pixels:
    """Returns an object at its size: ``(H, W, 4)`` in [0, 255], colours premultiplied with alpha."""
    if flipped:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture.resize(shape, Image.Resampling.BICUBIC), dtype=np.float32)


def _fairest(layers: Sequence[Pixels], places: Iterable[list[Box]], size: int) -> tuple[list[Box], Mask]:
    """Returns the first layout where each object keeps its fair share, or the best; and the visible pixels."""
    best: tuple[float, list[Box], Mask] = (-1.0, [], np.zeros(0, dtype=np.bool_))
    for boxes in places:
        masks = np.zeros((len(layers), size, size), dtype=np.bool_)
        for index, (layer, box) in enumerate(zip(layers, boxes, strict=True)):
            masks[index][box.slices()] = layer[..., 3] > 127
            masks[:index] &= ~masks[index]
        kept = [mask.sum() / max(1, (layer[..., 3] > 127).sum()) for mask, layer in zip(masks, layers, strict=True)]
        if min(kept) > best[0]:
            best = (float(min(kept)), boxes, masks)
        if min(kept) >= FAIR_SHARE:
            break
    return best[1], best[2]


def _check_visible(masks: Mask, plan: _Plan) -> None:
    for mask, each in zip(masks, plan.files, strict=True):
        if not mask.any():
            raise LearnpropError(
                f"nothing of {printable(each.id)} is left in a scene of {masks.shape[1]} pixels: it is too thin; "
                "draw larger scenes or objects, or take it out of the table"
            )


def _empty_scenes(plans: Sequence[_Plan], size: int, classes: int) -> Scenes:
    targets = torch.tensor([[each.target for each in plan.files] for plan in plans])
    count, objects = targets.shape
    return Scenes(
        images=torch.empty(count, 3, size, size),
        labels=label_rows(targets, classes),
        masks=torch.empty(count, objects, size, size, dtype=torch.bool),
        targets=targets,
    )
