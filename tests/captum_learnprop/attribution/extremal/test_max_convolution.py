"""The soft max-convolution against its definition, written out pixel by pixel, and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from captum_learnprop.attribution.extremal.mask_spaces import SmoothMasks
from captum_learnprop.attribution.extremal.max_convolution import (
    SHARPNESS,
    Window,
    kernel,
    max_convolution,
    pixels_of_tiles,
    window,
)


def by_definition(cells: Tensor, tiles: Window, sigma: tuple[float, ...]) -> Tensor:
    """Loops over pixels and all cells of the rectangular window."""
    step, reach = tiles.step, tiles.reach
    shape = [(n - 2 * r) * s for n, r, s in zip(cells.shape[1:], reach, step, strict=True)]
    out = torch.empty(len(cells), *shape, dtype=cells.dtype)
    for pixel in itertools.product(*map(range, shape)):
        v = []
        for offset in itertools.product(*(range(-r, r + 1) for r in reach)):
            cell = [p // s + o for p, s, o in zip(pixel, step, offset, strict=True)]
            away = [(p - (c * s + (s - 1) / 2)) / w for p, c, s, w in zip(pixel, cell, step, sigma, strict=True)]
            weight = kernel(torch.tensor(math.hypot(*away), dtype=torch.float64), 1.0)
            v.append(weight * cells[(slice(None), *(c + r for c, r in zip(cell, reach, strict=True)))])
        values = torch.stack(v)
        out[(slice(None), *pixel)] = (values * torch.softmax(SHARPNESS * values, 0)).sum(0)
    return out


@pytest.mark.parametrize(
    ("step", "sigma", "shape"),
    [
        ((3,), (5.0,), (4,)),
        ((2, 2), (3.0, 3.0), (3, 2)),
        ((1, 1), (1.7, 1.7), (4, 5)),
        ((2, 2, 2), (1.5, 1.5, 1.5), (2, 1, 2)),
        ((1, 3), (0.5, 4.0), (1, 3)),
        ((2, 1), (2.5, 1.2), (2, 4)),
    ],
)
def test_equals_its_definition_and_has_its_derivative(
    step: tuple[int, ...], sigma: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    tiles = window(step, sigma)
    grid = (n + 2 * reach for n, reach in zip(shape, tiles.reach, strict=True))
    cells = torch.rand(2, *grid, dtype=torch.float64, requires_grad=True)
    ours = pixels_of_tiles(max_convolution(cells, tiles), step)
    torch.testing.assert_close(ours, by_definition(cells, tiles, sigma), atol=1e-12, rtol=1e-10)
    assert torch.autograd.gradcheck(lambda c: max_convolution(c, tiles), (cells,))


def test_several_blocks_of_rows_give_what_each_gives_alone() -> None:
    tiles = window((2, 2), (4.0, 4.0)).like(torch.zeros(1))
    cells = torch.rand(5, *(60 + 2 * reach for reach in tiles.reach), requires_grad=True)
    seed = torch.randn(5, 4, 60, 60)
    together = max_convolution(cells, tiles)
    (gradient,) = torch.autograd.grad(together, cells, seed)
    for row in range(5):
        one = cells[row : row + 1].detach().requires_grad_()
        alone = max_convolution(one, tiles)
        assert torch.equal(alone[0], together[row])
        assert torch.equal(torch.autograd.grad(alone, one, seed[row : row + 1])[0][0], gradient[row])


def test_ones_make_a_mask_of_ones_and_one_cell_makes_no_jump() -> None:
    space = SmoothMasks((64, 48), 1 / 16, 3 / 32, torch.zeros(1))
    assert torch.equal(space.masks(torch.ones(1, *space.cells)), torch.ones(1, 64, 48))
    lone = torch.zeros(1, *space.cells)
    lone[:, space.cells[0] // 2, space.cells[1] // 2] = 1.0
    mask = space.masks(lone)[0]
    assert mask.max() > 0.95
    assert max(float(mask.diff(dim=d).abs().max()) for d in (0, 1)) < 0.5  # the kernel falls within 4 pixels
    assert float(mask[0].abs().max()) == 0.0


def test_what_is_kept_for_the_backward_pass_is_small() -> None:
    space = SmoothMasks((224, 224), 1 / 28, 3 / 32, torch.zeros(1))
    cells = torch.rand(4, *space.cells, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        space.masks(cells)
    assert sum(kept.values()) / 4 < 3 * 2**20


@pytest.mark.parametrize(("step", "sigma"), [(0.0, 0.1), (0.1, -1.0), (2.0, 0.1)])
def test_fractions_out_of_range_are_refused(step: float, sigma: float) -> None:
    with pytest.raises(ValueError, match="fraction of the input's side"):
        SmoothMasks((8, 8), step, sigma, torch.zeros(1))
