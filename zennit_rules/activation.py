"""LearnedActivation: a gate at every call of an element-wise activation."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ._compat import DisableTorchFunction, Hook, RemovableHandle, RemovableHandleList
from .gates import Gate, ScaledGate
from .interpose import interpose
from .sites import PIECEWISE_LINEAR, ElementWise, activation_function, recorder


class GateProvider(Protocol):
    """Finds the gate of the call that is being made; a `Gate` can stand in for itself."""

    def gate_at(self, module: nn.Module, kind: str, z: Tensor) -> tuple[str, nn.Module]:
        """Name of the site and its gate, for this call of ``module`` with pre-activation ``z``."""

    def skip(self, module: nn.Module) -> None:
        """Count a call of ``module`` that no signal comes back from."""


def find_gate(gate: GateProvider | nn.Module, module: nn.Module, kind: str, z: Tensor) -> tuple[str, nn.Module]:
    """Ask a provider; a gate given directly serves every site."""
    if isinstance(gate, nn.Module):
        return type(module).__name__, gate
    return gate.gate_at(module, kind, z)


def skipped(gate: GateProvider | nn.Module, module: nn.Module) -> bool:
    """Whether this call needs no gate: autograd is off, as in a plain pass or inside a custom autograd Function."""
    if torch.is_grad_enabled():
        return False
    if not isinstance(gate, nn.Module):
        gate.skip(module)
    return True


class SiteCall:
    """One call of one site: what its backward pass needs, and what passed through it.

    Attributes:
        name: Name of the site.
        keep: Whether someone records the forward pass (see `tangent`), so that the next two are remembered.
        saved: What the rule needs of the forward pass.
        g: Signal that arrived in the last backward pass.
        shape: Shape of the layer's output.
    """

    def __init__(self, hook: Hook, name: str, gate: nn.Module) -> None:
        self.hook = hook
        self.name = name
        self.gate = gate
        self.keep = recorder.get() is not None
        self.saved: tuple[Tensor, ...] = ()
        self.g: Tensor | None = None
        self.shape = torch.Size()

    def true_gradient(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """The vector-Jacobian product of the layer itself."""
        raise NotImplementedError

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """What the rule passes on; differentiable in ``g`` and in the gate's parameters."""
        raise NotImplementedError

    def propagate(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Backward pass of the site: the rule while its hook is active, else the true gradient."""
        if not self.hook.active:
            return self.true_gradient(saved, g)
        if self.keep and not torch.is_grad_enabled():
            self.g = g
        return self.signal(saved, g)

    def remember(self, *saved: Tensor) -> tuple[Tensor, ...]:
        """Keep aliases of what autograd saves: the tensors themselves would close a reference cycle."""
        if self.keep:
            self.saved = tuple(tensor.detach() for tensor in saved)
        return saved

    def pull(self, tangent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Transpose of `signal` at the signal that arrived last.

        Args:
            tangent: Gradient of a loss to what the site passed on, in its shape.

        Returns:
            Gradient of the loss to the signal that arrived, and to the gate's parameters by name.
        """
        names, parameters = zip(*self.gate.named_parameters(), strict=True)
        if self.g is None:  # nothing that reaches the output
            return tangent.new_zeros(self.shape), {n: torch.zeros_like(p) for n, p in self.gate.named_parameters()}
        with torch.enable_grad():
            g = self.g.detach().requires_grad_()
            passed = self.signal(self.saved, g)
            gradients = torch.autograd.grad(passed, (g, *parameters), tangent.to(passed.dtype), materialize_grads=True)
        return gradients[0], dict(zip(names, gradients[1:], strict=True))


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
        ctx.save_for_backward(*call.remember(out if call.from_output else z))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """The rule's signal."""
        return ctx.call.propagate(ctx.saved_tensors, g), None, None


class ActivationCall(SiteCall):
    """A call of an element-wise activation ``fn``."""

    def __init__(self, hook: Hook, name: str, gate: nn.Module, fn: ElementWise) -> None:
        super().__init__(hook, name, gate)
        self.fn = fn
        self.is_relu = fn is torch.relu
        self.piecewise_linear = getattr(fn, "func", fn) in PIECEWISE_LINEAR
        self._kept_slope: Tensor | None = None
        self.scales_gradient = isinstance(gate, ScaledGate) and gate.start == "gradient"
        # relu(z) has the sign pattern of z: what autograd keeps for the next layer anyway is enough.
        self.from_output = self.is_relu and getattr(gate, "sign_only", False)

    def true_gradient(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """``g * f'(z)``, by autograd."""
        (z,) = saved
        if self.is_relu:
            return torch.ops.aten.threshold_backward(g, z, 0)
        return g * self._slope(z)

    def _slope(self, z: Tensor) -> Tensor:
        """``f'(z)``, with its own derivative where a second-order pass may ask for it."""
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
        """See `SiteCall.propagate`; a scaled gradient remembers what it scaled instead of ``g``."""
        if not (self.scales_gradient and self.keep and self.hook.active) or torch.is_grad_enabled():
            return super().propagate(saved, g)
        self.g = self.true_gradient(saved, g)
        return self.g * self.gate.scale().to(g.dtype)  # type: ignore[operator]

    def pull(self, tangent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `SiteCall.pull`; for a scaled gradient in closed form."""
        if not self.scales_gradient or self.g is None:
            return super().pull(tangent)
        raw = self.gate.get_parameter("raw")
        deviation = torch.tanh(raw)  # again: keeping it since propagate() would cost one more activation's memory
        onwards = self.true_gradient(self.saved, torch.addcmul(tangent, tangent, deviation.to(tangent.dtype)))
        towards_w = (tangent * self.g).to(raw.dtype).sum_to_size(raw.shape)
        return onwards, {"raw": towards_w.mul_(deviation.square_().neg_().add_(1))}

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """``a * g * f'(z) + b * g``."""
        a, b = self.gate(saved[0], g)
        passed = None
        if not (isinstance(a, float) and a == 0.0):
            passed = self.true_gradient(saved, g) * (a.to(g.dtype) if isinstance(a, Tensor) else a)
        if not (isinstance(b, float) and b == 0.0):
            direct = g * (b.to(g.dtype) if isinstance(b, Tensor) else b)
            passed = direct if passed is None else passed + direct
        return torch.zeros_like(g) if passed is None else passed


class LearnedActivation(Hook):
    """Zennit rule: the true gradient and the incoming signal, mixed by a gate.

    Works for every activation module whose true gradient autograd knows (ReLU, ReLU6, LeakyReLU, ELU, GELU, SiLU,
    Hardswish, Softplus, Tanh, Sigmoid, ...; `sites.ACTIVATION_TYPES`), in place or not, reused or not. The forward
    value is unchanged. The result is differentiable in the parameters of the gate, whatever seeds the backward pass,
    and does not depend on ``create_graph``.

    Args:
        gate: A `Gate` that serves every module the rule is registered on, or a provider that finds one per site (the
            composites of this package pass theirs).
    """

    def __init__(self, gate: GateProvider | Gate) -> None:
        super().__init__()
        self.gate = gate

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.gate!r})"

    def copy(self) -> LearnedActivation:
        """A hook that shares the gate."""
        return type(self)(self.gate)

    def pre_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Marks the hook as registered; the work is done around ``forward``."""

    def remove(self) -> None:
        """Passes recorded so far propagate by the plain gradient from here on."""
        super().remove()
        self.active = False

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Register on ``module`` and return the handles."""
        self.active = True
        handles = [RemovableHandle(self), module.register_forward_pre_hook(self.pre_forward)]
        fn = activation_function(module)
        if fn is not None:
            handles.append(interpose(module, partial(self._run, module, fn)))
        return RemovableHandleList(handles)

    def _run(self, module: nn.Module, fn: ElementWise, call_next: Any, input: Tensor) -> Tensor:
        if skipped(self.gate, module):
            return call_next(input)
        name, gate = find_gate(self.gate, module, "activation", input)
        if not input.requires_grad:
            return call_next(input)
        call = ActivationCall(self, name, gate, fn)
        inplace = bool(getattr(module, "inplace", False))
        with DisableTorchFunction():
            if not inplace:
                out = GatedSite.apply(input, call, False)
            elif call.from_output:
                out = GatedSite.apply(input, call, True)
            else:  # the rule needs z itself: compute beside, then write the value where the user expects it
                out = input.copy_(GatedSite.apply(input.clone(), call, False))
        listener = recorder.get()
        if listener is not None:
            listener.site(call, input, out)
        return out
