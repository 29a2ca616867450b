"""LearnedMaxPool: a max-pool whose backward pass can be softened."""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._compat import one_gradient_at_a_time
from ..core.hook import MARKER, GateProvider, SiteCall, SiteHook
from ..core.site_functions import POOLING_TYPES, is_pooling
from ..errors import RuleError
from .feature_pass import PIECE


class PoolGate(nn.Module):
    """How far a max-pool's backward pass departs from winner-take-all.

    The signal ``g`` of a window is shared out by ``(1 - m) * onehot(argmax z) + m * softmax(z / (T s))``, with ``s``
    the standard deviation of ``z`` over the sample. ``m = strength + tanh(raw_strength)`` and the temperature
    ``T = temperature * exp(raw_temperature) > 0``. The limit ``T -> 0`` is the exact max-pool gradient for any ``m``,
    and so is ``m = 0``, the default start: exact, and yet ``m`` has a gradient.

    Args:
        temperature: Starting value of ``T``, in standard deviations of the layer's input.
        strength: Starting value of ``m``.
        samples: None shares the two parameters over samples; a number gives each sample its own.
    """

    def __init__(self, temperature: float = 0.5, strength: float = 0.0, *, samples: int | None = None) -> None:
        super().__init__()
        if not temperature > 0:
            raise RuleError(f"temperature must be positive, got {temperature}; the limit 0 is strength=0")
        self.start_temperature = float(temperature)
        self.start_strength = float(strength)
        self.samples = samples
        self.sample_dim = 0
        self.raw_temperature = nn.Parameter(torch.zeros(samples or 1))
        self.raw_strength = nn.Parameter(torch.zeros(samples or 1))

    @property
    def temperature(self) -> Tensor:
        """The temperature ``T``, of shape ``(1,)`` or ``(samples,)``, positive."""
        return self.start_temperature * torch.exp(self.raw_temperature)

    @property
    def strength(self) -> Tensor:
        """The strength ``m``, of shape ``(1,)`` or ``(samples,)``, within 1 of its start."""
        return self.start_strength + torch.tanh(self.raw_strength)

    def extra_repr(self) -> str:
        """Configuration shown by ``repr``."""
        return f"temperature={self.start_temperature}, strength={self.start_strength}"


def _dims(module: nn.Module) -> int:
    return next(n for n, cls in enumerate(POOLING_TYPES, start=1) if isinstance(module, cls))


class Windows:
    """The windows of a max-pool, as one strided view per offset inside the window."""

    def __init__(self, module: Any, z_shape: torch.Size, out_shape: torch.Size) -> None:
        self.dims = _dims(module)
        kernel, self.dilation = self._each(module.kernel_size), self._each(module.dilation)
        self.stride = kernel if module.stride in (None, ()) else self._each(module.stride)
        self.padding = self._each(module.padding)
        self.size, self.out = z_shape[-self.dims :], out_shape[-self.dims :]
        # Enough room on the right for the last window, which ceil_mode may push over the edge.
        self.right = tuple(
            max(0, (o - 1) * s + d * (k - 1) + 1 - n - p)
            for o, s, d, k, n, p in zip(
                self.out, self.stride, self.dilation, kernel, self.size, self.padding, strict=True
            )
        )
        self.offsets = list(product(*(range(k) for k in kernel)))

    def _each(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * self.dims if isinstance(value, int) else tuple(value)

    def _slices(self, offset: tuple[int, ...]) -> tuple[Any, ...]:
        return (
            ...,
            *(
                slice(k * d, k * d + (o - 1) * s + 1, s)
                for k, d, o, s in zip(offset, self.dilation, self.out, self.stride, strict=True)
            ),
        )

    def unfold(self, z: Tensor, fill: float) -> Tensor:
        """Returns ``(K, ..., *out)``: what each window sees at each of its K offsets; ``fill`` outside the input."""
        pads = [n for p, r in zip(reversed(self.padding), reversed(self.right), strict=True) for n in (p, r)]
        padded = F.pad(z, pads, value=fill)
        return torch.stack([padded[self._slices(offset)] for offset in self.offsets])

    def fold(self, parts: Tensor) -> Tensor:
        """Applies the adjoint of `unfold`: ``(K, ..., *out)`` is added up at the inputs, ``(..., *size)``."""
        padded_size = [n + p + r for n, p, r in zip(self.size, self.padding, self.right, strict=True)]
        total = parts.new_zeros((*parts.shape[1 : parts.ndim - self.dims], *padded_size))
        for part, offset in zip(parts, self.offsets, strict=True):
            total[self._slices(offset)] += part
        inner: tuple[Any, ...] = (..., *(slice(p, p + n) for p, n in zip(self.padding, self.size, strict=True)))
        return total[inner]


class GatedPool(torch.autograd.Function):
    """A max-pool whose backward pass is a rule; see `activation.GatedSite`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: PoolCall) -> Tensor:
        """Value of the layer, unchanged by the rule."""
        ctx.call = call
        out, index = call.pool(z)
        ctx.save_for_backward(*call.remember(z, index), MARKER)
        return out

    @staticmethod
    @one_gradient_at_a_time
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """The rule's signal."""
        return ctx.call.propagate(ctx.saved_tensors[:-1], g), None


def _spread(z: Tensor) -> Tensor:
    """Returns the standard deviation of each sample, ``(B,)``; 1 where all values are equal."""
    z = z.flatten(1)
    if not torch.is_grad_enabled():
        # The same to rounding, at a fraction of the cost; where squares may underflow or overflow, the way below.
        spread = torch.linalg.vector_norm(z - z.mean(1, keepdim=True), dim=1) / max(z.shape[1] - 1, 1) ** 0.5
        information = torch.finfo(z.dtype)
        if z.dtype in (torch.float32, torch.float64) and bool(
            ((spread > information.tiny**0.25) & (spread < information.max**0.25)).all()
        ):
            return spread
    top = z.detach().abs().amax(dim=1)
    top = torch.where(top > 0, top, torch.ones_like(top))  # squares of tiny values would underflow
    variance = (z / top[:, None]).var(dim=1, correction=min(1, z.shape[1] - 1))
    flat = variance == 0
    return torch.where(flat, torch.ones_like(top), top * torch.where(flat, 1.0, variance).sqrt())


def _of_rows(values: Tensor, row: int) -> Tensor:
    """Returns what belongs to a sample, of values per sample or one for all."""
    return values[row : row + 1] if len(values) > 1 else values


class PoolCall(SiteCall):
    """A call of a max-pool."""

    def __init__(self, hook: SiteHook, name: str, gate: nn.Module, module: nn.Module) -> None:
        super().__init__(hook, name, gate)
        self.module: Any = module

    @property
    def dims(self) -> int:
        """Number of the dimensions that are pooled."""
        return _dims(self.module)

    def pool(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the values and, per window, the flat spatial index of the winner."""
        m = self.module
        function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[_dims(m) - 1]
        return function(z, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, return_indices=True)

    def true_gradient(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Gives all of a window's signal to its winner."""
        z, index = saved
        dims = _dims(self.module)
        flat = g.new_zeros((*z.shape[:-dims], z.shape[-dims:].numel()))
        return flat.scatter_add(-1, index.flatten(-dims), g.flatten(-dims)).reshape(z.shape)

    def through(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """What the softened gradient is mixed with: the true one, unless a rule knows better."""
        return self.true_gradient(saved, g)

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """The exact gradient, moved by ``m`` towards the softened one."""
        exact = self.through(saved, g)
        gate: Any = self.gate
        shape = (-1, *(1,) * (g.ndim - 1))
        m = gate.strength.to(g.dtype).reshape(shape)
        if not torch.is_grad_enabled() and not self.keep and not bool((m != 0).any()):
            return exact
        z = saved[0].to(g.dtype)
        scale = _spread(z).reshape(shape)
        windows = Windows(self.module, z.shape, g.shape)
        unit = gate.temperature.to(g.dtype).reshape(shape) * scale
        if torch.is_grad_enabled():
            seen = windows.unfold(z / unit, float("-inf"))
            return exact + m * (windows.fold(seen.softmax(dim=0) * g) - exact)
        # A part at a time: all windows of a layer are several times as large as the layer.
        out = torch.empty_like(exact)
        step = max(1, PIECE * g.shape[0] * g.shape[1] // (g.numel() * len(windows.offsets)))
        for row, first in product(range(g.shape[0]), range(0, g.shape[1], step)):
            part = slice(row, row + 1), slice(first, first + step)
            seen = windows.unfold(z[part] / _of_rows(unit, row), float("-inf"))
            softened = windows.fold(torch.softmax(seen, dim=0, out=seen).mul_(g[part]))
            torch.add(exact[part], softened.sub_(exact[part]).mul_(_of_rows(m, row)), out=out[part])
        return out


class LearnedMaxPool(SiteHook):
    """Zennit rule: winner-take-all, softened by a trainable amount and temperature.

    A max-pool passes its signal to the winners alone, so gates at the other elements never see one. This rule shares
    it out by a softmax over the window (see `PoolGate`); at its start, and in the limit of temperature 0, it *is* the
    max-pool's gradient. The forward value is unchanged.

    Args:
        gate: A `PoolGate`, or a provider that finds one per site; by default a shared `PoolGate()`.
    """

    kind = "pooling"
    call_type: ClassVar[type[PoolCall]] = PoolCall

    def __init__(self, gate: GateProvider | nn.Module | None = None) -> None:
        super().__init__(PoolGate() if gate is None else gate)

    def applies(self, module: nn.Module) -> bool:
        """Whether ``module`` is a max-pool that returns its values alone."""
        return is_pooling(module)

    def run(self, module: nn.Module, name: str, gate: nn.Module, input: Tensor) -> tuple[SiteCall, Tensor]:
        """Runs the max-pool, and remembers its winners."""
        call = self.call_type(self, name, gate, module)
        return call, GatedPool.apply(input, call)
