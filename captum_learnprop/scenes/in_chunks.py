"""Scenes drawn a chunk at a time: as quick as drawing all together, and no scene depends on how many are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.scenes import Scenes
from captum_learnprop.scenes.source import check_draw, scene_generator

CHUNK = 32
"""Scenes that are drawn together. Another number gives other scenes."""


class ChunkedSource(ABC):
    """A `SceneSource` whose scenes have one size, whose splits share nothing they are made of."""

    size: ClassVar[int]
    """The height and width of its images in pixels, of series the number of samples."""

    @abstractmethod
    def chunk(self, count: int, split: str, generator: torch.Generator) -> Scenes:
        """Returns ``count`` scenes, which are made together; all random numbers come from the generator.

        Raises:
            LearnpropError: What they are made of is missing.
        """

    def draw(self, count: int, *, split: str = "train", seed: int = 0, size: int | None = None) -> Scenes:
        """Returns ``count`` scenes, of whole chunks that are cut; `SceneSource.draw` says what the arguments are.

        Raises:
            LearnpropError: An argument is out of range, another size is asked for, or a package is missing.
        """
        size = self.size if size is None else size
        check_draw(count, split, size)
        if size != self.size:
            raise LearnpropError(
                f"these scenes have the size {self.size}, got size={size}: on the command line, --size {self.size}"
            )
        numbers = range(-(-count // CHUNK))
        return _joined([self.chunk(CHUNK, split, scene_generator(seed, split, number)) for number in numbers])[:count]

    def check(self, size: int) -> None:
        """Draws a scene.

        Raises:
            LearnpropError: As of `draw`.
        """
        self.draw(1, size=size)

    def caveats(self, size: int) -> tuple[str, ...]:
        """Returns nothing: splits share nothing."""
        return ()


def _joined(chunks: list[Scenes]) -> Scenes:
    values = {field.name: [getattr(chunk, field.name) for chunk in chunks] for field in fields(Scenes)}
    return Scenes(**{name: _together(each) for name, each in values.items()})  # type: ignore[arg-type]


def _together(values: list[Tensor | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.cat(known) if known else None
