"""How far a backward signal through a random layer aligns with the layer's input: closed forms, and simulations.

A layer of ``m`` units with weights ``w_j ~ N(0, I_d)`` gets ``x``; its active units are ``A = {j: w_j . x > 0}``. A
rule sends coefficients ``R_j`` back through them, ``s = sum_{j in A} R_j w_j``. If the coefficients are not negative,
``s`` aligns with ``x`` whatever they say, the more the wider the layer: that alone makes maps of guided backprop,
RectGrad and LRP redraw their input.

The derivations are ours, from the hypotheses that Zheng, Sang and Xu (arXiv 2503.11160) name; they are not that
paper's theorems, which are not available to us. The share of active units that aligns best is the classical 27 % of
upper groups (Kelley, 1939).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError

KAPPA = {"ones": 1.0, "uniform": 4 / 3, "exponential": 2.0, "rectified": math.pi}
"""``E[R^2] / E[R]^2`` of coefficients that do not depend on the weights; "rectified" is ``max(N(0, 1), 0)``, the signal
that guided backprop leaves of one of both signs."""

COEFFICIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ones": lambda a, n: torch.ones_like(a),
    "uniform": lambda a, n: torch.special.ndtr(n),
    "exponential": lambda a, n: -torch.log1p(-torch.special.ndtr(n)),
    "rectified": lambda a, n: n.clamp(min=0),
    "activation": lambda a, n: a,
    "signed": lambda a, n: n,
}
"""``(activations, standard normal numbers) -> coefficients`` of the active units."""


def alignment(m: int, d: int, coefficients: str = "ones") -> float:
    """Returns the expected ``cos(s, x)`` of one isotropic layer; of ``"signed"`` coefficients its absolute value.

    ``1 / sqrt(1 + pi kappa (d - 1) / m)``; weighted by the activations ``1 / sqrt(1 + 2 (d - 1) / m)``; signed
    ``sqrt(2 / (pi d))``, which does not grow with the width.

    Args:
        m: units.
        d: inputs.
        coefficients: of `COEFFICIENTS`.

    Raises:
        LearnpropError: for unknown coefficients or sizes below 1.

    Example:
        >>> round(alignment(1000, 100), 3)
        0.873
    """
    _check(m, d, coefficients)
    if coefficients == "signed":
        return math.sqrt(2 / (math.pi * d))
    ratio = 2.0 if coefficients == "activation" else math.pi * KAPPA[coefficients]
    return 1 / math.sqrt(1 + ratio * (d - 1) / m)


def alignment_of_fraction(p: float, m: int, d: int) -> float:
    """Returns the expected ``cos(s, x)`` if the share ``p`` of units with the highest ``w . x`` is kept, all alike.

    ``1 / sqrt(1 + (d - 1) / (m phi(z_p)^2 / p))`` with the normal density at its upper ``p`` quantile.

    Args:
        p: share in (0, 1).
        m: units.
        d: inputs.

    Raises:
        LearnpropError: for a share out of range or sizes below 1.

    Example:
        >>> round(alignment_of_fraction(0.27, 1000, 100), 3)
        0.896
    """
    _check(m, d, "ones")
    if not 0 < p < 1:
        raise LearnpropError(f"p is a share of the units in (0, 1), got {p}")
    return 1 / math.sqrt(1 + (d - 1) / (m * _gain(p)))


def _gain(p: float) -> float:
    z = float(torch.special.ndtri(torch.tensor(1 - p, dtype=torch.float64)))
    return (math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)) ** 2 / p


def best_fraction() -> float:
    """Returns the share of active units with the highest alignment, whatever the sizes: about 0.27.

    Example:
        >>> round(best_fraction(), 3)
        0.27
    """
    low, high = 0.05, 0.95
    for _ in range(60):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if _gain(a) < _gain(b) else (low, b)
    return (low + high) / 2


def orthogonal_alignment(coefficients: Tensor, activations: Tensor, inputs: Tensor, norm: float) -> Tensor:
    """Returns ``cos(s, x) = cos(R, a) |a| / (s |x|)``, exact for orthogonal rows of equal norm, ``(B,)``.

    What a layer's output signal has of alignment its input signal inherits, times the share of the input in the span of
    active rows.

    Args:
        coefficients: ``R (B, m)``, 0 where units are not active.
        activations: ``a = relu(W x) (B, m)``.
        inputs: ``x (B, d)``.
        norm: ``s`` of each row.

    Example:
        >>> active = torch.tensor([[1.0, 1.0]])
        >>> orthogonal_alignment(torch.tensor([[1.0, 0.0]]), active, torch.tensor([[1.0, 1.0]]), norm=1.0)
        tensor([0.7071])
    """
    cosine = torch.nn.functional.cosine_similarity(coefficients, activations, dim=1)
    return cosine * activations.norm(dim=1) / (norm * inputs.norm(dim=1))


def simulated(
    m: int, d: int, coefficients: str = "ones", *, fraction: float | None = None, trials: int = 32, seed: int = 0
) -> Tensor:
    """Returns ``cos(s, x)`` of random layers, ``(trials,)``; of ``"signed"`` coefficients its absolute value.

    Args:
        m: units.
        d: inputs.
        coefficients: of `COEFFICIENTS`.
        fraction: share of units with the highest ``w . x`` that is kept; None keeps those above 0.
        trials: layers drawn.
        seed: of all draws.

    Raises:
        LearnpropError: for unknown coefficients or sizes below 1.

    Example:
        >>> simulated(1000, 100, trials=1)
        tensor([0.8641])
    """
    _check(m, d, coefficients)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(trials):
        # The weights' component along x, and the rest: x may as well be the first axis.
        weights = torch.randn(m, d, generator=generator)
        along = weights[:, 0]
        active = along > 0 if fraction is None else along >= along.topk(max(1, round(fraction * m))).values[-1]
        values = COEFFICIENTS[coefficients](along.clamp(min=0), torch.randn(m, generator=generator)) * active
        signal = values @ weights
        found.append(signal[0] / signal.norm())
    cosines = torch.stack(found)
    return cosines.abs() if coefficients == "signed" else cosines


def simulated_orthogonal(
    m: int, d: int, coefficients: str = "ones", *, trials: int = 32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Returns ``cos(s, x)`` of layers with orthogonal rows, and `orthogonal_alignment` of the same, ``(trials,)`` each.

    Args:
        m: units, at most ``d``.
        d: inputs.
        coefficients: of `COEFFICIENTS`.
        trials: layers drawn.
        seed: of all draws.

    Raises:
        LearnpropError: for unknown coefficients, sizes below 1, or more units than inputs.

    Example:
        >>> measured, closed = simulated_orthogonal(4, 8, trials=2)
        >>> bool((measured - closed).abs().max() < 1e-12)
        True
    """
    _check(m, d, coefficients)
    if m > d:
        raise LearnpropError(f"{m} rows of {d} values cannot be orthogonal; m must be at most d")
    generator = torch.Generator().manual_seed(seed)
    measured, closed = [], []
    for _ in range(trials):
        rows = torch.linalg.qr(torch.randn(d, m, generator=generator, dtype=torch.float64)).Q.T
        x = torch.randn(1, d, generator=generator, dtype=torch.float64)
        a = (x @ rows.T).clamp(min=0)
        r = COEFFICIENTS[coefficients](a, torch.randn(1, m, generator=generator, dtype=torch.float64)) * (a > 0)
        measured.append(torch.nn.functional.cosine_similarity(r @ rows, x, dim=1))
        closed.append(orthogonal_alignment(r, a, x, 1.0))
    return torch.cat(measured), torch.cat(closed)


def band(values: Tensor) -> tuple[float, float]:
    """Returns the mean of the values ``(n,)`` and half of its 95 % confidence interval.

    Example:
        >>> band(torch.tensor([0.5, 0.5, 0.5]))
        (0.5, 0.0)
    """
    return float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values)))


def _check(m: int, d: int, coefficients: str) -> None:
    if coefficients not in COEFFICIENTS:
        raise LearnpropError(f"unknown coefficients {coefficients!r}; choose one of {', '.join(COEFFICIENTS)}")
    if m < 1 or d < 1:
        raise LearnpropError(f"a layer has at least one unit and one input, got m={m}, d={d}")
