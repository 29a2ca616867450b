"""Numerical derivatives."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def difference_quotient(run: Callable[[], Tensor], entry: Tensor, index: int, step: float = 1e-6) -> float:
    """Central difference of ``run()`` in one entry of a tensor."""
    flat, values = entry.data.view(-1), []
    for sign in (1, -1):
        flat[index] += sign * step
        values.append(float(run()))
        flat[index] -= sign * step
    return (values[0] - values[1]) / (2 * step)
