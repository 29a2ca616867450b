"""Scenes with known ground truth: real handwritten digits in clutter, made offline from a seed.

The digits are those of scikit-learn's ``load_digits`` (1,797 images of 8 x 8 pixels from the UCI *Optical
Recognition of Handwritten Digits* data set), which are bundled with scikit-learn: nothing is downloaded.
The clutter holds pieces of other digits in the same range of sizes and colours, so that neither "there is a
stroke" nor "there is a strong colour" finds the digit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from math import radians

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError

NUM_CLASSES = 10
SIZE = 64
"""Height and width of a scene in pixels."""

SPLITS: dict[str, tuple[float, float]] = {"train": (0.0, 0.7), "validation": (0.7, 0.85), "test": (0.85, 1.0)}
"""Which part of the shuffled source digits of each class a split draws from; the parts are disjoint.

The data set is ordered by writer, and its last writers are harder to read. Shuffling makes the splits alike;
one writer's digits can be in several splits, one digit never.
"""

DIGIT_PIXELS = (20.0, 28.0)
"""Range of the height of a digit in a scene, in pixels."""

FRAGMENTS = 5
"""Pieces of other digits in each scene."""

DIGIT_CONTRAST = (0.35, 0.65)
FRAGMENT_CONTRAST = (0.2, 0.5)
"""How much lighter or darker than the mean of the scene something is painted; the ranges overlap on
purpose."""


class SceneError(LearnpropError):
    """A scene family, split or count that does not exist."""


@dataclass(frozen=True)
class Scenes:
    """Images with known objects, ``N`` scenes of ``K`` objects each.

    Attributes:
        images: ``(N, 3, 64, 64)`` float32 RGB in [0, 1].
        labels: ``(N, 10)`` float32, 1 for each class that is in the scene, else 0.
        masks: ``(N, K, 64, 64)`` bool, the pixels of each object; objects do not share pixels.
        targets: ``(N, K)`` int64, the class of each object.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        """The scenes that a slice or an index tensor selects."""
        return Scenes(*(getattr(self, field.name)[index] for field in fields(self)))

    def questions(self) -> Questions:
        """One question per object: where is *this* class? ``N * K`` rows, all objects of a scene in a row."""
        count, objects = self.targets.shape
        union = self.masks.any(1, keepdim=True)
        return Questions(
            images=self.images.repeat_interleave(objects, 0),
            targets=self.targets.reshape(-1),
            masks=self.masks.flatten(0, 1),
            other_masks=(union & ~self.masks).flatten(0, 1),
            scenes=torch.arange(count).repeat_interleave(objects),
        )


@dataclass(frozen=True)
class Questions:
    """Scenes unrolled to one asked object per row, ``M = N * K`` rows.

    Attributes:
        images: ``(M, 3, 64, 64)`` float32.
        targets: ``(M,)`` int64, the asked class.
        masks: ``(M, 64, 64)`` bool, pixels of the asked object.
        other_masks: ``(M, 64, 64)`` bool, pixels of all other objects of the scene.
        scenes: ``(M,)`` int64, the scene that the row belongs to.
    """

    images: Tensor
    targets: Tensor
    masks: Tensor
    other_masks: Tensor
    scenes: Tensor

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.targets)


def make_scenes(family: str, count: int, *, split: str = "train", seed: int = 0) -> Scenes:
    """Draw scenes of one family; the same arguments give the same scenes.

    Args:
        family: ``"digits"``, one digit per scene, or ``"pairs"``, two digits of different classes that do
            not overlap.
        count: how many scenes, at least 1.
        split: ``"train"``, ``"validation"`` or ``"test"``. No source digit is in two splits, nor are the
            pieces of digits in the clutter.
        seed: seed of the draw. The global random state of torch is neither read nor changed.

    Raises:
        SceneError: family, split or count out of range.
        ImportError: scikit-learn is missing.
    """
    if family not in FAMILIES:
        raise SceneError(f"unknown scene family {family!r}; choose one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise SceneError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if count < 1:
        raise SceneError(f"count must be at least 1, got {count}")
    # The split enters the seed: test scenes differ from training scenes in layout and clutter too, not only
    # in digits.
    generator = torch.Generator().manual_seed(3 * seed + list(SPLITS).index(split))
    digits, classes = source_digits(split)
    return FAMILIES[family](count, digits, classes, generator)


def source_digits(split: str) -> tuple[Tensor, Tensor]:
    """The source images ``(S, 8, 8)`` in [0, 1] and their classes ``(S,)`` that a split draws from."""
    images, classes = _load_digits()
    low, high = SPLITS[split]
    shuffled = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    images, classes = images[shuffled], classes[shuffled]
    chosen = []
    for label in range(NUM_CLASSES):
        members = (classes == label).nonzero().flatten()
        chosen.append(members[int(low * len(members)) : int(high * len(members))])
    index = torch.cat(chosen)
    return images[index], classes[index]


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


def _digits(count: int, digits: Tensor, classes: Tensor, generator: torch.Generator) -> Scenes:
    targets = torch.randint(NUM_CLASSES, (count, 1), generator=generator)
    sizes = _uniform((count, 1), *DIGIT_PIXELS, generator)
    centres = sizes[..., None] / 2 + torch.rand(count, 1, 2, generator=generator) * (SIZE - sizes[..., None])
    return _compose(targets, sizes, centres, digits, classes, generator)


def _pairs(count: int, digits: Tensor, classes: Tensor, generator: torch.Generator) -> Scenes:
    first = torch.randint(NUM_CLASSES, (count,), generator=generator)
    step = torch.randint(1, NUM_CLASSES, (count,), generator=generator)
    targets = torch.stack([first, (first + step) % NUM_CLASSES], 1)
    sizes = _uniform((count, 2), *DIGIT_PIXELS, generator)
    return _compose(targets, sizes, _separate(sizes, generator), digits, classes, generator)


FAMILIES: dict[str, Callable[[int, Tensor, Tensor, torch.Generator], Scenes]] = {
    "digits": _digits,
    "pairs": _pairs,
}
"""Scene families by name."""


def _separate(sizes: Tensor, generator: torch.Generator, candidates: int = 64) -> Tensor:
    """Centres ``(N, 2, 2)`` in pixels of two boxes of the given sizes ``(N, 2)`` that do not touch."""
    room = (SIZE - sizes)[:, None, :, None]
    centres = sizes[:, None, :, None] / 2 + torch.rand(len(sizes), candidates, 2, 2, generator=generator) * room
    gap = (centres[:, :, 0] - centres[:, :, 1]).abs().amax(-1) - sizes.mean(1, keepdim=True)
    # The first candidate that fits; where none does (about 1 scene in 1,000), opposite corners, which
    # always fit.
    best = (gap >= 0).float().argmax(1)
    chosen = centres[torch.arange(len(sizes)), best]
    corners = torch.stack([sizes[:, :1] / 2, SIZE - sizes[:, 1:] / 2], 1).expand(-1, 2, 2)
    return torch.where((gap >= 0).any(1)[:, None, None], chosen, corners)


def _compose(
    targets: Tensor,
    sizes: Tensor,
    centres: Tensor,
    digits: Tensor,
    classes: Tensor,
    generator: torch.Generator,
) -> Scenes:
    """Clutter, then the objects over it; the mask is where an object covers at least half of what is below
    it."""
    images = _background(len(targets), generator)
    images = _scatter_fragments(images, digits, generator)
    masks: list[Tensor] = []
    for index in range(targets.shape[1]):
        sources = digits[_draw_sources(targets[:, index], classes, generator)]
        coverage = _place(sources, sizes[:, index], centres[:, index], radians(12.0), generator)
        images = _paint(images, coverage, DIGIT_CONTRAST, generator)
        covered = coverage >= 0.5
        masks = [mask & ~covered for mask in masks] + [covered]
    images = images + 0.02 * torch.randn(images.shape, generator=generator)
    labels = torch.zeros(len(targets), NUM_CLASSES).scatter_(1, targets, 1.0)
    return Scenes(images.clamp(0.0, 1.0), labels, torch.cat(masks, 1), targets)


def _background(count: int, generator: torch.Generator) -> Tensor:
    """A base colour, blobs and coloured noise at three scales: ``(N, 3, 64, 64)``."""
    image = _uniform((count, 3, 1, 1), 0.25, 0.75, generator).expand(count, 3, SIZE, SIZE)
    for cells, strength in ((4, 0.14), (10, 0.08), (32, 0.05)):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        image = image + strength * F.interpolate(noise, size=SIZE, mode="bicubic", align_corners=False)
    return image.clamp(0.0, 1.0)


def _scatter_fragments(images: Tensor, digits: Tensor, generator: torch.Generator) -> Tensor:
    """Paint pieces of digits: 4 x 4 windows of random sources, turned by any angle, in the colours digits
    have."""
    count = len(images)
    for _ in range(FRAGMENTS):
        sources = digits[torch.randint(len(digits), (count,), generator=generator)]
        windows = sources.unfold(1, 4, 1).unfold(2, 4, 1).flatten(1, 2)
        # Windows at the empty border of a source would paint nothing: draw among the inner ones.
        row, column = torch.randint(1, 4, (2, count), generator=generator)
        pieces = windows[torch.arange(count), 5 * row + column]
        sizes = _uniform((count,), DIGIT_PIXELS[0] / 2, DIGIT_PIXELS[1] / 2, generator)
        centres = torch.rand(count, 2, generator=generator) * SIZE
        coverage = _place(pieces, sizes, centres, radians(180.0), generator)
        images = _paint(images, coverage, FRAGMENT_CONTRAST, generator)
    return images


def _place(sources: Tensor, sizes: Tensor, centres: Tensor, max_angle: float, generator: torch.Generator) -> Tensor:
    """Coverage ``(N, 1, 64, 64)`` in [0, 1] of sources ``(N, h, w)`` scaled to ``sizes`` pixels at
    ``centres``."""
    count = len(sources)
    angle = _uniform((count,), -max_angle, max_angle, generator)
    shear = _uniform((count,), -0.15, 0.15, generator)
    aspect = _uniform((count,), 0.9, 1.1, generator)
    scale = SIZE / sizes
    cos, sin = angle.cos() * scale, angle.sin() * scale
    linear = torch.stack([torch.stack([cos * aspect, sin + shear * scale], 1), torch.stack([-sin, cos / aspect], 1)], 1)
    offset = -linear @ (2.0 * centres / SIZE - 1.0)[..., None]
    grid = F.affine_grid(torch.cat([linear, offset], 2), [count, 1, SIZE, SIZE], align_corners=False)
    ink = F.grid_sample(sources[:, None], grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    # A steep ramp turns the soft 8 x 8 strokes into strokes with an edge one to two pixels wide.
    return ((ink - 0.25) / 0.3).clamp(0.0, 1.0)


def _paint(images: Tensor, coverage: Tensor, contrasts: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Cover images with one random colour each, lighter or darker than the mean of the image by a
    contrast."""
    count = len(images)
    mean = images.mean((2, 3), keepdim=True)
    lighter = torch.rand(count, 1, 1, 1, generator=generator) < (1.0 - mean.mean(1, keepdim=True))
    contrast = _uniform((count, 1, 1, 1), *contrasts, generator)
    tint = 0.12 * torch.randn(count, 3, 1, 1, generator=generator)
    colour = (mean + torch.where(lighter, contrast, -contrast) + tint).clamp(0.0, 1.0)
    return images + coverage * (colour - images)


def _draw_sources(targets: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """One random source index of each asked class: ``(N,)``."""
    order = classes.argsort(stable=True)
    sizes = torch.bincount(classes, minlength=NUM_CLASSES)
    starts = sizes.cumsum(0) - sizes
    draw = (torch.rand(len(targets), generator=generator) * sizes[targets]).long()
    return order[starts[targets] + draw.minimum(sizes[targets] - 1)]


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)
