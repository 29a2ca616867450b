"""DeepLIFT's rescale rule, trainable: at activations, max-pools and softmax.

DeepLIFT explains how the output differs from that of a *reference* input (the baseline). Where the gradient multiplies
the signal ``g`` by a slope at ``z``, the rescale rule takes the slope of the chord between reference ``z0`` and ``z``,
so that what a layer passes on accounts for all of its change: ``sum(passed on * (z - z0)) = sum(g * (f(z) - f(z0)))``.

Source: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation Differences", ICML
2017 (https://arxiv.org/abs/1704.02685). The rule for softmax is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.hook import GateProvider, SiteCall, SiteHook
from ..core.interpose import has_own_forward
from ..errors import RuleError
from ..gates import PlainGate
from .activation import ActivationCall, GatedSite, LearnedActivation
from .feature_pass import Index, part_of
from .pooling import LearnedMaxPool, PoolCall, PoolGate

EPS = 1e-10
"""Differences of pre-activations up to this count as none, as in captum: the chord becomes the tangent."""

SOFTMAX_TYPES: tuple[type[nn.Module], ...] = (nn.Softmax, nn.LogSoftmax)

# -- references ------------------------------------------------------------------------------------------------------

_pass: ContextVar[object | None] = ContextVar("_pass", default=None)


@contextmanager
def reference_pass() -> Iterator[None]:
    """Forward passes inside are those of the baseline: rescale rules note the pre-activations. No gradient is kept.

    The composite `LearnedDeepLift` does this by itself. Rules on their own in a composite of zennit need it::

        with composite.context(model):
            with reference_pass():
                model(baseline)
            (multipliers,) = torch.autograd.grad(model(x)[:, target].sum(), x)
    """
    token = _pass.set(object())
    try:
        with torch.no_grad():
            yield
    finally:
        _pass.reset(token)


def in_reference_pass() -> bool:
    """Whether the model is being run on the baseline."""
    return _pass.get() is not None


class NotByRows(RuleError):
    """What a pass of one row of the baseline tells is not what one of all rows would."""


class References:
    """The pre-activations of the last reference pass.

    Args:
        name_call: Names the call of a module that is being made; None for the references of a single module.
        eps: Differences up to this count as none.

    Attributes:
        one_row: Whether the reference pass had one row, which stands for as many as the input has.
    """

    one_row = False

    def __init__(self, name_call: Callable[[nn.Module], str] | None = None, eps: float = EPS) -> None:
        self.eps = eps
        self._name_call = name_call
        self._seen: dict[str, Tensor] = {}
        self._operands: dict[str, tuple[Tensor | None, ...]] = {}
        self._pass: object | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The sites and calls of functions that have one."""
        return (*self._seen, *self._operands)

    def clear(self) -> None:
        """Forgets all references."""
        self._seen.clear()
        self._operands.clear()

    def _begin(self) -> None:
        """Forgets all references at the first note of another reference pass."""
        if self._pass is not _pass.get():
            self.clear()
            self._pass = _pass.get()

    def note(self, module: nn.Module, z: Tensor) -> None:
        """Remember the pre-activation of a call in a reference pass.

        Raises:
            RuleError: For a second call of a module whose calls nobody names.
        """
        self._begin()
        if self._name_call is None and self._seen:
            raise RuleError(
                f"a forward pass calls this {type(module).__name__} more than once, and a rule that stands on its own "
                "cannot tell the calls apart: use the composite LearnedDeepLift"
            )
        self.keep("" if self._name_call is None else self._name_call(module), z.detach().clone())

    def keep(self, name: str, z: Tensor) -> None:
        """Set the reference of a site."""
        self._seen[name] = z

    def find(self, name: str, z: Tensor) -> Tensor | None:
        """Returns the reference of a site with pre-activation ``z``, with as many rows or one; None if there is none.

        Raises:
            RuleError: If it has another shape.
        """
        found = self._seen.get(name if self._name_call is not None else "")
        if found is not None and (found.shape[1:] != z.shape[1:] or found.shape[:1] not in ((1,), z.shape[:1])):
            self.refuse_one_row()
            raise RuleError(
                f"at site {name!r} the input has shape {tuple(z.shape)}, the baseline {tuple(found.shape)}: "
                "give a baseline that takes the same way through the model"
            )
        return found

    def note_call(self, name: str, tensors: tuple[Tensor, ...]) -> None:
        """Remember the tensors of a function's call in a reference pass; parameters are the same in both passes."""
        self._begin()
        self._operands[name] = tuple(None if isinstance(x, nn.Parameter) else x.detach().clone() for x in tensors)

    def has_call(self, name: str) -> bool:
        """Whether the reference pass noted the tensors of a call."""
        return name in self._operands

    def find_call(self, name: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor | None, ...] | None:
        """Returns the references of the tensors of a function's call; None if there are none.

        Raises:
            RuleError: If they have other shapes.
        """
        found = self._operands.get(name)
        if found is None:
            return None
        self.refuse_one_row()
        shapes, shapes0 = ([tuple(x.shape) for x in some if x is not None] for some in (
            [x for x, x0 in zip(tensors, found, strict=False) if x0 is not None], found
        ))  # fmt: skip
        if len(found) != len(tensors) or shapes != shapes0:
            raise RuleError(
                f"at {name!r} the function is called with tensors of shapes {shapes} for the input, {shapes0} for the "
                "baseline: give a baseline that takes the same way through the model"
            )
        return found

    def refuse_one_row(self) -> None:
        """Says that one row does not do, where there is one.

        Raises:
            NotByRows: For the composite, which then runs all rows.
        """
        if self.one_row:
            raise NotByRows("one row of the baseline does not do for this model")

    @staticmethod
    def missing(name: str) -> RuleError:
        """What is wrong where a site has no reference."""
        return RuleError(
            f"site {name!r} has no reference: the model was not run on a baseline before, or that did not "
            "come here. The composite LearnedDeepLift does it if an argument of the model requires grad, or if its "
            "attribute baselines is set; a rule that stands on its own needs "
            "`with reference_pass(): model(baseline)` inside the composite's context"
        )


class ReferenceCall(SiteCall):
    """A call that is compared with that of the baseline."""

    reference: Tensor | None = None
    eps: float = EPS

    @property
    def takes_one_row(self) -> bool:
        """Whether a reference that differs by rounding, as one row's may from those of many, changes nothing else.

        Where input and reference are nearly equal, chords of curves are quotients of nothing but rounding, unless both
        were rounded alike; those of lines are exact.
        """
        return False

    def reference_of(self, z: Tensor) -> Tensor:
        """The reference, in the shape of ``z``.

        Raises:
            RuleError: If the baseline did not come here.
        """
        if self.reference is None:
            raise References.missing(self.name)
        return self.reference.expand_as(z)

    def difference(self, z: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where ``z`` is at its reference, and a ``z - z0`` to divide by: 1 there, so that no NaN comes up."""
        difference = z - z0
        near = difference.abs() <= self.eps
        return near, torch.where(near, torch.ones_like(difference), difference)


class ReferenceHook(SiteHook):
    """What the rescale rules share: noting the baseline's pre-activations, and giving them to the calls.

    Args:
        gate: A gate, or a provider that finds one per site; a composite that passes itself has ``references``.
        eps: Differences up to this count as none, for a rule that stands on its own.
    """

    def __init__(self, gate: GateProvider | nn.Module, eps: float = EPS) -> None:
        super().__init__(gate)
        self._own = References(eps=eps)

    @property
    def references(self) -> References:
        """The references of the composite, or the rule's own."""
        shared: References | None = getattr(self.gate, "references", None)
        return self._own if shared is None else shared

    def copy(self) -> ReferenceHook:
        """A hook that shares the gate, with references of its own."""
        return type(self)(self.gate, self._own.eps)

    def run(self, module: nn.Module, name: str, gate: nn.Module, input: Tensor) -> tuple[SiteCall, Tensor]:
        """Runs the activation beside its reference."""
        call, out = super().run(module, name, gate, input)
        assert isinstance(call, ReferenceCall)
        if not call.takes_one_row:
            self.references.refuse_one_row()
        call.reference, call.eps = self.references.find(name, input), self.references.eps
        return call, out

    def _around(self, module: nn.Module, call_next: Any, input: Tensor) -> Tensor:
        if in_reference_pass():
            self.references.note(module, input)
            return self.plain(call_next, input)
        return super()._around(module, call_next, input)


# -- activations -----------------------------------------------------------------------------------------------------


class RescaleCall(ActivationCall, ReferenceCall):
    """A call of an element-wise activation ``f``, whose slope is that of the chord."""

    def __init__(self, hook: SiteHook, name: str, gate: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__(hook, name, gate, fn)
        self.from_output = False  # the chord needs z itself

    @property
    def takes_one_row(self) -> bool:
        """Whether the activation is made of lines."""
        return self.piecewise_linear

    def through(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Returns ``g * (f(z) - f(z0)) / (z - z0)``, and ``g * f'(z)`` where ``z`` is at its reference."""
        (z,) = saved
        if torch.is_grad_enabled() or not self.in_pieces:
            return g * self._chord(z, self.reference_of(z), self._slope(z))
        reference = self.reference_of(z) if self.reference is None else self.reference
        return self._plain_chord(z.detach(), reference.detach()).mul_(g)

    def factor(self, saved: tuple[Tensor, ...], index: Index) -> Tensor:
        """Returns the slope of the chord for a piece of the layer."""
        z, reference = saved[0].detach(), self.reference_of(saved[0]) if self.reference is None else self.reference
        return self._plain_chord(z[index], part_of(reference.detach(), index))

    def _plain_chord(self, z: Tensor, z0: Tensor) -> Tensor:
        """The slope of the chord without a derivative, its exception made only where there is one.

        Args:
            z: Pre-activations.
            z0: Those of the reference, with as many rows or one.
        """
        difference = (z - z0).contiguous()
        chord = (self.fn(z) - self.fn(z0)).contiguous()
        if difference.numel() == 0 or not bool(difference.abs().amin() <= self.eps):
            return chord.div_(difference)
        near = (difference.abs() <= self.eps).flatten().nonzero().squeeze(1)
        difference.view(-1)[near] = 1.0
        chord.div_(difference)
        chord.view(-1)[near] = self.slope_at(z.reshape(-1)[near])
        return chord

    def _chord(self, z: Tensor, z0: Tensor, slope: Tensor) -> Tensor:
        near, apart = self.difference(z, z0)
        return torch.where(near, slope, (self.fn(z) - self.fn(z0)) / apart)


class LearnedRescale(ReferenceHook, LearnedActivation):
    """Zennit rule: DeepLIFT's multiplier and the incoming signal, mixed by a gate.

    Passes on ``a * g * (f(z) - f(z0)) / (z - z0) + b * g`` with ``(a, b) = gate(z, g)`` and the pre-activation ``z0``
    of the baseline: a gate that starts at "gradient" starts at DeepLIFT's rescale rule. Works for all activations of
    `ACTIVATION_TYPES`, in place or not. Reused and functional ones need the composite `LearnedDeepLift`, which
    also runs the baseline; on its own, in a composite of zennit, the rule takes `reference_pass`.

    Args:
        gate: A `Gate` that serves every module, or a provider that finds one per site.
        eps: Differences ``z - z0`` up to this count as none: the slope there is ``f'(z)``.
    """

    call_type: ClassVar[type[ActivationCall]] = RescaleCall


# -- max-pools -------------------------------------------------------------------------------------------------------


class RescalePoolCall(PoolCall, ReferenceCall):
    """A call of a max-pool that shares its change out to two winners."""

    takes_one_row = True

    def through(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """What winners gained or lost between reference and input, per unit of their own difference.

        The change ``o - o0`` of a window's output splits at ``t = max(o, o0)``: ``t - o0`` is put down to the winner of
        the input, ``o - t`` to the winner of the reference.
        """
        z = saved[0]
        if not torch.is_grad_enabled() and self.reference is not None and z.numel() > 0:
            return self._plain_shares(saved, g, self.reference.detach())
        z0 = self.reference_of(z)
        (o, index), (o0, index0) = self.pool(z), self.pool(z0)
        top = torch.maximum(o, o0)
        shares = self.true_gradient((z, index), g * (top - o0)) + self.true_gradient((z, index0), g * (o - top))
        near, apart = self.difference(z, z0)
        return torch.where(near, self.true_gradient(saved, g), shares / apart)

    def _plain_shares(self, saved: tuple[Tensor, ...], g: Tensor, z0: Tensor) -> Tensor:
        """The same without a derivative: winners are known, and a reference of one row is pooled once."""
        z, index = saved[0].detach(), saved[1]
        dims = self.dims
        o = z.flatten(-dims).gather(-1, index.flatten(-dims)).reshape(index.shape)
        o0, index0 = (v.expand(index.shape) for v in self.pool(z0))
        top = torch.maximum(o, o0)
        shares = self.true_gradient((z, index), g * (top - o0)).add_(self.true_gradient((z, index0), g * (o - top)))
        difference = z - z0
        if not bool(difference.abs().amin() <= self.eps):
            return shares.div_(difference)
        near = difference.abs() <= self.eps
        return torch.where(near, self.true_gradient(saved, g), shares.div_(difference.masked_fill_(near, 1.0)))

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """The above, softened if the gate is a `PoolGate`."""
        return super().signal(saved, g) if isinstance(self.gate, PoolGate) else self.through(saved, g)


class RescaleMaxPool(ReferenceHook, LearnedMaxPool):
    """Zennit rule: DeepLIFT's rule for max-pools; complete for any batch, padding, dilation and overlap of windows.

    Args:
        gate: A `PoolGate` softens it as `LearnedMaxPool` does; by default nothing is trained.
        eps: Differences ``z - z0`` up to this count as none.
    """

    call_type: ClassVar[type[PoolCall]] = RescalePoolCall

    def __init__(self, gate: GateProvider | nn.Module | None = None, eps: float = EPS) -> None:
        super().__init__(PlainGate() if gate is None else gate, eps)


# -- softmax ---------------------------------------------------------------------------------------------------------


def logarithmic_mean(u: Tensor, u0: Tensor) -> Tensor:
    """``(exp(u) - exp(u0)) / (u - u0)``, continued by ``exp(u)`` where both are equal; 0 where one is ``-inf``."""
    known = u.isfinite() & u0.isfinite()
    u, u0 = (torch.where(known, v, torch.zeros_like(v)) for v in (u, u0))
    distance = (u - u0).abs()
    close = distance < 1e-3  # where the quotient would lose digits, in its derivative above all
    apart = torch.where(close, torch.ones_like(distance), distance)
    series = 1 - distance / 2 * (1 - distance / 3 * (1 - distance / 4 * (1 - distance / 5)))
    share = torch.where(close, series, -torch.expm1(-apart) / apart)
    return torch.where(known, torch.maximum(u, u0).exp() * share, torch.zeros_like(u))


def _balanced(multipliers: Tensor, share: Tensor, dim: int) -> Tensor:
    """Multipliers that add up to 0, without what rounding left of their sum: a shift of large logits multiplies it.

    They are put on a common grid, so that the layers before can add them up in any order without rounding again.
    """
    left = multipliers - share * multipliers.sum(dim, keepdim=True)
    if torch.finfo(left.dtype).eps > 1e-6:
        return left  # the grid of half precision is too coarse
    digits = -int(math.log2(torch.finfo(left.dtype).eps)) - 2
    with torch.no_grad():
        step = torch.ldexp(torch.ones_like(left), torch.frexp(left.abs().amax(dim, keepdim=True)).exponent - digits)
        grid = (left / step).round() * step
        most = share.argmax(dim, keepdim=True)
        grid = grid.scatter_add(dim, most, -grid.sum(dim, keepdim=True))
    return left + (grid - left).detach()


class RescaleSoftmaxCall(ReferenceCall):
    """A call of softmax or log-softmax."""

    from_output = False

    def __init__(self, hook: SiteHook, name: str, gate: nn.Module, dim: int, log: bool) -> None:
        super().__init__(hook, name, gate)
        self.dim, self.log = dim, log
        self.fn: Callable[[Tensor], Tensor] = partial(torch.log_softmax if log else torch.softmax, dim=dim)

    def true_gradient(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """The chord of no length."""
        return self._chord(saved[0], saved[0], g)

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """The Jacobian of softmax, with logarithmic means in the place of probabilities."""
        return self._chord(saved[0], self.reference_of(saved[0]), g)

    def _chord(self, z: Tensor, z0: Tensor, g: Tensor) -> Tensor:
        """``L (g - sum(L g) / sum(L))``, or for log-softmax ``g - L / sum(L) sum(g)``.

        With ``u = log softmax(z)`` and ``L = (p - p0) / (u - u0)``: ``p - p0 = L (u - u0)``, and since ``p`` and ``p0``
        add up to 1, ``u - u0 = (z - z0) - sum(L (z - z0)) / sum(L)``. At ``z = z0``, ``L = p``: the gradient.
        """
        weight = logarithmic_mean(torch.log_softmax(z, self.dim), torch.log_softmax(z0, self.dim))
        total = weight.sum(self.dim, keepdim=True)
        share = weight / torch.where(total > 0, total, torch.ones_like(total))
        if self.log:
            passed = g - share * g.sum(self.dim, keepdim=True)
        else:
            passed = weight * (g - (share * g).sum(self.dim, keepdim=True))
        return _balanced(passed, share, self.dim)


class _SoftmaxHook(SiteHook):
    """Runs softmax as a site."""

    kind = "softmax"

    def applies(self, module: nn.Module) -> bool:
        """Whether ``module`` is softmax or log-softmax."""
        known = (cls for cls in SOFTMAX_TYPES if isinstance(module, cls) and type(module).forward is cls.forward)
        return not has_own_forward(module) and next(known, None) is not None

    def run(self, module: Any, name: str, gate: nn.Module, input: Tensor) -> tuple[SiteCall, Tensor]:
        """Runs the softmax, along the dimension that torch takes where none is said."""
        dim = module.dim
        if dim is None:  # what torch takes where nothing is said
            dim = 0 if input.ndim in (0, 1, 3) else 1
        call = RescaleSoftmaxCall(self, name, gate, dim, isinstance(module, nn.LogSoftmax))
        return call, GatedSite.apply(input, call, False)


class RescaleSoftmax(ReferenceHook, _SoftmaxHook):
    """Zennit rule: a complete rescale rule for softmax and log-softmax, along any dimension; nothing in it is trained.

    Captum's rule divides differences element by element and subtracts a mean over the whole batch, which is neither
    complete nor independent of the batch. This one is made of chords of ``exp`` and ``log`` (see `RescaleSoftmaxCall`):
    complete, blind to a shift of all inputs, and the gradient where input and reference are equal.

    Args:
        gate: Names the site if a composite passes itself; weighs nothing.
        eps: Not needed here; as in `LearnedRescale`.
    """

    def __init__(self, gate: GateProvider | nn.Module | None = None, eps: float = EPS) -> None:
        super().__init__(PlainGate() if gate is None else gate, eps)


__all__ = [
    "EPS", "SOFTMAX_TYPES", "LearnedRescale", "ReferenceCall", "ReferenceHook", "References", "RescaleMaxPool",
    "RescaleSoftmax", "in_reference_pass", "reference_pass",
]  # fmt: skip
