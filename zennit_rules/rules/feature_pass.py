"""The signal of feature gates in one pass over each activation, and its transpose.

`FeatureGate` is written as a formula over whole activations, of which each operation is a trip to memory. Here the same
formula runs over pieces that stay in a processor's cache, by closed forms in both directions, and nothing is kept but
what the rule has anyway::

    out = s g (m a + b),  a = a_start + tanh(A . phi),  b = b_start + tanh(B . phi),  s = 1 + tanh(P . psi)

with ``m`` what the layer multiplies a signal by. It serves passes on a processor that are not differentiated, and those
whose signals are computed again (`core.recomputed`); the formula itself serves all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..gates import FeatureGate, start_weights

PIECE = 131_072
"""Elements of a piece: a few of them fit a processor's cache, and calling torch costs little beside the work."""

SMALL = 16_384
"""Up to so many elements, looking whether anything arrived at all is cheaper than the pass."""

Index = tuple[slice, slice]
"""Samples, and entries of the next dimension."""

Factor = Callable[[Index], Tensor | None]
"""What the layer multiplies the signal of a piece by; None for 1."""

Times = Callable[[Index, Tensor], Tensor]
"""The values of a piece times what the layer multiplies a signal by; it may write into them."""


def feature_signal(gate: nn.Module, z: Tensor, g: Tensor, factor: Factor, times: Times | None = None) -> Tensor | None:
    """Returns the signal that a site with a feature gate passes on; None where the formula has to say it.

    Args:
        gate: The gate of the site, of whatever kind.
        z: The pre-activation, ``(B, ...)``.
        g: The signal that arrived, in its shape.
        factor: What the layer multiplies the signal by.
        times: Values times that factor, where a layer has something faster than the product.
    """
    recorded = torch.is_grad_enabled() and (
        g.requires_grad or z.requires_grad or any(p.requires_grad for p in gate.parameters())
    )
    if recorded or not _serves(gate, z, g):
        return None
    assert isinstance(gate, FeatureGate)
    if g.numel() <= SMALL and not g.any():
        return torch.zeros_like(g)
    return _Pass.of(gate, z, g, factor, times).signal()


def feature_transpose(
    gate: nn.Module, z: Tensor, g: Tensor, factor: Factor, towards: Tensor
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Returns the gradient of a loss to the signal that arrived, and to the gate's parameters by name.

    Args:
        gate: The gate of the site, of whatever kind.
        z: The pre-activation, ``(B, ...)``.
        g: The signal that arrived, in its shape.
        factor: What the layer multiplies the signal by.
        towards: The gradient of the loss to what the site passed on, in the same shape.

    Returns:
        None where autograd has to say it.
    """
    if not _serves(gate, z, g):
        return None
    assert isinstance(gate, FeatureGate)
    with torch.no_grad():
        onwards, *gradients = _Pass.of(gate, z, g, factor).transpose(towards.to(g.dtype))
    return onwards, dict(zip(("raw", "raw_position"), gradients, strict=False))


def _serves(gate: nn.Module, z: Tensor, g: Tensor) -> bool:
    """Whether the closed forms are those of a gate, and pay."""
    if type(gate) is not FeatureGate or gate.contrast or z.device.type != "cpu" or not 2 <= g.ndim <= 5:
        return False
    fitting = z.shape == g.shape and gate.channel_dim < g.ndim and gate.raw.ndim == g.ndim + 2
    return fitting and g.numel() > 0 and g.dtype in (torch.float32, torch.float64)


@dataclass(frozen=True)
class _Pass:
    """One pass over one activation.

    Attributes:
        gate: The gate.
        z: The pre-activation, without a graph.
        g: The signal that arrived, without a graph.
        factor: What the layer multiplies the signal by.
        times: Values times that, in one go; None for the product.
        coefficients: Twice the parameters, ``(2, 4, ...)``: ``1 + tanh(x)`` is ``2 sigmoid(2 x)``, which processors
            compute ten times as fast.
        sizes: The root mean squares of ``z`` and ``g`` over each sample.
    """

    gate: FeatureGate
    z: Tensor
    g: Tensor
    factor: Factor
    times: Times | None
    coefficients: Tensor
    sizes: tuple[Tensor, ...]

    @classmethod
    def of(cls, gate: FeatureGate, z: Tensor, g: Tensor, factor: Factor, times: Times | None = None) -> _Pass:
        z, g = z.detach().to(g.dtype), g.detach()
        return cls(gate, z, g, factor, times, 2 * gate.raw.detach().to(g.dtype), _root_mean_squares(z, g))

    @torch.no_grad()
    def signal(self) -> Tensor:
        """Returns what the site passes on.

        Each operation is a trip to the cache, so there are few: all write where they read, and the constants of
        ``tanh`` in terms of ``sigmoid`` are left to the weight of the position.
        """
        twice = self._twice_position()
        constants = self.coefficients.unbind(1)
        out = torch.empty_like(self.g)
        room: tuple[Tensor, ...] = ()
        for index in self._pieces():
            z, g, passed = (self._cut(v, index) for v in (self.z, self.g, out))
            if not room or room[0].shape != g.shape:
                room = (*(torch.empty_like(g) for _ in range(2)), *(g.new_empty((2, *g.shape)) for _ in range(2)))
            zs, gs, half, beside = room
            for v, size, scaled in zip((z, g), self.sizes, (zs, gs), strict=True):
                torch.abs(v, out=scaled)
                torch.div(v, scaled.add_(part_of(size, index)), out=scaled)
            c = [self._cut_both(one, index) for one in constants]
            # Both deviations at a time; two operands at a time, since only then torch broadcasts at full speed.
            torch.mul(zs, c[3], out=half).add_(c[2]).mul_(gs)
            half.add_(torch.mul(zs, c[1], out=beside)).add_(c[0]).sigmoid_()
            weight = self._half_weight(index, g, half[0], half[1])
            if twice is None:
                torch.mul(weight.mul_(2), g, out=passed)
            else:
                torch.mul(weight.mul_(g), part_of(twice, index), out=passed)
        return out

    def _half_weight(self, index: Index, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Returns half the weight of the signal of a piece, from ``(1 + tanh) / 2`` of both deviations."""
        start = self.gate.start
        if start != "gradient":
            by_sign = (g > 0).to(g.dtype).sub_(1).mul_(0.5)
            a = a.add_(by_sign) if start == "guided_backprop" else a.sub_(0.5)
            b = b.add_(by_sign).add_(0.5) if start == "deconvnet" else b
        if self.times is not None:
            a = self.times(index, a)
        elif (factor := self.factor(index)) is not None:
            a.mul_(factor)
        return a.add_(b).sub_(0.5)

    @torch.no_grad()
    def transpose(self, towards: Tensor) -> tuple[Tensor, ...]:
        """Returns the gradients to the signal that arrived and to the parameters, given that to what was passed on."""
        position, relevance = self._position()
        size_g = self.sizes[1]
        onwards, raw = torch.empty_like(self.g), torch.zeros_like(self.gate.raw, dtype=self.g.dtype)
        by_position = None if relevance is None else torch.zeros_like(relevance)
        by_size = torch.zeros_like(size_g)
        for index in self._pieces():
            zs, gs = self._features(index)
            weight, a, b, factor = self._weight(index, zs, gs)
            g, v = self.g[index], towards[index]
            if position is not None and by_position is not None:
                part_of(by_position, index).add_((v * g).mul_(weight).sum(self.gate.channel_dim, keepdim=True))
                v = v * part_of(position, index)
            direct = weight.mul_(v)
            v = v * g
            to_b = b.square_().neg_().add_(1).mul_(v)
            to_a = a.square_().neg_().add_(1).mul_(v)
            if factor is not None:
                to_a.mul_(factor)
            to_gs = None
            for one, (to, c) in enumerate(((to_a, self.coefficients[0]), (to_b, self.coefficients[1]))):
                self._add(raw[one, 0], index, to)
                self._add(raw[one, 1], index, to * zs)
                towards_gs = to * gs
                self._add(raw[one, 2], index, towards_gs)
                self._add(raw[one, 3], index, towards_gs.mul_(zs))
                part = (zs * part_of(c[3], index)).add_(part_of(c[2], index)).mul_(to)
                to_gs = part if to_gs is None else to_gs.add_(part)
            assert to_gs is not None
            to_gs.mul_(0.5)  # the coefficients are doubled
            # g' = g / (|g| + r): by g, r / (|g| + r)^2; by r, -g / (|g| + r)^2.
            size = size_g[index[0]]
            below = g.abs().add_(size).square_()
            to_gs.div_(below)
            by_size[index[0]] += (to_gs * g).sum(tuple(range(1, g.ndim)), keepdim=True)
            onwards[index] = direct.addcmul_(to_gs, size)
        around = -by_size / (size_g * (self.g.numel() // len(self.g)))
        gradients = [raw.to(self.gate.raw.dtype)]
        to_relevance = None
        if relevance is not None and by_position is not None:
            to_relevance, to_position = self._by_position(relevance, by_position)
            gradients.append(to_position)
        for index in self._pieces():
            part = onwards[index].addcmul_(self.g[index], around[index[0]])
            if to_relevance is not None:
                part.addcmul_(self.z[index].clamp(min=0), part_of(to_relevance, index))
        return onwards, *gradients

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _pieces(self) -> Iterator[Index]:
        rows, parts = self.g.shape[:2]
        row = self.g.numel() // rows
        at_once = max(1, PIECE // row)
        length = parts if row <= PIECE else max(1, PIECE * parts // row)
        for start in range(0, rows, at_once):
            for first in range(0, parts, length):
                yield slice(start, start + at_once), slice(first, first + length)

    def _features(self, index: Index) -> tuple[Tensor, Tensor]:
        zs, gs = (
            torch.div(v[index], v[index].abs().add_(size[index[0]]))
            for v, size in zip((self.z, self.g), self.sizes, strict=True)
        )
        return zs, gs

    def _weight(self, index: Index, zs: Tensor, gs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns the weight of the signal of a piece, both deviations, and the layer's factor."""
        a, b = (self._deviation(coefficients, index, zs, gs) for coefficients in self.coefficients)
        of_gradient, of_signal = start_weights(self.gate.start, self.g[index])
        factor = self.factor(index)
        weight = a + of_gradient
        if factor is not None:
            weight.mul_(factor)
        return weight.add_(b).add_(of_signal), a, b, factor

    def _deviation(self, coefficients: Tensor, index: Index, zs: Tensor, gs: Tensor) -> Tensor:
        c = [part_of(one, index) for one in coefficients]
        # Two operands at a time: only then does torch broadcast at full speed.
        value = (zs * c[3]).add_(c[2]).mul_(gs).add_(zs * c[1]).add_(c[0])
        return value.sigmoid_().mul_(2).sub_(1)

    def _add(self, total: Tensor, index: Index, values: Tensor) -> None:
        place = part_of(total, index)
        place.add_(values.sum_to_size(place.shape))

    def _cut(self, v: Tensor, index: Index) -> Tensor:
        """Returns a piece; all there is, if that is one."""
        return v if self.g.numel() <= PIECE else v[index]

    def _cut_both(self, values: Tensor, index: Index) -> Tensor:
        """Returns what belongs to a piece, of parameters of both deviations ``(2, ...)``."""
        if self.g.numel() <= PIECE:
            return values
        rows, part = (one if size > 1 else slice(None) for one, size in zip(index, values.shape[1:], strict=False))
        return values[:, rows, part]

    # -- positions ---------------------------------------------------------------------------------------------------

    def _relevance(self) -> Tensor | None:
        """Returns the relevance of each position; None for gates without."""
        gate = self.gate
        if not gate.uses_position:
            return None
        shape = list(self.g.shape)
        shape[gate.channel_dim] = 1
        relevance = self.g.new_zeros(shape)
        for index in self._pieces():
            part = self._cut(self.z, index).clamp(min=0).mul_(self._cut(self.g, index))
            part_of(relevance, index).add_(part.sum(gate.channel_dim, keepdim=True))
        return relevance

    def _position(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns the weight of each position and its relevance; None for gates without."""
        relevance = self._relevance()
        return (None, None) if relevance is None else (self.gate.position_weight(relevance), relevance)

    def _twice_position(self) -> Tensor | None:
        """Returns twice the weight of each position, see `FeatureGate.position_weight`; None for gates without."""
        relevance = self._relevance()
        if relevance is None:
            return None
        gate: Any = self.gate
        (size,) = _root_mean_squares(relevance)
        scaled = relevance.div_(relevance.abs().add_(size))
        own = 2 * gate.raw_position.detach()[0].to(scaled.dtype)
        total = (scaled * own[1]).add_(own[0]).add_(gate.around(scaled) * own[2])
        return total.sigmoid_().mul_(4)

    def _by_position(self, relevance: Tensor, by_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradients to the relevance of positions and to the parameters for them: small, by autograd."""
        with torch.enable_grad():
            relevance = relevance.requires_grad_()
            weight = self.gate.position_weight(relevance)
            found = torch.autograd.grad(weight, (relevance, self.gate.raw_position), by_weight)
        return found[0], found[1]


def part_of(values: Tensor, index: Index) -> Tensor:
    """Returns what belongs to a piece, of values that may be shared over samples or the next dimension."""
    rows, part = (one if size > 1 else slice(None) for one, size in zip(index, values.shape, strict=False))
    return values[rows, part]


def _root_mean_squares(*values: Tensor) -> tuple[Tensor, ...]:
    """Returns the root mean squares over each sample, ``(B, 1, ...)``; 1 for silent ones."""
    dims = tuple(range(1, values[0].ndim))
    count = math.sqrt(values[0].numel() // len(values[0]))
    sizes = torch.stack([torch.linalg.vector_norm(v, dim=dims, keepdim=True) for v in values]).div_(count)
    information = torch.finfo(sizes.dtype)
    low, high = (float(v) for v in sizes.aminmax())
    if information.tiny**0.4 < low and high < information.max**0.4:
        return sizes.unbind()
    return tuple(_guarded_size(v, dims, count) for v in values)


def _guarded_size(v: Tensor, dims: tuple[int, ...], count: float) -> Tensor:
    """Returns a root mean square where squares of tiny signals would underflow, or those of huge ones overflow."""
    top = v.abs().amax(dims, keepdim=True)
    top = torch.where(top > 0, top, 1.0)
    size = torch.linalg.vector_norm(v / top, dim=dims, keepdim=True) * top / count
    return torch.where(size > 0, size, 1.0)
