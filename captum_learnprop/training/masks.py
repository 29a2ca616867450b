"""Masks: an attribution turned into values in [0, 1] that keep or remove input.

A mask is called with a signed attribution ``(B, C, *spatial)`` and gives ``(B, 1, *spatial)``; features ``(B, F)`` give
``(B, F)``. Its method ``of_maps`` takes maps ``(B, *spatial)``, whose channels were reduced before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from zennit_rules._moved import renamed
from zennit_rules.core.scalars import plain_fields

from ..errors import LearnpropError
from ..maps import per_axis, smooth
from .map_similarity import nonzero

Mask = Callable[[Tensor], Tensor]
"""A function ``attribution (B, C, *spatial) -> mask (B, 1, *spatial)`` in [0, 1]; ``(B, F) -> (B, F)``."""


@dataclass(frozen=True)
class MaxMask:
    """A mask by the strength of the attribution over channels, divided by its largest value in the sample.

    ``m = r / max(r)`` with ``r = max_c |a|``, ``sum_c |a|`` or ``sum_c max(a, 0)``; then, if asked for, smoothed and
    raised to a power below 1. Channels are dimension 1 of inputs with at least three dimensions; ``(B, F)`` inputs
    have none. A sample without any attribution gets the mask 0.

    The plain form belongs to the LPR-reconstruction. Its masks are so spiky that a few pixels decide the masked output,
    and gates learn to pick adversarial ones; smoothing and a square root make masks that cover objects.

    Args:
        reduce: ``"max"`` (the LPR-reconstruction's), ``"sum"`` or ``"positive"``.
        sigma: Gaussian smoothing of ``r`` over space, as a fraction of the sides (see `per_axis`); 0 for none.
        power: Exponent applied to ``r / max(r)``.

    Raises:
        LearnpropError: ``reduce`` is unknown, ``sigma`` negative or ``power`` not positive.
    """

    reduce: str = "max"
    _: KW_ONLY
    sigma: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.reduce not in ("max", "sum", "positive"):
            raise LearnpropError(f"MaxMask(reduce={self.reduce!r}): choose 'max', 'sum' or 'positive'")
        if not self.sigma >= 0 or not self.power > 0:
            raise LearnpropError(f"MaxMask(sigma={self.sigma}, power={self.power}): sigma must be >= 0 and power > 0")

    def __call__(self, attribution: Tensor) -> Tensor:
        """Returns the mask ``(B, 1, *spatial)`` of an attribution ``(B, C, *spatial)``, or ``(B, F)`` of ``(B, F)``."""
        strength = _strength(attribution, self.reduce, self.sigma)
        dims = tuple(range(1, strength.ndim))
        top = strength.amax(dim=dims, keepdim=True) if dims else strength
        ratio = strength / nonzero(top)
        return ratio if self.power == 1 else _raised(ratio, self.power)

    def of_maps(self, maps: Tensor) -> Tensor:
        """Returns the mask of maps ``(B, *spatial)``, in their shape: the maps are the only channel."""
        return self(maps[:, None])[:, 0]


@dataclass(frozen=True)
class AreaMask:
    """A soft mask of the strongest pixels that keeps a given share of the sample by construction.

    ``m = sigmoid((s - tau) / temperature)``, where ``tau`` is solved for in each sample so that ``mean(m) = area`` (to
    1e-6 in float32), and its derivative follows from that equation: ``d tau / d s_i = m_i (1 - m_i) / sum_j m_j (1 -
    m_j)``. So the mask cannot grow to please an objective, it can only choose. Equal pixels get equal values; a
    constant map gets ``area`` everywhere. The constraint on the area is that of Fong, Patrick, Vedaldi:
    *Understanding Deep Networks via Extremal Perturbations and Smooth Masks*, ICCV 2019; they reach it by a penalty.

    ``s`` is the strength in units of its mean absolute deviation from its mean, which makes the mask blind to the
    map's scale. That unit follows one strong pixel far less than the maximum or the standard deviation would.

    Args:
        area: Share of the sample that is kept, in (0, 1).
        temperature: Softness of the edge in the unit above; towards 0 the mask is binary and has no gradient.
        reduce: How the channels of an attribution become a strength: ``"max"`` for ``max_c |a|``, ``"sum"`` for ``sum_c
            |a|``, ``"positive"`` for ``sum_c max(a, 0)``, ``"signed"`` for ``sum_c a``. Maps are used as they are.
        sigma: Gaussian smoothing of the strength over space before, as a fraction of the sides (see `per_axis`); 0 for
            none.

    Raises:
        LearnpropError: An option is out of range.
    """

    area: float = 0.2
    _: KW_ONLY
    temperature: float = 0.1
    reduce: str = "sum"
    sigma: float = 0.0

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.reduce not in ("max", "sum", "positive", "signed"):
            raise LearnpropError(f"AreaMask(reduce={self.reduce!r}): choose 'max', 'sum', 'positive' or 'signed'")
        if not 0 < self.area < 1:
            raise LearnpropError(f"AreaMask(area={self.area}): the share that is kept must be in (0, 1)")
        if not self.sigma >= 0 or not self.temperature > 0:
            raise LearnpropError(
                f"AreaMask(temperature={self.temperature}, sigma={self.sigma}): temperature must be > 0 and sigma >= 0"
            )

    def __call__(self, attribution: Tensor, area: Tensor | float | None = None) -> Tensor:
        """Returns the mask ``(B, 1, *spatial)`` of an attribution ``(B, C, *spatial)``, or ``(B, F)`` of ``(B, F)``.

        Args:
            attribution: A signed attribution.
            area: The share that is kept in place of the mask's own; a number, or one for each sample, ``(B,)``.

        Raises:
            LearnpropError: The area is outside (0, 1) or of another shape.
        """
        return self._of_strength(_strength(attribution, self.reduce, self.sigma), area)

    def of_maps(self, maps: Tensor, area: Tensor | float | None = None) -> Tensor:
        """Returns the mask of maps ``(B, *spatial)``, in their shape: the highest values are kept, with their signs."""
        return self._of_strength(_low_pass(maps, self.sigma), area)

    def _of_strength(self, strength: Tensor, area: Tensor | float | None) -> Tensor:
        rows = strength.reshape(len(strength), -1).double()  # an area exact to 1e-6 needs more than float32 to sum up
        score = _standardised(rows) / self.temperature
        wanted = _areas(self.area if area is None else area, rows)
        return torch.sigmoid(score - _Threshold.apply(score, wanted)).to(strength.dtype).reshape(strength.shape)


def total_variation(masks: Tensor) -> Tensor:
    """Returns the mean absolute difference of neighbours, summed over space: ``(B,)`` of ``(B, *spatial)``."""
    total = masks.new_zeros(len(masks))
    for dim in range(1, masks.ndim):
        if masks.shape[dim] > 1:
            total = total + masks.diff(dim=dim).abs().flatten(1).mean(dim=1)
    return total


class _Threshold(torch.autograd.Function):
    """Solves ``mean_i sigmoid(score_i - tau) = area`` for ``tau`` ``(B, 1)``; score ``(B, N)``, area ``(B, 1)``."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, area: Tensor) -> Tensor:
        tau = _solve(score, area)
        ctx.save_for_backward(score, tau)
        return tau

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        # Of saved tensors, so that autograd can differentiate this again.
        score, tau = ctx.saved_tensors
        slope = _slope(torch.sigmoid(score - tau))
        total = slope.sum(1, keepdim=True)
        return gradient * slope / total, -gradient * slope.shape[1] / total


def _solve(score: Tensor, area: Tensor) -> Tensor:
    """Takes Newton steps, kept in a bracket that is halved where they would leave it; rows do not see each other."""
    odds = torch.logit(area)
    low, high = score.amin(1, keepdim=True) - odds, score.amax(1, keepdim=True) - odds  # mean(m) >= area; <= area
    tau = (low + high) / 2
    for _ in range(MAX_STEPS):
        kept = torch.sigmoid(score - tau)
        excess = kept.mean(1, keepdim=True) - area
        done = excess.abs() <= TOLERANCE
        if done.all():
            break
        low, high = torch.where(excess > 0, tau, low), torch.where(excess < 0, tau, high)
        newton = tau + excess / _slope(kept).mean(1, keepdim=True)
        inside = (newton > low) & (newton < high)
        tau = torch.where(done, tau, torch.where(inside, newton, (low + high) / 2))
    return tau


def _slope(kept: Tensor) -> Tensor:
    """Returns the derivative of the sigmoid from its value, above 0 so that sums of it can be divided by."""
    return (kept * (1 - kept)).clamp(min=torch.finfo(kept.dtype).tiny)


def _standardised(rows: Tensor) -> Tensor:
    """Returns rows ``(B, N)`` minus their mean, over their mean absolute deviation."""
    rows = rows / nonzero(rows.detach().abs().amax(1, keepdim=True))  # sums neither overflow nor vanish
    deviation = rows - rows.mean(1, keepdim=True)
    return deviation / nonzero(deviation.abs().mean(1, keepdim=True) + FLAT * rows.abs().mean(1, keepdim=True))


def _areas(area: Tensor | float, rows: Tensor) -> Tensor:
    wanted = torch.as_tensor(area, dtype=rows.dtype, device=rows.device)
    if wanted.dim() and wanted.shape != (len(rows),):
        raise LearnpropError(f"area must be a number or ({len(rows)},), one for each sample, got {tuple(wanted.shape)}")
    if not ((wanted > 0) & (wanted < 1)).all():
        raise LearnpropError(f"area {area} must be in (0, 1)")
    return wanted.reshape(-1, 1).expand(len(rows), 1)


def _strength(attribution: Tensor, reduce: str, sigma: float) -> Tensor:
    """Returns one value per pixel, ``(B, 1, *spatial)``, smoothed; ``(B, F)`` and ``(B,)`` keep their shape."""
    if reduce == "signed":
        strength = attribution
    else:
        strength = attribution.clamp(min=0) if reduce == "positive" else attribution.abs()
    if attribution.ndim > 2:
        over_channels = torch.amax if reduce == "max" else torch.sum
        strength = over_channels(strength, dim=1, keepdim=True)
        strength = _low_pass(strength[:, 0], sigma)[:, None]
    return strength


def _low_pass(maps: Tensor, sigma: float) -> Tensor:
    """Returns maps ``(B, *spatial)`` smoothed by ``sigma``, a fraction of the sides (see `per_axis`)."""
    return smooth(maps, per_axis(sigma, maps.shape[1:])) if sigma else maps


def _raised(ratio: Tensor, power: float) -> Tensor:
    """Returns ``ratio ** power`` with 0 and 1 kept and a finite slope at 0."""
    return ((ratio + _SOFT) ** power - _SOFT**power) / ((1 + _SOFT) ** power - _SOFT**power)


_SOFT = 1e-4

TOLERANCE = 1e-9
"""The largest error of the area that `AreaMask` solves for: far below what float32 can tell."""

MAX_STEPS = 80
"""The most steps of Newton or halving: halving alone gets from a bracket of 1e6 to the last digit of float64 in 73."""

FLAT = 1e-3
"""The deviation, as a share of the mean absolute value, below which a map fades to constant: rounding is no signal, and
the slope at a constant map stays finite."""


__getattr__ = renamed(__name__, {"MaskError": "LearnpropError"})
