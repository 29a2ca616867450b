"""Relevance through what is no linear layer: fixed rules for the calls of torch functions in a forward pass.

The gradient that flows is relevance, as in zennit: what arrives at a function's output is divided among its operands.
Views, permutations, concatenations and max-pools do that rightly by their own gradient and are left alone. All other
rules but that of the softmax, and of products with one, conserve relevance, up to the stabilizer:

* a *sum* (also mean, average pool, interpolation, a matrix product with a constant) divides it in proportion to the
  contributions, ``R_i = x_i * sum_j w_ij R_j / (z_j + eps sign z_j)``, which is zennit's ``Norm``;
* a *product* of two operands gives half to each (the uniform rule of Achtibat et al., AttnLRP, ICML 2024,
  https://arxiv.org/abs/2402.05602); one that was broadcast is a gate and gets none, nor does a divisor (Arras et al.,
  2017, https://arxiv.org/abs/1706.07206);
* a *normalisation*, an *element-wise* function and *dropout* in training mode pass it on unchanged;
* a *softmax* takes ``R_i = x_i (R_i - y_i sum_j R_j)`` (AttnLRP), which does not conserve.

An operand that does not depend on the model's input (a weight, a constant) gets none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .._compat import DisableTorchFunction, tree_flatten, tree_unflatten
from .._moved import renamed
from ..core.dependence import depends_on_input, tensors_in
from ..core.draws import Draws
from ..core.functions import (
    CURVES,
    MATRIX_PRODUCTS,
    MINUS,
    MINUS_REVERSED,
    OVER,
    OVER_REVERSED,
    PLUS,
    TIMES,
    WEIGHTED,
    spellings,
)
from ..core.recomputed import are_alone, recomputed
from .contributions import stabilized

Signals = list[Tensor | None]
Rule = Callable[["RelevanceCall", tuple[Tensor, ...], Tensor], Signals]

# Saved beside the operands: should the rules be gone when activation checkpointing runs a part again in the backward
# pass, the plain function saves other tensors, and torch says so instead of mixing things up.
_SAVED_MARKER = torch.empty(0)


class RelevanceCall:
    """One call of a torch function: how to repeat it, and which rule its relevance follows.

    Attributes:
        operands: Its tensors that require grad, as they were called.
        from_input: Which of them depend on the model's input.
        takes: Which of them get relevance: of those that depend on the input all but gates.
        leads: Whether the function's first argument depends on it.
        name: Name of the function.
        is_product: Whether it multiplies two signals with each other, as a linear layer does with its weights.
    """

    is_product = False

    def __init__(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rule: Rule,
        active: Callable[[], bool],
        stabilizer: float,
    ) -> None:
        leaves, self._spec = tree_flatten((args, dict(kwargs)))
        self._at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.operands = tuple(leaves[i] for i in self._at)
        self.from_input = tuple(depends_on_input(operand) for operand in self.operands)
        self.takes = list(self.from_input)
        self.leads = self._at[:1] == [0] and self.from_input[0]
        self._leaves = [None if i in self._at else leaf for i, leaf in enumerate(leaves)]
        self._func, self.rule, self.active, self.stabilizer = func, rule, active, stabilizer
        self._shapes = [leaf.shape if isinstance(leaf, Tensor) else None for leaf in leaves]
        self.name = str(getattr(func, "__name__", "function")).strip("_")
        self._statistics = func in _UPDATING
        self.draws = Draws() if func in _DRAWING else None

    def run(self) -> Tensor:
        """The function's own value, which passes relevance on."""
        operands, self.operands = self.operands, ()  # autograd saves them, and frees them with the graph
        out: Tensor = RelevanceFunction.apply(self, *operands)
        return out

    def value(self, operands: Sequence[Tensor], *, again: bool = False) -> Tensor:
        """The function of other operands; ``again`` leaves running statistics as they are, and draws the same mask."""
        leaves = list(self._leaves)
        for i, operand in zip(self._at, operands, strict=True):
            leaves[i] = operand
        args, kwargs = tree_unflatten(leaves, self._spec)
        if again and self._statistics:
            args, kwargs = _without_update(self._func, args, kwargs)
        with DisableTorchFunction(), nullcontext() if self.draws is None or not again else self.draws.again():
            out: Tensor = self._func(*args, **kwargs)
        return out

    def multiply_adds(self) -> int:
        """Number of multiplications of a product, without computing it."""
        leaves = list(self._leaves)
        for i, shape in enumerate(self._shapes):
            leaves[i] = leaves[i] if shape is None else torch.empty(shape, device="meta")
        args, kwargs = tree_unflatten(leaves, self._spec)
        with DisableTorchFunction(), FlopCounterMode(display=False) as counter:
            self._func(*args, **kwargs)
        return int(counter.get_total_flops()) // 2

    def signals(self, operands: tuple[Tensor, ...], relevance: Tensor) -> Signals:
        """Returns the relevance of the operands, by the rule; None for those that get none."""
        if are_alone() and self.rule is not _pass:
            held = tuple(x.detach().requires_grad_() for x in operands)
            return recomputed(lambda g: self._taken(held, g), relevance)
        return self._taken(operands, relevance)

    def _taken(self, operands: tuple[Tensor, ...], relevance: Tensor) -> Signals:
        found = self.rule(self, operands, relevance)
        return [signal if takes else None for signal, takes in zip(found, self.takes, strict=True)]

    def vjp(self, operands: tuple[Tensor, ...], signal: Callable[[Tensor], Tensor]) -> Signals:
        """Returns vector-Jacobian products of ``signal(value)``, differentiable if gradients are recorded."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases: one tensor may be two operands.
            apart = [x.view_as(x) if again else x.detach().requires_grad_() for x in operands]
            out = self.value(apart, again=True)
            with torch.set_grad_enabled(again):
                g = signal(out if again else out.detach())
            return list(torch.autograd.grad(out, apart, g, create_graph=again, allow_unused=True))


class RelevanceFunction(torch.autograd.Function):
    """A function whose backward pass is a rule for relevance while the call is active."""

    @staticmethod
    def forward(ctx: Any, call: RelevanceCall, *operands: Tensor) -> Tensor:
        """Value of the function, unchanged by the rule."""
        ctx.call = call
        ctx.save_for_backward(*operands, _SAVED_MARKER)
        return call.value(operands)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the relevance of the operands, or their gradient."""
        call, operands = ctx.call, ctx.saved_tensors[:-1]
        if not call.active():
            return None, *call.vjp(operands, lambda _: relevance)
        signals = call.signals(operands, relevance)
        # Zeros and not None: zennit's rules on the way to a gate cannot do with None.
        gates = [s is None and mine for s, mine in zip(signals, call.from_input, strict=True)]
        return None, *(torch.zeros_like(x) if gate else s for s, x, gate in zip(signals, operands, gates, strict=True))


# -- rules -----------------------------------------------------------------------------------------------------------


def share(call: RelevanceCall, operands: tuple[Tensor, ...], relevance: Tensor) -> Signals:
    """Divides relevance in proportion to what each element contributes."""
    factors = call.vjp(operands, lambda z: relevance / stabilized(z, call.stabilizer))
    return [None if factor is None else x * factor for x, factor in zip(operands, factors, strict=True)]


def _share_equally(call: RelevanceCall, operands: tuple[Tensor, ...], relevance: Tensor) -> Signals:
    """Gives equal parts to the operands, each in proportion to what its elements contribute."""
    return share(call, operands, relevance / sum(call.takes))


def _pass(call: RelevanceCall, operands: tuple[Tensor, ...], relevance: Tensor) -> Signals:
    """Gives equal parts to the operands, element by element."""
    part = relevance / sum(call.takes)
    return [part.sum_to_size(x.shape) if takes else None for takes, x in zip(call.takes, operands, strict=True)]


def _softmax(dim: int) -> Rule:
    def rule(call: RelevanceCall, operands: tuple[Tensor, ...], relevance: Tensor) -> Signals:
        x = operands[0]
        y = call.value(operands)
        x = torch.where(torch.isfinite(x), x, 0.0)  # a mask of -inf takes no part
        return [x * (relevance - y * relevance.sum(dim, keepdim=True)), *[None] * (len(operands) - 1)]

    return rule


# -- which function has which rule -----------------------------------------------------------------------------------

_NORMALISATIONS = (
    F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.normalize, F.local_response_norm, F.rms_norm,
    torch.batch_norm, torch.layer_norm, torch.group_norm, torch.instance_norm, torch.rms_norm,
)  # fmt: skip
_UPDATING = frozenset((F.batch_norm, F.instance_norm, torch.batch_norm, torch.instance_norm))
_ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "softplus", "logsigmoid", "softsign", "tanhshrink", "softshrink", "hardshrink", "threshold",
)  # fmt: skip
_ELEMENT_WISE = (*_ACTIVATIONS, *CURVES, "neg", "negative", "__neg__", "square")
_DROPOUT = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout",
)  # fmt: skip
_SHARED = (
    "sum", "mean", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "lp_pool1d", "lp_pool2d", "lp_pool3d", "interpolate", "fold", "embedding_bag",
)  # fmt: skip


@dataclass(frozen=True)
class _Function:
    """A function that has a rule.

    Attributes:
        family: One of "pass", "share", "plus", "minus", "reversed", "times", "over", "matrix", "dynamic" (a linear
            function whose weights are a signal too), "softmax", "dropout".
        beside: The function that computes the same beside its operand.
        inplace: Whether this one writes into its operand.
    """

    family: str
    beside: Any
    inplace: bool = False


_FAMILIES: dict[str, tuple[str, ...]] = {
    "pass": _ELEMENT_WISE, "share": _SHARED, "plus": PLUS, "minus": MINUS, "reversed": MINUS_REVERSED, "times": TIMES,
    "over": (*OVER, *OVER_REVERSED), "matrix": MATRIX_PRODUCTS, "dynamic": WEIGHTED, "softmax": ("softmax",),
    "dropout": _DROPOUT,
}  # fmt: skip


def _table() -> dict[Any, _Function]:
    table = {function: _Function("pass", function) for function in _NORMALISATIONS}
    for family, names in _FAMILIES.items():
        for name in names:
            for function, beside, inplace in spellings(name):
                table[function] = _Function(family, beside, inplace)
    return table


_FUNCTIONS = _table()
_DRAWING = frozenset(known.beside for known in _FUNCTIONS.values() if known.family == "dropout")

PRODUCTS = frozenset(function for function, handled in _FUNCTIONS.items() if handled.family == "matrix")
"""Matrix products, which have a rule for two operands that depend on the input."""


def in_parts(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
    """A sum and a product in one call, as the two calls that it stands for; None for any other function."""
    parts = _PARTS.get(func)
    if parts is None or kwargs.get("out") is not None:
        return None
    given = dict(zip(("input", "tensor1", "tensor2"), args, strict=False)) | dict(kwargs)
    value = given.get("value", 1)

    def run() -> Tensor:
        product: Tensor = parts(given["tensor1"], given["tensor2"])
        inplace = func in _PARTS_IN_PLACE
        summand = given["input"].clone() if inplace else given["input"]  # it may be needed later
        total: Tensor = summand + (product if value == 1 else value * product)
        return given["input"].copy_(total) if inplace else total

    return run


_PARTS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    function: part
    for name, part in (("addcmul", torch.mul), ("addcdiv", torch.div))
    for function, _, _ in spellings(name)
}
_PARTS_IN_PLACE = (Tensor.addcmul_, Tensor.addcdiv_)
SUMS_OF_PRODUCTS = frozenset(_PARTS)
"""Functions that `in_parts` takes apart."""


# Of the first and the second operand of a sum, given alpha.
_COEFFICIENTS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "plus": (lambda alpha: 1, lambda alpha: alpha),
    "minus": (lambda alpha: 1, lambda alpha: -alpha),
    "reversed": (lambda alpha: -alpha, lambda alpha: 1),
}


def relevance_call(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    active: Callable[[], bool],
    stabilizer: float = 1e-6,
) -> Any:
    """Call a torch function so that its backward pass divides relevance among its operands.

    The value is the function's own, to the bit; a function that writes into its operand still does. The backward pass
    is differentiable, and does not depend on ``create_graph``.

    Args:
        func: Function, as a ``TorchFunctionMode`` gets it.
        args: Its arguments.
        kwargs: Its named arguments.
        active: Asked in the backward pass whether relevance flows; if not, the gradient does.
        stabilizer: What keeps the denominators of sums away from 0.

    Returns:
        What ``func(*args, **kwargs)`` returns, or ``NotImplemented`` if the function has no rule here, none of its
        operands depends on the model's input, or its own gradient passes relevance rightly.
    """
    known = _FUNCTIONS.get(func)
    if known is None or not torch.is_grad_enabled():
        return NotImplemented
    args, kwargs, inplace = _normal_form(func, args, dict(kwargs or {}))
    if kwargs.get("out") is not None or not args or not tensors_in(args):
        return NotImplemented
    inplace = inplace or known.inplace
    with DisableTorchFunction():
        given = args
        if inplace:
            args = (args[0].clone(), *args[1:])
        call = RelevanceCall(known.beside, args, kwargs, _pass, active, stabilizer)
        rule = _rule_of(known.family, call, args, kwargs)
        if rule is None:
            return NotImplemented
        call.rule = rule
        out = call.run()
        return given[0].copy_(out) if inplace else out


def _rule_of(family: str, call: RelevanceCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rule | None:
    """The rule of a call; None if its own gradient does."""
    depending = sum(call.takes)
    if depending == 0:
        return None
    if family in _COEFFICIENTS and depending == 1:
        coefficient = _COEFFICIENTS[family][0 if call.leads else 1](kwargs.get("alpha", 1))
        return None if coefficient == 1 else _pass
    if family in _COEFFICIENTS or family == "share":
        return share
    if family == "dynamic" and depending == 1:
        return None
    if family in ("matrix", "dynamic"):
        call.is_product = True
        return _share_equally
    if family == "softmax":
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return None if dim is None else _softmax(dim)
    if family == "dropout":
        training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
        return _pass if training else None
    call.takes = _receiving_operands(family, call.takes, [operand.shape for operand in call.operands])
    return _pass


def _receiving_operands(family: str, takes: list[bool], shapes: list[torch.Size]) -> list[bool]:
    """Which operands of an element-wise function get relevance: no gates, no divisors, no parameters of a norm."""
    if family == "times":
        size = torch.broadcast_shapes(*(shape for shape, mine in zip(shapes, takes, strict=True) if mine))
        whole = [mine and shape == size for mine, shape in zip(takes, shapes, strict=True)]
        return whole if any(whole) else takes
    first = takes.index(True)
    return [i == first for i in range(len(takes))]


def _normal_form(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
    """Returns arguments with the operand first and without ``inplace``, and whether that was set."""
    if "input" in kwargs:
        args = (kwargs.pop("input"), *args)
    names = _parameters(func)
    if "inplace" not in names:
        return args, kwargs, False
    at = names.index("inplace")
    if len(args) > at:
        return (*args[:at], False, *args[at + 1 :]), kwargs, bool(args[at])
    return args, kwargs, bool(kwargs.pop("inplace", False))


@cache
def _parameters(func: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(func).parameters)
    except (ValueError, TypeError):  # built-in functions: those in place have a name of their own
        return ()


def _without_update(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a batch or instance norm that uses the batch's statistics without recording them."""
    if func in (F.batch_norm, F.instance_norm):
        names = _parameters(func)
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        if kwargs.get("training", False) or kwargs.get("use_input_stats", func is F.instance_norm):
            kwargs |= {"running_mean": None, "running_var": None}
        return (), kwargs
    return (*args[:3], None, None, *args[5:]) if args[5] else args, kwargs


__getattr__ = renamed(
    __name__,
    {
        "RELEVANCE_KEEPING": "zennit_rules.rules.relevance_nodes.RELEVANCE_KEEPING",
        "keeps_relevance": "zennit_rules.rules.relevance_nodes.keeps_relevance",
        "node_name": "zennit_rules.rules.relevance_nodes.node_name",
        "nodes_from_input": "zennit_rules.rules.relevance_nodes.nodes_from_input",
        "nodes_without_rule": "zennit_rules.rules.relevance_nodes.nodes_without_rule",
        "unkept_nodes": "zennit_rules.rules.relevance_nodes.unkept_nodes",
    },
)

__all__ = [
    "PRODUCTS", "SUMS_OF_PRODUCTS", "RelevanceCall", "RelevanceFunction", "depends_on_input", "in_parts",
    "relevance_call", "share",
]  # fmt: skip
