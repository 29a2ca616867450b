"""Linear functions as linear maps of one operand: applied with any weights, forwards and transposed.

``F.conv2d(x, w, b)``, ``F.linear(x, w, b)``, ``x @ w``, ``torch.einsum("bij,jk->bik", x, w)`` and their like are linear
in each of their operands. Where one of them depends on the explained input, the call is a linear layer in it, and the
others are its weights, whoever made the call and wherever they come from: `linear_calls` reads a call like that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad as transposed

from .._moved import renamed


class LinearMap:
    """What a linear layer computes, but for its weights.

    Attributes:
        name: Name of the layer, as that of a module type where torch has one (``"Conv2d"``, ``"Linear"``).
        padding: Zeros that the input was given on each side before, as in ``F.pad``; None if there are none.
    """

    name: ClassVar[str]
    padding: list[int] | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer with other weights: ``f(x; weight) + bias``, a bias that broadcasts to the output."""
        out = self.apply(x, weight)
        return out if bias is None else out + bias

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Returns ``f(x; weight)``."""
        raise NotImplementedError

    def transpose(self, size: torch.Size, weight: Tensor, signal: Tensor) -> Tensor:
        """Returns the gradient of ``sum(f(x; weight) * signal)`` to an input ``x`` of that size."""
        if signal.requires_grad and torch.is_grad_enabled() and not weight.requires_grad:
            turned: Tensor = _Transposed.apply(signal, self, size, weight)
            return turned
        return self.apply_transposed(size, weight, signal)

    def apply_transposed(self, size: torch.Size, weight: Tensor, signal: Tensor) -> Tensor:
        """Computes `transpose` without a derivative of its own."""
        raise NotImplementedError

    def inside(self, x: Tensor) -> Tensor | float:
        """Returns 1 where the input is the layer's own, 0 where it was padded."""
        if self.padding is None:
            return 1.0
        mask = torch.zeros(x.shape[x.ndim - len(self.padding) // 2 :], dtype=x.dtype, device=x.device)
        self.own(mask).fill_(1.0)
        return mask

    def own(self, x: Tensor) -> Tensor:
        """The part of the input that was not padded."""
        pads = self.padding or []
        sides = list(zip(pads[-2::-2], pads[::-2], strict=True))
        sizes = x.shape[x.ndim - len(sides) :]
        cut = [slice(max(before, 0), n - max(after, 0)) for (before, after), n in zip(sides, sizes, strict=True)]
        inside: tuple[Any, ...] = (..., *cut)
        return x[inside]

    def channel_dim(self, out: Tensor) -> int:
        """Returns the dimension of an output that counts channels."""
        return out.ndim - 1


class DenseMap(LinearMap):
    """``F.linear``, and what else multiplies the last dimension by one matrix; weights ``(outputs, inputs)``."""

    name = "Linear"

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiplies by the matrix."""
        return F.linear(x, weight)

    def apply_transposed(self, size: torch.Size, weight: Tensor, signal: Tensor) -> Tensor:
        """Multiplies by the transposed matrix."""
        return signal @ weight


CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED_CONVOLUTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_INPUT_GRADIENTS = (transposed.conv1d_input, transposed.conv2d_input, transposed.conv3d_input)


@dataclass(frozen=True)
class ConvolutionMap(LinearMap):
    """A convolution.

    Attributes:
        dims: Number of its spatial dimensions.
        options: Stride, padding, dilation and groups.
        padding: Zeros that the input was given on each side before, as in ``F.pad``; None if there are none.
    """

    dims: int
    options: dict[str, Any] = field(default_factory=dict)
    padding: list[int] | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of torch's module, ``"Conv2d"``."""
        return f"Conv{self.dims}d"

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolves, without a bias."""
        out: Tensor = CONVOLUTIONS[self.dims - 1](x, weight, None, **self.options)
        return out

    def apply_transposed(self, size: torch.Size, weight: Tensor, signal: Tensor) -> Tensor:
        """Computes the gradient of a convolution in its input."""
        turned = self._turned(size, weight)
        if turned is not None:
            return CONVOLUTIONS[self.dims - 1](signal, weight.flip(tuple(range(2, weight.ndim))), None, **turned)
        back: Tensor = _INPUT_GRADIENTS[self.dims - 1](size, weight, signal, **self.options)
        return back

    def _turned(self, size: torch.Size, weight: Tensor) -> dict[str, Any] | None:
        """Options with which the transposed map is a convolution by turned weights; None where it is none.

        That takes two thirds of the time where each channel has a kernel of its own.
        """
        groups = self.options.get("groups", 1)
        if weight.device.type != "cpu" or groups == 1 or weight.shape[:2] != (groups, 1) or len(size) != self.dims + 2:
            return None
        usual = (("stride", 1), ("padding", 0), ("dilation", 1))
        stride, padding, dilation = (
            (given,) * self.dims if isinstance(given, int) else given
            for given in (self.options.get(name, otherwise) for name, otherwise in usual)
        )
        if isinstance(padding, str) or any(step != 1 for step in stride):
            return None
        around = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=False)]
        if len(around) != self.dims or min(around) < 0:
            return None
        return {"padding": tuple(around), "dilation": tuple(dilation), "groups": groups}

    def channel_dim(self, out: Tensor) -> int:
        """Returns 1: channels follow the batch."""
        return 1


class TransposedConvolutionMap(ConvolutionMap):
    """A transposed convolution; its options have an output padding too."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of torch's module, ``"ConvTranspose2d"``."""
        return f"ConvTranspose{self.dims}d"

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolves transposed, without a bias."""
        out: Tensor = TRANSPOSED_CONVOLUTIONS[self.dims - 1](x, weight, None, **self.options)
        return out

    def apply_transposed(self, size: torch.Size, weight: Tensor, signal: Tensor) -> Tensor:
        """Convolves, which is the transpose, and cuts off what output padding added."""
        options = {name: value for name, value in self.options.items() if name != "output_padding"}
        back = CONVOLUTIONS[self.dims - 1](signal, weight, None, **options)
        inside: tuple[Any, ...] = (..., *(slice(n) for n in size[2:]))  # output padding may go beyond the stride
        return back[inside]


@dataclass(frozen=True)
class Contraction(LinearMap):
    """Any other function that is linear in one operand and in its weights.

    Attributes:
        name: Name of the layer.
        function: From operand and weights to the value.
        channels_at: Dimension of the output that counts channels, from the end.
        padding: Zeros that the input was given on each side before, as in ``F.pad``; None if there are none.
    """

    name: str  # type: ignore[misc]
    function: Callable[[Tensor, Tensor], Tensor]
    channels_at: int = -1
    padding: list[int] | None = None

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Calls the function."""
        return self.function(x, weight)

    def apply_transposed(self, size: torch.Size, weight: Tensor, signal: Tensor) -> Tensor:
        """Finds the transpose by autograd."""
        again = torch.is_grad_enabled() and (signal.requires_grad or weight.requires_grad)
        with torch.enable_grad():
            x = signal.new_zeros(size).requires_grad_()
            (back,) = torch.autograd.grad(self.apply(x, weight), x, signal, create_graph=again)
        return back

    def channel_dim(self, out: Tensor) -> int:
        """Counts the dimension of channels from the end."""
        return max(out.ndim + self.channels_at, min(1, out.ndim - 1))


class _Transposed(torch.autograd.Function):
    """A transposed map in its signal, whose derivative is the map: torch's own also computes one in the weights."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, linear: LinearMap, size: torch.Size, weight: Tensor) -> Tensor:
        """Applies the transposed map to the signal."""
        ctx.linear, ctx.weight = linear, weight
        return linear.apply_transposed(size, weight, signal)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        """The map without bias."""
        return ctx.linear.apply(g, ctx.weight), None, None, None


@dataclass(frozen=True)
class LinearOperands:
    """One call of a linear function: ``map(x, weight) + bias``.

    Attributes:
        map: The function.
        x: The operand that depends on the input.
        weight: What it is multiplied by.
        bias: What is added, in a form that broadcasts to the output; or None.
    """

    map: LinearMap
    x: Tensor
    weight: Tensor
    bias: Tensor | None = None


__getattr__ = renamed(
    __name__,
    {
        "CONVOLUTION_FUNCTIONS": "zennit_rules.core.linear_calls.CONVOLUTION_FUNCTIONS",
        "WITH_SUMMANDS": "zennit_rules.core.linear_calls.WITH_SUMMANDS",
        "function_name": "zennit_rules.core.linear_calls.function_name",
        "in_steps": "zennit_rules.core.linear_calls.in_steps",
        "is_linear_function": "zennit_rules.core.linear_calls.is_linear_function",
        "linear_operands": "zennit_rules.core.linear_calls.linear_operands",
    },
)

__all__ = [
    "CONVOLUTIONS", "TRANSPOSED_CONVOLUTIONS", "Contraction", "ConvolutionMap", "DenseMap", "LinearMap",
    "LinearOperands", "TransposedConvolutionMap",
]  # fmt: skip
