"""Rules of transformers: GELU and SiLU, LayerNorm, the softmax of attention, and products of two signals.

Each passes on a mixture, from the plain gradient to the rule of AttnLRP (Achtibat et al., ICML 2024,
https://arxiv.org/abs/2402.05602), written for signals that are multiplied by the input in the end:

==============  ======================  ==========================================================
activation f    ``g f'(z)``             ``g f(z) / z``: relevance ``z g`` passes unchanged
norm            the whole derivative    the standard deviation is a constant
product of two  1 and 1                 1/2 and 1/2, the uniform rule
softmax         ``y (g - sum(y g))``    the same: AttnLRP's rule is that, times the input
==============  ======================  ==========================================================

A gate weighs what comes out of it, as at any activation (see `gates`); at the softmax of attention its channels are
the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._compat import DisableTorchFunction
from .._moved import renamed
from ..core.functions import TIMES, functions_named, spellings
from ..core.hook import MARKER, SiteCall, SiteHook
from ..core.recomputed import are_alone, recomputed
from ..errors import RuleError
from ..gates import Gate
from .activation import ActivationCall, GatedSite, LearnedActivation
from .contributions import reflected

NORMS = functions_named("layer_norm", "rms_norm")
PRODUCTS: dict[Any, tuple[Any, bool]] = {
    function: (beside, inplace)
    for name in ("matmul", "__matmul__", "__rmatmul__", "bmm", *TIMES)
    for function, beside, inplace in spellings(name)
}
"""Products that are sites: what computes the same beside its operand, and whether this one writes into it."""

MASKED = -1e9
"""Scores below are masked: their weight is 0 in any precision, beside any score that is not."""

_NEAR_ZERO = 1e-4
"""The size of ``z`` below which ``f(z) / z`` would be rounding."""


class MixedGate(nn.Module):
    """A gate, and how far AttnLRP's rule takes the place of the derivative: ``mix = start + raw_mix``, in [0, 1].

    Args:
        inner: the gate that weighs what comes out.
        shape: of the site, batch first.
        mix: where it starts.

    Raises:
        RuleError: If it does not start in [0, 1].
    """

    sign_only: ClassVar[bool] = False

    def __init__(self, inner: Gate, shape: Sequence[int], mix: float) -> None:
        super().__init__()
        if not 0 <= mix <= 1:
            raise RuleError(f"mix={mix!r}: from 0, the derivative, to 1, AttnLRP")
        self.inner, self.start_mix = inner, float(mix)
        self.start, self.samples, self.channel_dim = inner.start, inner.samples, inner.channel_dim
        self.per_sample, self.sample_dim, self.contrast = inner.per_sample, inner.sample_dim, inner.contrast
        rows = (1 if inner.samples is None else inner.samples, *(1 for _ in shape[1:]))
        # As many leading dimensions as the inner gate's parameters have: samples are counted in the same one.
        self.raw_mix = nn.Parameter(torch.zeros((*(1 for _ in range(inner.sample_dim)), *rows)))

    @property
    def mix(self) -> Tensor:
        """The mixture, broadcastable to the site, in [0, 1]: ``start + raw``, reflected at both ends."""
        value = reflected(self.start_mix + self.raw_mix)
        return value.reshape(value.shape[self.sample_dim :])

    def forward(self, *args: Any) -> Any:
        """Returns the weights of the inner gate."""
        return self.inner(*args)

    def extra_repr(self) -> str:
        """Configuration shown by ``repr``."""
        return f"start_mix={self.start_mix}"


class ProductGate(nn.Module):
    """What each of two operands of a product gets of its derivative: ``start (1 + tanh(raw))``.

    Args:
        start: 1 is the gradient, 1/2 the uniform rule.
        samples: None shares the two weights over samples; a number gives each its own.

    Raises:
        RuleError: If ``start`` is not positive.
    """

    sample_dim: ClassVar[int] = 0

    def __init__(self, start: float = 1.0, samples: int | None = None) -> None:
        super().__init__()
        if not 0 < start < float("inf"):
            raise RuleError(f"product={start!r}: a positive number, 1 for the gradient or 0.5 for the uniform rule")
        self.start_weight, self.samples = float(start), samples
        self.raw = nn.Parameter(torch.zeros(samples or 1, 2))

    @property
    def weights(self) -> Tensor:
        """The weights of both operands, ``(samples or 1, 2)``."""
        return self.start_weight * (1 + torch.tanh(self.raw))

    def extra_repr(self) -> str:
        """Configuration shown by ``repr``."""
        return f"start={self.start_weight}"


class MixedCall(ActivationCall):
    """A call of an element-wise activation, between its slope and its secant through 0."""

    def through(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Mixes the derivative and AttnLRP's rule."""
        true = self.true_gradient(saved, g)
        mix: Tensor = self.gate.mix  # type: ignore[assignment]
        return true + mix.to(g.dtype) * (self.other(saved, g, true) - true)

    def other(self, saved: tuple[Tensor, ...], g: Tensor, true: Tensor) -> Tensor:
        """Returns the signal of AttnLRP's rule for ``g``, whose derivative's is ``true``."""
        (z,) = saved
        apart = z.abs() > _NEAR_ZERO
        return torch.where(apart, g * self.fn(z) / torch.where(apart, z, 1.0), true)


class LearnedSecant(LearnedActivation):
    """Zennit rule: `LearnedActivation` between the derivative and AttnLRP's rule; its gate is a `MixedGate`."""

    call_type = MixedCall


class NormCall(MixedCall):
    """A call of LayerNorm or RMSNorm, with its weights."""

    def __init__(
        self, hook: SiteHook, name: str, gate: nn.Module, fn: Callable[[Tensor], Tensor],
        dims: int, weight: Tensor | None, eps: float | None, centred: bool,
    ) -> None:  # fmt: skip
        super().__init__(hook, name, gate, fn)
        self.dims, self.weight, self.centred = tuple(range(-dims, 0)), weight, centred
        self.eps = eps

    def true_gradient(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Finds the derivative by autograd."""
        return vector_jacobian_products(self.fn, saved, g)[0]

    def other(self, saved: tuple[Tensor, ...], g: Tensor, true: Tensor) -> Tensor:
        """The derivative with a constant standard deviation: the division passes relevance on unchanged."""
        (z,) = saved
        signal = g if self.weight is None else g * self.weight
        if self.centred:
            z = z - z.mean(self.dims, keepdim=True)
            signal = signal - signal.mean(self.dims, keepdim=True)
        eps = torch.finfo(z.dtype).eps if self.eps is None else self.eps
        return signal * (z.square().mean(self.dims, keepdim=True) + eps).rsqrt()


class SoftmaxCall(ActivationCall):
    """A call of the softmax along a dimension."""

    def seen(self, z: Tensor) -> Tensor:
        """The scores, those that a mask took away as 0: beside ``-inf``, or -3e38, no other has a size."""
        return z.masked_fill(z < MASKED, 0.0)

    def true_gradient(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Returns ``y (g - sum(y g))``."""
        return vector_jacobian_products(self.fn, saved, g)[0]


class ProductCall(SiteCall):
    """A call of a product of two operands."""

    def __init__(self, hook: SiteHook, name: str, gate: nn.Module, fn: Callable[..., Tensor]) -> None:
        super().__init__(hook, name, gate)
        self.fn = fn

    def shared(self, saved: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor, ...]:
        """Returns the signals of both operands."""
        found = vector_jacobian_products(self.fn, saved, g)
        if not self.hook.active:
            return found
        weights: Tensor = self.gate.weights  # type: ignore[assignment]
        return tuple(
            signal * weight.to(g.dtype).reshape(-1, *(1 for _ in signal.shape[1:]))
            for signal, weight in zip(found, weights.unbind(1), strict=True)
        )


class GatedProduct(torch.autograd.Function):
    """A product whose backward pass is a rule; see `activation.GatedSite`."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, call: ProductCall) -> Tensor:
        """Value of the product, unchanged by the rule."""
        ctx.call = call
        ctx.save_for_backward(left, right, MARKER)
        return call.fn(left, right)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The rule's signals."""
        call, operands = ctx.call, ctx.saved_tensors[:-1]
        if not are_alone():
            return (*call.shared(operands, g), None)
        held = tuple(x.detach().requires_grad_() for x in operands)
        return (*recomputed(lambda g: call.shared(held, g), g, tuple(call.gate.parameters())), None)


def vector_jacobian_products(fn: Callable[..., Tensor], operands: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor, ...]:
    """Returns vector-Jacobian products of ``fn`` at the operands, differentiable if gradients are recorded."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), DisableTorchFunction():
        # Aliases: one tensor may be two operands.
        apart = [x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_() for x in operands]
        return torch.autograd.grad(fn(*apart), apart, g, create_graph=again)


class FunctionRule(SiteHook):
    """The switch of the rules of functions that are called in a model's forward pass; on no module."""

    def norm(self, name: str, gate: nn.Module, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Returns the value of a LayerNorm or RMSNorm, given as torch's function has it."""
        names = ["input", "normalized_shape", "weight", "bias", "eps"]
        centred = func in (F.layer_norm, torch.layer_norm)
        if not centred:
            names.remove("bias")
        given = dict(zip(names, args, strict=False)) | kwargs
        z = given.pop("input")
        weight, eps = given.get("weight"), given.get("eps", 1e-5 if centred else None)

        def fn(x: Tensor) -> Tensor:
            value: Tensor = func(x, **given)
            return value

        call = NormCall(self, name, gate, fn, len(given["normalized_shape"]), weight, eps, centred)
        return self._run(call, z)

    def softmax(self, name: str, gate: nn.Module, z: Tensor, dim: int) -> Tensor:
        """Returns the value of a softmax."""
        return self._run(SoftmaxCall(self, name, gate, lambda x: torch.softmax(x, dim)), z)

    def product(self, name: str, gate: nn.Module, left: Tensor, right: Tensor, fn: Callable[..., Tensor]) -> Tensor:
        """Returns the value of a product."""
        with DisableTorchFunction():
            out: Tensor = GatedProduct.apply(left, right, ProductCall(self, name, gate, fn))
        return out

    @staticmethod
    def _run(call: ActivationCall, z: Tensor) -> Tensor:
        with DisableTorchFunction():
            out: Tensor = GatedSite.apply(z, call, False)
        return out


__getattr__ = renamed(__name__, {"pulled": "vector_jacobian_products"})

__all__ = ["FunctionRule", "LearnedSecant", "MixedGate", "ProductGate"]
