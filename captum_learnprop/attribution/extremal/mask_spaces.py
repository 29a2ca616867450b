"""Spaces of masks: the fields whose highest places a mask keeps, and the parameters they are made from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ...errors import LearnpropError
from ...maps import per_axis

STEP, SIGMA = 1 / 28, 3 / 32
"""Fractions of the sides (see `per_axis`): distance of the cells of a smooth field, and width of its kernel."""


class MaskSpace(ABC):
    """Fields of one shape, linear in parameters in [0, 1]; a mask keeps the places where they are highest.

    Attributes:
        shape: Shape of a field and of its mask.
        cells: Shape of its parameters.
    """

    shape: tuple[int, ...]
    cells: tuple[int, ...]

    @abstractmethod
    def fields(self, parameters: Tensor) -> Tensor:
        """Fields ``(K, *shape)`` in [0, 1] from parameters ``(K, *cells)`` in [0, 1]."""

    @abstractmethod
    def to_parameters(self, to_fields: Tensor) -> Tensor:
        """Derivatives to parameters ``(K, *cells)`` from those to fields ``(K, *shape)``."""


class FreeMasks(MaskSpace):
    """Each value is a parameter: for channels and features, which have no order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = self.cells = shape

    def fields(self, parameters: Tensor) -> Tensor:
        """The parameters themselves."""
        return parameters

    def to_parameters(self, to_fields: Tensor) -> Tensor:
        """The derivatives themselves."""
        return to_fields


class SmoothMasks(MaskSpace):
    """Smooth fields over one to three dimensions of space: a Gaussian's mean of cells on a coarse grid.

    At a border the mean is over what cells there are, so a constant stays what it is everywhere.

    Args:
        shape: Number of pixels, by dimension.
        step: Distance of cells as a fraction of the sides (see `per_axis`); at least one pixel.
        sigma: Standard deviation of the Gaussian as a fraction of the sides (see `per_axis`).
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
        self.shape = shape
        self.cells = tuple(math.ceil(n / p) for n, p in zip(shape, pixels, strict=True))
        self._means = tuple(
            _gaussian_means(*each).to(like) for each in zip(shape, self.cells, pixels, widths, strict=True)
        )

    def fields(self, parameters: Tensor) -> Tensor:
        """Smooth fields ``(K, *shape)``, each a product of means along the dimensions."""
        return _along(parameters, self._means)

    def to_parameters(self, to_fields: Tensor) -> Tensor:
        """Derivatives to parameters ``(K, *cells)``: the transposed means."""
        return _along(to_fields, tuple(mean.T for mean in self._means))


def _gaussian_means(pixels: int, cells: int, step: int, sigma: float) -> Tensor:
    """Weights of the cells at each pixel of a line, ``(pixels, cells)``; rows sum to 1."""
    at = torch.arange(pixels, dtype=torch.float64)[:, None]
    centres = step * torch.arange(cells, dtype=torch.float64) + 0.5 * (step - 1)
    return torch.softmax(-0.5 * ((at - centres) / sigma).square(), 1)


def _along(values: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """Values ``(K, *dims)`` with one matrix along each dimension."""
    for dim, matrix in enumerate(matrices, start=1):
        values = (values.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    return values.contiguous()
