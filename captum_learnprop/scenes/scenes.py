"""Scenes with known ground truth, made offline from a seed: which pixels decide the class is known exactly.

The digits are those of scikit-learn's ``load_digits`` (1,797 images of 8 x 8 pixels from the UCI *Optical
Recognition of Handwritten Digits* data set), which are bundled with scikit-learn: nothing is downloaded.
The clutter holds pieces of other digits in the same range of sizes and colours, so that neither "there is a
stroke" nor "there is a strong colour" finds the digit.

Mosaics after Arias-Duart et al., *Focus! Rating XAI Methods and Finding Biases*, 2022; planted shortcuts after
Adebayo et al., *Debugging Tests for Model Explanations*, 2020; objects of parts that can be removed one by one
after Hesse et al., *FunnyBirds*, ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from math import radians
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.drawing import (
    DIGIT_CONTRAST,
    DIGIT_PIXELS,
    SIZE,
    Drawing,
    Layer,
    background,
    draw_noise,
    place_strokes,
    random_colour,
    scatter_fragments,
    separate,
    uniform,
)
from captum_learnprop.scenes.objects import PATCH_PIXELS, draw_figures, draw_patch
from captum_learnprop.scenes.thumbnails import thumbnails
from zennit_rules._moved import renamed

NUM_CLASSES = 10

SPLITS: dict[str, tuple[float, float]] = {"train": (0.0, 0.7), "validation": (0.7, 0.85), "test": (0.85, 1.0)}
"""Which part of the shuffled source digits of each class a split draws from; the parts are disjoint.

The data set is ordered by writer, and its last writers are harder to read. Shuffling makes the splits alike;
one writer's digits can be in several splits, one digit never.
"""

CELL = SIZE // 2
"""Height and width of a cell of a mosaic in pixels."""

CELL_DIGIT_PIXELS = (18.0, 26.0)
"""Range of the height of a digit in a mosaic, in pixels."""

CELL_FRAGMENTS = 2
"""Pieces of other digits in each cell of a mosaic."""


@dataclass(frozen=True)
class Scenes:
    """Images with known objects, ``N`` scenes of ``K`` objects each; figures are one object of ``P`` parts.

    Scenes of `make_scenes` have 64 x 64 pixels and ten classes; those of photographs have any size and any classes.

    Attributes:
        images: ``(N, 3, H, W)`` float32 RGB in [0, 1].
        labels: ``(N, classes)`` float32, 1 for each class that is in the scene, else 0. The digit beside a patch
            does not count.
        masks: ``(N, K, H, W)`` bool, the visible pixels of each object, for figures ``(N, P, H, W)`` of
            each part; they share no pixels.
        targets: ``(N, K)`` int64, the class of each object, for figures ``(N, 1)``; -1 where a model has yet
            to say it, see `asked_of`.
        cells: ``(N, K, H, W)`` bool, the quarter of the mosaic that each object is in; None without mosaic.
        distractors: ``(N, H, W)`` bool, the pixels of a tempting object that does not matter; None if there is
            none.
        without: ``(N, K, 3, H, W)``, for figures ``(N, P, 3, H, W)``: the same image without each object or
            part, all else equal to the noise; None unless asked for.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    targets: Tensor
    cells: Tensor | None = None
    distractors: Tensor | None = None
    without: Tensor | None = None

    def __len__(self) -> int:
        """Returns the number of scenes."""
        return len(self.images)

    def __repr__(self) -> str:
        """Returns what the scenes hold, without their pixels."""
        parts = "objects" if self.masks.shape[1] == self.targets.shape[1] else "parts"
        extra = [name for name in ("cells", "distractors", "without") if getattr(self, name) is not None]
        return (
            f"Scenes({len(self)} scenes of {self.masks.shape[1]} {parts}, {tuple(self.images.shape[1:])}"
            f"{''.join(f', {name}' for name in extra)})"
        )

    def _repr_html_(self) -> str:
        """Returns the first scenes with their classes, for a notebook."""
        captions = [", ".join(str(label) for label in row) for row in self.targets.tolist()]
        return thumbnails(self.images, captions, repr(self))

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        """Returns the scenes that a slice or an index tensor selects."""

        return Scenes(**_selected(self, index))

    def questions(self) -> Questions:
        """Returns one question per object: where is *this* class? ``N * K`` rows, all objects of a scene in a row."""
        if self.masks.shape[1] != self.targets.shape[1]:
            return self._questions_about_parts()
        count, objects = self.targets.shape
        union = self.masks.any(1, keepdim=True)
        if self.distractors is not None:
            union = union | self.distractors[:, None]
        return Questions(
            images=self.images.repeat_interleave(objects, 0),
            targets=self.targets.reshape(-1),
            masks=self.masks.flatten(0, 1),
            other_masks=(union & ~self.masks).flatten(0, 1),
            scenes=torch.arange(count).repeat_interleave(objects),
            cells=None if self.cells is None else self.cells.flatten(0, 1),
            without=None if self.without is None else self.without.flatten(0, 1)[:, None],
        )

    def _questions_about_parts(self) -> Questions:
        union = self.masks.any(1)
        return Questions(
            images=self.images,
            targets=self.targets[:, 0],
            masks=union,
            other_masks=torch.zeros_like(union),
            scenes=torch.arange(len(self)),
            parts=self.masks,
            without=self.without,
        )


@dataclass(frozen=True)
class Questions:
    """Scenes unrolled to one asked object per row, ``M = N * K`` rows.

    Attributes:
        images: ``(M, 3, H, W)`` float32.
        targets: ``(M,)`` int64, the asked class.
        masks: ``(M, H, W)`` bool, pixels of the asked object; of a figure, of all its parts.
        other_masks: ``(M, H, W)`` bool, pixels of all other objects of the scene, beside a patch those of the
            digit. Empty for single digits and figures: `class_auc` is not defined there.
        scenes: ``(M,)`` int64, the scene that the row belongs to.
        cells: ``(M, H, W)`` bool, the quarter of a mosaic that the asked object is in, or None.
        parts: ``(M, P, H, W)`` bool, the visible pixels of each part of a figure, or None.
        without: ``(M, P, 3, H, W)``, the image without each part, or with ``P = 1`` without the asked object;
            None unless the scenes were made with counterfactuals.
    """

    images: Tensor
    targets: Tensor
    masks: Tensor
    other_masks: Tensor
    scenes: Tensor
    cells: Tensor | None = None
    parts: Tensor | None = None
    without: Tensor | None = None

    def __len__(self) -> int:
        """Returns the number of questions."""
        return len(self.targets)

    def __getitem__(self, index: slice | Tensor) -> Questions:
        """Returns the questions that a slice or an index tensor selects."""
        return Questions(**_selected(self, index))

    def __repr__(self) -> str:
        """Returns what the questions hold, without the pixels."""
        extra = [name for name in ("cells", "parts", "without") if getattr(self, name) is not None]
        return (
            f"Questions({len(self)} questions about {len(self.scenes.unique())} scenes, {tuple(self.images.shape[1:])}"
            f"{''.join(f', {name}' for name in extra)})"
        )

    def _repr_html_(self) -> str:
        """Returns the first questions with the asked object cut out, for a notebook."""
        asked = self.images * (0.25 + 0.75 * self.masks[:, None].to(self.images))
        return thumbnails(asked, [f"where is the {target}?" for target in self.targets.tolist()], repr(self))


def _selected(record: Scenes | Questions, index: slice | Tensor) -> dict[str, Any]:
    """Returns the selected rows of each field."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: None if value is None else value[index] for name, value in values.items()}


def make_scenes(
    family: str, count: int, *, split: str = "train", seed: int = 0, counterfactuals: bool = False
) -> Scenes:
    """Draws scenes of one family; the same arguments give the same scenes.

    Args:
        family: ``"digits"``, one digit per scene; ``"pairs"``, two digits of different classes that do not
            overlap; ``"grid"``, a mosaic of four cells with a digit each, of four classes; ``"patch"``, a
            textured patch that alone is the class, beside a digit of another class; ``"parts"``, a figure of
            five parts (`PARTS`), whose variants together are the class, among stray parts.
        count: how many scenes, at least 1.
        split: ``"train"``, ``"validation"`` or ``"test"``. No source digit is in two splits, nor are the
            pieces of digits in the clutter. Figures have no source images: their splits differ in seed only.
        seed: seed of the draw. The global random state of torch is neither read nor changed.
        counterfactuals: also draw each scene without each of its objects or parts.

    Raises:
        LearnpropError: family, split or count out of range.
        ImportError: scikit-learn is missing and the family has digits.
    """
    if family not in FAMILIES:
        raise LearnpropError(f"unknown scene family {family!r}; choose one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise LearnpropError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if count < 1:
        raise LearnpropError(f"count must be at least 1, got {count}")
    # The split enters the seed: test scenes differ from training scenes in layout and clutter too, not only
    # in digits.
    generator = torch.Generator().manual_seed(3 * seed + list(SPLITS).index(split))
    return finished(FAMILIES[family](count, split, generator), counterfactuals)


def finished(drawing: Drawing, counterfactuals: bool = False) -> Scenes:
    """Returns the scenes of a drawing of ten classes.

    Args:
        drawing: ``N`` scenes with their layers.
        counterfactuals: Whether each scene is also drawn without each of its objects or parts.
    """
    masks = drawing.masks()
    others = [index for index in range(len(drawing.layers)) if index not in drawing.objects]
    without = [drawing.render({index}) for index in drawing.objects] if counterfactuals else None
    return Scenes(
        images=drawing.render(),
        labels=label_rows(drawing.targets, NUM_CLASSES),
        masks=masks[:, list(drawing.objects)],
        targets=drawing.targets,
        cells=drawing.cells,
        distractors=masks[:, others].any(1) if others else None,
        without=None if without is None else torch.stack(without, 1),
    )


def label_rows(targets: Tensor, classes: int) -> Tensor:
    """Returns ``(N, classes)`` float32, 1 for each class of a scene; a class of -1 is none.

    Args:
        targets: ``(N, K)`` int64.
        classes: How many classes there are.

    >>> label_rows(torch.tensor([[2, 0], [-1, 1]]), 3)
    tensor([[1., 0., 1.],
            [0., 1., 0.]])
    """
    return torch.zeros(len(targets), classes + 1).scatter_(1, targets.remainder(classes + 1), 1.0)[:, :classes]


def source_digits(split: str) -> tuple[Tensor, Tensor]:
    """Returns the source images ``(S, 8, 8)`` in [0, 1] and their classes ``(S,)`` that a split draws from.

    Args:
        split: A key of `SPLITS`.

    Raises:
        ImportError: scikit-learn is missing.
    """
    images, classes = _load_digits()
    index = members_of(split, classes)
    return images[index], classes[index]


def members_of(split: str, classes: Tensor) -> Tensor:
    """Returns the numbers of the samples that a split draws from, class by class: its part of the shuffled samples.

    Args:
        split: A key of `SPLITS`.
        classes: ``(S,)`` int64 from 0 on, the class of each sample; all of 0 where there are no classes.
    """
    low, high = SPLITS[split]
    shuffled = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    chosen = []
    for label in range(int(classes.max()) + 1):
        members = shuffled[classes[shuffled] == label]
        chosen.append(members[int(low * len(members)) : int(high * len(members))])
    return torch.cat(chosen)


@lru_cache(maxsize=1)
def _load_digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digit scenes need scikit-learn, which bundles the digits: pip install 'captum-learnprop[demo]'"
        ) from error
    bunch = load_digits()
    return torch.from_numpy(bunch.images).float() / 16.0, torch.from_numpy(bunch.target).long()


def _digits(count: int, split: str, generator: torch.Generator) -> Drawing:
    targets = torch.randint(NUM_CLASSES, (count, 1), generator=generator)
    sizes = uniform((count, 1), *DIGIT_PIXELS, generator)
    centres = sizes[..., None] / 2 + torch.rand(count, 1, 2, generator=generator) * (SIZE - sizes[..., None])
    return _compose(targets, sizes, centres, source_digits(split), generator)


def _pairs(count: int, split: str, generator: torch.Generator) -> Drawing:
    return draw_pairs(count, *source_digits(split), generator)


def draw_pairs(count: int, digits: Tensor, classes: Tensor, generator: torch.Generator) -> Drawing:
    """Returns a drawing of two digits of different classes that do not overlap, over pieces of other digits.

    Args:
        count: How many scenes, ``N``.
        digits: Source images ``(S, h, w)`` in [0, 1], at least one of each of ten classes.
        classes: ``(S,)`` int64, their classes.
        generator: Draws everything.
    """
    targets = _two_classes(count, generator)
    sizes = uniform((count, 2), *DIGIT_PIXELS, generator)
    return _compose(targets, sizes, separate(sizes, generator), (digits, classes), generator)


def _compose(
    targets: Tensor, sizes: Tensor, centres: Tensor, source: tuple[Tensor, Tensor], generator: torch.Generator
) -> Drawing:
    """Draws the clutter, then the digits over it."""
    digits, classes = source
    base = scatter_fragments(background(len(targets), generator), digits, generator)
    below, layers = base, []
    for index in range(targets.shape[1]):
        sources = digits[_draw_sources(targets[:, index], classes, generator)]
        layers.append(_digit_layer(below, sources, sizes[:, index], centres[:, index], generator))
        below = layers[-1].over(below)
    return Drawing(base, layers, tuple(range(len(layers))), targets, draw_noise(base, generator))


def _grid(count: int, split: str, generator: torch.Generator) -> Drawing:
    digits, classes = source_digits(split)
    targets = torch.rand(count, NUM_CLASSES, generator=generator).argsort(1)[:, :4]
    sizes = uniform((4 * count,), *CELL_DIGIT_PIXELS, generator)
    centres = sizes[:, None] / 2 + torch.rand(4 * count, 2, generator=generator) * (CELL - sizes[:, None])
    tiles = scatter_fragments(background(4 * count, generator, CELL), digits, generator, CELL_FRAGMENTS)
    sources = digits[_draw_sources(targets.flatten(), classes, generator)]
    digit = _digit_layer(tiles, sources, sizes, centres, generator)
    cells = _cells().expand(count, -1, -1, -1)
    coverage = _mosaic(digit.coverage) * cells
    layers = [Layer(coverage[:, cell : cell + 1], digit.colour[cell::4]) for cell in range(4)]
    base = _mosaic(tiles)
    return Drawing(base, layers, (0, 1, 2, 3), targets, draw_noise(base, generator), cells)


def _patch(count: int, split: str, generator: torch.Generator) -> Drawing:
    digits, classes = source_digits(split)
    patch, digit = _two_classes(count, generator).unbind(1)
    sizes = torch.stack([uniform((count,), *PATCH_PIXELS, generator), uniform((count,), *DIGIT_PIXELS, generator)], 1)
    centres = separate(sizes, generator)
    base = scatter_fragments(background(count, generator), digits, generator)
    sources = digits[_draw_sources(digit, classes, generator)]
    layers = [
        _digit_layer(base, sources, sizes[:, 1], centres[:, 1], generator),
        draw_patch(sizes[:, 0], centres[:, 0], patch, generator),
    ]
    return Drawing(base, layers, (1,), patch[:, None], draw_noise(base, generator))


def _parts(count: int, split: str, generator: torch.Generator) -> Drawing:
    return draw_figures(count, generator)


FAMILIES: dict[str, Callable[[int, str, torch.Generator], Drawing]] = {
    "digits": _digits,
    "pairs": _pairs,
    "grid": _grid,
    "patch": _patch,
    "parts": _parts,
}
"""Scene families by name."""

QUESTIONS_PER_SCENE = {"digits": 1, "pairs": 2, "grid": 4, "patch": 1, "parts": 1}
"""Number of rows of `Scenes.questions` that are about one scene, by family."""


def _two_classes(count: int, generator: torch.Generator) -> Tensor:
    """Two different classes per scene, ``(N, 2)``."""
    first = torch.randint(NUM_CLASSES, (count,), generator=generator)
    step = torch.randint(1, NUM_CLASSES, (count,), generator=generator)
    return torch.stack([first, (first + step) % NUM_CLASSES], 1)


def _digit_layer(below: Tensor, sources: Tensor, sizes: Tensor, centres: Tensor, generator: torch.Generator) -> Layer:
    coverage = place_strokes(sources, sizes, centres, radians(12.0), generator, below.shape[-1])
    return Layer(coverage, random_colour(below, DIGIT_CONTRAST, generator))


def _cells() -> Tensor:
    """The four quarters of a mosaic, ``(4, 64, 64)`` bool, in reading order."""
    return _mosaic(torch.eye(4, dtype=torch.bool).reshape(16, 1, 1, 1).expand(-1, -1, CELL, CELL))[:, 0]


def _mosaic(tiles: Tensor) -> Tensor:
    """Tiles ``(4 * N, C, 32, 32)``, four in reading order per scene, as ``(N, C, 64, 64)``."""
    channels = tiles.shape[1]
    tiles = tiles.reshape(-1, 2, 2, channels, CELL, CELL)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, SIZE, SIZE)


def _draw_sources(targets: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """One random source index of each asked class: ``(N,)``."""
    order = classes.argsort(stable=True)
    sizes = torch.bincount(classes, minlength=NUM_CLASSES)
    starts = sizes.cumsum(0) - sizes
    draw = (torch.rand(len(targets), generator=generator) * sizes[targets]).long()
    return order[starts[targets] + draw.minimum(sizes[targets] - 1)]


__getattr__ = renamed(__name__, {"SceneError": "LearnpropError"})
