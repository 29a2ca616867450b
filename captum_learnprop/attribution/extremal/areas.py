"""Masks of an exact area: those places are in whose field is highest, with edges as soft as the area allows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXCESS, GREY = 0.05, 0.1
"""What edges may be: the mean of a mask differs by at most ``EXCESS a (1 - a)`` from its area ``a``, and from a mask of
zeros and ones it is at most ``GREY sqrt(a (1 - a))`` away in the mean. An edge that is a fixed number of pixels wide
makes what is grey grow with the root of the area."""

FIRST, SOFTEST, HARDEST = 1.5, 1.0, 7.0
"""Logarithms of the steepness: at first, least and most."""


def ones_of(areas: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Number of values that masks of some areas ``(R,)`` have above one half; at least one."""
    size = math.prod(shape)
    return (areas.double() * size).round().clamp(1, size).long()


def level_of(fields: Tensor, ones: Tensor) -> Tensor:
    """The level that the ``ones (R,)`` highest of the values ``(R, N)`` lie above, ``(R, 1)``.

    It lies halfway between the last that is in and the first that is out; one below all where none is out.
    """
    level = fields.amin(1, keepdim=True) - 1.0
    for count in ones.unique().tolist():
        rows = ones == count
        if count < fields.shape[1]:
            some = fields[rows]
            out = some.kthvalue(fields.shape[1] - count, dim=1, keepdim=True).values
            above = torch.where(some > out, some, torch.inf).amin(1, keepdim=True)
            level[rows] = torch.where(above.isinf(), out, 0.5 * (out + above))
    return level


class Edges:
    """Masks ``sigmoid(steepness (field - level))``, whose level gives the area, for the fields of a number of steps.

    The steepness follows from step to step what edges may be (`EXCESS`, `GREY`): it costs nothing but the mask.

    Args:
        shape: Shape of a mask.
        count: Number of rows.
        like: A tensor of the type and on the device of masks.
    """

    def __init__(self, shape: tuple[int, ...], count: int, like: Tensor) -> None:
        self.shape = shape
        self.steepness = like.new_full((count, 1), FIRST)
        self._slope = like.new_ones(count, 1)

    def constant(self, areas: Tensor) -> Tensor:
        """Masks that are the area everywhere, ``(R, *shape)``."""
        mask: Tensor = areas.to(self.steepness)[:, None].expand(-1, math.prod(self.shape)).clone()
        self._slope = torch.ones_like(mask)
        return mask.reshape(-1, *self.shape)

    def masks(self, fields: Tensor, areas: Tensor, softness: float) -> Tensor:
        """Masks ``(R, *shape)`` of fields ``(R, *shape)``.

        Args:
            fields: What orders places.
            areas: Share of each row that is above one half, ``(R,)``.
            softness: How many times as soft as in the end edges may be.
        """
        flat = fields.flatten(1)
        inside = flat - level_of(flat, ones_of(areas, self.shape))
        mask = torch.sigmoid(self.steepness.exp() * inside)
        self._slope = mask * (1 - mask)
        self._follow(mask, inside > 0, softness)
        return mask.reshape(fields.shape)

    def to_fields(self, to_masks: Tensor) -> Tensor:
        """Derivatives to fields from those to the last masks, without what moves the level; times no matter what."""
        slope = self._slope
        flat = to_masks.flatten(1)
        mean = (slope * flat).sum(1, keepdim=True) / slope.sum(1, keepdim=True).clamp(min=1e-12)
        return (slope * (flat - mean)).reshape(to_masks.shape)

    def _follow(self, mask: Tensor, inside: Tensor, softness: float) -> None:
        real = inside.to(mask.dtype)
        share = real.mean(1, keepdim=True)
        spread = (share * (1 - share)).clamp(min=1e-6)
        excess = (mask.mean(1, keepdim=True) - share).abs() / (EXCESS * spread)
        grey = (mask - real).abs().mean(1, keepdim=True) / (GREY * spread.sqrt())
        over = torch.maximum(excess, grey).clamp(min=1e-6) / softness
        self.steepness = (self.steepness + (0.5 * over.log()).clamp(-0.5, 0.5)).clamp(SOFTEST, HARDEST)
