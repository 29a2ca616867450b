"""Linear layers as linear maps: applied with any weights, forwards and transposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as transposed

from .errors import RuleError
from .interpose import has_own_forward

LINEAR_TYPES: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
CONVOLUTION_TYPES = LINEAR_TYPES[1:]

_FORWARD: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d, nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d, nn.ConvTranspose3d: F.conv_transpose3d,
}  # fmt: skip
_TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: transposed.conv1d_input, nn.Conv2d: transposed.conv2d_input, nn.Conv3d: transposed.conv3d_input,
    nn.ConvTranspose1d: F.conv1d, nn.ConvTranspose2d: F.conv2d, nn.ConvTranspose3d: F.conv3d,
}  # fmt: skip


def linear_type(module: nn.Module) -> type[nn.Module] | None:
    """The type of `LINEAR_TYPES` whose ``forward`` the module runs; None if a subclass brought its own."""
    if has_own_forward(module):
        return None
    found = next((cls for cls in type(module).__mro__ if cls in LINEAR_TYPES), None)
    return found if found is not None and type(module).forward is found.forward else None


@dataclass(frozen=True)
class LinearMap:
    """What a linear layer computes, but for its weights.

    Attributes:
        kind: Type of the layer, of `LINEAR_TYPES`.
        options: Stride, padding, dilation, groups, and output padding of transposed convolutions.
        margin: Zeros that the input was given on each side, as in ``F.pad``; None if there are none.
    """

    kind: type[nn.Module]
    options: dict[str, Any]
    margin: list[int] | None = None

    @classmethod
    def of(cls, module: Any, x: Tensor, output_size: Any = None) -> tuple[LinearMap, Tensor]:
        """The map of a module for the input ``x``, and ``x`` with whatever padding is not by zeros."""
        kind = linear_type(module)
        assert kind is not None
        if kind is nn.Linear:
            return cls(kind, {}), x
        if x.ndim != module.weight.ndim:
            raise RuleError(f"{kind.__name__} got {tuple(x.shape)}: rules need a batch, add a first dimension of 1")
        options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
        if kind in LINEAR_TYPES[4:]:
            options["output_padding"] = module.output_padding
            if output_size is not None:
                plain = _FORWARD[kind](x[:1].detach(), module.weight.detach(), **{**options, "output_padding": 0})
                dims = plain.ndim - 2
                more = [want - have for want, have in zip(output_size[-dims:], plain.shape[2:], strict=True)]
                options["output_padding"] = tuple(more)
        else:
            sides = _sides(module)
            pads = [side for pair in reversed(sides) for side in pair]
            if module.padding_mode != "zeros":
                return cls(kind, {**options, "padding": 0}), F.pad(x, pads, mode=module.padding_mode)
            if any(left != right for left, right in sides):
                return cls(kind, {**options, "padding": 0}, pads), F.pad(x, pads)
            options["padding"] = tuple(left for left, _ in sides)
        return cls(kind, options), x

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer with other weights: ``f(x; weight) + bias``."""
        if self.kind is nn.Linear:
            return F.linear(x, weight, bias)
        return _FORWARD[self.kind](x, weight, bias, **self.options)

    def transpose(self, size: torch.Size, weight: Tensor, signal: Tensor) -> Tensor:
        """Gradient of ``sum(f(x; weight) * signal)`` to an input ``x`` of that size."""
        if self.kind is nn.Linear:
            return signal @ weight
        options = {name: value for name, value in self.options.items() if name != "output_padding"}
        if self.kind in LINEAR_TYPES[4:]:
            back = _TRANSPOSED[self.kind](signal, weight, **options)
            inside: tuple[Any, ...] = (..., *(slice(n) for n in size[2:]))  # output padding may go beyond the stride
            return back[inside]
        if signal.requires_grad and torch.is_grad_enabled():
            turned: Tensor = _Transposed.apply(signal, self, size, weight)
            return turned
        return _TRANSPOSED[self.kind](size, weight, signal, **options)

    def inside(self, x: Tensor) -> Tensor | float:
        """1 where the input is the layer's own, 0 on its margin."""
        if self.margin is None:
            return 1.0
        cut = [
            slice(left, size - right)
            for left, right, size in zip(self.margin[-2::-2], self.margin[::-2], x.shape[2:], strict=True)
        ]
        mask = torch.zeros(x.shape[2:], dtype=x.dtype, device=x.device)
        mask[tuple(cut)] = 1.0
        return mask

    def channels(self, values: Tensor, like: Tensor) -> Tensor:
        """Values per output channel ``(C,)`` in a form that broadcasts to an output."""
        return values if self.kind is nn.Linear else values.reshape(-1, *(1,) * (like.ndim - 2))

    def channel_dim(self, out: Tensor) -> int:
        """Dimension of an output that counts channels."""
        return out.ndim - 1 if self.kind is nn.Linear else 1


class _Transposed(torch.autograd.Function):
    """A transposed map in its signal, whose derivative is the map: torch's own also computes one in the weights."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, linear: LinearMap, size: torch.Size, weight: Tensor) -> Tensor:
        """See `LinearMap.transpose`."""
        ctx.linear, ctx.weight = linear, weight
        return linear.transpose(size, weight, signal)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        """The map without bias."""
        return ctx.linear(g, ctx.weight), None, None, None


def _sides(module: Any) -> list[tuple[int, int]]:
    """Padding of a convolution in numbers, per dimension."""
    if not isinstance(module.padding, str):
        return [(p, p) for p in module.padding]
    if module.padding == "valid":
        return [(0, 0) for _ in module.kernel_size]
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return [(t // 2, t - t // 2) for t in total]
