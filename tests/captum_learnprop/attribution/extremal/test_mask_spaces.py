"""Smooth fields against their definition, and their transposed map against the derivative."""

from __future__ import annotations

import pytest
import torch

from captum_learnprop.attribution.extremal.mask_spaces import SmoothMasks


@pytest.mark.parametrize("shape", [(20,), (12, 17), (6, 7, 8)])
def test_fields_are_means_of_cells_and_derivatives_are_theirs(shape: tuple[int, ...]) -> None:
    space = SmoothMasks(shape, 1 / 5, 1 / 6, torch.zeros(1, dtype=torch.float64))
    ones = torch.ones(1, *space.cells, dtype=torch.float64)
    torch.testing.assert_close(space.fields(ones), torch.ones(1, *shape, dtype=torch.float64))
    cells = torch.rand(2, *space.cells, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(2, *shape, dtype=torch.float64)
    (expected,) = torch.autograd.grad(space.fields(cells), cells, seed)
    torch.testing.assert_close(space.to_parameters(seed), expected)


def test_a_cell_makes_a_gaussian() -> None:
    space = SmoothMasks((40,), 1 / 40, 1 / 10, torch.zeros(1, dtype=torch.float64))
    cells = torch.zeros(1, 40, dtype=torch.float64)
    cells[0, 20] = 1.0
    field = space.fields(cells)[0]
    weights = torch.exp(-0.5 * ((torch.arange(40).double()[:, None] - torch.arange(40)) / 4) ** 2)
    torch.testing.assert_close(field, weights[:, 20] / weights.sum(1))


@pytest.mark.parametrize(("step", "sigma"), [(0.0, 0.1), (0.1, -1.0), (2.0, 0.1)])
def test_fractions_out_of_range_are_refused(step: float, sigma: float) -> None:
    with pytest.raises(ValueError, match="fraction of the input's side"):
        SmoothMasks((8, 8), step, sigma, torch.zeros(1))
