"""Functions of torch: the names that each goes by, and the kinds that several rules ask for.

Torch offers most functions in several spellings (``F.relu``, ``torch.relu``, ``Tensor.relu``, ``relu_``), and some
under several names (``atan`` and ``arctan``). Whoever knows one of them knows all: `spellings` finds those of a name,
the tuples below have all names of their functions, and a test goes through all tables of this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OWNERS = (F, torch, Tensor, torch.special, torch.linalg)
"""Modules and classes in which torch keeps its functions."""

PLUS = ("add", "__add__", "__radd__", "__iadd__")
MINUS = ("sub", "subtract", "__sub__", "__isub__")
MINUS_REVERSED = ("rsub", "__rsub__")
TIMES = ("mul", "multiply", "__mul__", "__rmul__", "__imul__")
OVER = ("div", "divide", "true_divide", "__truediv__", "__itruediv__", "__div__", "__idiv__")
OVER_REVERSED = ("__rtruediv__", "__rdiv__")

CURVES = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "abs", "absolute",
    "__abs__", "sin", "cos", "tan", "asin", "acos", "atan", "arcsin", "arccos", "arctan", "sinh", "cosh", "asinh",
    "acosh", "atanh", "arcsinh", "arccosh", "arctanh", "erf", "erfc", "erfinv", "expit", "logit", "sinc", "lgamma",
    "gammaln", "digamma", "psi", "i0", "i0e", "ndtr", "entr", "tanh", "sigmoid", "pow", "__pow__", "__rpow__",
    "__ipow__", "float_power", "clamp", "clip", "clamp_min", "clamp_max",
)  # fmt: skip
"""Element-wise functions that are no layer of their own; they have a slope almost everywhere."""

MATRIX_PRODUCTS = (
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "vdot", "inner", "outer", "ger", "vecdot", "addmm",
    "addmv", "addbmm", "baddbmm", "addr", "einsum", "tensordot", "kron", "cross",
)  # fmt: skip
"""Products of two operands, with what is added to them; none of them is a layer's weight by its place."""

WEIGHTED = (
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
)  # fmt: skip
"""Products of an input and the weights of a layer."""


def spellings(name: str, owners: Sequence[Any] = OWNERS) -> Iterator[tuple[Any, Any, bool]]:
    """Finds the functions that torch has under a name.

    Args:
        name: Name of a function (``"relu"``) or operator (``"__add__"``).
        owners: Modules and classes that are looked through.

    Yields:
        A function, the one that computes the same beside its operand, and whether the first writes into its operand.
    """
    for owner in owners:
        beside = getattr(owner, name, None)
        if beside is None:
            continue
        plain = name.startswith("__i")
        yield beside, getattr(owner, f"__{name[3:]}", None) if plain else beside, plain
        written = getattr(owner, f"{name}_", None)
        if written is not None and not name.startswith("__"):
            yield written, beside, True


def functions_named(*names: str) -> frozenset[Any]:
    """Returns all functions that torch has under some names and that leave their operands alone."""
    return frozenset(function for name in names for function, _, inplace in spellings(name) if not inplace)


SOFTMAX = functions_named("softmax")
ATTENTION = functions_named("scaled_dot_product_attention", "multi_head_attention_forward")

__all__ = [
    "ATTENTION", "CURVES", "MATRIX_PRODUCTS", "MINUS", "MINUS_REVERSED", "OVER", "OVER_REVERSED", "OWNERS", "PLUS",
    "SOFTMAX", "TIMES", "WEIGHTED", "functions_named", "spellings",
]  # fmt: skip
