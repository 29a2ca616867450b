"""Changes between a reference and an input, and what functions make of them: what DeepLIFT's norms consist of.

A `Change` holds a value, its reference, and a *step*, a linear image of the steps that it started with. Each function
maps steps so that a step ``x - x0`` becomes ``f(x) - f(x0)`` exactly: the way back is then a complete rescale rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Change:
    """A value, its reference, and the step from one to the other.

    Attributes:
        value: At the input.
        reference: At the baseline.
        step: Linear in the steps of the operands.
        eps: Differences up to this count as none.
    """

    value: Tensor
    reference: Tensor
    step: Tensor
    eps: float

    def map(self, linear: Callable[[Tensor], Tensor]) -> Change:
        """A linear function of it."""
        return Change(linear(self.value), linear(self.reference), linear(self.step), self.eps)

    def through(self, function: Callable[[Tensor], Tensor], slope: Tensor) -> Change:
        """An element-wise function of it, whose chord has that slope."""
        return Change(function(self.value), function(self.reference), self.step * slope, self.eps)

    def times(self, other: Change | Tensor) -> Change:
        """The product, each factor's step weighed with the mean of the other."""
        if isinstance(other, Tensor):
            return self.map(lambda x: x * other)
        mine, theirs = ((one.value + one.reference) / 2 for one in (self, other))
        step = self.step * theirs + mine * other.step
        return Change(self.value * other.value, self.reference * other.reference, step, self.eps)

    def scaled(self, weight: Tensor | None) -> Change:
        """Multiplies by a weight, if there is one."""
        return self if weight is None else self.times(weight)


def _inverse(x: Tensor) -> Tensor:
    """Returns ``1 / x``, and 0 for 0."""
    apart = x != 0
    return torch.where(apart, 1 / torch.where(apart, x, torch.ones_like(x)), torch.zeros_like(x))


def inverse_root_of(change: Change) -> Change:
    """Returns the change of ``1 / sqrt`` of positive values."""
    root, root0 = change.value.sqrt(), change.reference.sqrt()
    return change.through(torch.rsqrt, -1 / (root * root0 * (root + root0)))


def _chord(change: Change, ends: tuple[Tensor, Tensor], slope: Tensor) -> Tensor:
    """Slope between the two ends of a function of a change; the given one where there is no difference."""
    difference = change.value - change.reference
    near = difference.abs() <= change.eps
    return torch.where(near, slope, (ends[0] - ends[1]) / torch.where(near, torch.ones_like(difference), difference))


def sigmoid_of(change: Change) -> Change:
    """The sigmoid."""
    s, s0 = torch.sigmoid(change.value), torch.sigmoid(change.reference)
    return Change(s, s0, change.step * _chord(change, (s, s0), s * (1 - s)), change.eps)


def _floored(change: Change, least: float) -> Change:
    """Returns the change of the maximum of a value and ``least``."""
    above, above0 = change.value.clamp_min(least), change.reference.clamp_min(least)
    slope = (change.value >= least).to(above.dtype)
    return Change(above, above0, change.step * _chord(change, (above, above0), slope), change.eps)


def _root_of(change: Change) -> Change:
    """The root of values that are not negative; at 0 it has no slope, and none is taken."""
    ends = [torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0) for x in (change.value, change.reference)]
    return Change(ends[0], ends[1], change.step * _inverse(ends[0] + ends[1]), change.eps)


def layer_norm_of(change: Change, dims: int, eps: float, *, centred: bool = True) -> Change:
    """Divides by the root of the mean square over the last dimensions, after the mean is taken away."""
    over = tuple(range(-dims, 0))
    if centred:
        change = change.map(lambda x: x - x.mean(over, keepdim=True))
    size = change.times(change).map(lambda x: x.mean(over, keepdim=True))
    size = Change(size.value + eps, size.reference + eps, size.step, size.eps)
    return change.times(inverse_root_of(size))


def normalized(change: Change, dim: Any, eps: float) -> Change:
    """Divides by the Euclidean norm along a dimension, or by ``eps`` if that is more."""
    length = _floored(_root_of(change.times(change).map(lambda x: x.sum(dim, keepdim=True))), eps)
    return change.times(length.through(torch.reciprocal, -1 / (length.value * length.reference)))


__all__ = ["Change", "inverse_root_of", "layer_norm_of", "normalized", "sigmoid_of"]
