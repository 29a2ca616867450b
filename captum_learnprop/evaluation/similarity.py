"""How alike are two maps? Rank correlation and structural similarity, one value per pair, in float64.

Every function takes two tensors of the same shape ``(B, ...)`` and gives ``(B,)``. 1 is the same map, 0 none in common.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError

WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation of the Gaussian window of `ssim`, in pixels."""

STABILISERS = (0.01, 0.03)
"""``K1`` and ``K2`` of `ssim`."""


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Returns Spearman's rank correlation over all values of a sample, ``(B,)`` in [-1, 1].

    NaN where one of the two is constant, as in ``scipy.stats.spearmanr``: it has no order.

    Formula:
        ``corr(rank(a), rank(b))``: `pearson` of `average_ranks`.

    Args:
        first: ``(B, ...)``.
        second: of the same shape.

    Raises:
        LearnpropError: shapes differ, or a value is not finite.

    Example:
        >>> spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 10.0, 100.0]]))
        tensor([1.], dtype=torch.float64)
    """
    return pearson(average_ranks(first), average_ranks(second))


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Returns Pearson's correlation over all values of a sample, ``(B,)`` in [-1, 1]; NaN where one is constant.

    Formula:
        ``sum_i (a_i - mean a) (b_i - mean b) / sqrt(sum_i (a_i - mean a)^2 sum_i (b_i - mean b)^2)``.

    Args:
        first: ``(B, ...)``.
        second: of the same shape.

    Raises:
        LearnpropError: shapes differ, or a value is not finite.

    Example:
        >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]]))
        tensor([1.], dtype=torch.float64)
    """
    rows, columns = _pair(first, second)
    flat = (rows == rows[:, :1]).all(1) | (columns == columns[:, :1]).all(1)
    products = (_standardised(rows) * _standardised(columns)).sum(1)
    return products.clamp(-1.0, 1.0).masked_fill(flat, torch.nan)


def average_ranks(values: Tensor) -> Tensor:
    """Returns ranks 1 to N of the values of each sample ``(B, ...)``, from low to high, ``(B, N)`` float64.

    Equal values share the mean of their ranks, as in ``scipy.stats.rankdata``.

    Raises:
        LearnpropError: there are no values, or one is not finite.

    Example:
        >>> average_ranks(torch.tensor([[5.0, 1.0, 5.0]]))
        tensor([[2.5000, 1.0000, 2.5000]], dtype=torch.float64)
    """
    rows = _rows(values)
    ordered = rows.sort(dim=1).values
    below = torch.searchsorted(ordered, rows, side="left")
    up_to = torch.searchsorted(ordered, rows, side="right")
    return (below + up_to + 1).double() / 2


def ssim(first: Tensor, second: Tensor, *, data_range: float | Tensor | None = None) -> Tensor:
    """Returns the structural similarity of two maps ``(B, H, W)`` or ``(B, C, H, W)``, ``(B,)`` in [-1, 1].

    It is the mean over channels and over all places where the window fits. Maps of different scale should be normalised
    first.

    Formula:
        ``(2 m_a m_b + C1) (2 c_ab + C2) / ((m_a^2 + m_b^2 + C1) (v_a + v_b + C2))`` with the means, variances and
        covariance under a Gaussian window of 11 x 11 pixels and 1.5 pixels standard deviation, ``C1 = (0.01 L)^2``,
        ``C2 = (0.03 L)^2``.

    Source:
        Wang, Bovik, Sheikh, Simoncelli, *Image Quality Assessment*, IEEE TIP 2004.

    Args:
        first: at least 11 x 11 pixels.
        second: of the same shape.
        data_range: ``L``, a number or ``(B,)``; None is the difference of the highest and the lowest value of the two
            maps together. Two maps that are constant and equal score 1.

    Raises:
        LearnpropError: shapes differ or are too small, a value is not finite, or the range is not positive.

    Example:
        >>> ssim(torch.eye(11)[None], torch.eye(11)[None])
        tensor([1.], dtype=torch.float64)
    """
    if first.dim() not in (3, 4) or min(first.shape[-2:]) < WINDOW:
        raise LearnpropError(f"maps must be (B, H, W) or (B, C, H, W) with H, W >= {WINDOW}, got {tuple(first.shape)}")
    rows, columns = _pair(first, second)
    value_range = _value_range(rows, columns, data_range)
    # In units of the range, so that squares of very small values are not lost.
    shape = (len(rows), -1, *first.shape[-2:])
    a, b = (values.div(value_range[:, None]).reshape(shape) for values in (rows, columns))
    mean_a, mean_b = _windowed(a), _windowed(b)
    variances = _windowed(a * a) - mean_a**2 + _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    c1, c2 = (constant**2 for constant in STABILISERS)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).flatten(1).mean(1)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"spearman": spearman, "pearson": pearson, "ssim": ssim}
"""Similarities of two maps by name."""


def _standardised(rows: Tensor) -> Tensor:
    """Rows less their mean, of norm 1; 0 where that is not defined."""
    tiny = torch.finfo(rows.dtype).tiny
    centred = rows / rows.abs().amax(1, keepdim=True).clamp(min=tiny)  # squares neither overflow nor vanish
    centred = centred - centred.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp(min=tiny)


def _windowed(values: Tensor) -> Tensor:
    """Mean of ``(B, C, H, W)`` under the window, where it fits."""
    span = torch.arange(WINDOW, dtype=values.dtype, device=values.device) - WINDOW // 2
    kernel = torch.exp(-0.5 * (span / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    planes = values.flatten(0, 1)[:, None]
    planes = F.conv2d(F.conv2d(planes, kernel[None, None, :, None]), kernel[None, None, None, :])
    return planes.reshape(*values.shape[:2], *planes.shape[-2:])


def _value_range(rows: Tensor, columns: Tensor, given: float | Tensor | None) -> Tensor:
    if given is None:
        found = torch.maximum(rows.amax(1), columns.amax(1)) - torch.minimum(rows.amin(1), columns.amin(1))
        return torch.where(found > 0, found, torch.ones_like(found))
    wanted = torch.as_tensor(given, dtype=rows.dtype, device=rows.device)
    if wanted.shape not in ((), (len(rows),)) or not (wanted > 0).all():
        raise LearnpropError(f"data_range must be a positive number or ({len(rows)},) of them, got {given}")
    return wanted.expand(len(rows))


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise LearnpropError(f"maps {tuple(first.shape)} and {tuple(second.shape)} differ in shape")
    return _rows(first), _rows(second)


def _rows(values: Tensor) -> Tensor:
    """``(B, N)`` float64, checked."""
    if values.dim() < 2 or not values.numel():
        raise LearnpropError(f"maps must be (B, ...) and not empty, got {tuple(values.shape)}")
    rows = values.detach().flatten(1).double().contiguous()
    bad = ~rows.isfinite().all(1)
    if bad.any():
        raise LearnpropError(f"map {int(bad.nonzero()[0])} has NaN or infinite values")
    return rows
