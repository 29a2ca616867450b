"""Objectives: what learning a rule minimises, one value per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zennit_rules._moved import renamed
from zennit_rules.core.scalars import plain, plain_fields

from ..errors import LearnpropError
from .masks import total_variation

DISTANCES = ("auto", "cross_entropy", "kl", "relative")


@dataclass(frozen=True)
class MaskedPass:
    """A forward pass of the masked input beside the original one.

    Attributes:
        original: The model's output for the original input, detached; ``(B, ...)``.
        masked: The same for the masked input.
        selected_original: The explained entry of ``original``, ``(B,)``.
        selected_masked: The explained entry of ``masked``, ``(B,)``.
        target: Target as given to ``attribute``.
        masks: One mask per input, values in [0, 1].
    """

    original: Tensor
    masked: Tensor
    selected_original: Tensor
    selected_masked: Tensor
    target: Any
    masks: tuple[Tensor, ...]


class SampleObjective(Protocol):
    """An objective of per-sample learning."""

    def apply(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Returns the masked input, in the shape of ``inputs``."""

    def __call__(self, result: MaskedPass) -> Tensor:
        """Returns the loss of each sample, ``(B,)``."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of the masked output with the original one, plus area, plus optional total variation.

    It is ``loss = D(f(m * x + (1 - m) * b), f(x)) + area * mean(m) + total_variation * TV(m)``. Yang et al. (ECCV
    2020) state that the masked output is compared with the original one; the distance, the weights, the baseline and
    the area term are our reconstruction.

    Args:
        distance: ``"cross_entropy"``: minus log of the target's softmax probability for the masked input, for
            outputs ``(B, C)``; ``"kl"``: KL divergence of the masked from the original softmax; ``"relative"``: squared
            change of the explained entry, relative to its original size; ``"auto"``: cross-entropy for outputs
            ``(B, C > 1)`` with one class index per sample, else relative.
        area: Weight of the mean of the mask.
        total_variation: Weight of the mean absolute difference of neighbours in the mask.
        baseline: What replaces the input where the mask is 0: a number, a function of the input, or ``"noise"``:
            a random colour and texture of the sample's own mean and spread, drawn anew each step by `noise_fill`.

    Raises:
        LearnpropError: The distance is unknown, or a weight negative.
    """

    distance: str = "auto"
    area: float = 1.0
    total_variation: float = 0.0
    baseline: float | str | Callable[[Tensor], Tensor] = 0.0

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.distance not in DISTANCES:
            raise LearnpropError(f"Agreement(distance={self.distance!r}): choose one of {', '.join(DISTANCES)}")
        if isinstance(self.baseline, str) and self.baseline != "noise":
            raise LearnpropError(f"Agreement(baseline={self.baseline!r}): choose a number, a function or 'noise'")
        if self.area < 0 or self.total_variation < 0:
            raise LearnpropError(
                f"Agreement: area={self.area} and total_variation={self.total_variation} must not be negative"
            )

    def apply(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Returns ``m * x + (1 - m) * b``, in the shape of ``inputs``."""
        if not isinstance(self.baseline, (int, float)):
            fill = noise_fill(inputs) if isinstance(self.baseline, str) else self.baseline(inputs)
            return fill + mask * (inputs - fill)
        if self.baseline == 0.0:
            return inputs * mask
        return self.baseline + mask * (inputs - self.baseline)

    def __call__(self, result: MaskedPass) -> Tensor:
        """Returns the loss of each sample, ``(B,)``."""
        loss = self._distance(result)
        for mask in result.masks:
            loss = loss + self.area * mask.reshape(len(mask), -1).mean(dim=1)
            if self.total_variation:
                loss = loss + self.total_variation * total_variation(mask[:, 0] if mask.ndim > 2 else mask)
        return loss

    def _distance(self, r: MaskedPass) -> Tensor:
        index = _class_index(r)
        kind = self.distance
        if kind == "auto":
            kind = "relative" if index is None else "cross_entropy"
        if kind == "relative":
            return ((r.selected_masked - r.selected_original) / _size(r.selected_original)).square()
        if r.masked.ndim != 2 or r.masked.shape[1] < 2:
            raise LearnpropError(
                f"Agreement(distance={kind!r}) needs outputs (B, C > 1), the model gave {tuple(r.masked.shape)}; "
                "use distance='relative'"
            )
        if kind == "kl":
            return F.kl_div(r.masked.log_softmax(1), r.original.log_softmax(1), reduction="none", log_target=True).sum(
                1
            )
        if index is None:
            raise LearnpropError(
                f"distance='cross_entropy' needs one class index per sample as target, got {r.target!r}"
            )
        return F.cross_entropy(r.masked, index, reduction="none")


def noise_fill(inputs: Tensor) -> Tensor:
    """Returns a random fill ``mean + std * (u + n / 2)`` in the shape of ``inputs``.

    Mean and standard deviation are those of each sample and channel, ``u`` is uniform in [-1, 1] per channel and ``n``
    normal per element. All samples share the draw, so that a sample's fill does not depend on its batch.
    """
    dims = tuple(range(2 if inputs.ndim > 2 else 1, inputs.ndim))
    mean = inputs.mean(dim=dims, keepdim=True) if dims else inputs
    spread = inputs.std(dim=dims, keepdim=True, correction=0) if dims else torch.zeros_like(inputs)
    colour = torch.rand_like(mean[:1]) * 2 - 1
    return mean + spread * (colour + torch.randn_like(inputs[:1]) / 2)


def _class_index(r: MaskedPass) -> Tensor | None:
    """Returns the target as class indices ``(B,)``, or None where outputs or target are of another kind."""
    if r.masked.ndim != 2 or r.masked.shape[1] < 2:
        return None
    target = plain(r.target)
    if isinstance(target, (list, Tensor)):
        target = torch.as_tensor(target) if not (isinstance(target, list) and isinstance(target[0], tuple)) else None
    elif isinstance(target, int):
        target = torch.tensor(target)
    else:
        target = None
    if target is None:
        return None
    index = target.to(r.masked.device).long().reshape(-1).expand(r.masked.shape[0])
    return index % r.masked.shape[1]  # captum takes -1 for the last class, cross_entropy does not


def _size(value: Tensor) -> Tensor:
    return value.abs() + torch.finfo(value.dtype).eps ** 0.5


__getattr__ = renamed(__name__, {"Objective": "SampleObjective"})
