"""Layers whose weights are constant, also where their backward passes are differentiated.

Torch's convolutions compute a derivative in their weights along with every second derivative, asked for or not, of
depthwise ones channel by channel; a batch norm in evaluation mode is a factor per channel, and takes a dozen passes.
Inside `constant_weights`, the calls that a model makes outside of the rules on it keep their values, and pass signals
back as before; what is differentiated of that is linear in the signal, and costs one call forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._compat import DisableTorchFunction
from .batch_norm import BatchNorm
from .linear_calls import is_linear_function, linear_operands
from .linear_map import ConvolutionMap


class _Constant(torch.autograd.Function):
    """A layer that is linear but for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Callable[[], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's own value."""
        ctx.back = back
        return value()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """The layer's transpose."""
        return ctx.back(g), None, None


@contextmanager
def constant_weights() -> Iterator[None]:
    """A context for a forward pass of which nothing but its input and parameters of rules is differentiated."""
    with _ConstantWeights():
        yield


class _ConstantWeights(TorchFunctionMode):
    """Runs convolutions and batch norms so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            if func is F.batch_norm:
                found = _batch_norm(BatchNorm(*args, **kwargs))
            else:
                found = _convolution(func, args, kwargs) if is_linear_function(func) else None
            if found is not None:
                return found
        return func(*args, **kwargs)


def _convolution(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The value of a convolution; None for other functions, and where something computed its weights."""
    with DisableTorchFunction():
        operands = linear_operands(func, args, kwargs, lambda x: not _is_weight(x))
        if operands is None or not isinstance(operands.map, ConvolutionMap) or not operands.x.requires_grad:
            return None
        linear, size, dtype, weight = operands.map, operands.x.shape, operands.x.dtype, operands.weight.detach()

        def back(g: Tensor) -> Tensor:
            return linear.transpose(size, weight.to(g.dtype), g).to(dtype)

        found: Tensor = _Constant.apply(operands.x, partial(func, *args, **kwargs), back)
    return found


def _is_weight(x: Tensor) -> bool:
    return isinstance(x, nn.Parameter) or not x.requires_grad


def _batch_norm(norm: BatchNorm) -> Tensor | None:
    """The value of a batch norm; None where it depends on the batch, or something computed its weights."""
    x = norm.input
    weights = [one for one in (norm.weight, norm.bias) if one is not None]
    if not (norm.is_line and x.requires_grad and x.ndim >= 2 and all(map(_is_weight, weights))):
        return None
    with DisableTorchFunction():
        scale, dtype = norm.scale.detach().reshape(1, -1, *(1,) * (x.ndim - 2)), x.dtype
        found: Tensor = _Constant.apply(x, partial(norm.value, x), lambda g: (g * scale.to(g.dtype)).to(dtype))
    return found
