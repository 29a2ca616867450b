"""LearnedGamma, LearnedEpsilon, LearnedAlphaBeta: trainable LRP rules of linear layers, as zennit hooks.

A linear layer is a call of a linear function (see `linear_map`), by a module of torch or by anything else. What flows
backwards is relevance, as in all of zennit's LRP rules; the forward value is unchanged and weights are never touched. A
batch norm that takes the output of a layer can be counted to it at run time (`LinearCall.behind`), without merging any
weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._compat import DisableTorchFunction, one_gradient_at_a_time
from .._moved import renamed
from ..core.dependence import Dependence, forward_pass
from ..core.hook import MARKER, SiteCall, SiteHook
from ..core.linear_calls import is_linear_function, linear_operands
from ..core.linear_map import ConvolutionMap, LinearMap, LinearOperands
from ..core.sites import recorder
from ..errors import RuleError
from . import linear_pass
from .contributions import AlphaBetaGate, BoxGate, ContributionGate, EpsilonGate, GammaGate, stabilized
from .feature_pass import SMALL

_UNGATED = nn.Identity()
"""Stands for the gate of a call until that is found."""


class GatedLinear(torch.autograd.Function):
    """A linear layer whose backward pass is a rule; see `activation.GatedSite`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: LinearCall) -> Tensor:
        """Value of the layer, unchanged by the rule."""
        ctx.call = call
        out, call.given = call.given, None
        assert out is not None
        ctx.save_for_backward(*call.remember(x), MARKER)
        return out

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """The rule's relevance."""
        return ctx.call.propagate(ctx.saved_tensors[:-1], g), None


class _KnownValue(torch.autograd.Function):
    """The value of a linear layer, which is known already, with the layer's derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: LinearMap, weight: Tensor, value: Tensor) -> Tensor:
        """The value itself."""
        ctx.linear, ctx.weight, ctx.size = linear, weight, x.shape
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        """Returns the vector-Jacobian product of the layer."""
        return ctx.linear.transpose(ctx.size, ctx.weight, g), None, None, None


class LinearCall(SiteCall):
    """A call of a linear layer.

    Attributes:
        map: What the layer computes, for any weights.
        weight: Its weights, without a graph.
        bias: What it adds, in a form that broadcasts to its output; or None.
        merged: Factor and summand per channel of a batch norm that is part of the layer, or None.
        given: Value of the call, until autograd has it.
        size: Shape of its operand.
    """

    def __init__(self, hook: SiteHook, operands: LinearOperands, value: Tensor) -> None:
        super().__init__(hook, operands.map.name, _UNGATED)
        self.map = operands.map
        self.weight = operands.weight.detach()
        self.bias = None if operands.bias is None else operands.bias.detach()
        self.merged: tuple[Tensor, Tensor] | None = None
        self.given: Tensor | None = value.detach()
        self.size = operands.x.shape
        self._out: Tensor | None = None
        self._version = 0

    def keep_output(self, out: Tensor) -> None:
        """Remember the layer's value, so that the backward pass need not compute it again."""
        self._out, self._version = out.detach(), out._version

    @property
    def overwritten(self) -> bool:
        """Whether something was written into the layer's value since."""
        return self._out is None or self._out._version != self._version

    def behind(self, scale: Tensor, shift: Tensor, value: Tensor) -> LinearCall:
        """A call of the layer together with ``scale * z + shift`` (one each per output channel), which is ``value``.

        Whoever else uses the layer's output keeps the call without.
        """
        other = copy.copy(self)
        other.merged, other.given = (scale.detach(), shift.detach()), value.detach()
        return other

    def true_gradient(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """The layer's own vector-Jacobian product."""
        (x,) = saved
        g = g if self.merged is None else g * self._per_channel(self.merged[0], g)
        return self.map.transpose(x.shape, self.weight.to(g.dtype), g)

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Returns the relevance of the layer's inputs."""
        x = saved[0].to(g.dtype)
        gate: Any = self.gate
        if isinstance(gate, BoxGate):
            return self._boxed(gate, x, g)
        return self._in_few(gate, x, g) if self._is_simple(gate, x) else self._shared(gate, x, g)

    # -- in few passes -----------------------------------------------------------------------------------------------

    def _is_simple(self, gate: Any, x: Tensor) -> bool:
        """Whether nothing is differentiated, and `linear_pass` knows the rule."""
        return not torch.is_grad_enabled() and x.numel() > 0 and linear_pass.serves(self.map, gate)

    def _in_few(self, gate: Any, x: Tensor, g: Tensor) -> Tensor:
        if g.numel() <= SMALL and not g.any():
            return torch.zeros_like(x)
        return linear_pass.relevance(self._layer(x, g), gate, g)

    def _layer(self, x: Tensor, g: Tensor) -> linear_pass.Layer:
        """Returns the call for `linear_pass`, in the dtype of the relevance."""
        weight, bias = self.weight.to(g.dtype), None if self.bias is None else self.bias.to(g.dtype)
        z = self._value(x, weight)
        if self.merged is not None:
            scale, shift = (self._per_channel(v, g) for v in self.merged)
            z, bias = torch.mul(z, scale).add_(shift), shift if bias is None else scale * bias + shift
            weight = self._with_norm(weight)
        return linear_pass.Layer(self.map, weight, bias, x, z)

    def _with_norm(self, weight: Tensor) -> Tensor:
        """Returns the weights ``(outputs, ...)`` of the layer together with a norm."""
        assert self.merged is not None
        return weight * self.merged[0].to(weight.dtype).reshape(-1, *(1,) * (weight.ndim - 1))

    # -- contributions -----------------------------------------------------------------------------------------------

    def _shared(self, gate: Any, x: Tensor, g: Tensor) -> Tensor:
        parts, a, b = self._shares(gate, x, g)
        return parts.share(a, b)

    def transpose(self, saved: tuple[Tensor, ...], g: Tensor, towards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Applies the transpose of `signal`, which is linear in shares that are made element by element."""
        gate: Any = self.gate
        x = saved[0].to(g.dtype)
        if isinstance(gate, BoxGate):
            return super().transpose(saved, g, towards)
        if self._is_simple(gate, x):
            g = g.detach()
            onwards, to_raw = linear_pass.transposed(self._layer(x, g), gate, g, towards.to(g.dtype))
            return onwards, {"raw": to_raw}
        parameters = dict(gate.named_parameters())
        with torch.enable_grad():
            g = g.detach().requires_grad_()
            parts, a, b = self._shares(gate, x, g)
            with torch.no_grad():
                gradients = parts.share_transposed(towards.to(g.dtype), alike=a is b)
            found = torch.autograd.grad(
                (a,) if a is b else (a, b), (g, *parameters.values()), gradients, materialize_grads=True
            )
        return found[0], dict(zip(parameters, found[1:], strict=True))

    def _shares(self, gate: Any, x: Tensor, g: Tensor) -> tuple[_Parts, Tensor, Tensor]:
        """Returns contributions, and the relevance per unit of positive and of negative ones."""
        weight = self.weight.to(g.dtype)
        parts = _Parts(self.map, x, weight, by_weight=gate.split == "weights")
        z, bias = self._value(x, weight), None if self.bias is None else self.bias.to(g.dtype)
        wants_positive, wants_negative = gate.needs_parts
        flips = self.merged is not None and wants_positive and bool((self.merged[0] < 0).any())
        positive = parts.positive() if wants_positive else None
        negative = parts.negative() if wants_negative or flips else None
        scale = None
        if self.merged is not None:
            scale, shift = (self._per_channel(v, g) for v in self.merged)
            z, bias = scale * z + shift, shift if bias is None else scale * bias + shift
            positive, negative = _scaled(scale, positive, negative)
        if bias is not None:
            z = z - bias if gate.bias == "zero" else z
            if gate.bias == "shared":
                positive = None if positive is None else positive + bias.clamp(min=0)
                negative = None if negative is None else negative + bias.clamp(max=0)
        a, b = gate(g, z, positive, negative)
        if scale is not None:
            a, b = (a * scale,) * 2 if a is b else (scale * torch.where(scale > 0, a, b),
                                                    scale * torch.where(scale > 0, b, a))  # fmt: skip
        return parts, a, b

    def _value(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's value, differentiable in its input."""
        if self._out is None or self.overwritten:
            return self.map(x, weight, None if self.bias is None else self.bias.to(weight.dtype))
        known: Tensor = _KnownValue.apply(x, self.map, weight, self._out.to(weight.dtype))
        return known

    def _per_channel(self, values: Tensor, g: Tensor) -> Tensor:
        shape = [1] * g.ndim
        shape[self.map.channel_dim(g)] = -1
        return values.to(g.dtype).reshape(shape)

    # -- the box rule ------------------------------------------------------------------------------------------------

    def _boxed(self, gate: BoxGate, x: Tensor, g: Tensor) -> Tensor:
        weight = self.weight.to(g.dtype)
        low, high = gate.bounds(x)
        inside = self.map.inside(x)
        above, below = x - low * inside, x - high * inside
        if type(self.map) is ConvolutionMap and self.map.options.get("groups", 1) == 1:
            return self._boxed_at_once(gate, self.map, weight, above, below, g)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        z = self.map(above, up) + self.map(below, down)
        scale = None if self.merged is None else self._per_channel(self.merged[0], g)
        if scale is None:
            share = g / stabilized(z, gate.stabilizer)
            return above * self._back(x, up, share) + below * self._back(x, down, share)
        # Under a negative factor, weights change sides.
        other = self.map(above, down) + self.map(below, up)
        share = scale * g / stabilized(scale * torch.where(scale > 0, z, other), gate.stabilizer)
        same, changed = share * (scale > 0), share * (scale < 0)
        return above * (self._back(x, up, same) + self._back(x, down, changed)) + below * (
            self._back(x, down, same) + self._back(x, up, changed)
        )

    def _boxed_at_once(
        self, gate: BoxGate, linear: ConvolutionMap, weight: Tensor, above: Tensor, below: Tensor, g: Tensor
    ) -> Tensor:
        """The same in one convolution of twice the channels each way: a first layer has few, which come at a price."""
        weight = weight if self.merged is None else self._with_norm(weight)
        both, channels = torch.cat((weight.clamp(min=0), weight.clamp(max=0)), dim=1), -1 - linear.dims
        inputs = torch.cat((above, below), dim=channels)
        share = g / stabilized(linear(inputs, both), gate.stabilizer)
        found = (inputs * linear.transpose(inputs.shape, both, share)).chunk(2, dim=channels)
        return found[0] + found[1]

    def _back(self, x: Tensor, weight: Tensor, signal: Tensor) -> Tensor:
        return self.map.transpose(x.shape, weight, signal)


class _Parts:
    """Positive and negative contributions of a call, and relevance shared out by them.

    Args:
        linear: What the layer computes.
        x: Its input.
        weight: Its weights.
        by_weight: Whether the sign of the weight decides, instead of the contribution's.
    """

    def __init__(self, linear: LinearMap, x: Tensor, weight: Tensor, *, by_weight: bool) -> None:
        self.map, self.x, self.weight = linear, x, weight
        self.one_sided = by_weight or (x.numel() > 0 and float(x.detach().min()) >= 0)
        self._sides: tuple[Tensor, Tensor] | None = None

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """The positive and the negative weights."""
        if self._sides is None:
            self._sides = self.weight.clamp(min=0), self.weight.clamp(max=0)
        return self._sides

    def positive(self) -> Tensor:
        """The sum of the positive contributions of each output."""
        return self._sum(*self.sides)

    def negative(self) -> Tensor:
        """The sum of the negative contributions of each output."""
        up, down = self.sides
        return self._sum(down, up)

    def _sum(self, of_positive: Tensor, of_negative: Tensor) -> Tensor:
        if self.one_sided:
            return self.map(self.x, of_positive)
        return self.map(self.x.clamp(min=0), of_positive) + self.map(self.x.clamp(max=0), of_negative)

    def share(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the relevance of the inputs: ``a`` times positive plus ``b`` times negative contributions."""
        if a is b:
            return self.x * self._back(self.weight, a)
        up, down = self.sides
        if self.one_sided:
            return self.x * (self._back(up, a) + self._back(down, b))
        return self.x.clamp(min=0) * (self._back(up, a) + self._back(down, b)) + self.x.clamp(max=0) * (
            self._back(up, b) + self._back(down, a)
        )

    def share_transposed(self, towards: Tensor, *, alike: bool) -> tuple[Tensor, ...]:
        """Returns gradients to ``a`` and ``b`` of `share`, from those to the relevance of the inputs, without a graph.

        Args:
            towards: Gradients to the relevance, in the shape of the inputs.
            alike: Whether ``a`` and ``b`` are one tensor, which gets one gradient.
        """
        if alike:
            return (self.map.apply(self.x * towards, self.weight),)
        up, down = self.sides
        if self.one_sided:
            weighed = self.x * towards
            return self.map.apply(weighed, up), self.map.apply(weighed, down)
        above, below = (part * towards for part in (self.x.clamp(min=0), self.x.clamp(max=0)))
        return (
            self.map.apply(above, up) + self.map.apply(below, down),
            self.map.apply(above, down) + self.map.apply(below, up),
        )

    def _back(self, weight: Tensor, signal: Tensor) -> Tensor:
        return self.map.transpose(self.x.shape, weight, signal)


def _scaled(scale: Tensor, positive: Tensor | None, negative: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Returns contributions times a factor per channel; a negative one exchanges them."""
    if positive is None:
        return None, None
    if negative is None:  # no factor is negative
        return scale * positive, None
    up, down = scale * positive, scale * negative
    return torch.where(scale < 0, down, up), torch.where(scale < 0, up, down)


def call_by_rule(
    hook: SiteHook, operands: LinearOperands, func: Any, args: Any, kwargs: Any
) -> tuple[LinearCall, Tensor]:
    """Call a linear function so that its backward pass is a rule; whoever calls finds the gate of the call.

    Args:
        hook: Says whether the rule is active.
        operands: The call, read.
        func: The function.
        args: Its arguments.
        kwargs: Its named arguments.
    """
    with DisableTorchFunction():
        with torch.no_grad():
            value = func(*args, **kwargs)
        call = LinearCall(hook, operands, value)
        out = GatedLinear.apply(operands.x, call)
        call.keep_output(out)
    return call, out


class LinearRule(SiteHook):
    """Base of the rules of linear layers.

    Registered on a module, it is the rule of each linear function that the module calls, whatever class it is of: of
    torch, a subclass with a forward of its own, with parametrized or standardised weights. The operand that depends on
    the module's input gets the relevance.

    Args:
        gate: A contribution gate that serves every module the rule is registered on.
    """

    kind = "linear"
    gate: nn.Module

    def copy(self) -> LinearRule:
        """A hook that shares the gate."""
        return type(self)(gate=self.gate)

    def applies(self, module: nn.Module) -> bool:
        """Returns True: any module may call a linear function."""
        return True

    def _around(self, module: Any, call_next: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return call_next(*args, **kwargs)
        with forward_pass((args, kwargs)) as depends, _LinearFunctions(self, module, depends) as functions:
            out = call_next(*args, **kwargs)
        if not functions.seen:
            raise RuleError(
                f"{type(self).__name__} cannot be used on {type(module).__name__}: it calls no linear function, such "
                "as F.linear or F.conv2d; leave the module out of the layer map"
            )
        return out


class _LinearFunctions(TorchFunctionMode):
    """Gives the linear functions that a module calls the rule of a hook."""

    def __init__(self, hook: LinearRule, module: nn.Module, depends: Dependence) -> None:
        super().__init__()
        self.seen = False
        self._hook, self._module, self._depends = hook, module, depends

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_linear_function(func):
            return func(*args, **kwargs)
        self.seen = True
        with DisableTorchFunction():
            operands = linear_operands(func, args, kwargs, self._depends)
        if operands is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        call, out = call_by_rule(self._hook, operands, func, args, kwargs)
        call.name = type(self._module).__name__
        call.gate = _with_matching_channels(self._hook.gate, operands.map, out)
        listener = recorder.get()
        if listener is not None:
            listener.site(call, operands.x, out)
        return out


def _with_matching_channels(gate: nn.Module, linear: LinearMap, out: Tensor) -> nn.Module:
    """A gate that stands on its own, if its channels are those of the layer's output."""
    if not isinstance(gate, ContributionGate) or gate.raw.shape[1] == 1:
        return gate
    count, own, dim = gate.raw.shape[1], gate.channel_dim, linear.channel_dim(out)
    if own != dim or out.shape[dim] != count:
        raise RuleError(
            f"the rule has parameters for {count} channels in dimension {own}, but {linear.name} gave "
            f"{tuple(out.shape)} with channels in dimension {dim}; give shape= and channel_dim= to suit"
        )
    return gate


class LearnedEpsilon(LinearRule):
    """LRP-epsilon (Bach et al., 2015) with a trainable epsilon; at its start zennit's ``Epsilon``.

    Args:
        epsilon: Starting value, positive.
        gate: A gate to use instead.
        options: Further arguments of `EpsilonGate`; ``shape=(1, channels)`` for parameters per output channel.
    """

    def __init__(self, epsilon: float = 1e-6, *, gate: nn.Module | None = None, **options: Any) -> None:
        super().__init__(_gate_for_any_module(EpsilonGate, options, epsilon=epsilon) if gate is None else gate)


class LearnedGamma(LinearRule):
    """LRP-gamma (Montavon et al., 2019; Andeol et al., 2021) with a trainable gamma; at its start zennit's ``Gamma``.

    Args:
        gamma: Starting value, from 0 to infinity.
        gate: A gate to use instead.
        options: Further arguments of `GammaGate`; ``shape=(1, channels)`` for parameters per output channel.
    """

    def __init__(self, gamma: float = 0.25, *, gate: nn.Module | None = None, **options: Any) -> None:
        super().__init__(_gate_for_any_module(GammaGate, options, gamma=gamma) if gate is None else gate)


class LearnedAlphaBeta(LinearRule):
    """LRP-alpha-beta (Bach et al., 2015), ``alpha = 1 + beta``, with a trainable beta; at its start zennit's.

    Args:
        alpha: Starting value.
        beta: Starting value, ``alpha - 1``.
        gate: A gate to use instead.
        options: Further arguments of `AlphaBetaGate`; ``shape=(1, channels)`` for parameters per output channel.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float | None = None,
        *,
        gate: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(_gate_for_any_module(AlphaBetaGate, options, alpha=alpha, beta=beta) if gate is None else gate)


class LearnedBox(LinearRule):
    """Box rule (Montavon et al., 2017) with a trainable strength and bounds; at its start zennit's ``ZBox``.

    Args:
        low: Lowest possible input, a number or one per channel.
        high: Highest possible input.
        gate: A gate to use instead.
        options: Further arguments of `BoxGate`; ``shape=(1, channels)`` of the input for bounds per channel.
    """

    def __init__(self, low: Any = 0.0, high: Any = 1.0, *, gate: nn.Module | None = None, **options: Any) -> None:
        given = [bound.numel() for bound in (low, high) if isinstance(bound, Tensor)]
        options.setdefault("shape", (1, max(given, default=1)))
        super().__init__(BoxGate(low=low, high=high, **options) if gate is None else gate)


def _gate_for_any_module(gate: type[ContributionGate], options: dict[str, Any], **start: Any) -> ContributionGate:
    """A gate for modules of any number of channels, unless a shape is given."""
    return gate(**{"per": "channel" if "shape" in options else "layer", **options, **start})


__getattr__ = renamed(__name__, {"ruled": "call_by_rule"})
