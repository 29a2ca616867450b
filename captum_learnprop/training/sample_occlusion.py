"""Occlusion regression of a sample: rules are learned until its map says what deletions of that very sample cost.

The deletions are measured before, without gradient, and the model is never run on anything that depends on a map: no
map can be optimised against it. Some deletions are held out. They choose the map that is returned, the start's among
them, so that a map is only replaced by one that predicts better what it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import postprocess
from captum_learnprop.training.joint_descent import JointDescent
from captum_learnprop.training.map_similarity import nonzero
from captum_learnprop.training.per_sample import OriginalPass, rounding_of
from captum_learnprop.training.sample_deletions import SampleDeletions, measure_deletions
from captum_learnprop.training.terms import OcclusionRegression
from zennit_rules.core.scalars import plain_fields


@dataclass(frozen=True)
class SampleOcclusion:
    """What rules of one sample are learned by: a map whose mass in a region goes with what its deletion costs.

    Args:
        deletions: Deletions of each sample that the rules are fitted to.
        held_out: Further ones that choose among the maps met on the way.
        certainty: How many standard errors of itself a map's gain over the start must have on those that are held out,
            to be taken at all. The map with the largest gain beyond that is taken.
        term: What is minimised.
        sign: How attributions become maps, one of `maps.SIGNS`; None for what the rules were trained with, or are by
            default.
        smoothing: Width of the smoothing of maps, as a fraction of the sides (see `maps.per_axis`); None likewise.
        baselines: What fills are drawn from, ``(N, ...)``, a tuple of such for several inputs; None for fills that
            are made of the sample itself.

    Raises:
        LearnpropError: There are too few deletions, or certainty or smoothing is negative.
    """

    deletions: int = 128
    held_out: int = 64
    certainty: float = 1.0
    term: OcclusionRegression = field(default_factory=OcclusionRegression)
    sign: str | None = None
    smoothing: float | None = None
    baselines: Tensor | tuple[Tensor, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.deletions < 2 or self.held_out < 3:
            raise LearnpropError(
                "a correlation needs two deletions, its error three: "
                f"deletions={self.deletions}, held_out={self.held_out}"
            )
        if not self.certainty >= 0 or not (self.smoothing or 0) >= 0:
            raise LearnpropError(f"certainty={self.certainty} and smoothing={self.smoothing} must not be negative")

    @property
    def total(self) -> int:
        """Number of deletions of each sample, held out or not."""
        return self.deletions + self.held_out

    def measured(
        self, forward: Callable[[tuple[Tensor, ...]], Tensor], inputs: tuple[Tensor, ...], target: Any, **options: Any
    ) -> SampleDeletions:
        """Returns all deletions of some samples, see `measure_deletions`."""
        baselines = (self.baselines,) if isinstance(self.baselines, Tensor) else self.baselines
        return measure_deletions(forward, inputs, target, self.total, baselines=baselines, **options)


class OcclusionStep:
    """One step of learning: maps by the current rules, what they predict of the deletions, and the rules' gradient.

    Args:
        original: The kept forward pass; its rules are changed.
        deletions: What the samples lose, as `SampleOcclusion.measured` gives it.
        objective: What is minimised.
        finish: Turns the attribution of an input into maps, ``(B, ...) -> (B, *spatial)``.
        descent: Moves the gates.
    """

    def __init__(
        self,
        original: OriginalPass,
        deletions: SampleDeletions,
        objective: SampleOcclusion,
        finish: Callable[[Tensor], Tensor],
        descent: JointDescent,
    ) -> None:
        self.original, self.objective, self.finish, self.descent = original, objective, finish, descent
        self.fitted, self.held_out = deletions.split(objective.deletions)
        self.maps = 0
        self.mean: tuple[Tensor, ...] = ()
        self.start: Tensor | None = None

    def run(self, *, update: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """Returns attributions, and how much worse than the start they may be on what is held out, ``(B,)``.

        They are those of the start, then the mean of all after it: single ones swing about what they learn. With
        ``update``, the rules move after that.
        """
        found = self.original.attributions()
        self._add(found)
        if update:
            self._descend(found)
        with torch.no_grad():
            judged = self._jackknifed(self.mean)
            if self.start is None:
                self.start = judged
            return self.mean, self._excess(judged, self.start)

    def _add(self, found: tuple[Tensor, ...]) -> None:
        """Take attributions into the mean, in the size of the start's: else the largest would decide it."""
        size = _size(found)
        if self.maps == 0:
            self.size, self.mean = size, found
        else:
            scale = self.size / nonzero(size)
            new = [part * scale.reshape(-1, *(1,) * (part.ndim - 1)) for part in found]
            self.mean = tuple(torch.lerp(old, part, 1 / self.maps) for old, part in zip(self.mean, new, strict=True))
        self.maps += 1

    def _jackknifed(self, attributions: tuple[Tensor, ...]) -> Tensor:
        """Returns the loss on all that is held out, and without one deletion after the other: ``(B, 1 + D)``."""
        mass, drops = self.objective.term.masses(*self._flat(attributions, self.held_out))
        samples, count = mass.shape
        others = ~torch.eye(count, dtype=torch.bool, device=mass.device)
        without = [values[:, None].expand(-1, count, -1)[:, others].reshape(-1, count - 1) for values in (mass, drops)]
        loss = self.objective.term.of_masses
        return torch.cat([loss(mass, drops)[:, None], loss(*without).reshape(samples, count)], 1)

    def _excess(self, judged: Tensor, start: Tensor) -> Tensor:
        """Returns the loss above that of the start, with as many standard errors of that difference as asked for."""
        difference = judged - start
        left_out = difference[:, 1:]
        error = (left_out.var(1, correction=0) * (left_out.shape[1] - 1)).sqrt()
        return difference[:, 0] + self.objective.certainty * error

    def _descend(self, found: tuple[Tensor, ...]) -> None:
        with torch.enable_grad():
            live = tuple(part.detach().requires_grad_() for part in found)
            v = torch.autograd.grad(self._loss(live, self.fitted).sum(), live, materialize_grads=True)
        self.descent.noise = rounding_of(found, v)
        self.original.rule_gradients(found, v, self.descent.note)
        self.descent.step()

    def _loss(self, attributions: tuple[Tensor, ...], deletions: SampleDeletions) -> Tensor:
        return self.objective.term.of_maps(*self._flat(attributions, deletions))

    def _flat(self, attributions: tuple[Tensor, ...], deletions: SampleDeletions) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the maps of all inputs, one after the other, with the regions and drops of deletions."""
        maps = [self.finish(part).flatten(1) for part in attributions]
        return torch.cat(maps, 1), deletions.regions, deletions.drops


def finished(attribution: Tensor, sign: str, smoothing: float) -> Tensor:
    """Returns the maps ``(B, *spatial)`` of an attribution ``(B, C, *spatial)``, in single precision at least.

    Tables ``(B, F)`` and numbers ``(B,)`` are maps as they are but for their sign.
    """
    single = attribution if attribution.dtype in (torch.float32, torch.float64) else attribution.float()
    return postprocess(single[:, None] if single.dim() == 1 else single, sign, smoothing)


def _size(attributions: tuple[Tensor, ...]) -> Tensor:
    """Returns the mean absolute attribution of each sample over all inputs, ``(B,)``."""
    return torch.cat([part.abs().reshape(len(part), -1) for part in attributions], 1).mean(1)
