"""Parts of examples: the rows that are trained on, the rows that are held out, and the order they come in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_learnprop.training.examples import Examples
from captum_learnprop.training.occlusion import generator_of


@dataclass(frozen=True)
class Part:
    """Some rows of examples.

    Attributes:
        examples: All rows.
        index: Which of them belong to this part, ``(N,)``; rows of one image are neighbours.
    """

    examples: Examples
    index: Tensor

    @classmethod
    def whole(cls, examples: Examples) -> Part:
        """Returns all rows in their order."""
        return cls(examples, torch.arange(len(examples)))

    def rows(self, positions: Tensor) -> dict[str, Tensor]:
        """Returns the rows at some positions of this part, ``(R,)``, as `Examples.rows` does."""
        return self.examples.rows(self.index[positions])

    def first_images(self, count: int) -> Tensor:
        """Returns the first ``count`` images, each once, or all where there are fewer: ``(B, C, *spatial)``."""
        step = self.examples.targets_per_image  # rows of one image are neighbours
        return self.rows(torch.arange(0, len(self), step)[:count])["inputs"]

    def targets(self) -> Tensor:
        """Returns the targets of all rows, ``(N,)``."""
        return self.examples.targets()[self.index]

    def batch(self, step: int, size: int, seed: int) -> Tensor:
        """Returns the positions of the rows of a step, ``(size,)``, or ``(N,)`` where the part is smaller.

        Each row is used once before any is used again. The order is made anew from the seed, so nothing is stored.

        Args:
            step: Number of the step, from 0.
            size: Rows of a step.
            seed: Decides the order, which is another one each time all rows have been used.
        """
        count = len(self)
        size = min(size, count)
        wanted = torch.arange(step * size, (step + 1) * size)
        orders = {
            epoch: torch.randperm(count, generator=generator_of(seed, epoch))
            for epoch in (wanted // count).unique().tolist()
        }
        return torch.stack([orders[place // count][place % count] for place in wanted.tolist()])

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.index)


def held_out_images(images: int, share: float) -> int:
    """Returns how many of some images a share of them holds out: at least one, but not all; none for a share of 0."""
    return min(max(1, round(share * images)), images - 1) if share else 0


def split(examples: Examples, share: float, seed: int) -> tuple[Part, Part]:
    """Returns examples in two parts, the one to train on and the one that is held out; no image is in both.

    Args:
        examples: All rows.
        share: The share of the images that is held out, in [0, 1).
        seed: Decides which images these are.
    """
    order = torch.randperm(examples.images, generator=torch.Generator().manual_seed(seed))
    held_out = held_out_images(examples.images, share)
    rows = order[:, None] * examples.targets_per_image + torch.arange(examples.targets_per_image)
    return Part(examples, rows[held_out:].flatten()), Part(examples, rows[:held_out].flatten())
