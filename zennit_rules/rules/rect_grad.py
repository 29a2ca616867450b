"""RectGrad: at each activation only the strongest contributions pass, activation times signal above a threshold.

Kim, Seo, Jeon, Koo, Choe and Jeon, "Why are Saliency Maps Noisy? Cause of and Solution to Noisy Saliency Maps", ICCV
workshop 2019 (https://arxiv.org/abs/1902.04893):

    R_in = R 1[a R > tau]        tau = the q-th percentile of a R over the layer, for each sample

with the activation's *output* ``a``. Two implementations are published. The authors' passes ``R`` itself; another one
multiplies by the activation's derivative as well (``derivative=True``). They differ where ``tau < 0``: below about the
25th percentile of a ReLU layer with signals of both signs, every inactive unit (``a R = 0 > tau``) passes its signal in
the authors' form. With the constant threshold 0 both are guided backprop. Where the percentile falls among ties, such
as the zeros of inactive units, ``>`` is strict: none of them pass.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.hook import GateProvider
from ..errors import RuleError
from .activation import ActivationCall, LearnedActivation
from .pooling import LearnedMaxPool, PoolCall, Windows

PERCENTILE = 98.0
POOLS = ("gradient", "proportional")

_TINY = 1e-10
"""Beside the mean of a window, as published."""


def _rows(values: Tensor) -> Tensor:
    """One row for each sample of ``(B, ...)``; a single number is a sample of its own."""
    return values.reshape(*(values.shape[:1] or (1,)), -1)


def percentile(values: Tensor, q: float) -> Tensor:
    """The q-th percentile of each sample's values ``(B, ...)``, ``(B,)``, linear between two of them."""
    rows = _rows(values)
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    place = q / 100 * (rows.shape[1] - 1)
    below = math.floor(place)
    low = rows.kthvalue(below + 1, dim=1).values
    high = rows.kthvalue(min(below + 2, rows.shape[1]), dim=1).values
    return torch.lerp(low, high, place - below).to(values.dtype)


class RectGate(nn.Module):
    """What passes of ``a R``: 1 above the threshold, 0 below; softly with a temperature, and then trainable.

    Soft: ``sigmoid((d - raw - sqrt(T)) / T)`` at the temperature ``T``, of ``d = (a R - tau) / rms`` with the root mean
    square ``rms`` of the sample's ``a R``. The limit is the hard threshold; the root keeps ties out of it. At 0 there
    is nothing to train.

    Args:
        percentile: ``q`` of the threshold, from 0 to 100.
        threshold: a constant threshold in its place.
        temperature: of the soft form; 0 for the hard one.
        derivative: multiply by the activation's derivative too.
        samples: None shares the trainable shift over samples; a number gives each its own.

    Raises:
        RuleError: For values out of range.
    """

    sample_dim: ClassVar[int] = 0

    def __init__(
        self,
        percentile: float = PERCENTILE,
        *,
        threshold: float | None = None,
        temperature: float = 0.0,
        derivative: bool = False,
        samples: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= percentile <= 100:
            raise RuleError(f"percentile={percentile!r}: from 0 to 100 (98 keeps 2 % of a layer)")
        if threshold is not None and not math.isfinite(threshold):
            raise RuleError(f"threshold={threshold!r}: a finite number, or None for the percentile")
        if not 0 <= temperature < math.inf:
            raise RuleError(f"temperature={temperature!r}: 0 for the hard threshold, else positive")
        self.percentile, self.threshold = float(percentile), threshold
        self.temperature, self.derivative, self.samples = float(temperature), derivative, samples
        if temperature:
            self.raw = nn.Parameter(torch.zeros(samples or 1, 1))

    def tau(self, score: Tensor) -> Tensor:
        """The threshold of each sample's ``a R (B, ...)``, broadcastable to it."""
        if self.threshold is not None:
            return score.new_full((1,) * score.ndim, self.threshold)
        return percentile(score, self.percentile).reshape(-1, *(1,) * (score.ndim - 1))

    def forward(self, score: Tensor) -> Tensor:
        """Returns weights in [0, 1] of ``a R (B, ...)``."""
        tau = self.tau(score)
        if not self.temperature:
            return (score > tau).to(score.dtype)
        flat = _rows(score)
        top = flat.detach().abs().amax(1, keepdim=True)
        top = torch.where(top > 0, top, torch.ones_like(top))  # squares of tiny values would underflow
        mean = (flat / top).square().mean(1, keepdim=True)
        size = top * torch.where(mean > 0, mean, torch.ones_like(mean)).sqrt()
        shape = (-1, *(1,) * (score.ndim - 1))
        shift = self.raw.to(score.dtype).reshape(shape) + math.sqrt(self.temperature)
        return torch.sigmoid(((score - tau) / size.reshape(shape) - shift) / self.temperature)

    def extra_repr(self) -> str:
        """Configuration shown by ``repr``."""
        where = f"percentile={self.percentile:g}" if self.threshold is None else f"threshold={self.threshold:g}"
        return f"{where}, temperature={self.temperature:g}, derivative={self.derivative}"


class RectGradCall(ActivationCall):
    """A call of an activation; its gate is a `RectGate`."""

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Passes the signal, or the gradient, where the contribution is above the threshold."""
        gate: Any = self.gate
        passed = self.true_gradient(saved, g) if gate.derivative else g
        return passed * gate(self.fn(saved[0]).to(g.dtype) * g)


class RectGrad(LearnedActivation):
    """Zennit rule: RectGrad at an activation.

    Args:
        percentile: ``q`` of the threshold, from 0 to 100.
        threshold: A constant threshold in its place.
        temperature: Temperature of the soft form of `RectGate`; 0 for the hard one.
        derivative: Multiply by the activation's derivative too.
        gate: A `RectGate`, or a provider that finds one per site, instead of the above.

    Raises:
        RuleError: For values out of range.
    """

    call_type = RectGradCall

    def __init__(
        self,
        percentile: float = PERCENTILE,
        *,
        threshold: float | None = None,
        temperature: float = 0.0,
        derivative: bool = False,
        gate: GateProvider | nn.Module | None = None,
    ) -> None:
        own = RectGate(percentile, threshold=threshold, temperature=temperature, derivative=derivative)
        super().__init__(own if gate is None else gate)

    def copy(self) -> RectGrad:
        """A hook that shares the gate."""
        return type(self)(gate=self.gate)


class ProportionalPoolCall(PoolCall):
    """A call of a max-pool that shares its signal out in proportion to the activations in the window."""

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Returns ``a sum_w R_w / (n mean_w(a) + n 1e-10)`` over the windows ``w`` that see the element."""
        z = saved[0].to(g.dtype)
        windows = Windows(self.module, z.shape, g.shape)
        seen = windows.unfold(z, 0.0)
        return windows.fold(seen * (g / (seen.mean(0) + _TINY)) / len(seen))


class ProportionalPool(LearnedMaxPool):
    """Zennit rule: RectGrad's redistribution at max-pools, ``a * AvgPoolBackward(R / (AvgPool(a) + 1e-10))``.

    For activations that are not negative.
    """

    call_type = ProportionalPoolCall


__all__ = ["PERCENTILE", "POOLS", "ProportionalPool", "RectGate", "RectGrad", "percentile"]
