"""Scenes that a user has segmented: images, and for some of them a mask of the object that is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_learnprop.errors import LearnpropError, SceneWarning
from captum_learnprop.files import printable
from captum_learnprop.images import ImageFile, Preprocessing, find_images, image_size, read_image, read_mask
from captum_learnprop.scenes.labelled_files import digest, read_table
from captum_learnprop.scenes.scenes import SPLITS, Scenes, label_rows
from captum_learnprop.scenes.source import check_draw, scene_generator
from captum_learnprop.scenes.splits import shared_out, shuffled

SHARES = (0.5, 0.25, 0.25)
"""Shares of training, validation and test."""


@dataclass(frozen=True)
class SegmentedImage:
    """One image of a user.

    Attributes:
        image: The image.
        mask: Its mask; None for an image that is trained on only.
        target: The class that is asked for; -1 if a model has yet to say it.
    """

    image: ImageFile
    mask: ImageFile | None
    target: int = -1


@dataclass(frozen=True)
class SegmentedSource:
    """Images with masks that a user has, one question about each: where is the object?

    A mask has the name of its image (``cat.jpg`` and ``cat.png``), and is non-zero where the object is. Image and mask
    are brought to the size of a scene like the input of a classifier: the shorter side is resized, the central square
    kept. Images are shared out as 50, 25 and 25 %; of fewer than three with a mask, splits share all, and `caveats`
    says so. Images without a mask are training images.

    There are as many scenes as images: `draw` returns fewer than asked for where a split has no more.

    Args:
        images: Folder of images, sub-folders too.
        masks: Folder of masks; it may lie inside of ``images``.
        labels: CSV file with the header ``file,class`` that says what is asked for; files are relative to ``images``.
            None asks for what the model predicts: scenes then have the class -1 until `asked_of` fills it.

    Raises:
        LearnpropError: Images and masks are in one folder.
    """

    images: Path
    masks: Path
    labels: Path | None = None

    def __post_init__(self) -> None:
        """Checks that there are two folders; files are read when scenes are drawn."""
        for name in ("images", "masks"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        if self.images.resolve() == self.masks.resolve():
            raise LearnpropError(
                f"images and masks are both in {self.images}: put the masks into a folder of their own"
            )

    @property
    def name(self) -> str:
        """``"masks"``."""
        return "masks"

    @property
    def kind(self) -> str:
        """``"digits"``: one object."""
        return "digits"

    @property
    def questions_per_scene(self) -> int:
        """One."""
        return 1

    def draw(self, count: int, *, split: str = "train", seed: int = 0, size: int = 224) -> Scenes:
        """Returns ``count`` images in an order by seed, or all that the split has.

        Raises:
            LearnpropError: An argument is out of range; no image has a mask; an image or mask is unreadable; a mask
                has another shape than its image, is empty, or covers all that a scene shows.
        """
        check_draw(count, split, size)
        for caveat in self.caveats(size):
            warnings.warn(caveat, SceneWarning, stacklevel=2)
        mine = self._shares[0][split]
        order = torch.randperm(len(mine), generator=scene_generator(seed, split, 0)).tolist()
        drawn = [mine[index] for index in order[:count]]
        images, masks = zip(*(_read(each, size) for each in drawn), strict=True)
        targets = torch.tensor([[each.target] for each in drawn])
        return Scenes(torch.stack(images), label_rows(targets, self.class_range() or 0), torch.stack(masks), targets)

    def check(self, size: int) -> None:
        """Reads all images and masks once.

        Raises:
            LearnpropError: As of `draw`.
        """
        for each in self._images[0]:
            _read(each, size)

    def caveats(self, size: int) -> tuple[str, ...]:
        """Returns which masks belong to no image and what splits share, in sentences."""
        return tuple(each for each in (self._images[1], self._shares[1]) if each is not None)

    def identity(self) -> dict[str, Any]:
        """Returns digests of images and masks, and the classes."""
        images, masks = [each.image for each in self._images[0]], [each.mask for each in self._images[0]]
        return {
            "source": self.name,
            "images": digest(images),
            "masks": digest([mask for mask in masks if mask is not None]),
            "classes": {each.image.id: each.target for each in self._images[0] if each.target >= 0},
        }

    def class_range(self) -> int | None:
        """Returns 1 + the highest class of the table; None without one."""
        return None if self.labels is None else 1 + max(each.target for each in self._images[0])

    @cached_property
    def _images(self) -> tuple[list[SegmentedImage], str | None]:
        """All images, and a sentence about masks that belong to none."""
        images, masks = _by_stem(find_images(self.images, recursive=True, exclude=self.masks)), _by_stem(
            find_images(self.masks, recursive=True)
        )  # fmt: skip
        if not images.keys() & masks.keys():
            raise LearnpropError(
                f"no image in {self.images} has a mask in {self.masks}: a mask has the name of its image, "
                "such as cat.jpg and cat.png"
            )
        classes = None
        if self.labels is not None:
            classes = {each.id: each.target for each in read_table(self.labels, self.images)}
            unlisted = [images[stem].id for stem in images.keys() & masks.keys() if images[stem].id not in classes]
            if unlisted:
                raise LearnpropError(
                    f"{self.labels} does not name {printable(min(unlisted))}, which has a mask: add a line "
                    f"{printable(min(unlisted))},CLASS"
                )
        found = [
            SegmentedImage(image, masks.get(stem), -1 if classes is None else classes.get(image.id, -1))
            for stem, image in images.items()
        ]
        lone = sorted(masks[stem].id for stem in masks.keys() - images.keys())
        return found, f"{len(lone)} mask(s) belong to no image: {printable(', '.join(lone[:3]))}" if lone else None

    @cached_property
    def _shares(self) -> tuple[dict[str, list[SegmentedImage]], str | None]:
        """Images by split, and a sentence about what splits share."""
        masked = {each.image.id: each for each in self._images[0] if each.mask is not None}
        unmasked = [each for each in self._images[0] if each.mask is None]
        names = shared_out(list(masked), shares=SHARES)
        caveat = None
        if names is None:
            names = dict.fromkeys(SPLITS, shuffled(list(masked)))
            caveat = (
                f"training, validation and test share their images: {len(masked)} with a mask are too few to split; "
                "give at least 3, better 50"
            )
        shares = {split: [masked[name] for name in names[split]] for split in SPLITS}
        return {**shares, "train": shares["train"] + unmasked}, caveat


def _by_stem(images: Sequence[ImageFile]) -> dict[str, ImageFile]:
    stems: dict[str, ImageFile] = {}
    for image in images:
        stem = str(PurePosixPath(image.id).with_suffix(""))
        if stem in stems:
            raise LearnpropError(
                f"{printable(stems[stem].id)} and {printable(image.id)} have one name, so that a mask could "
                "be of either: rename one"
            )
        stems[stem] = image
    return stems


def _read(each: SegmentedImage, size: int) -> tuple[Tensor, Tensor]:
    """Returns an image ``(3, size, size)`` in [0, 1] and its mask ``(1, size, size)``, False where there is none."""
    geometry = Preprocessing(resize=size, crop=size)
    pixels = geometry.pixels(read_image(each.image.path))
    if each.mask is None:
        return pixels, torch.zeros(1, size, size, dtype=torch.bool)
    mask = read_mask(each.mask.path)
    _check_shapes(each, mask.size)
    if not np.asarray(mask).any():
        raise LearnpropError(f"the mask {printable(each.mask.id)} is empty: mark the object, or remove the mask")
    upright = mask.resize(image_size(each.image.path), Image.Resampling.BILINEAR)
    inside = geometry.pixels(upright.convert("RGB"))[:1] > 0.5
    if not inside.any():
        raise LearnpropError(
            f"the object of the mask {printable(each.mask.id)} lies outside of the central square that a classifier "
            f"sees, or is smaller than a pixel at {size} x {size}: crop the image around it, or remove the mask"
        )
    if inside.all():
        raise LearnpropError(
            f"the mask {printable(each.mask.id)} covers all that a classifier sees, so that every map would be right: "
            "remove the mask"
        )
    return pixels, inside


def _check_shapes(each: SegmentedImage, mask: tuple[int, int]) -> None:
    assert each.mask is not None
    image = image_size(each.image.path)
    # A mask of another resolution is rounded to whole pixels.
    if abs(mask[0] * image[1] - mask[1] * image[0]) > max(*image, *mask):
        raise LearnpropError(
            f"the mask {printable(each.mask.id)} has {mask[0]} x {mask[1]} pixels, its image "
            f"{printable(each.image.id)} {image[0]} x {image[1]}: masks have the shape of their "
            "images, if not the same resolution"
        )
