"""Deletions of samples: random parts of each sample are filled, and what its output loses is kept.

They are for the very samples that rules are learned for, where `examples` measures a whole training set. Fills are made
of the sample itself, or drawn from baselines that a user gives. All samples of a call draw the same numbers, so that
what a sample loses does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.chunks import rows_together
from captum_learnprop.errors import LearnpropError
from captum_learnprop.targets import select_target
from captum_learnprop.training.fills import FillDraw, blur, noise
from captum_learnprop.training.occlusion import generator_of
from captum_learnprop.training.regions import random_features, random_regions

TOGETHER = 64
"""The most changed samples that go through the model together; on a processor large images are fewer (see `chunks`)."""


@dataclass(frozen=True)
class SampleDeletions:
    """What ``B`` samples lose by ``D`` deletions each.

    Attributes:
        regions: The positions of all inputs, one after the other, that each deletion fills: ``(B, D, P)`` bool.
        drops: What the explained entry lost, ``(B, D)``, without gradient.
    """

    regions: Tensor
    drops: Tensor

    def losses(self) -> SampleDeletions:
        """Returns the same with gains counted as 0: what a map without signs can say."""
        return SampleDeletions(self.regions, self.drops.clamp(min=0))

    def split(self, first: int) -> tuple[SampleDeletions, SampleDeletions]:
        """Returns the first of the deletions of each sample, and the others."""
        return SampleDeletions(self.regions[:, :first], self.drops[:, :first]), SampleDeletions(
            self.regions[:, first:], self.drops[:, first:]
        )


@torch.no_grad()
def measure_deletions(
    forward: Callable[[tuple[Tensor, ...]], Tensor],
    inputs: tuple[Tensor, ...],
    target: Any,
    count: int,
    *,
    seed: int = 0,
    baselines: tuple[Tensor, ...] | None = None,
    together: int = TOGETHER,
) -> SampleDeletions:
    """Returns what each sample loses when parts of it are filled; all inputs of a sample lose a part each time.

    Args:
        forward: The model on inputs ``(n * B, ...)`` each; it gives ``(n * B, ...)``.
        inputs: ``(B, ...)`` each: images ``(B, C, *spatial)``, tables ``(B, F)``, or numbers ``(B,)``.
        target: The explained entry of ``B`` samples, by captum's conventions.
        count: How many deletions, D.
        seed: Decides regions and fills.
        baselines: What fills are drawn from, ``(N, ...)`` for each input; None for `own_fill`.
        together: Most samples that go through the model together.

    Raises:
        LearnpropError: The output for a deletion is not finite, or baselines do not fit the inputs.
    """
    samples = len(inputs[0])
    _check(inputs, baselines)
    generators = [generator_of(seed % 2**63, place) for place in range(len(inputs))]
    regions = [
        torch.stack([random_parts(sample, count, generator_of(seed % 2**63, place)) for sample in x]).to(x.device)
        for place, x in enumerate(inputs)
    ]
    fills = [
        _fills(x, given, generator)
        for x, given, generator in zip(inputs, baselines or (None,) * len(inputs), generators, strict=True)
    ]
    before = select_target(forward(inputs), target)
    largest = max((tuple(x.shape[1:]) for x in inputs), key=lambda shape: math.prod(shape[1:]))
    most = rows_together(together, largest, before.device)
    after: list[Tensor] = []
    for numbers in torch.arange(count).split(max(1, most // samples)):
        changed = tuple(
            torch.cat([_deleted(x, region[:, number], fill()) for number in numbers.tolist()])
            for x, region, fill in zip(inputs, regions, fills, strict=True)
        )
        after += [select_target(part, target) for part in forward(changed).split(samples)]
    drops = before[:, None] - torch.stack(after, 1)
    if not bool(drops.isfinite().all()):
        raise LearnpropError("the model's output is NaN or infinite for a deletion: check the range of the inputs")
    return SampleDeletions(torch.cat([region.flatten(2) for region in regions], 2), drops)


def random_parts(sample: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns regions of one sample, ``(count, *spatial)`` bool on its device; of features ``(F,)`` ``(count, F)``.

    Every other region of an image follows its outlines (see `random_regions`), the others are boxes.
    """
    if sample.dim() < 2:
        return random_features(count, sample.numel(), generator)
    return random_regions(sample, count, generator).to(sample.device)


def own_fill(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a fill that is made of each sample itself, ``(B, ...)``: the blurred sample, or noise for tables.

    Of fills that need no other image, blur tells best where an object is: what the deletions of a photograph cost goes
    with the object's share in them by .87, where they are filled with colours and noise .82, with parts of the same
    photograph from another place .66 (EfficientNet-Lite0, 16 validation questions, gains counted as 0): where the class
    stands in such parts, a deletion adds to it.

    Args:
        inputs: ``(B, C, *spatial)``; a table ``(B, F)``, which has no neighbours, or numbers ``(B,)``, which get 0.
        generator: What draws.
    """
    if inputs.dim() == 1:
        return torch.zeros_like(inputs)
    if inputs.dim() > 2:
        nothing = inputs.new_zeros(0)
        return blur(inputs, FillDraw(nothing, nothing, nothing))
    colour, strength = torch.rand(1, inputs.shape[1], generator=generator), torch.rand(1, generator=generator)
    texture = torch.randn(1, inputs.shape[1], generator=generator)
    return noise(inputs, FillDraw(colour.to(inputs), strength.to(inputs), texture.to(inputs)))


def _fills(inputs: Tensor, baselines: Tensor | None, generator: torch.Generator) -> Callable[[], Tensor]:
    """Returns what gives a fill for each deletion, ``(B, ...)`` or ``(1, ...)``."""
    if baselines is not None:
        return lambda: baselines[torch.randint(len(baselines), (1,), generator=generator)].to(inputs)
    if inputs.dim() == 2:
        return lambda: own_fill(inputs, generator)
    always = own_fill(inputs, generator)
    return lambda: always


def _deleted(inputs: Tensor, region: Tensor, fill: Tensor) -> Tensor:
    """Returns inputs ``(B, ...)`` without their regions ``(B, *spatial)``."""
    return torch.where(region[:, None] if inputs.dim() > 2 else region.reshape(inputs.shape), fill, inputs)


def _check(inputs: Sequence[Tensor], baselines: Sequence[Tensor] | None) -> None:
    if baselines is None:
        return
    shapes = [tuple(x.shape[1:]) for x in inputs]
    given = [tuple(x.shape[1:]) for x in baselines]
    if shapes != given or not all(map(len, baselines)):
        raise LearnpropError(f"baselines of shapes {given} do not fit inputs of {shapes}: pass (N, ...) for each input")
