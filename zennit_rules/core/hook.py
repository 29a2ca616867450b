"""What every rule of this package shares: finding the gate of a call, and standing in for its backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .._compat import DisableTorchFunction, Hook, RemovableHandle, RemovableHandleList
from .interpose import interpose
from .plain_copies import plain_copies
from .recomputed import are_alone, recomputed, transposed
from .sites import recorder
from .streams import Streams

# Saved beside what a rule needs. Activation checkpointing runs a forward pass again during the backward pass; should
# the rules be gone by then, the plain layer saves one tensor fewer, and torch says so instead of mixing things up.
MARKER = torch.empty(0)


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

    def __init__(self, hook: SiteHook, name: str, gate: nn.Module) -> None:
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
        """Runs the backward pass of the site: the rule while its hook is active, else the true gradient."""
        if not self.hook.active:
            return self.true_gradient(saved, g)
        if self.keep and not torch.is_grad_enabled():
            self.g = g
        streams = self.streams
        if streams is not None:
            streams.arrive(self, saved[0], g)
        return self._recomputed(saved, g) if are_alone() and self.is_recomputed else self.signal(saved, g)

    @property
    def is_recomputed(self) -> bool:
        """Whether what the rule computes is more than what it is computed from, and nothing else enters."""
        contrast = getattr(self.gate, "contrast", False)
        return not contrast and next(self.gate.parameters(), None) is not None

    def _recomputed(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        held = tuple(tensor.detach() for tensor in saved)
        parameters = dict(self.gate.named_parameters())

        def transpose(g: Tensor, towards: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
            onwards, gradients = self.transpose(held, g, towards[0])
            return onwards, *(gradients.get(name) for name in parameters)

        (passed,) = recomputed(lambda g: (self.signal(held, g),), g, tuple(parameters.values()), transpose)
        assert passed is not None
        return passed

    @property
    def streams(self) -> Streams | None:
        """The place where the passes of one attribution meet; None for a rule with a gate of its own."""
        found: Streams | None = getattr(self.hook.gate, "streams", None)
        return found

    def contrast(self) -> Tensor | None:
        """Returns the signal of the other classes at this call; None during their own pass.

        Raises:
            RuleError: If there was no such pass.
        """
        return (self.streams or Streams()).contrast(self)

    def remember(self, *saved: Tensor) -> tuple[Tensor, ...]:
        """Keep aliases of what autograd saves: the tensors themselves would close a reference cycle."""
        if self.keep:
            self.saved = tuple(tensor.detach() for tensor in saved)
        return saved

    def push_forward(self, tangent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Applies the transpose of `signal` at the signal that arrived last.

        Args:
            tangent: Gradient of a loss to what the site passed on, in its shape.

        Returns:
            Gradient of the loss to the signal that arrived, and to the gate's parameters by name.
        """
        if self.g is None:  # nothing that reaches the output
            parameters = self.gate.named_parameters()
            return tangent.new_zeros(self.shape), {name: torch.zeros_like(p) for name, p in parameters}
        return self.transpose(self.saved, self.g, tangent)

    def transpose(self, saved: tuple[Tensor, ...], g: Tensor, towards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Applies the transpose of `signal`.

        Args:
            saved: What the rule needs of the forward pass, without a graph.
            g: The signal that arrived.
            towards: Gradient of a loss to what the site passed on, in its shape.

        Returns:
            Gradient of the loss to the signal that arrived, and to the gate's parameters by name.
        """
        parameters = dict(self.gate.named_parameters())
        onwards, *gradients = transposed(lambda g: (self.signal(saved, g),), g, tuple(parameters.values()), (towards,))
        assert onwards is not None
        return onwards, {name: one for name, one in zip(parameters, gradients, strict=True) if one is not None}


class SiteHook(Hook):
    """Zennit hook that replaces a layer's backward pass, call by call; a rule says how.

    Args:
        gate: A gate that serves every module the rule is registered on, or a provider that finds one per site (the
            composites of this package pass theirs).
    """

    kind: ClassVar[str] = ""

    def __init__(self, gate: GateProvider | nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.gate!r})"

    def applies(self, module: nn.Module) -> bool:
        """Whether the rule knows what ``module`` computes."""
        raise NotImplementedError

    def run(self, module: nn.Module, name: str, gate: nn.Module, input: Tensor) -> tuple[SiteCall, Tensor]:
        """The call of a site and the layer's value, which propagates by the rule."""
        raise NotImplementedError

    def copy(self) -> SiteHook:
        """A hook that shares the gate."""
        return type(self)(self.gate)

    def pre_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Marks the hook as registered; the work is done around ``forward``."""

    def remove(self) -> None:
        """Ends the rule: passes recorded so far propagate by the plain gradient from here on."""
        super().remove()
        self.active = False

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Register on ``module`` and return the handles."""
        self.active = True
        hooked = module.register_forward_pre_hook(self.pre_forward)
        handles = [RemovableHandle(self), hooked, plain_copies(module)]
        if self.applies(module):
            handles.append(interpose(module, partial(self._around, module)))
        return RemovableHandleList(handles)

    @staticmethod
    def plain(call_next: Any, input: Tensor) -> Tensor:
        """The layer without a rule; functions it calls by itself are no calls of the model's."""
        with DisableTorchFunction():
            out: Tensor = call_next(input)
        return out

    def _around(self, module: nn.Module, call_next: Any, input: Tensor) -> Tensor:
        if skipped(self.gate, module):
            return self.plain(call_next, input)
        name, gate = find_gate(self.gate, module, self.kind, input)
        if not input.requires_grad:
            return self.plain(call_next, input)
        with DisableTorchFunction():
            call, out = self.run(module, name, gate, input)
        listener = recorder.get()
        if listener is not None:
            listener.site(call, input, out)
        return out
