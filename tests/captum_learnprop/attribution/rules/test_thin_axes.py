"""Inputs whose axes are of different kinds: signals over electrodes, stacks of few slices, and axes of length 1."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop.attribution.extremal.mask_parts import Parts
from captum_learnprop.attribution.extremal.mask_spaces import SIGMA, STEP, SmoothMasks
from captum_learnprop.attribution.extremal.perturbations import perturbation_of


def removed(x: Tensor, kind: Any = "blur", baseline: Any = None) -> float:
    """Share of the signal that a full perturbation removes."""
    zeros = torch.zeros(len(x), *x.shape[2:])
    out = perturbation_of(kind, x, baseline)(zeros, torch.arange(len(x)))
    return float((out - x).norm() / (x - x.mean()).norm())


@pytest.mark.parametrize("space", [(48, 48), (1, 48, 48), (2, 48, 48), (4, 48, 48), (48, 48, 1), (22, 400), (400, 2)])
def test_a_short_axis_does_not_switch_the_blur_off(space: tuple[int, ...]) -> None:
    assert removed(torch.randn(1, 2, *space)) > 0.5


def test_an_axis_of_length_1_changes_nothing() -> None:
    x = torch.randn(2, 3, 24, 20)
    masks = torch.rand(2, 24, 20)
    flat = perturbation_of("blur", x, None)(masks, torch.arange(2))
    for dim in (1, 2, 3):
        thin = perturbation_of("blur", x.unsqueeze(dim + 1), None)(masks.unsqueeze(dim), torch.arange(2))
        torch.testing.assert_close(thin.squeeze(dim + 1), flat)


def space(*shape: int) -> SmoothMasks:
    return SmoothMasks(shape, STEP, SIGMA, torch.empty(0, dtype=torch.float64))


def test_masks_of_a_thin_axis() -> None:
    flat, thin = space(56, 60), space(1, 56, 60)
    assert thin.cells == (1, *flat.cells)
    cells = torch.rand(2, *flat.cells, dtype=torch.float64)
    torch.testing.assert_close(thin.fields(cells[:, None])[:, 0], flat.fields(cells))
    signals = space(22, 1000)  # single electrodes, and samples in the steps of a signal
    assert signals.cells == (22, math.ceil(1000 / 36))
    assert signals.fields(torch.rand(1, *signals.cells, dtype=torch.float64)).shape == (1, 22, 1000)
    ones = signals.fields(torch.ones(1, *signals.cells, dtype=torch.float64))
    torch.testing.assert_close(ones, torch.ones_like(ones))
    slices = space(4, 48, 48)  # slices all but choose for themselves
    cells = torch.zeros(1, *slices.cells, dtype=torch.float64)
    cells[:, 1] = 1.0
    found = slices.fields(cells)[0]
    assert found[1].min() > 0.75
    assert found[[0, 2, 3]].max() < 0.15


def test_parts_of_a_thin_axis() -> None:
    flat, thin = (Parts([shape], [True])(torch.zeros(1)) for shape in ((32, 32), (1, 32, 32)))
    for one, other in zip(flat, thin, strict=True):
        torch.testing.assert_close(other[0].shape[1:], torch.Size((1, 32, 32)))
        torch.testing.assert_close(other[0].std(), one[0].std(), rtol=0.5, atol=0.0)


class Middle(nn.Module):
    """Looks at some samples of one electrode, or of all where there is one."""

    def forward(self, x: Tensor) -> Tensor:
        row = x[:, 0, x.shape[2] // 2]
        return F.relu(row[:, 100:140]).sum(1, keepdim=True)


def test_the_electrode_and_the_time_are_found() -> None:
    x = torch.randn(1, 1, 6, 240, generator=torch.Generator().manual_seed(0)).abs()
    mask = cl.ExtremalPerturbation(Middle()).attribute(x, 0, areas=0.05, perturbation="fade", n_steps=150)[0, 0]
    inside = mask[3, 100:140].sum() / mask.sum()
    assert inside > 0.5


def wave(period: float) -> Tensor:
    return torch.sin(torch.arange(64) * 2 * torch.pi / period).expand(1, 1, 64, 64).contiguous()


def test_a_perturbation_that_hardly_changes_the_input_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 62 * 62, 2)).eval()

    def run(x: Tensor, **options: Any) -> None:
        cl.ExtremalPerturbation(model).attribute(x, 1, n_steps=1, **options)

    slow, fast = wave(800), wave(8)
    with pytest.warns(
        cl.NeutralMaskWarning, match=r"removes only \d\.\d\d% .* samples \[1\] of input 0 .*'noise'"
    ) as c:
        run(torch.cat([fast, slow]))
    assert len(c) == 1
    with pytest.warns(cl.NeutralMaskWarning, match=r"removes only 1\.00%"):
        run(fast, perturbation=lambda x, m: x * (0.99 + 0.01 * m))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*removes only", cl.NeutralMaskWarning)
        for options in ({}, {"perturbation": "noise"}, {"baselines": 0.0}):
            run(fast, **options)
        run(slow, perturbation="noise")


def test_draws_of_a_users_perturbation_are_not_used_up() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    with torch.no_grad():
        from captum_learnprop.attribution.extremal.rows import warn_of_small_changes

        x = torch.rand(1, 1, 8, 8)
        own = perturbation_of(lambda x, m: x * m + torch.rand_like(x) * (1 - m), x, None)
        torch.manual_seed(3)
        warn_of_small_changes((x,), (own,))
    assert torch.equal(torch.rand(3), want)
    assert model(x).shape == (1, 2)


def test_fusion_takes_maps_with_an_axis_of_length_1() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, (1, 5)), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    rules = zr.RuleSet.build(net, torch.rand(2, 1, 1, 20), gate="channel", fusion=True)
    assert rules.fusion is not None
    assert rules.fusion.names == ("1",)
