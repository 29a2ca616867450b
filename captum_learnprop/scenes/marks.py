"""Planted marks: a patch or a watermark that is the same wherever it is, for shortcuts that a model may take.

After Adebayo et al., *Debugging Tests for Model Explanations*, 2020: whoever trains a classifier on scenes where one
class carries a mark knows what the classifier looks at, and can ask whether a map tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.scenes.scenes import Scenes, label_rows
from captum_learnprop.scenes.source import SceneSource, scene_generator

GLYPHS = (
    "### #.# ### ### ###",
    "#.# #.# #.# .#. #.#",
    "### ### #.# .#. #.#",
    "#.. #.# #.# .#. #.#",
    "#.. #.# ### .#. ###",
)
"""The word of the watermark, a cell a pixel of its letters."""

LETTERS_OPACITY = 0.7
"""How much of a pixel below a letter the letter covers: a watermark is seen through."""

TILES = 6
"""Squares along a side of the patch."""

TRIES = 50
"""Places that are tried until a mark covers no object."""


def plant_mark(
    scenes: Scenes,
    mark: str = "patch",
    *,
    size: float = 0.2,
    share: float = 1.0,
    beside: Sequence[int] | None = None,
    target: int | None = None,
    seed: int = 0,
) -> Scenes:
    """Returns scenes with a mark in them, at random places that cover no object where there is room.

    Without ``target`` the mark is a temptation: its pixels are the scenes' ``distractors``. With ``target`` the mark is
    what is asked for, and the objects become distractors.

    Args:
        scenes: What the mark is laid over; it stays as it is.
        mark: ``"patch"``, a square of coloured tiles, or ``"watermark"``, letters that one sees through.
        size: Width of the mark in sides of the scene, in (0, 0.5].
        share: Share of the scenes that get the mark, in [0, 1]; which ones is drawn.
        beside: Only scenes that show one of these classes get it: a shortcut to learn. None for all.
        target: The class that the mark stands for, in every scene.
        seed: Seed of the draw; scene ``i`` does not depend on how many there are.

    Returns:
        Scenes like those given; ``cells`` and ``without``, which know no mark, are None.

    Raises:
        LearnpropError: There is no such mark; a number is out of range; a mark that is asked for is not in all scenes.

    >>> scenes = Scenes(torch.zeros(2, 3, 64, 64), torch.ones(2, 1), torch.zeros(2, 1, 64, 64) > 0,
    ...                 torch.zeros(2, 1, dtype=torch.int64))
    >>> marked = plant_mark(scenes, size=0.25, target=3)
    >>> marked.targets.tolist(), marked.masks.sum((1, 2, 3)).tolist()
    ([[3], [3]], [256, 256])
    >>> plant_mark(scenes, "watermark", share=0.0).distractors.any().item()
    False
    """
    _check(mark, size, share, beside, target)
    height, width = scenes.images.shape[-2:]
    colours, opacity = MARKS[mark](max(TILES, round(size * width)))
    images = scenes.images.clone()
    marks = torch.zeros(len(scenes), height, width, dtype=torch.bool)
    for index in range(len(scenes)):
        generator = scene_generator(seed, f"mark {mark}", index)
        planted = float(torch.rand((), generator=generator)) < share
        allowed = beside is None or bool(torch.isin(scenes.targets[index], torch.tensor(list(beside))).any())
        if planted and allowed:
            rows, columns = _place(scenes.masks[index].any(0), opacity.shape, generator)
            below = images[index, :, rows, columns]
            images[index, :, rows, columns] = opacity * colours + (1 - opacity) * below
            marks[index, rows, columns] = opacity > 0
    objects = scenes.masks & ~marks[:, None]
    tempting = scenes.distractors if scenes.distractors is not None else torch.zeros_like(marks)
    if target is None:
        return replace(
            scenes, images=images, masks=objects, distractors=(tempting & ~marks) | marks, cells=None, without=None
        )
    targets = torch.full((len(scenes), 1), target)
    return Scenes(
        images=images,
        labels=label_rows(targets, max(scenes.labels.shape[1], target + 1)),
        masks=marks[:, None],
        targets=targets,
        distractors=(objects.any(1) | tempting) & ~marks,
    )


@dataclass(frozen=True)
class MarkedSource:
    """Scenes of another source with a mark that is asked for, beside the objects that tempt.

    Args:
        source: Where the scenes come from.
        target: The class that the mark stands for.
        mark, size: Arguments of `plant_mark`.
    """

    source: SceneSource
    target: int
    mark: str = "patch"
    size: float = 0.2

    def __post_init__(self) -> None:
        """Checks the arguments of the mark."""
        _check(self.mark, self.size, 1.0, None, self.target)

    @property
    def name(self) -> str:
        """The source's name and the mark's, e.g. ``"cutouts-patch"``."""
        return f"{self.source.name}-{self.mark}"

    @property
    def kind(self) -> str:
        """``"patch"``."""
        return "patch"

    @property
    def questions_per_scene(self) -> int:
        """One: where is the mark?"""
        return 1

    def draw(self, count: int, *, split: str = "train", seed: int = 0, size: int = 224) -> Scenes:
        """Returns ``count`` marked scenes; `SceneSource.draw` says what the arguments are.

        Raises:
            LearnpropError: As of the source.
        """
        scenes = self.source.draw(count, split=split, seed=seed, size=size)
        return plant_mark(scenes, self.mark, size=self.size, target=self.target, seed=seed)

    def check(self, size: int) -> None:
        """Checks the source.

        Raises:
            LearnpropError: As of the source.
        """
        self.source.check(size)

    def caveats(self, size: int) -> tuple[str, ...]:
        """Returns the caveats of the source."""
        return self.source.caveats(size)

    def identity(self) -> dict[str, Any]:
        """Returns the identity of the source, and the mark."""
        return {**self.source.identity(), "mark": self.mark, "mark_size": self.size, "mark_target": self.target}

    def class_range(self) -> int:
        """Returns 1 + the higher of the mark's class and the source's highest."""
        return max(self.source.class_range() or 0, self.target + 1)


def _check(mark: str, size: float, share: float, beside: Sequence[int] | None, target: int | None) -> None:
    if mark not in MARKS:
        raise LearnpropError(f"there is no mark {mark!r}; choose patch or watermark{did_you_mean(mark, MARKS)}")
    if not 0 < size <= 0.5:
        raise LearnpropError(f"size is the mark's width in sides of the scene, above 0 and up to 0.5, got {size}")
    if not 0 <= share <= 1:
        raise LearnpropError(f"share must lie in [0, 1], got {share}")
    if target is not None and target < 0:
        raise LearnpropError(f"target is a class number from 0 on, got {target}")
    if target is not None and (share < 1 or beside is not None):
        raise LearnpropError("a mark that is asked for must be in every scene: leave out share and beside, or target")


def _patch(width: int) -> tuple[Tensor, Tensor]:
    """Returns tiles of fixed colours, and where they cover: ``(3, W, W)`` and ``(W, W)``."""
    tiles = torch.rand(3, TILES, TILES, generator=scene_generator(0, "tiles", 0)).round()
    return F.interpolate(tiles[None], (width, width))[0], torch.ones(width, width)


def _watermark(width: int) -> tuple[Tensor, Tensor]:
    """Returns white letters with a black shade, and how much they cover: ``(3, H, W)`` and ``(H, W)``."""
    letters = torch.tensor([[float(cell == "#") for cell in row] for row in GLYPHS])
    height = max(len(GLYPHS), round(width * letters.shape[0] / letters.shape[1]))
    shape = (height, max(width, letters.shape[1]))
    lit = F.interpolate(letters[None, None], shape)[0, 0]
    shade = F.pad(lit, (1, 0, 1, 0))[:-1, :-1]  # one pixel to the right and below, so that white shows on white
    return lit.expand(3, -1, -1).clone(), LETTERS_OPACITY * torch.maximum(lit, shade)


MARKS = {"patch": _patch, "watermark": _watermark}
"""What marks look like, by name: a function of the width in pixels."""


def _place(taken: Tensor, shape: torch.Size, generator: torch.Generator) -> tuple[slice, slice]:
    """Returns rows and columns for a mark: the first that covers no object, or the one that covers least."""
    best, found = None, (slice(0), slice(0))
    for _ in range(TRIES):
        across, down = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        top = int(down * (taken.shape[0] - shape[0] + 1))
        left = int(across * (taken.shape[1] - shape[1] + 1))
        place = (slice(top, top + shape[0]), slice(left, left + shape[1]))
        covered = int(taken[place].sum())
        if best is None or covered < best:
            best, found = covered, place
        if covered == 0:
            break
    return found
