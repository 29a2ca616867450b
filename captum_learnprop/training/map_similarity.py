"""How alike two maps are: row by row, differentiable, blind to the scale of either."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SOFT = 0.1
"""The bend of `compress`, as a share of the mean absolute value: less is noise, more counts by order."""


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Returns the cosine of rows of two ``(B, N)`` tensors: ``(B,)`` in [-1, 1]; 0 for a row of zeros."""
    first, second = _scaled(first), _scaled(second)
    norm = (first.square().sum(1) * second.square().sum(1) + torch.finfo(first.dtype).eps ** 2).sqrt()
    return (first * second).sum(1) / norm


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Returns Pearson's correlation of rows of two ``(B, N)`` tensors: ``(B,)`` in [-1, 1]; 0 for a constant row."""
    return cosine(first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True))


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Returns the mass that the rows of two ``(B, N)`` tensors share: ``sum_i min(p_i, q_i)``, ``(B,)`` in [0, 1].

    ``p`` and ``q`` are the positive parts, divided by their sums; 0 where a row has no positive part.
    """
    return torch.minimum(_shares(first), _shares(second)).sum(1)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pearson": correlation,
    "cosine": cosine,
    "overlap": overlap,
}
"""The similarities by their names."""


def compress(rows: Tensor, power: str) -> Tensor:
    """Returns rows ``(B, N)`` with large values brought closer to small ones; signs and order are kept.

    With ``r`` the row over its mean absolute value and ``s`` = `SOFT`: ``"none"`` is ``r``, ``"sqrt"`` is ``r /
    sqrt(|r| + s)``, ``"log"`` is ``sign(r) log(1 + |r| / s)``. The correlation of compressed maps is closer to that of
    their ranks.

    Raises:
        KeyError: The ``power`` is another one.
    """
    rows = _scaled(rows)
    return COMPRESSIONS[power](rows / nonzero(rows.abs().mean(1, keepdim=True)))


COMPRESSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda rows: rows,
    "sqrt": lambda rows: rows / (rows.abs() + SOFT).sqrt(),
    "log": lambda rows: rows.sign() * (rows.abs() / SOFT).log1p(),
}
"""The functions of `compress` by their names, for rows in units of their mean absolute value."""


def _shares(rows: Tensor) -> Tensor:
    positive = _scaled(rows).clamp(min=0)
    return positive / nonzero(positive.sum(1, keepdim=True))


def _scaled(rows: Tensor) -> Tensor:
    """Returns rows over their largest absolute value, as a constant: maps of deep nets can be as small as 1e-20."""
    return rows / nonzero(rows.detach().abs().amax(1, keepdim=True))


def nonzero(size: Tensor) -> Tensor:
    """Returns sizes, at least 0, with 1 in the place of 0, so that they can be divided by."""
    return torch.where(size > 0, size, torch.ones_like(size))
