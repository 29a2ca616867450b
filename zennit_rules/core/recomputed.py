"""Signals that are computed again for their derivative, instead of kept: what learning rules shared by samples needs.

Double backward through a backward pass keeps every intermediate of every rule, several times the activations of the
model. Where only parameters of rules are differentiated (`rules_alone`), a rule needs no more than the signal that
arrived, beside what its forward pass has saved anyway: it passes on what the plain backward pass would, by the same
fast forms, and is computed once more, with its graph, when the derivative comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Signals = Sequence[Tensor | None]
Rule = Callable[[Tensor], Signals]
"""From the signal that arrived to what is passed on to each operand; differentiable where gradients are recorded."""

Transpose = Callable[[Tensor, tuple[Tensor, ...]], Sequence[Tensor | None]]
"""From that signal and gradients to what was passed on, to gradients to the signal and to each parameter."""

_alone: ContextVar[bool] = ContextVar("_alone", default=False)


@contextmanager
def rules_alone() -> Iterator[None]:
    """A context whose passes are differentiated once, in the parameters of rules, and in nothing else.

    On accelerators autograd runs backward passes in threads of its own, which do not see it: signals are kept there,
    which takes more memory and gives the same gradients.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def are_alone() -> bool:
    """Whether the backward pass that runs is differentiated in the parameters of rules alone."""
    return _alone.get() and torch.is_grad_enabled()


def recomputed(
    rule: Rule, g: Tensor, parameters: Sequence[Tensor] = (), transpose: Transpose | None = None
) -> list[Tensor | None]:
    """Returns what a rule passes on, of which only ``g`` is kept.

    Args:
        rule: The rule; all it reads but ``g`` and the parameters is constant.
        g: The signal that arrived.
        parameters: Those of the rule.
        transpose: Its derivative in closed form; by default autograd finds it.

    Raises:
        RuntimeError: In the pass for the derivative, if parameters were changed in place before.
    """
    kept: list[bool] = []
    found = iter(_Recomputed.apply(rule, transpose, kept, g, *parameters))
    return [next(found) if there else None for there in kept]


class _Recomputed(torch.autograd.Function):
    """A rule as a function of signal and parameters."""

    @staticmethod
    def forward(
        ctx: Any, rule: Rule, transpose: Transpose | None, kept: list[bool], g: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        """Passes the signal on, and notes which operands got one."""
        ctx.rule, ctx.transpose, ctx.parameters = rule, transpose, parameters
        ctx.versions = [parameter._version for parameter in parameters]
        ctx.save_for_backward(g)
        signals = rule(g)
        kept += [signal is not None for signal in signals]
        seen: set[int] = set()
        return tuple(_once(signal, seen) for signal in signals if signal is not None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *towards: Tensor) -> tuple[Any, ...]:
        """The transpose, of what is computed again."""
        (g,) = ctx.saved_tensors
        if [parameter._version for parameter in ctx.parameters] != ctx.versions:
            raise RuntimeError("the parameters of a rule were changed in place between a pass and its gradient")
        transpose = ctx.transpose or (lambda g, towards: transposed(ctx.rule, g, ctx.parameters, towards))
        return None, None, None, *transpose(g, towards)


def _once(signal: Tensor, seen: set[int]) -> Tensor:
    """Returns a signal, as another tensor if autograd has met this one."""
    if id(signal) in seen:
        return signal.view_as(signal)
    seen.add(id(signal))
    return signal


def transposed(
    rule: Rule, g: Tensor, parameters: Sequence[Tensor], towards: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Returns gradients to the signal and to each parameter, by autograd.

    Args:
        rule: The rule.
        g: The signal that arrived.
        parameters: Those of the rule.
        towards: Gradients to what it passes on, where that is not None.
    """
    with torch.enable_grad():
        g = g.detach().requires_grad_()
        passed = [signal for signal in rule(g) if signal is not None]
        ways = [(p, t.to(p.dtype)) for p, t in zip(passed, towards, strict=True) if p.requires_grad]
        if not ways:  # nothing is passed on, whatever arrives
            return torch.zeros_like(g), *(torch.zeros_like(p) for p in parameters)
        outputs, gradients = zip(*ways, strict=True)
        found: tuple[Tensor, ...] = torch.autograd.grad(outputs, (g, *parameters), gradients, materialize_grads=True)
    return found
