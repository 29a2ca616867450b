"""Calls of linear functions, read: which operand depends on the explained input, and what it is multiplied by.

A table says of each linear function of torch how its arguments are called and how a call of it becomes a `LinearMap` of
one operand.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RuleError
from .functions import spellings
from .linear_map import (
    CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    Contraction,
    ConvolutionMap,
    DenseMap,
    LinearOperands,
    TransposedConvolutionMap,
)

Depends = Callable[[Tensor], bool]
Arguments = dict[str, Any]
Reader = Callable[[Arguments, Depends], LinearOperands | None]


def is_linear_function(func: Any) -> bool:
    """Whether a torch function is linear in each of its operands."""
    return func in _FUNCTIONS


def function_name(func: Any) -> str:
    """Name of a linear function, as it stands in the names of sites."""
    return str(func.__name__).strip("_").replace("rmatmul", "matmul")


def linear_operands(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], depends: Depends
) -> LinearOperands | None:
    """Read the call of a torch function as a linear map of the one operand that depends on the input.

    Args:
        func: Function, as a ``TorchFunctionMode`` gets it.
        args: Its arguments.
        kwargs: Its named arguments.
        depends: Tells which tensors depend on the input.

    Returns:
        None if it is no linear function, or if not exactly one of its operands depends on the input.

    Raises:
        RuleError: For a convolution of a single sample without a batch dimension.
    """
    given = _named_arguments(func, args, kwargs)
    return None if given is None else _FUNCTIONS[func].read(given, depends)


def in_steps(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], depends: Depends) -> Callable[[], Any] | None:
    """The call of a linear function in two steps, a product and a sum, if what it adds depends on the input.

    Also that of several products at once, and of a sum that is written into its first operand. None for any other call.
    """
    if func in _IN_PLACE and args:
        # A copy: what is added may be needed in the backward pass, and is overwritten here.
        return lambda: args[0].copy_(_IN_PLACE[func](args[0].clone(), *args[1:], **kwargs))
    if func in _CHAINS:
        matrices = args[0] if isinstance(args[0], (list, tuple)) else args
        return lambda: reduce(torch.matmul, matrices)
    given = _named_arguments(func, args, kwargs)
    added = None if given is None else given.get("added")
    if given is None or not isinstance(added, Tensor) or not depends(added):
        return None
    rest = {name: value for name, value in given.items() if name not in ("added", "alpha", "beta")}
    alpha, beta = given.get("alpha", 1), given.get("beta", 1)

    def steps() -> Any:
        value = _FUNCTIONS[func].product(**rest)
        summand = added.reshape(-1, *(1,) * (value.ndim - 2)) if func in CONVOLUTION_FUNCTIONS else added
        return (value if alpha == 1 else alpha * value) + (summand if beta == 1 else beta * summand)

    return steps


def _named_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """Returns the arguments by our names; None if it is no linear function."""
    known = _FUNCTIONS.get(func)
    if known is None or kwargs.get("out") is not None:
        return None
    given = {known.other_names.get(name, name): value for name, value in kwargs.items() if name != "out"}
    if func is torch.einsum:
        operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
        return {"equation": args[0], "operands": list(operands)}
    return dict(zip(known.names, args, strict=False)) | given


def _depending_operand(first: Any, second: Any, depends: Depends) -> int | None:
    """Which of two operands depends on the input; None if not exactly one."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor) and first.is_floating_point()):
        return None
    both = [depends(first), depends(second)]
    return both.index(True) if sum(both) == 1 else None


def _with_bias(
    found: LinearOperands, bias: Any, depends: Depends, shape: tuple[int, ...] = ()
) -> LinearOperands | None:
    """The same with a bias, unless that depends on the input too."""
    if bias is None:
        return found
    return None if depends(bias) else replace(found, bias=bias.reshape(shape) if shape else bias)


def _linear(given: Arguments, depends: Depends) -> LinearOperands | None:
    x, weight = given["input"], given["weight"]
    which = _depending_operand(x, weight, depends)
    if which is None:
        return None
    if which == 0 and weight.ndim == 2:
        found = LinearOperands(DenseMap(), x, weight)
    elif which == 0:
        found = LinearOperands(Contraction("Linear", F.linear), x, weight)
    else:
        found = LinearOperands(Contraction("Linear", lambda w, v: F.linear(v, w)), weight, x)
    return _with_bias(found, given.get("added"), depends)


def _convolution(dims: int, back: bool) -> Reader:
    function = (TRANSPOSED_CONVOLUTIONS if back else CONVOLUTIONS)[dims - 1]
    names = ("stride", "padding", "dilation", "groups", *(("output_padding",) if back else ()))
    per_channel = (-1, *(1,) * dims)

    def read(given: Arguments, depends: Depends) -> LinearOperands | None:
        x, weight = given["input"], given["weight"]
        which = _depending_operand(x, weight, depends)
        if which is None:
            return None
        if x.ndim != weight.ndim:
            raise RuleError(
                f"{function.__name__} got an input {tuple(x.shape)}: rules need a batch, add a first dimension of 1"
            )
        options = {name: given[name] for name in names if name in given}
        if which == 1:
            by_weight = Contraction(f"Conv{dims}d", lambda w, v: function(v, w, None, **options), -1 - dims)
            found = LinearOperands(by_weight, weight, x)
        elif back:
            found = LinearOperands(TransposedConvolutionMap(dims, options), x, weight)
        else:
            found = LinearOperands(*_unpadded(ConvolutionMap(dims, options), x, weight), weight)
        return _with_bias(found, given.get("added"), depends, per_channel)

    return read


def _unpadded(linear: ConvolutionMap, x: Tensor, weight: Tensor) -> tuple[ConvolutionMap, Tensor]:
    """A convolution whose padding is given in numbers, the same on both sides, and its input."""
    padding = linear.options.get("padding", 0)
    if not isinstance(padding, str):
        return linear, x
    if padding == "valid":
        return replace(linear, options={**linear.options, "padding": 0}), x
    dilation = linear.options.get("dilation", 1)
    dilations = (dilation,) * linear.dims if isinstance(dilation, int) else tuple(dilation)
    total = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    if all(t % 2 == 0 for t in total):
        return replace(linear, options={**linear.options, "padding": tuple(t // 2 for t in total)}), x
    pads = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    return replace(linear, options={**linear.options, "padding": 0}, padding=pads), F.pad(x, pads)


def _product(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Reader:
    """Reads a product of matrices or vectors ``a`` and ``b``, and what is ``added`` to it."""

    def read(given: Arguments, depends: Depends) -> LinearOperands | None:
        a, b = given["a"], given["b"]
        which = _depending_operand(a, b, depends)
        if which is None:
            return None
        constant, scale = (b, a)[which], given.get("alpha", 1)
        constant = constant if scale == 1 else scale * constant
        if which == 0 and a.ndim > 1 and b.ndim == 2 and name in ("matmul", "mm", "addmm"):
            found = LinearOperands(DenseMap(), a, constant.t())
        elif which == 0:
            found = LinearOperands(Contraction(name.capitalize(), function), a, constant)
        else:
            at = -2 if b.ndim > 1 else -1
            found = LinearOperands(Contraction(name.capitalize(), lambda v, w: function(w, v), at), b, constant)
        added, beta = given.get("added"), given.get("beta", 1)
        return _with_bias(found, added if added is None or beta == 1 else beta * added, depends)

    return read


def _einsum(given: Arguments, depends: Depends) -> LinearOperands | None:
    equation, operands = given["equation"], given["operands"]
    if not isinstance(equation, str) or not all(isinstance(x, Tensor) for x in operands):
        return None
    depending = [i for i, x in enumerate(operands) if depends(x)]
    if len(depending) != 1 or len(operands) < 2:
        return None
    (at,) = depending
    terms, out = _equation(equation, [x.ndim for x in operands])
    rest = [i for i in range(len(operands)) if i != at]
    # Weights are what one element of the operand is multiplied by: whatever else is summed over is summed before.
    kept = "".join(dict.fromkeys(c for i in rest for c in terms[i] if c in terms[at] + out))
    weight = torch.einsum(f"{','.join(terms[i] for i in rest)}->{kept}", *(operands[i] for i in rest))
    pair = f"{terms[at]},{kept}->{out}"
    channels = next((k - len(out) for k in range(len(out) - 1, 0, -1) if out[k] not in terms[at]), -1)
    return LinearOperands(Contraction("Einsum", lambda v, w: torch.einsum(pair, v, w), channels), operands[at], weight)


def _equation(equation: str, sizes: list[int]) -> tuple[list[str], str]:
    """Returns the letters of the operands and of the output, with letters in the place of ``...``."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [n - len(t) + 3 if "..." in t else 0 for t, n in zip(terms, sizes, strict=True)]
    letters = "".join([c for c in string.ascii_letters if c not in equation][: max(hidden)])
    terms = [t.replace("...", letters[len(letters) - n :]) for t, n in zip(terms, hidden, strict=True)]
    if not arrow:
        out = letters + "".join(sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1))
    return terms, out.replace("...", letters)


def _bilinear(given: Arguments, depends: Depends) -> LinearOperands | None:
    first, second, weight = given["input1"], given["input2"], given["weight"]
    which = _depending_operand(first, second, depends)
    if which is None or depends(weight):
        return None
    constant, equation = (second, "...j,oij->...oi") if which == 0 else (first, "...i,oij->...oj")
    combined = torch.einsum(equation, constant, weight)
    contraction = Contraction("Bilinear", lambda v, w: torch.einsum("...i,...oi->...o", v, w))
    return _with_bias(LinearOperands(contraction, (first, second)[which], combined), given.get("added"), depends)


@dataclass(frozen=True)
class _Function:
    """A linear function.

    Attributes:
        names: Of its arguments, as readers call them, in order.
        read: Reads a call.
        product: The function without what is added, by those names.
        other_names: Of the same arguments, as torch calls them.
    """

    names: tuple[str, ...]
    read: Reader
    product: Callable[..., Any]
    other_names: dict[str, str] = field(default_factory=dict)


CONVOLUTION_FUNCTIONS = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)
_CHAINS = (torch.linalg.multi_dot, torch.chain_matmul)
_BIAS = {"bias": "added"}
_PAIR = {"self": "a", "input": "a", "tensor1": "a", "other": "b", "mat2": "b", "vec": "b", "vec2": "b", "tensor": "b",
         "tensor2": "b"}  # fmt: skip
_SUM = {"self": "added", "input": "added", "mat": "a", "mat1": "a", "batch1": "a", "vec": "b", "mat2": "b",
        "batch2": "b", "vec1": "a", "vec2": "b"}  # fmt: skip


def _functions() -> Iterator[tuple[Any, _Function]]:
    yield F.linear, _Function(("input", "weight", "added"), _linear, F.linear, _BIAS)
    function: Any
    for function in {F.bilinear, torch.bilinear}:
        yield function, _Function(("input1", "input2", "weight", "added"), _bilinear, F.bilinear, _BIAS)
    yield torch.einsum, _Function(("equation",), _einsum, torch.einsum)
    for k in range(3):
        names = ("input", "weight", "added", "stride", "padding")
        for back, more in ((False, ("dilation", "groups")), (True, ("output_padding", "groups", "dilation"))):
            function = (TRANSPOSED_CONVOLUTIONS if back else CONVOLUTIONS)[k]
            yield function, _Function((*names, *more), _convolution(k + 1, back), function, _BIAS)
    for name in ("matmul", "mm", "bmm", "mv", "dot", "inner", "outer", "ger"):
        function = getattr(torch, name)
        known = _Function(("a", "b"), _product(name, function), lambda a, b, f=function: f(a, b), _PAIR)
        yield from ((spelling, known) for spelling in (function, getattr(Tensor, name)))
        if name == "matmul":
            yield from ((spelling, known) for spelling in (torch.linalg.matmul, Tensor.__matmul__))
            yield Tensor.__rmatmul__, replace(known, names=("b", "a"))
    yield torch.tensordot, _Function(("a", "b", "dims"), _tensordot, torch.tensordot, _PAIR)
    sums = {"addmm": torch.mm, "addmv": torch.mv, "baddbmm": torch.bmm, "addbmm": _summed_products, "addr": torch.outer}
    for name, function in sums.items():
        known = _Function(("added", "a", "b"), _product(name, function), lambda a, b, f=function: f(a, b), _SUM)
        yield from ((spelling, known) for spelling in (getattr(torch, name), getattr(Tensor, name)))


def _tensordot(given: Arguments, depends: Depends) -> LinearOperands | None:
    return _product("tensordot", partial(torch.tensordot, dims=given.get("dims", 2)))(given, depends)


def _summed_products(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b).sum(0)


_FUNCTIONS: dict[Any, _Function] = dict(_functions())
_IN_PLACE: dict[Any, Any] = {
    function: beside
    for name in ("addmm", "addmv", "baddbmm", "addbmm", "addr")
    for function, beside, inplace in spellings(name)
    if inplace
}
WITH_SUMMANDS = frozenset((*(f for f, known in _FUNCTIONS.items() if "added" in known.names), *_CHAINS, *_IN_PLACE))
"""Functions that `in_steps` may take apart."""

__all__ = [
    "CONVOLUTION_FUNCTIONS",
    "WITH_SUMMANDS",
    "function_name",
    "in_steps",
    "is_linear_function",
    "linear_operands",
]
