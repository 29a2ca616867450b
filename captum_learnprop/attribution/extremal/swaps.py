"""The exact end of a search without order: masks of zeros and ones that no exchange of two values makes better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .mask_spaces import FreeMasks, MaskSpace

Rewards = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""``(masks of each input (R, *shape), indices of the rows (R,)) -> rewards (R,)``."""

ALL, SOME = 128, 4
"""All exchanges are tried where there are at most so many, else those among this many values in and out that the
derivative favours."""

TOGETHER, MOST = 32, 12
"""Exchanges that run together, and exchanges that are made at most."""

LEAST = 1e-6
"""Share of the reward that an exchange has to raise it by: less is rounding."""


def binary(masks: Tensor, ones: Tensor) -> Tensor:
    """Masks ``(R, *shape)`` of zeros and ones: the ``ones (R,)`` highest values are in, of ties the first."""
    order = masks.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return (rank < ones[:, None]).to(masks.dtype).reshape(masks.shape)


def best_swaps(reward: Rewards, spaces: Sequence[MaskSpace], masks: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
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
        own = [mask[row] for mask in masks]
        ends = [_climbed(reward, start, row, free) for start in _starts(reward, own, row, free)]
        _, best = max(ends, key=lambda end: end[0])
        for place, mask in zip(masks, best, strict=True):
            place[row] = mask
    return masks


def _starts(reward: Rewards, masks: list[Tensor], row: Tensor, free: list[int]) -> list[list[Tensor]]:
    """The masks that were found and, where values are few, those that the derivative at either end favours."""
    starts = [masks]
    for number in free:
        count = (masks[number] > 0.5).sum()
        if int(count) * (masks[number].numel() - int(count)) > ALL:
            continue
        for end in (0.0, 1.0):
            others = list(masks)
            others[number] = torch.full_like(masks[number], end)
            _, slope = _slope(reward, others, row, number)
            others[number] = binary(slope[None], count[None])[0]
            starts.append(others)
    return starts


def _climbed(reward: Rewards, masks: list[Tensor], row: Tensor, free: list[int]) -> tuple[float, list[Tensor]]:
    """The masks that the best exchange of each time leads to, and their reward."""
    masks, value = list(masks), -math.inf
    for _ in range(MOST):
        found = [_swap(reward, masks, row, number) for number in free]
        now, rises, swapped = max(found, key=lambda one: one[1])
        value = now + max(0.0, rises)
        if swapped is None:
            break
        number = next(n for n, one in zip(free, found, strict=True) if one[2] is swapped)
        masks[number] = swapped
    return value, masks


def _slope(reward: Rewards, masks: list[Tensor], row: Tensor, number: int) -> tuple[float, Tensor]:
    """The reward of one row, and its derivative to one input's mask."""
    live = masks[number].detach().clone().requires_grad_()
    with torch.enable_grad():
        value = reward(tuple(live[None] if n == number else mask[None] for n, mask in enumerate(masks)), row[None])
    (slope,) = torch.autograd.grad(value, live, torch.ones_like(value), materialize_grads=True)
    return float(value.detach()), slope


def _swap(reward: Rewards, masks: list[Tensor], row: Tensor, number: int) -> tuple[float, float, Tensor | None]:
    """The reward, by how much the best exchange in one input's mask raises it, and that mask; None if none does."""
    shape = masks[number].shape
    value, slope = _slope(reward, masks, row, number)
    slope, mask = slope.flatten(), masks[number].flatten()
    inside, outside = (mask > 0.5).nonzero()[:, 0], (mask < 0.5).nonzero()[:, 0]
    if len(inside) * len(outside) > ALL:
        inside = inside[slope[inside].argsort(stable=True)[:SOME]]
        outside = outside[slope[outside].argsort(descending=True, stable=True)[:SOME]]
    pairs = torch.cartesian_prod(inside, outside).reshape(-1, 2)
    if not len(pairs):
        return value, 0.0, None
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
    rise = float(values[top]) - value
    return (value, rise, tried[top].reshape(shape)) if rise > LEAST * abs(value) else (value, 0.0, None)
