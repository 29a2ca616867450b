"""DeepLIFT's rescale rule, slowly: chords one by one, pools window by window, softmax as a matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def slope(function: Callable[[Tensor], Tensor], z: float, z0: float) -> float:
    """Of the chord, or of the tangent, one number at a time."""
    at = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    if z == z0:
        return float(torch.autograd.grad(function(at.reshape(1, 1)).sum(), at)[0])
    ends = [float(function(torch.tensor([[v]], dtype=torch.float64))) for v in (z, z0)]
    return (ends[0] - ends[1]) / (z - z0)


def slopes(function: Callable[[Tensor], Tensor], z: Tensor, z0: Tensor) -> Tensor:
    pairs = zip(z.detach().flatten().tolist(), z0.flatten().tolist(), strict=True)
    return torch.tensor([slope(function, *pair) for pair in pairs], dtype=torch.float64).reshape(z.shape)


def pool_by_loops(pool: Any, z: Tensor, z0: Tensor, g: Tensor) -> Tensor:
    """Window by window: who won in the input, who in the reference, and what each gained."""
    dims = z.ndim - 2
    kernel, stride = each(pool.kernel_size, dims), each(pool.stride, dims)
    padding, dilation = each(pool.padding, dims), each(pool.dilation, dims)
    gained = torch.zeros_like(z)
    plain = torch.zeros_like(z)
    for b, c, *window in itertools.product(*(range(n) for n in g.shape)):
        inside = []
        for offset in itertools.product(*(range(k) for k in kernel)):
            at = [w * s - p + o * d for w, s, p, o, d in zip(window, stride, padding, offset, dilation, strict=True)]
            if all(0 <= i < n for i, n in zip(at, z.shape[2:], strict=True)):
                inside.append((b, c, *at))
        winner, winner0 = max(inside, key=lambda at: float(z[at])), max(inside, key=lambda at: float(z0[at]))
        o, o0, signal = float(z[winner]), float(z0[winner0]), float(g.detach()[(b, c, *window)])
        gained[winner] += signal * (max(o, o0) - o0)
        gained[winner0] += signal * (o - max(o, o0))
        plain[winner] += signal
    same = z == z0
    return torch.where(same, plain, gained / torch.where(same, 1.0, z - z0))


def softmax_matrix(z: list[float], z0: list[float], log: bool) -> Tensor:
    """``M`` with ``f(z) - f(z0) = M (z - z0)``, of chords of exp and log, for one row."""

    def logs(values: list[float]) -> list[float]:
        top = max(values)
        total = top + math.log(sum(math.exp(v - top) for v in values))
        return [v - total for v in values]

    u, u0 = logs(z), logs(z0)
    mean = [math.exp(a) if a == b else (math.exp(a) - math.exp(b)) / (a - b) for a, b in zip(u, u0, strict=True)]
    share = [m / sum(mean) for m in mean]
    rows = [[float(i == j) - share[j] for j in range(len(z))] for i in range(len(z))]
    if not log:
        rows = [[m * v for v in row] for m, row in zip(mean, rows, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)
