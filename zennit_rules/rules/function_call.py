"""One call of a torch function that can be repeated with other tensors, and whose backward pass is a rescale rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._compat import DisableTorchFunction, one_gradient_at_a_time, tree_flatten, tree_unflatten
from ..core.hook import MARKER
from ..core.recomputed import are_alone, recomputed
from .rescale import References

Signals = Sequence[Tensor | None]

Rule = Callable[["FunctionCall", tuple[Tensor, ...], tuple[Tensor, ...], Tensor], Signals]


class FunctionCall:
    """One call of a torch function: how to repeat it, and with what it is compared.

    Attributes:
        tensors: Its tensors, as they were called.
        depends: Which of them depend on the model's input.
        references: What they were in the reference pass; None for those that nobody noted, which are the same.
    """

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        leaves, self._spec = tree_flatten((args, dict(kwargs)))
        self._at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.tensors: tuple[Tensor, ...] = tuple(leaves[i] for i in self._at)
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._func = func
        self.depends: tuple[bool, ...] = ()
        self.references: tuple[Tensor | None, ...] | None = None
        self.name, self.eps = "", 0.0
        self.rule: Rule | None = None
        self.active: Callable[[], bool] = bool

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of the function, with other tensors."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._at, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        return args, kwargs

    def value(self, tensors: Sequence[Tensor]) -> Any:
        """The function of other tensors."""
        args, kwargs = self.arguments(tensors)
        with DisableTorchFunction():
            return self._func(*args, **kwargs)

    def main(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the value, without indices that come with it."""
        out = self.value(tensors)
        found: Tensor = out if isinstance(out, Tensor) else out[0]
        return found

    def run(self) -> Any:
        """The function's own value, whose backward pass follows the rule."""
        tensors, self.tensors = self.tensors, ()  # autograd saves them, and frees them with the graph
        out = _Rescaled.apply(self, *tensors)
        return out if isinstance(out, Tensor) else self._kind(out)

    def remember_kind(self, out: Any) -> None:
        """Note which kind of tuple the function returns."""
        self._kind = type(out)

    def vjp(self, tensors: Sequence[Tensor], g: Tensor, wanted: Sequence[bool] | None = None) -> Signals:
        """The function's own vector-Jacobian product at some tensors, differentiable if gradients are recorded."""
        again = torch.is_grad_enabled()
        wanted = self.depends if wanted is None else wanted
        with torch.enable_grad():
            # Aliases: one tensor may be two operands.
            apart = [_alias(x, again) if takes else x for x, takes in zip(tensors, wanted, strict=True)]
            takers = [x for x, takes in zip(apart, wanted, strict=True) if takes]
            found = torch.autograd.grad(self.main(apart), takers, g, create_graph=again, allow_unused=True)
        left = iter(found)
        return [next(left) if takes else None for takes in wanted]

    def signals(self, tensors: tuple[Tensor, ...], references: tuple[Tensor, ...], g: Tensor) -> Signals:
        """Returns the multipliers of the operands, by the rule; None for those that get none."""
        rule = self.rule
        assert rule is not None
        if not are_alone():
            return rule(self, tensors, references, g)
        held = tuple(
            x.detach().requires_grad_() if takes else x.detach() for x, takes in zip(tensors, self.depends, strict=True)
        )
        return recomputed(lambda g: rule(self, held, references, g), g)

    def compared(self) -> tuple[Tensor | None, ...]:
        """The references.

        Raises:
            RuleError: If the baseline did not come here.
        """
        if self.references is None:
            raise References.missing(self.name)
        return self.references


def _alias(x: Tensor, again: bool) -> Tensor:
    return x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_()


class _Rescaled(torch.autograd.Function):
    """A function whose backward pass is a rescale rule while the call is active."""

    @staticmethod
    def forward(ctx: Any, call: FunctionCall, *tensors: Tensor) -> Any:
        """Value of the function, unchanged by the rule."""
        ctx.call = call
        ctx.save_for_backward(*tensors, MARKER)
        out = call.value(tensors)
        if isinstance(out, Tensor):
            return out
        call.remember_kind(out)
        ctx.mark_non_differentiable(*out[1:])
        return tuple(out)

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Returns multipliers of the operands that depend on the input, and the gradient of others."""
        call, tensors = ctx.call, ctx.saved_tensors[:-1]
        wanted = tuple(ctx.needs_input_grad[1:])
        if not call.active():
            return None, *call.vjp(tensors, g, wanted)
        noted = call.compared()
        references = tuple(x.detach() if r is None else r for x, r in zip(tensors, noted, strict=True))
        signals = call.signals(tensors, references, g)
        others = tuple(mine and not takes for mine, takes in zip(wanted, call.depends, strict=True))
        plain = call.vjp(tensors, g, others) if any(others) else signals
        return None, *(
            (torch.zeros_like(x) if m is None else m) if takes else (p if mine else None)
            for x, m, p, takes, mine in zip(tensors, signals, plain, call.depends, others, strict=True)
        )
