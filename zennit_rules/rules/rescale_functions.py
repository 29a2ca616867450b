"""Which calls of torch functions DeepLIFT gives a rule, and which one: tables of functions by family.

The rules themselves are in `rescale_formulas`. What has none keeps its own gradient; `completeness` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import DisableTorchFunction
from ..core.dependence import depends_on_input
from ..core.functions import CURVES, MATRIX_PRODUCTS, OVER, OVER_REVERSED, TIMES, WEIGHTED, spellings
from .function_call import FunctionCall, Rule
from .rescale import References, in_reference_pass
from .rescale_formulas import (
    COMPOSED,
    choice,
    chords,
    extremum,
    log_sum_exp,
    mean_gradient,
    product,
    quadratic,
    quotient,
    root,
)

MOST_FACTORS = 128
"""A product over more elements than that keeps its gradient: each two take an evaluation."""

_ELEMENT_WISE = (
    *CURVES, "sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "frac", "nan_to_num", "atan2", "arctan2", "hypot",
    "logaddexp", "logaddexp2", "xlogy", "xlog1py", "fmod", "remainder", "__mod__", "copysign", "floor_divide",
    "__floordiv__", "addcdiv", "smooth_l1_loss", "huber_loss",
)  # fmt: skip
_PRODUCTS = (*MATRIX_PRODUCTS, *WEIGHTED, "addcmul", "chain_matmul", "multi_dot", "lerp")
_QUADRATIC = ("square", "var")
_ROOTS = ("norm", "vector_norm", "std", "cdist", "pairwise_distance")
_HIGHEST = (
    "amax", "max", "maximum", "fmax", "cummax", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices", "adaptive_max_pool3d_with_indices",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
)  # fmt: skip
_LOWEST = ("amin", "min", "minimum", "fmin", "cummin")
_CHOICES = ("where", "masked_fill")


@dataclass(frozen=True)
class _Function:
    """A function that has a rule.

    Attributes:
        family: Which kind of rule.
        name: Its name.
        beside: The function that computes the same beside its operand.
        inplace: Whether this one writes into its operand.
    """

    family: str
    name: str
    beside: Any
    inplace: bool = False


_FAMILIES: dict[str, tuple[str, ...]] = {
    "element-wise": _ELEMENT_WISE, "times": TIMES, "product": _PRODUCTS, "over": OVER, "reversed": OVER_REVERSED,
    "quadratic": _QUADRATIC, "root": _ROOTS, "highest": _HIGHEST, "lowest": _LOWEST, "choice": _CHOICES,
    "logsumexp": ("logsumexp",), "factors": ("prod", "cumprod"), "made": tuple(COMPOSED),
}  # fmt: skip
_RULES: dict[str, Rule] = {
    "element-wise": chords, "times": product, "product": product, "over": quotient, "reversed": quotient,
    "quadratic": quadratic, "root": root, "highest": extremum, "lowest": partial(extremum, lowest=True),
    "choice": choice, "logsumexp": log_sum_exp, **COMPOSED,
}  # fmt: skip
_SEVERAL = frozenset(("times", "product", "choice"))
"""Families whose calls with one tensor beside parameters are linear."""


def _table() -> dict[Any, _Function]:
    return {
        function: _Function(family, name, beside, inplace)
        for family, names in _FAMILIES.items()
        for name in names
        for function, beside, inplace in spellings(name)
    }


_FUNCTIONS = _table()


class FunctionRules:
    """Calls torch functions so that their backward pass follows the rules above.

    Args:
        name_call: Names the call of a function that is being made, from the function's name.
        references: Where the reference pass leaves operands.
        active: Asked in the backward pass whether the rules count; if not, the gradient flows.

    Attributes:
        used: Whether a call had a rule.
    """

    def __init__(self, name_call: Callable[[str], str], references: References, active: Callable[[], bool]) -> None:
        self._name_call, self._references, self._active = name_call, references, active
        self.used = False

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The value of a call, or NotImplemented if the function has no rule, or needs none here.

        Each call that could have a rule is counted, in both passes, so that both give it the same name.
        """
        known = _FUNCTIONS.get(func)
        if known is None or kwargs.get("out") is not None:
            return NotImplemented
        direct = _direct_tensors(args, kwargs) if known.family in _SEVERAL else None
        if direct is not None and sum(not isinstance(x, nn.Parameter) for x in direct) < 2:
            if len(direct) < 2 or any(x.is_complex() for x in direct):
                return NotImplemented
            name = self._name_call(known.name)  # a layer with weights, for the most part
            if in_reference_pass() or not torch.is_grad_enabled() or not self._references.has_call(name):
                return NotImplemented
            call = FunctionCall(known.beside, args, kwargs)
            call.name = name
            with DisableTorchFunction():
                return self._compared(known, call, args)
        call = FunctionCall(known.beside, args, kwargs)
        loose = [x for x in call.tensors if not isinstance(x, nn.Parameter)]
        if len(call.tensors) < (2 if known.family in _SEVERAL else 1) or any(x.is_complex() for x in call.tensors):
            return NotImplemented
        call.name = self._name_call(known.name)
        if in_reference_pass():
            if len(loose) > 1 or known.family not in _SEVERAL:
                self._references.note_call(call.name, call.tensors)
            return NotImplemented
        if not torch.is_grad_enabled():
            return NotImplemented
        with DisableTorchFunction():
            return self._compared(known, call, args)

    def _compared(self, known: _Function, call: FunctionCall, args: tuple[Any, ...]) -> Any:
        call.references = self._references.find_call(call.name, call.tensors)
        own = sum(x.requires_grad and not isinstance(x, nn.Parameter) for x in call.tensors)
        if known.family in _SEVERAL and call.references is None and own < 2:
            return NotImplemented  # a layer with weights, for the most part: no need to look where they come from
        call.depends = tuple(x.requires_grad and depends_on_input(x) for x in call.tensors)
        if not any(call.depends):
            return NotImplemented
        call.rule = _rule_of(known, call)
        if call.rule is None:
            return NotImplemented
        self.used = True
        call.active, call.eps = self._active, self._references.eps
        if not known.inplace:
            return call.run()
        call.tensors = (call.tensors[0].clone(), *call.tensors[1:])
        return args[0].copy_(call.run())


_PLAIN = (type(None), bool, int, float, str)


def _direct_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor] | None:
    """The tensors among arguments; None if some may lie deeper."""
    values = (*args, *kwargs.values())
    for value in values:
        if isinstance(value, (Tensor, *_PLAIN)) or (type(value) is tuple and all(type(one) is int for one in value)):
            continue
        return None
    return [value for value in values if isinstance(value, Tensor)]


def _rule_of(known: _Function, call: FunctionCall) -> Rule | None:
    """The rule of a call; None if its own gradient does, or there is no rule for it."""
    several = sum(call.depends) > 1
    if known.family == "times":
        return product if several else (chords if _constants_changed(call) else None)
    if known.family == "product":
        return product if several else None
    if known.family in ("over", "reversed"):
        return _over(known, call)
    if known.family == "choice":
        return choice if _constants_changed(call) else None
    if known.family == "factors":
        return _factors(call)
    args, kwargs = call.arguments(call.tensors)
    if known.family == "root":
        return root if _is_euclidean(known.beside, known.name, args, kwargs) else None
    if known.family == "made":
        return _RULES[known.name] if _is_plain(known.name, call, args, kwargs) else None
    return _RULES[known.family]


def _constants_changed(call: FunctionCall) -> bool:
    """Whether an operand that takes no signal, a mask say, is another one for the baseline."""
    return any(
        not takes and x0 is not None and not torch.equal(x, x0)
        for x, x0, takes in zip(call.tensors, call.references or (None,) * len(call.tensors), call.depends, strict=True)
    )


def _over(known: _Function, call: FunctionCall) -> Rule | None:
    args, kwargs = call.arguments(call.tensors)
    if kwargs.get("rounding_mode") is not None:
        return chords
    if _constants_changed(call):
        return chords if sum(call.depends) == 1 else quotient
    below = args[0] if known.family == "reversed" else (*args, *kwargs.values())[1]
    if not any(x is below and takes for x, takes in zip(call.tensors, call.depends, strict=True)):
        return None
    return chords if known.family == "reversed" else quotient


def _factors(call: FunctionCall) -> Rule | None:
    """Returns the rule of a product over elements, whose degree is how many there are."""
    args, kwargs = call.arguments(call.tensors)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    number = call.tensors[0].numel() if dim is None else call.tensors[0].shape[dim]
    return partial(mean_gradient, degree=number) if number <= MOST_FACTORS else None


def _is_euclidean(func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a norm or distance is that of Euclid, of vectors."""
    if name == "std":
        return True
    at = {"norm": 1, "vector_norm": 1, "cdist": 2, "pairwise_distance": 2}[name]
    order = kwargs.get("p", kwargs.get("ord", args[at] if len(args) > at else None))
    if func is torch.linalg.norm and order == 2:
        dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
        return isinstance(dim, int) or (dim is None and args[0].ndim == 1)  # else that of a matrix
    return order in (None, 2, "fro")


def _is_plain(name: str, call: FunctionCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the rule of a function made of others knows this call of it."""
    if name == "normalize":
        return kwargs.get("p", args[1] if len(args) > 1 else 2.0) == 2
    if name == "instance_norm":
        updated = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
        return updated is None
    return name == "cosine_similarity" or sum(call.depends) == 1


__all__ = ["FunctionRules"]
