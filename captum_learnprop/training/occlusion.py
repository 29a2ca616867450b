"""Occlusion: what a model loses when random parts of an image, or of the features of a table, are removed.

For each training image a set of random regions is removed once, without gradient, and the drop of the explained
quantity is kept. A map is good when its mass inside a region correlates with the drop, over the regions of one image
(`terms.OcclusionRegression`). The model is never run on anything that depends on the map, so a map cannot be
optimised *against* the model.

What replaces a region is drawn at random, by default what another training image shows there; never a fixed baseline,
which an evaluation might use. Every image has random numbers of its own, made from the seed and its index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import output_of
from captum_learnprop.training.quantities import Quantity
from zennit_rules._moved import renamed

IMAGES, COLOURS, MIXED = "images", "colours", "mixed"

FILL_KINDS = (IMAGES, COLOURS, MIXED)
"""What replaces a region: what another image shows there, a random colour with noise, or one of them by chance."""


def generator_of(seed: int, index: int) -> torch.Generator:
    """Returns the random numbers of image ``index`` under ``seed``; neighbours get unrelated ones."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


@torch.no_grad()
def measure_drops(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    targets: Tensor,
    regions: Tensor,
    fills: Tensor,
    quantity: Quantity,
    *,
    internal_batch_size: int = 256,
) -> Tensor:
    """Returns what each target of one image, or row of a table, loses by each deletion: ``(K, D)`` float32.

    Args:
        model: Maps images to ``(B, classes)``, in evaluation mode.
        image: The image ``(C, *spatial)``, or the features ``(F,)``.
        targets: Classes ``(K,)`` int64; they share the deletions, and with them the passes of the model.
        regions: What is removed, ``(D, *spatial)`` bool, or ``(D, F)``.
        fills: What replaces it, ``(D, C, *spatial)``, or ``(D, F)``.
        quantity: What is explained, one of `quantities.QUANTITIES`.
        internal_batch_size: How many changed images go through the model together.
    """
    regions = regions.to(image.device)
    changed = torch.where(regions[:, None] if image.dim() > 1 else regions, fills.to(image), image[None])
    after = torch.cat([output_of(model, (part,)) for part in changed.split(internal_batch_size)])
    before = output_of(model, (image[None],))
    drops = [
        quantity(before, target.reshape(1)) - quantity(after, target.expand(len(after)))
        for target in targets.to(image.device)
    ]
    return torch.stack(drops).float()


@dataclass(frozen=True)
class DeletionFills:
    """What replaces removed regions, drawn anew for each.

    Attributes:
        kind: One of `FILL_KINDS`.
        images: Other images that fills are taken from, ``(N, C, *spatial)``, or rows of a table ``(N, F)``: the first
            ones of the training. Where there is but one, colours are taken.
    """

    kind: str
    images: Tensor

    def __post_init__(self) -> None:
        if self.kind not in FILL_KINDS:
            raise LearnpropError(f"unknown fill {self.kind!r}; choose one of {', '.join(FILL_KINDS)}")

    def draw(self, count: int, index: int, generator: torch.Generator) -> Tensor:
        """Returns fills ``(count, C, *spatial)``, or ``(count, F)``, for image ``index``, none of them of itself.

        Args:
            count: How many.
            index: The number of the image that is measured, from 0; those below N are among `images`.
            generator: What draws.
        """
        shape, total = tuple(self.images.shape[1:]), len(self.images)
        others = total - 1 if index < total else total
        if self.kind == COLOURS or not others:
            return random_fills(count, shape, *self.range, generator)
        taken = torch.randint(others, (count,), generator=generator)
        found = self.images[taken + (taken >= index).long()].cpu()
        if self.kind == IMAGES:
            return found
        coloured = torch.rand(count, generator=generator) < 0.5
        found[coloured] = random_fills(count, shape, *self.range, generator)[coloured].to(found)
        return found

    @cached_property
    def range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of each channel, ``(C,)``, or feature."""
        over = (0, *range(2, self.images.dim()))
        return self.images.amin(over), self.images.amax(over)


def random_fills(count: int, shape: tuple[int, ...], low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Returns what replaces regions: a random colour plus noise, ``(count, C, *spatial)`` in [low, high].

    Features of a table are channels each: ``(count, F)``.
    """
    ones = (1,) * (len(shape) - 1)
    colour = torch.rand(count, shape[0], *ones, generator=generator)
    strength = 0.5 * torch.rand(count, 1, *ones, generator=generator)
    fill = (colour + strength * torch.randn(count, *shape, generator=generator)).clamp(0.0, 1.0)
    low, high = low.cpu().float().reshape(-1, *ones), high.cpu().float().reshape(-1, *ones)
    return low + (high - low) * fill


def region_mass(maps: Tensor, regions: Tensor) -> Tensor:
    """Returns the sum of maps ``(B, *spatial)``, or ``(B, F)``, in their regions ``(B, D, *spatial)``: ``(B, D)``."""
    return torch.bmm(regions.flatten(2).to(maps.dtype), maps.flatten(1)[..., None])[..., 0]


__getattr__ = renamed(__name__, {"OcclusionError": "LearnpropError"})
