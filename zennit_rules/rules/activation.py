"""LearnedActivation: a gate at every call of an element-wise activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._compat import one_gradient_at_a_time
from ..core.hook import MARKER, SiteCall, SiteHook
from ..core.site_functions import PIECEWISE_LINEAR, ElementWise, activation_function
from ..gates import ScaledGate
from .feature_pass import Index, feature_signal, feature_transpose


def _through_relu(values: Tensor, z: Tensor) -> Tensor:
    out: Tensor = torch.ops.aten.threshold_backward.grad_input(values, z, 0, grad_input=values)
    return out


def _through_silu(values: Tensor, z: Tensor) -> Tensor:
    out: Tensor = torch.ops.aten.silu_backward.grad_input(values, z, grad_input=values)
    return out


def _through_sigmoid(values: Tensor, z: Tensor) -> Tensor:
    out: Tensor = torch.ops.aten.sigmoid_backward.grad_input(values, torch.sigmoid(z), grad_input=values)
    return out


IN_ONE_GO: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    torch.relu: _through_relu, F.silu: _through_silu, torch.sigmoid: _through_sigmoid,
}  # fmt: skip
"""Activations whose gradient torch writes in place, by function."""


class GatedSite(torch.autograd.Function):
    """A layer whose backward pass is a rule.

    Parameters of the gate enter through recorded backward operations, not as inputs: the forward value does not
    depend on them. They are reached through the call and not saved by autograd, because an optimiser that updates
    them in place between two backward passes over one forward pass would invalidate saved tensors.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: ActivationCall, inplace: bool) -> Tensor:
        """Value of the layer, unchanged by the rule."""
        ctx.call = call
        if inplace:
            out = torch.relu_(z)
            ctx.mark_dirty(z)
        else:
            out = call.fn(z)
        ctx.save_for_backward(*call.remember(out if call.from_output else z), MARKER)
        return out

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """The rule's signal."""
        return ctx.call.propagate(ctx.saved_tensors[:-1], g), None, None


class ActivationCall(SiteCall):
    """A call of an element-wise activation ``fn``.

    Attributes:
        has_factor: Whether `factor` says what the rule does. A subclass with another rule must say so by a `factor` of
            its own; otherwise it is not run in one pass.
        in_pieces: Whether the call can be run piece by piece.
    """

    has_factor: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "factor" in cls.__dict__:
            cls.has_factor = True
        elif not cls.__dict__.keys().isdisjoint(("signal", "through", "true_gradient")):
            cls.has_factor = False

    def __init__(self, hook: SiteHook, name: str, gate: nn.Module, fn: ElementWise) -> None:
        super().__init__(hook, name, gate)
        self.fn = fn
        self.is_relu = fn is torch.relu
        function = getattr(fn, "func", fn)
        self.piecewise_linear = function in PIECEWISE_LINEAR
        self.in_pieces = self.has_factor and function is not F.prelu  # whose parameters know their channels
        self._kept_slope: Tensor | None = None
        self.scales_gradient = isinstance(gate, ScaledGate) and gate.start == "gradient"
        self.has_contrast = bool(getattr(gate, "contrast", False))
        # relu(z) has the sign pattern of z: what autograd keeps for the next layer anyway is enough.
        self.from_output = self.is_relu and getattr(gate, "sign_only", False)

    def true_gradient(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Returns ``g * f'(z)``, by autograd."""
        (z,) = saved
        if self.is_relu:
            return torch.ops.aten.threshold_backward(g, z, 0)
        return g * self._slope(z)

    def through(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """What comes through the layer for the gate to weigh: the true gradient, unless a rule knows better."""
        return self.true_gradient(saved, g)

    def seen(self, z: Tensor) -> Tensor:
        """What of the pre-activation the gate sees: all of it, unless a rule knows better."""
        return z

    def in_one_pass(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor | None:
        """Returns what `signal` does where a feature gate can say it in one pass; else None."""
        if not self.in_pieces:
            return None
        return feature_signal(self.gate, saved[0], g, partial(self.factor, saved), partial(self.times, saved))

    def factor(self, saved: tuple[Tensor, ...], index: Index) -> Any:
        """What `through` multiplies the signal of a piece of the layer by, a tensor without a graph; None for 1."""
        return self.slope_at(saved[0][index].detach())

    def slope_at(self, z: Tensor) -> Tensor:
        """Returns ``f'(z)`` without a graph, for some elements of a layer."""
        if (backward := IN_ONE_GO.get(self.fn)) is not None:
            return backward(torch.ones_like(z), z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(self.fn(z).sum(), z)[0]

    def times(self, saved: tuple[Tensor, ...], index: Index, values: Tensor) -> Tensor:
        """Returns the values of a piece times `factor`, written into them."""
        backward = IN_ONE_GO.get(self.fn) if type(self).factor is ActivationCall.factor else None
        if backward is not None:
            passed: Tensor = backward(values, saved[0][index].detach())
            return passed
        factor = self.factor(saved, index)
        return values if factor is None else values.mul_(factor)

    def _slope(self, z: Tensor) -> Tensor:
        """Returns ``f'(z)``, with its own derivative where a second-order pass may ask for it."""
        if self._kept_slope is not None and not z.requires_grad:
            return self._kept_slope
        again = torch.is_grad_enabled() and z.requires_grad and not self.piecewise_linear
        with torch.enable_grad():
            z = z if again else z.detach().requires_grad_()
            out = self.fn(z)
            slope = torch.autograd.grad(out, z, torch.ones_like(out), create_graph=again)[0]
        if self.keep and not again:
            self._kept_slope = slope
        return slope

    def propagate(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Propagates the signal; a scaled gradient remembers what it scaled instead of ``g``."""
        if not (self.scales_gradient and self.keep and self.hook.active) or torch.is_grad_enabled():
            return super().propagate(saved, g)
        self.g = self.through(saved, g)
        return self.g * self.gate.scale().to(g.dtype)  # type: ignore[operator]

    def push_forward(self, tangent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pushes a tangent through the rule; for scaled gradients in closed form."""
        if self.g is None or not self.scales_gradient:
            return super().push_forward(tangent)
        raw = self.gate.get_parameter("raw")
        deviation = torch.tanh(raw)  # again: keeping it since propagate() would cost one more activation's memory
        onwards = self.through(self.saved, torch.addcmul(tangent, tangent, deviation.to(tangent.dtype)))
        towards_w = (tangent * self.g).to(raw.dtype).sum_to_size(raw.shape)
        return onwards, {"raw": towards_w.mul_(deviation.square_().neg_().add_(1))}

    def transpose(self, saved: tuple[Tensor, ...], g: Tensor, towards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Applies the transpose of `signal`, for feature gates in closed form."""
        factor = partial(self.factor, saved)
        found = feature_transpose(self.gate, saved[0], g, factor, towards) if self.in_pieces else None
        return super().transpose(saved, g, towards) if found is None else found

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Returns ``a * g * f'(z) + b * g``."""
        if (found := self.in_one_pass(saved, g)) is not None:
            return found
        z = self.seen(saved[0])
        a, b = self.gate(z, g, self.contrast()) if self.has_contrast else self.gate(z, g)
        passed = None
        if not (isinstance(a, float) and a == 0.0):
            passed = self.through(saved, g) * (a.to(g.dtype) if isinstance(a, Tensor) else a)
        if not (isinstance(b, float) and b == 0.0):
            direct = g * (b.to(g.dtype) if isinstance(b, Tensor) else b)
            passed = direct if passed is None else passed + direct
        return torch.zeros_like(g) if passed is None else passed


class LearnedActivation(SiteHook):
    """Zennit rule: the true gradient and the incoming signal, mixed by a gate.

    Works for every activation module whose true gradient autograd knows (ReLU, ReLU6, LeakyReLU, ELU, GELU, SiLU,
    Hardswish, Softplus, Tanh, Sigmoid, ...; `ACTIVATION_TYPES`), in place or not, reused or not. The forward value is
    unchanged. The result is differentiable in the parameters of the gate, whatever seeds the backward pass, and does
    not depend on ``create_graph``.

    Args:
        gate: A `Gate` that serves every module the rule is registered on, or a provider that finds one per site (the
            composites of this package pass theirs).
    """

    kind = "activation"
    call_type: ClassVar[type[ActivationCall]] = ActivationCall

    def applies(self, module: nn.Module) -> bool:
        """Whether ``module`` is an element-wise activation."""
        return activation_function(module) is not None

    def run(self, module: nn.Module, name: str, gate: nn.Module, input: Tensor) -> tuple[SiteCall, Tensor]:
        """Runs the activation, in place where the module does."""
        fn = activation_function(module)
        assert fn is not None
        call = self.call_type(self, name, gate, fn)
        if not getattr(module, "inplace", False):
            return call, GatedSite.apply(input, call, False)
        if call.from_output:
            return call, GatedSite.apply(input, call, True)
        # The rule needs z itself: compute beside, then write the value where the user expects it.
        return call, input.copy_(GatedSite.apply(input.clone(), call, False))
