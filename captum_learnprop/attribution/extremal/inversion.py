"""Inversion of activations: the image that a layer sees as it sees another one under a mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import LearnpropError

RATE = 0.025
"""Step of Adam, in units of the images' range."""


def inverted(
    activation_of: Callable[[Tensor], Tensor],
    wanted: Tensor,
    start: Tensor,
    *,
    n_steps: int,
    smoothness: float,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Images whose activations are near the wanted ones.

    Minimises ``|a(x) - wanted|^2 / |wanted|^2 + smoothness * mean(|differences of neighbours|^2) / range^2`` for every
    image by itself, by Adam.

    Args:
        activation_of: A differentiable function from images ``(B, C, *spatial)`` to activations.
        wanted: Activations ``(B, ...)``.
        start: Where the search begins, ``(B, C, *spatial)``; its deviation is the unit of steps.
        n_steps: Number of steps.
        smoothness: Weight of differences of neighbouring pixels.
        low: Lowest value of a channel, broadcasts to images.
        high: Highest value of a channel.

    Raises:
        LearnpropError: For numbers out of range.
    """
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
        raise LearnpropError(f"n_steps must be an integer of at least 1, got {n_steps!r}")
    if not smoothness >= 0:
        raise LearnpropError(f"smoothness must be at least 0, got {smoothness!r}")
    unit = (high - low).mean().clamp(min=1e-12)
    x = start.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=RATE * float(unit))
    size = wanted.flatten(1).square().sum(1).clamp(min=1e-12)
    for _ in range(n_steps):
        with torch.enable_grad():
            apart = (activation_of(x) - wanted).flatten(1).square().sum(1) / size
            rough = sum(
                (x.diff(dim=dim) / unit).square().flatten(1).mean(1) for dim in range(2, x.dim()) if x.shape[dim] > 1
            )
            loss = (apart + smoothness * rough).sum()
            (x.grad,) = torch.autograd.grad(loss, x)
        optimiser.step()
        with torch.no_grad():
            x.copy_(torch.minimum(torch.maximum(x, low), high))
    return x.detach()
