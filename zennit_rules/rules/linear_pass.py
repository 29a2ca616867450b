"""Relevance of a linear layer by z+ and its mixes with epsilon, in as few convolutions as the case allows.

`linear` writes a rule as what a gate makes of positive and negative contributions, each forwards and back: up to two
convolutions forwards and four back. Most layers need fewer. With the share ``r`` of epsilon per channel (0 for z+), and
``W+``, ``W-`` the weights of either sign:

* An output that is not positive passes relevance to positive contributions alone. If none arrives there, as in front of
  a ReLU, and inputs are not negative, then ``x W`` with ``W = W+ + r W-`` says it all: once forwards, once back.
* If inputs have both signs, ``x`` and ``|x|`` with ``W`` and ``|W|`` give all four products of signs in two:
  ``max(c, 0) = (|c| + c) / 2``. That loses digits where nearly all contributions to an output are negative, so
  it is done only where no relevance arrives at such outputs, or where there are none.

The scale of a batch norm that counts to the layer is taken into the weights. Nothing is kept between calls: whether
weights are those of the last call cannot be told for sure (``weight.data`` changes them unseen). It serves passes that
are not differentiated, and `transposed` those of whose derivative no more than the transpose is asked; `linear` serves
all others, and says the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.linear_map import ConvolutionMap, DenseMap, LinearMap
from .contributions import GammaGate, reflected

MANY_INPUTS = 64
"""The number of contributions to an output from which on some of each sign are expected among them."""

LEAST_SHARE = 1 / 16
"""The least share of positive contributions in all, in absolute terms, at which half a difference keeps its digits."""


def serves(linear: LinearMap, gate: object) -> bool:
    """Whether the layer and its rule are of those that `relevance` knows."""
    return (
        type(linear) in (ConvolutionMap, DenseMap)
        and type(gate) is GammaGate
        and gate.negative == "z+"
        and gate.split == "contributions"
    )


@dataclass(frozen=True)
class Layer:
    """A call of a linear layer, with a batch norm that counts to it.

    Attributes:
        map: What it computes.
        weight: Its weights ``(outputs, ...)``, those of the norm included.
        bias: What it adds, in a form that broadcasts to its output; or None.
        x: Its input.
        value: Its output.
    """

    map: LinearMap
    weight: Tensor
    bias: Tensor | None
    x: Tensor
    value: Tensor

    def back(self, weight: Tensor, signal: Tensor) -> Tensor:
        """Returns the transposed layer with other weights."""
        return self.map.apply_transposed(self.x.shape, weight, signal)

    def of_outputs(self, values: Tensor) -> Tensor:
        """Returns values per channel ``(1, C, 1, ...)``, or one for all, in a form that broadcasts to the weights."""
        return values.reshape(-1, *(1,) * (self.weight.ndim - 1))


def relevance(layer: Layer, gate: GammaGate, g: Tensor) -> Tensor:
    """Returns the relevance of the layer's inputs.

    Args:
        layer: The call.
        gate: Its rule, one that `serves`.
        g: The relevance of its outputs.
    """
    z, bias = layer.value, layer.bias
    if bias is not None and gate.bias == "zero":
        z = z - bias
    rest = 1 - reflected(gate.start_mix + gate.shaped(gate.raw, z))
    closed = torch.equal(torch.ops.aten.threshold_backward(g, z, 0), g)
    shared = rest.shape[0] == 1
    part = _Mix(layer, rest, z, g, _positive_part(bias, gate), gate.stabilizer)
    if float(layer.x.min()) >= 0:
        return part.closed() if closed and shared else part.one_sided()
    return part.closed_with_signs() if closed and shared else part.with_signs()


def transposed(layer: Layer, gate: GammaGate, g: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
    """Returns gradients of a loss to the relevance of the outputs, and to the gate's ``raw``.

    Args:
        layer: The call.
        gate: Its rule, one that `serves`.
        g: The relevance of its outputs.
        towards: Gradient of the loss to the relevance of its inputs.
    """
    z, bias = layer.value, layer.bias
    if bias is not None and gate.bias == "zero":
        z = z - bias
    raw = gate.raw.detach().requires_grad_()
    with torch.enable_grad():
        rest = 1 - reflected(gate.start_mix + gate.shaped(raw, z))
    part = _Mix(layer, rest.detach(), z, g, _positive_part(bias, gate), gate.stabilizer)
    onwards, by_rest = part.transposed(towards)
    (to_raw,) = torch.autograd.grad(rest, raw, by_rest)
    return onwards, to_raw


def _positive_part(bias: Tensor | None, gate: GammaGate) -> Tensor | None:
    """Returns what the bias counts among positive contributions."""
    return bias.clamp(min=0) if bias is not None and gate.bias == "shared" else None


@dataclass(frozen=True)
class _Mix:
    """The rule at one call.

    Attributes:
        layer: The call.
        rest: The share of epsilon where an output is positive, per channel.
        z: The output, without the bias if that takes no relevance.
        g: The relevance of the outputs.
        bias: What of the bias counts to positive contributions; or None.
        stabilizer: Epsilon of the denominator.
    """

    layer: Layer
    rest: Tensor
    z: Tensor
    g: Tensor
    bias: Tensor | None
    stabilizer: float

    def closed(self) -> Tensor:
        """No relevance arrives where ``z <= 0``, and inputs are not negative: one pair of weights says it."""
        layer = self.layer
        rest = layer.of_outputs(self.rest)
        weight = layer.weight
        mixed = weight.clamp(min=0).mul_(1 - rest).add_(weight * rest)
        whole = layer.map.apply(layer.x, mixed)
        # What the biases add, of positive contributions and of all.
        own = None if layer.bias is None else self.z_bias()
        if self.bias is not None or own is not None:
            zero = self.rest.new_zeros(())
            positive, all_of_it = (zero if one is None else one for one in (self.bias, own))
            whole.add_(positive + self.rest * (all_of_it - positive))
        return layer.back(mixed, self._shares(whole.clamp_(min=0))).mul_(layer.x)

    def one_sided(self) -> Tensor:
        """Inputs are not negative: the sign of a contribution is that of its weight."""
        layer = self.layer
        up = layer.weight.clamp(min=0)
        a, b = self._both_shares(self._with_bias(layer.map.apply(layer.x, up)))
        found = layer.back(up, a)
        if b is not None:
            found.add_(layer.back(layer.weight.clamp(max=0), b))
        return found.mul_(layer.x)

    def closed_with_signs(self) -> Tensor:
        """No relevance arrives where ``z <= 0``: elsewhere at least half of all contributions are positive ones."""
        layer = self.layer
        positive, sizes, _ = self._positive_by_sizes()
        whole = self._with_bias(positive).lerp_(self.z, self.rest)
        half = self._shares(whole.clamp_(min=0)).mul_(0.5)
        rest = layer.of_outputs(self.rest)
        found = layer.back(layer.weight * (1 + rest), half).mul_(layer.x)
        return found.addcmul_(layer.back(sizes.mul_(1 - rest), half), layer.x.abs())

    def with_signs(self) -> Tensor:
        """Inputs and outputs of both signs."""
        layer = self.layer
        if layer.weight[0].numel() >= MANY_INPUTS:
            positive, sizes, whole = self._positive_by_sizes()
            if float(whole.mul_(-LEAST_SHARE).add_(positive).min()) >= 0:
                a, b = self._both_shares(self._with_bias(positive))
                difference = a if b is None else a - b
                total = a if b is None else a.add_(b)
                found = layer.back(layer.weight, total).mul_(layer.x)
                return found.addcmul_(layer.back(sizes, difference), layer.x.abs()).mul_(0.5)
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        above, below = layer.x.clamp(min=0), layer.x.clamp(max=0)
        positive = layer.map.apply(above, up).add_(layer.map.apply(below, down))
        a, b = self._both_shares(self._with_bias(positive))
        to_above, to_below = layer.back(up, a), layer.back(down, a)
        if b is not None:
            to_above.add_(layer.back(down, b))
            to_below.add_(layer.back(up, b))
        return to_above.mul_(above).addcmul_(to_below, below)

    def transposed(self, towards: Tensor) -> tuple[Tensor, Tensor]:
        """Returns gradients to the relevance of the outputs, and to `rest`.

        With positive contributions ``P``, ``d = P + rest (z - P) + epsilon`` and the share ``a = g / d``, inputs get
        ``a`` times positive contributions and ``rest a`` times negative ones, with ``rest`` 0 where ``z <= 0``.
        """
        layer = self.layer
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        if float(layer.x.min()) >= 0:
            weighed = layer.x * towards
            positive, to_a, to_b = (
                layer.map.apply(x, w) for x, w in ((layer.x, up), (weighed, up), (weighed, down))
            )  # fmt: skip
        else:
            above, below = layer.x.clamp(min=0), layer.x.clamp(max=0)
            positive = layer.map.apply(above, up).add_(layer.map.apply(below, down))
            above.mul_(towards), below.mul_(towards)
            to_a = layer.map.apply(above, up).add_(layer.map.apply(below, down))
            to_b = layer.map.apply(above, down).add_(layer.map.apply(below, up))
        positive = self._with_bias(positive)
        negative = self.z - positive
        rest = torch.ops.aten.threshold_backward(self.rest.expand_as(self.z), self.z, 0)
        divisor = positive.addcmul_(rest, negative).add_(self.stabilizer)
        onwards = to_a.addcmul_(rest, to_b).div_(divisor)
        by_rest = to_b.addcmul_(negative, onwards, value=-1).mul_(self.g).div_(divisor)
        by_rest = torch.ops.aten.threshold_backward(by_rest, self.z, 0)
        return onwards, by_rest.sum_to_size(self.rest.shape)

    # -- pieces ------------------------------------------------------------------------------------------------------

    def z_bias(self) -> Tensor | None:
        """Returns the bias as it is in ``z``."""
        return self.layer.bias if self.z is self.layer.value else None

    def _positive_by_sizes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns positive contributions by ``(|x| |W| + x W) / 2``, and ``|W|`` and ``|x| |W|``."""
        layer = self.layer
        sizes = layer.weight.abs()
        whole = layer.map.apply(layer.x.abs(), sizes)
        bias = self.z_bias()
        positive = (self.z + whole if bias is None else (self.z - bias).add_(whole)).mul_(0.5)
        return positive, sizes, whole

    def _with_bias(self, positive: Tensor) -> Tensor:
        return positive if self.bias is None else positive.add_(self.bias)

    def _shares(self, whole: Tensor) -> Tensor:
        """Returns relevance per unit of contribution, in the place of what it is divided by."""
        return torch.div(self.g, whole.add_(self.stabilizer), out=whole)

    def _both_shares(self, positive: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns those of positive and of negative contributions; None for the latter where there are none."""
        if not self.rest.any():
            return self._shares(positive), None
        rest = torch.ops.aten.threshold_backward(self.rest.expand_as(self.z), self.z, 0)
        a = self._shares(positive.lerp_(self.z, rest))
        return a, rest.mul_(a)
