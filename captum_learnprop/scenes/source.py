"""What anything that draws scenes offers, so that training and evaluation need not ask where scenes come from."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, runtime_checkable

import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.scenes import SPLITS, Scenes


@runtime_checkable
class SceneSource(Protocol):
    """A source of scenes at any size: cut-outs on backgrounds, mosaics of photographs, images with masks.

    The same arguments give the same scenes, and scene ``i`` does not depend on how many are drawn.
    """

    @property
    def name(self) -> str:
        """The source in one word, e.g. ``"cutouts"``."""
        ...

    @property
    def kind(self) -> str:
        """The reference family that the scenes are like, by which metrics are chosen.

        ``"digits"`` is one object, ``"pairs"`` several, ``"grid"`` a mosaic with cells, ``"patch"`` a planted mark
        beside a tempting object.
        """
        ...

    @property
    def questions_per_scene(self) -> int:
        """The number of rows of `Scenes.questions` that are about one scene."""
        ...

    def draw(self, count: int, *, split: str = "train", seed: int = 0, size: int = 224) -> Scenes:
        """Returns scenes with images ``(count, 3, size, size)``, float32 RGB in [0, 1].

        Args:
            count: How many scenes, at least 1.
            split: ``"train"``, ``"validation"`` or ``"test"``.
            seed: Seed of the draw. The global random state of torch is neither read nor changed.
            size: Height and width in pixels.

        Raises:
            LearnpropError: The source cannot draw such scenes; the message says what would help.
        """
        ...

    def check(self, size: int) -> None:
        """Reads everything that any draw could read, so that a fault shows before hours of work.

        Raises:
            LearnpropError: Something is missing, unreadable or too small.
        """
        ...

    def caveats(self, size: int) -> tuple[str, ...]:
        """Returns sentences that a report must print beside its figures, such as that splits share objects."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns what decides the scenes as plain JSON; files count by their content, not by where they lie."""
        ...

    def class_range(self) -> int | None:
        """Returns 1 + the highest class that is asked for; None where a model has yet to say what it sees."""
        ...


def check_draw(count: int, split: str, size: int) -> None:
    """Checks the arguments that all sources share.

    Raises:
        LearnpropError: One of them is out of range.
    """
    if split not in SPLITS:
        raise LearnpropError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if count < 1:
        raise LearnpropError(f"count must be at least 1, got {count}")
    if size < 16:
        raise LearnpropError(f"scenes have at least 16 x 16 pixels, got size={size}")


def scene_generator(seed: int, split: str, index: int) -> torch.Generator:
    """Returns the random numbers of one scene: they depend on nothing but these three."""
    digest = hashlib.sha256(f"{seed}:{split}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
