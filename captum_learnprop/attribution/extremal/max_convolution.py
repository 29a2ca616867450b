"""The soft max-convolution that makes masks smooth: every pixel gets the largest weighted cell of a grid nearby.

For cells ``p`` and a kernel ``w``, ``v_k(u) = w(|u - cell_k|) p_k`` and ``m(u) = sum_k v_k e^(T v_k) / sum_k
e^(T v_k)`` over all cells ``k`` in a fixed window: the softmax-weighted maximum of Fong, Patrick and Vedaldi (ICCV
2019). The kernel has a compact support inside the window, so that masks have no jump where the window ends. Cells lie
every ``step`` pixels, so the weights repeat with that period: a tile of them for each cell of the window is all there
is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

SHARPNESS = 20.0
"""``T``; e^(T v) stays below 5e8 for cells in [0, 1], safe in float32."""

FLAT, END = 0.6, 1.5
"""The kernel is 1 up to `FLAT` sigma and 0 from `END` sigma on, a cosine between; it is one half at 1.05 sigma."""

NOTHING = 1e-12
"""Weights up to this are rounding of 0."""

BLOCK = 1 << 16
"""Values of a block of rows that are worked on together, small enough for a core's cache."""


@dataclass(frozen=True)
class Window:
    """Weights of the cells around each pixel of a tile.

    Attributes:
        step: Number of pixels between cells, by dimension.
        reach: Number of cells of the window to each side, by dimension.
        offsets: Cells relative to the tile's own, ``(taps, dims)``.
        weights: Weights by pixel of the tile in row-major order, ``(taps, prod(step))``; no tap has zeros alone.
        active: The pixels of the tile for each tap, first and last + 1, outside of which its weights are zeros.
        idle: Number of cells of the window that are not active, ``(prod(step), 1)``: each counts ``e^0`` to the sum.
    """

    step: tuple[int, ...]
    reach: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]
    weights: Tensor
    active: tuple[tuple[int, int], ...]
    idle: Tensor

    def like(self, values: Tensor) -> Window:
        """Returns the window with weights of the type and on the device of a tensor."""
        return replace(self, weights=self.weights.to(values), idle=self.idle.to(values))


def kernel(distance: Tensor, sigma: float) -> Tensor:
    """Weight in [0, 1] of a cell at a distance in pixels, for a kernel ``sigma`` pixels wide."""
    share = ((distance / sigma - FLAT) / (END - FLAT)).clamp(0.0, 1.0)
    return 0.5 * (1.0 + torch.cos(math.pi * share))


def window(step: tuple[int, ...], sigma: tuple[float, ...]) -> Window:
    """The window of a kernel ``sigma`` pixels wide over cells every ``step`` pixels, by dimension, in float64."""
    dims = len(step)
    centre = torch.tensor([(one - 1) / 2 for one in step], dtype=torch.float64)
    reach = tuple(math.floor((END * s + (n - 1) / 2) / n) for n, s in zip(step, sigma, strict=True))
    pixels = torch.cartesian_prod(*(torch.arange(one, dtype=torch.float64) for one in step))
    phases = pixels.reshape(-1, dims) - centre
    # Distances count in pixels of the widest axis.
    widest = max(sigma)
    unit = torch.tensor([widest / one for one in sigma], dtype=torch.float64)
    offsets, weights, active = [], [], []
    square = list(itertools.product(*(range(-one, one + 1) for one in reach)))
    for offset in square:
        away = phases - torch.tensor([n * o for n, o in zip(step, offset, strict=True)], dtype=torch.float64)
        tile = kernel(torch.linalg.vector_norm(away * unit, dim=1), widest)
        used = (tile > NOTHING).nonzero()[:, 0].tolist()
        if used:
            offsets.append(offset)
            weights.append(tile)
            active.append((used[0], used[-1] + 1))
    idle = torch.full((math.prod(step), 1), float(len(square)), dtype=torch.float64)
    for first, last in active:
        idle[first:last] -= 1
    return Window(step, reach, tuple(offsets), torch.stack(weights), tuple(active), idle)


def max_convolution(cells: Tensor, tiles: Window) -> Tensor:
    """Masks ``(K, tiles, prod(step))`` flattened over space from cells ``(K, *grid)`` in [0, 1].

    Differentiable once. Keeps one value and one sum per pixel for the backward pass and computes the rest again.

    Args:
        cells: with `Window.reach` more cells than tiles at both ends of each dimension.
        tiles: the window; its weights have the type and device of ``cells``.

    Returns:
        ``(K, prod(step), *tiles)``: pixels of a tile first; see `pixels_of_tiles`.
    """
    result: Tensor = _MaxConvolution.apply(cells, tiles)
    return result


def pixels_of_tiles(masks: Tensor, step: tuple[int, ...]) -> Tensor:
    """Masks ``(K, prod(step), *tiles)``, pixels of a tile first, put together as ``(K, *(tiles * step))``."""
    dims = masks.dim() - 2
    split = masks.reshape(len(masks), *step, *masks.shape[2:])
    order = [0, *itertools.chain.from_iterable((1 + dims + d, 1 + d) for d in range(dims))]
    return split.permute(order).reshape(len(masks), *(s * n for s, n in zip(step, masks.shape[2:], strict=True)))


class _MaxConvolution(torch.autograd.Function):
    """Loops over the cells of the window; a block of rows stays in the cache while it does."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, tiles: Window) -> Tensor:
        shape = _tiles_of(cells, tiles)
        phases = tiles.weights.shape[1]
        result = cells.new_empty(len(cells), phases, math.prod(shape))
        total = torch.empty_like(result)
        scaled = SHARPNESS * tiles.weights
        for rows in _blocks(cells, phases * math.prod(shape)):
            part, top = cells[rows], total[rows]
            top.copy_(tiles.idle)
            sum_ = result[rows].zero_()
            space = torch.empty_like(top), torch.empty_like(top)
            for tap, offset in enumerate(tiles.offsets):
                on = slice(*tiles.active[tap])
                v, e = (values[:, : on.stop - on.start] for values in space)
                torch.mul(_shifted(part, offset, tiles.reach, shape), scaled[tap, None, on, None], out=v)
                torch.exp(v, out=e)
                top[:, on].add_(e)
                sum_[:, on].addcmul_(e, v)
            sum_.div_(top).div_(SHARPNESS)
        ctx.tiles, ctx.shape = tiles, shape
        ctx.save_for_backward(cells, result, total)
        return result.reshape(len(cells), phases, *shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # dm / dv_k = e_k / sum(e) * (1 + T (v_k - m)), with v_k and e_k computed again.
        cells, result, total = ctx.saved_tensors
        tiles, shape = ctx.tiles, ctx.shape
        found = torch.zeros_like(cells)
        scaled = SHARPNESS * tiles.weights
        phases = tiles.weights.shape[1]
        for rows in _blocks(cells, phases * math.prod(shape)):
            part, out = cells[rows], found[rows]
            slope = gradient[rows].reshape(result[rows].shape) / total[rows]
            level = slope * (1.0 - SHARPNESS * result[rows])
            space = torch.empty_like(slope), torch.empty_like(slope)
            for tap, offset in enumerate(tiles.offsets):
                on = slice(*tiles.active[tap])
                v, e = (values[:, : on.stop - on.start] for values in space)
                torch.mul(_shifted(part, offset, tiles.reach, shape), scaled[tap, None, on, None], out=v)
                torch.exp(v, out=e)
                torch.addcmul(level[:, on], slope[:, on], v, out=v)
                v.mul_(e)
                weights = tiles.weights[tap, None, None, on].expand(len(v), 1, -1)
                pulled = torch.bmm(weights, v)
                _view(out, offset, tiles.reach, shape).add_(pulled.reshape(len(pulled), *shape))
        return found, None


def _tiles_of(cells: Tensor, tiles: Window) -> tuple[int, ...]:
    return tuple(n - 2 * reach for n, reach in zip(cells.shape[1:], tiles.reach, strict=True))


def _blocks(cells: Tensor, size: int) -> list[slice]:
    each = max(1, BLOCK // size) if cells.device.type == "cpu" else len(cells)
    return [slice(start, start + each) for start in range(0, len(cells), each)]


def _view(cells: Tensor, offset: tuple[int, ...], reach: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    for dim, (o, r, n) in enumerate(zip(offset, reach, shape, strict=True)):
        cells = cells.narrow(1 + dim, r + o, n)
    return cells


def _shifted(cells: Tensor, offset: tuple[int, ...], reach: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Cells at an offset from each tile: ``(K, 1, tiles)``."""
    return _view(cells, offset, reach, shape).reshape(len(cells), 1, -1)
