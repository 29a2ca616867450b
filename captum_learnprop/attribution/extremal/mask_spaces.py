"""Spaces of masks: what an extremal perturbation may choose from, and the parameters it chooses by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ...errors import LearnpropError
from ...maps import per_axis
from .max_convolution import max_convolution, pixels_of_tiles, window

STEP, SIGMA = 1 / 28, 3 / 32
"""Fractions of the sides (see `per_axis`): distance of the cells of a smooth mask, and width of its kernel."""


class MaskSpace(ABC):
    """Masks in [0, 1] of one shape, by parameters in [0, 1].

    Attributes:
        shape: Shape of a mask.
        cells: Shape of its parameters.
        share: Mask values per parameter: what a derivative to one is larger by than that to a mask value.
    """

    shape: tuple[int, ...]
    cells: tuple[int, ...]
    share: float

    @abstractmethod
    def masks(self, parameters: Tensor) -> Tensor:
        """Masks ``(K, *shape)`` in [0, 1] from parameters ``(K, *cells)`` in [0, 1]."""


class FreeMasks(MaskSpace):
    """Each value is a parameter: for channels and features, which have no order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = self.cells = shape
        self.share = 1.0

    def masks(self, parameters: Tensor) -> Tensor:
        """The parameters themselves."""
        return parameters


class SmoothMasks(MaskSpace):
    """Smooth masks over one to three dimensions of space, see `max_convolution`.

    Cells reach beyond the border as far as the kernel, so that pixels there are like others; masks are divided by that
    of a grid of ones, so that it is exactly 1.

    Args:
        shape: Number of pixels, by dimension.
        step: Distance of cells as a fraction of the sides (see `per_axis`); at least one pixel.
        sigma: Width of the kernel as a fraction of the sides (see `per_axis`).
        like: A tensor of the type and on the device of the parameters.

    Raises:
        LearnpropError: For fractions out of range, or other than one to three dimensions.
    """

    def __init__(self, shape: tuple[int, ...], step: float, sigma: float, like: Tensor) -> None:
        if not 1 <= len(shape) <= 3:
            raise LearnpropError(f"smooth masks have one to three dimensions of space, got {shape}")
        for name, value in (("step", step), ("sigma", sigma)):
            if not 0 < value <= 1:
                raise LearnpropError(f"{name} is a fraction of the input's side in (0, 1], got {value!r}")
        pixels = tuple(max(1, math.floor(one + 0.5)) for one in per_axis(step, shape))
        widths = tuple(max(one, 0.5 * n) for one, n in zip(per_axis(sigma, shape), pixels, strict=True))
        tiles = window(pixels, widths)
        self.window = tiles.like(like)
        self.shape = shape
        self.cells = tuple(math.ceil(n / p) + 2 * reach for n, p, reach in zip(shape, pixels, tiles.reach, strict=True))
        self.share = float(math.prod(pixels))
        ones = like.new_ones(1, *(1 + 2 * reach for reach in tiles.reach))
        self._full = max_convolution(ones, self.window).reshape(1, -1, *[1] * len(shape))

    def masks(self, parameters: Tensor) -> Tensor:
        """Smooth masks ``(K, *shape)``. A value above 1, where a cell stands alone, is 1 with the derivative it had."""
        tiles = max_convolution(parameters, self.window) / self._full
        masks = pixels_of_tiles(_at_most_one(tiles), self.window.step)
        for dim, n in enumerate(self.shape):
            masks = masks.narrow(1 + dim, 0, n)
        return masks


class _AtMostOne(torch.autograd.Function):
    """Cuts values off at 1, and keeps the derivative there: the area must be able to pull them down."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clamp(max=1.0)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def _at_most_one(values: Tensor) -> Tensor:
    result: Tensor = _AtMostOne.apply(values)
    return result
