"""The exact end of a search without order: masks of zeros and ones that no exchange of two values makes better."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .mask_spaces import FreeMasks, MaskSpace

Rewards = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""``(masks of each input (R, *shape), indices of the rows (R,)) -> rewards (R,)``."""

ALL, SOME = 128, 6
"""All exchanges are tried where there are at most so many, else those among this many values in and out that the
derivative favours."""

TOGETHER, MOST = 32, 24
"""Exchanges that run together, and exchanges that are made at most."""


def binary(masks: Tensor, ones: Tensor) -> Tensor:
    """Masks ``(R, *shape)`` of zeros and ones: the ``ones (R,)`` highest values are in, of ties the first."""
    order = masks.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return (rank < ones[:, None]).to(masks.dtype).reshape(masks.shape)


def best_swaps(
    reward: Rewards, spaces: Sequence[MaskSpace], masks: Sequence[Tensor], rows: Tensor
) -> list[Tensor]:
    """Masks of some rows, those of `FreeMasks` changed while an exchange of two values raises the reward.

    Args:
        reward: A function that is differentiable in the masks.
        spaces: The space of each input's mask.
        masks: One tensor for each input, ``(R, *shape)``; those of `FreeMasks` of zeros and ones.
        rows: The rows to change.
    """
    masks = [mask.clone() for mask in masks]
    free = [number for number, space in enumerate(spaces) if isinstance(space, FreeMasks)]
    for row in rows if free else rows[:0]:
        best: Tensor | None = None
        for _ in range(MOST):
            found = [_swap(reward, [mask[row] for mask in masks], row, number, best) for number in free]
            rewards = torch.stack([value for value, _ in found])
            top = int(rewards.argmax())
            value, mask = found[top]
            if mask is None:
                break
            best, masks[free[top]][row] = value, mask
    return masks


def _swap(
    reward: Rewards, masks: list[Tensor], row: Tensor, number: int, best: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The best exchange in one input's mask and its reward; no mask if none raises it."""
    shape = masks[number].shape
    live = masks[number].clone().requires_grad_()
    with torch.enable_grad():
        value = reward(tuple(live[None] if n == number else mask[None] for n, mask in enumerate(masks)), row[None])
    (slope,) = torch.autograd.grad(value.sum(), live, materialize_grads=True)
    value, slope, mask = value.detach()[0], slope.flatten(), masks[number].flatten()
    inside, outside = (mask > 0.5).nonzero()[:, 0], (mask < 0.5).nonzero()[:, 0]
    if len(inside) * len(outside) > ALL:
        inside = inside[slope[inside].argsort(stable=True)[:SOME]]
        outside = outside[slope[outside].argsort(descending=True, stable=True)[:SOME]]
    pairs = torch.cartesian_prod(inside, outside).reshape(-1, 2)
    if not len(pairs):
        return value, None
    tried = mask.repeat(len(pairs), 1)
    tried.scatter_(1, pairs[:, :1], 0.0).scatter_(1, pairs[:, 1:], 1.0)
    rewards = []
    with torch.no_grad():
        for part in tried.split(TOGETHER):
            others = tuple(
                part.reshape(-1, *shape) if n == number else each.expand(len(part), *each.shape)
                for n, each in enumerate(masks)
            )
            rewards.append(reward(others, row.expand(len(part))))
    values = torch.cat(rewards)
    top = int(values.argmax())
    rise = values[top] - value
    if best is not None and not bool(values[top] > best) or not bool(rise > 1e-6 * value.abs()):
        return value, None
    return values[top], tried[top].reshape(shape)
