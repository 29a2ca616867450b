"""Which modules and functions of torch are sites: element-wise activations and max-pools, in all their spellings.

A functional call stands for a module of torch with certain arguments; `as_module` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interpose import has_own_forward

ElementWise = Callable[[Tensor], Tensor]

# Module type -> its pure, out-of-place function. Only element-wise functions of one tensor: there, the true gradient
# is the signal times the derivative, and a gate per element makes sense.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], ElementWise]] = {
    nn.ReLU: lambda m: torch.relu,
    nn.ReLU6: lambda m: F.relu6,
    nn.LeakyReLU: lambda m: partial(F.leaky_relu, negative_slope=m.negative_slope),
    nn.PReLU: lambda m: partial(F.prelu, weight=m.weight),
    nn.ELU: lambda m: partial(F.elu, alpha=m.alpha),
    nn.SELU: lambda m: F.selu,
    nn.CELU: lambda m: partial(F.celu, alpha=m.alpha),
    nn.GELU: lambda m: partial(F.gelu, approximate=m.approximate),
    nn.SiLU: lambda m: F.silu,
    nn.Mish: lambda m: F.mish,
    nn.Hardswish: lambda m: F.hardswish,
    nn.Hardsigmoid: lambda m: F.hardsigmoid,
    nn.Hardtanh: lambda m: partial(F.hardtanh, min_val=m.min_val, max_val=m.max_val),
    nn.Softplus: lambda m: partial(F.softplus, beta=m.beta, threshold=m.threshold),
    nn.Tanh: lambda m: torch.tanh,
    nn.Sigmoid: lambda m: torch.sigmoid,
    nn.LogSigmoid: lambda m: F.logsigmoid,
    nn.Softsign: lambda m: F.softsign,
    nn.Tanhshrink: lambda m: F.tanhshrink,
    nn.Softshrink: lambda m: partial(F.softshrink, lambd=m.lambd),
    nn.Hardshrink: lambda m: partial(F.hardshrink, lambd=m.lambd),
    nn.Threshold: lambda m: partial(F.threshold, threshold=m.threshold, value=m.value),
}
# Their second derivative is 0 (almost everywhere), which autograd does not know of all of them.
PIECEWISE_LINEAR = frozenset(
    (torch.relu, F.relu6, F.leaky_relu, F.prelu, F.hardsigmoid, F.hardtanh, F.softshrink, F.hardshrink, F.threshold)
)
ACTIVATION_TYPES: tuple[type[nn.Module], ...] = tuple(_ACTIVATIONS)
POOLING_TYPES: tuple[type[nn.Module], ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)

# Non-linear modules and functions that are no sites: named in the coverage report, with the reason.
UNREACHED_TYPES: tuple[type[nn.Module], ...] = (
    nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.GLU, nn.MultiheadAttention, nn.RReLU,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d, nn.LSTM, nn.GRU, nn.RNN,
)  # fmt: skip


def _type_with_own_forward(module: nn.Module, types: tuple[type[nn.Module], ...]) -> type[nn.Module] | None:
    """The type in ``types`` whose ``forward`` the module runs; None if a subclass brought its own."""
    if has_own_forward(module):
        return None
    for cls in type(module).__mro__:
        if cls in types:
            return cls if type(module).forward is cls.forward else None
    return None


def activation_function(module: nn.Module) -> ElementWise | None:
    """The pure function an activation module computes, or None if it is not one that rules can weigh."""
    cls = _type_with_own_forward(module, ACTIVATION_TYPES)
    return None if cls is None else _ACTIVATIONS[cls](module)


def is_pooling(module: nn.Module) -> bool:
    """Whether the module is a max-pool that returns its values alone (no indices)."""
    return _type_with_own_forward(module, POOLING_TYPES) is not None and not module.return_indices


def is_site(module: nn.Module) -> bool:
    """Whether calls of the module are sites."""
    return activation_function(module) is not None or is_pooling(module)


@dataclass(frozen=True)
class _Functional:
    """How the arguments of a function (after the input) become those of the equivalent module."""

    module: type[nn.Module]
    names: tuple[str, ...] = ()
    inplace: bool = False

    def module_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], bool] | None:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        given.pop("input", None)
        inplace = bool(given.pop("inplace", self.inplace))
        if given.pop("return_indices", False) or given.pop("out", None) is not None:
            return None
        return {name: value for name, value in given.items() if value is not None}, inplace


_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_FUNCTIONALS: dict[Any, _Functional] = {
    F.relu: _Functional(nn.ReLU, ("inplace",)),
    torch.relu: _Functional(nn.ReLU),
    Tensor.relu: _Functional(nn.ReLU),
    torch.relu_: _Functional(nn.ReLU, inplace=True),
    Tensor.relu_: _Functional(nn.ReLU, inplace=True),
    F.relu6: _Functional(nn.ReLU6, ("inplace",)),
    F.leaky_relu: _Functional(nn.LeakyReLU, ("negative_slope", "inplace")),
    F.leaky_relu_: _Functional(nn.LeakyReLU, ("negative_slope",), inplace=True),
    F.elu: _Functional(nn.ELU, ("alpha", "inplace")),
    F.elu_: _Functional(nn.ELU, ("alpha",), inplace=True),
    F.selu: _Functional(nn.SELU, ("inplace",)),
    torch.selu: _Functional(nn.SELU),
    torch.selu_: _Functional(nn.SELU, inplace=True),
    F.celu: _Functional(nn.CELU, ("alpha", "inplace")),
    torch.celu: _Functional(nn.CELU, ("alpha",)),
    torch.celu_: _Functional(nn.CELU, ("alpha",), inplace=True),
    F.gelu: _Functional(nn.GELU, ("approximate",)),
    F.silu: _Functional(nn.SiLU, ("inplace",)),
    F.mish: _Functional(nn.Mish, ("inplace",)),
    F.hardswish: _Functional(nn.Hardswish, ("inplace",)),
    F.hardsigmoid: _Functional(nn.Hardsigmoid, ("inplace",)),
    F.hardtanh: _Functional(nn.Hardtanh, ("min_val", "max_val", "inplace")),
    F.hardtanh_: _Functional(nn.Hardtanh, ("min_val", "max_val"), inplace=True),
    F.prelu: _Functional(nn.PReLU, ("weight",)),
    torch.prelu: _Functional(nn.PReLU, ("weight",)),
    Tensor.prelu: _Functional(nn.PReLU, ("weight",)),
    F.softplus: _Functional(nn.Softplus, ("beta", "threshold")),
    torch.tanh: _Functional(nn.Tanh),
    Tensor.tanh: _Functional(nn.Tanh),
    torch.tanh_: _Functional(nn.Tanh, inplace=True),
    Tensor.tanh_: _Functional(nn.Tanh, inplace=True),
    torch.sigmoid: _Functional(nn.Sigmoid),
    Tensor.sigmoid: _Functional(nn.Sigmoid),
    torch.sigmoid_: _Functional(nn.Sigmoid, inplace=True),
    Tensor.sigmoid_: _Functional(nn.Sigmoid, inplace=True),
    torch.special.expit: _Functional(nn.Sigmoid),
    F.logsigmoid: _Functional(nn.LogSigmoid),
    F.softsign: _Functional(nn.Softsign),
    F.tanhshrink: _Functional(nn.Tanhshrink),
    F.softshrink: _Functional(nn.Softshrink, ("lambd",)),
    F.hardshrink: _Functional(nn.Hardshrink, ("lambd",)),
    Tensor.hardshrink: _Functional(nn.Hardshrink, ("lambd",)),
    F.threshold: _Functional(nn.Threshold, ("threshold", "value", "inplace")),
    torch.threshold: _Functional(nn.Threshold, ("threshold", "value")),
    torch.threshold_: _Functional(nn.Threshold, ("threshold", "value"), inplace=True),
    F.max_pool1d: _Functional(nn.MaxPool1d, _POOL),
    F.max_pool2d: _Functional(nn.MaxPool2d, _POOL),
    F.max_pool3d: _Functional(nn.MaxPool3d, _POOL),
    torch.max_pool1d: _Functional(nn.MaxPool1d, _POOL[:-1]),
    torch.max_pool2d: _Functional(nn.MaxPool2d, _POOL[:-1]),
    torch.max_pool3d: _Functional(nn.MaxPool3d, _POOL[:-1]),
}
# ``x.clamp(min=0)`` is how some code spells ReLU; with any other bound it is no activation.
_CLAMPS = {torch.clamp, torch.clamp_min, Tensor.clamp, Tensor.clamp_min, torch.clip, Tensor.clip}
_CLAMPS_INPLACE = {torch.clamp_, torch.clamp_min_, Tensor.clamp_, Tensor.clamp_min_, torch.clip_, Tensor.clip_}


def is_site_function(func: Any) -> bool:
    """Whether calls of a function may be sites; `as_module` knows whether one is, from its arguments."""
    return func in _FUNCTIONALS or func in _CLAMPS or func in _CLAMPS_INPLACE


def as_module(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[type[nn.Module], dict[str, Any], bool] | None:
    """The module type, its arguments and whether the call is in place; None if the call is no site."""
    if func in _CLAMPS or func in _CLAMPS_INPLACE:
        given = dict(zip(("min", "max"), args, strict=False)) | kwargs
        is_relu = isinstance(given.get("min"), (int, float)) and given["min"] == 0 and given.get("max") is None
        return (nn.ReLU, {}, func in _CLAMPS_INPLACE) if is_relu else None
    spec = _FUNCTIONALS.get(func)
    bound = None if spec is None else spec.module_arguments(args, kwargs)
    return None if spec is None or bound is None else (spec.module, *bound)


__all__ = [
    "ACTIVATION_TYPES",
    "PIECEWISE_LINEAR",
    "POOLING_TYPES",
    "UNREACHED_TYPES",
    "ElementWise",
    "activation_function",
    "as_module",
    "is_pooling",
    "is_site",
    "is_site_function",
]
