from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation import box_sensitivity, compactness

TARGETS = torch.tensor([0, 1])


def linear(inputs: Tensor) -> Tensor:
    """Sums of the left and the right half."""
    return torch.stack([inputs[..., :8].sum((1, 2, 3)), inputs[..., 8:].sum((1, 2, 3))], 1)


def contributions(inputs: Tensor) -> Tensor:
    """What each pixel adds to its target."""
    maps = inputs.sum(1)
    maps[0, :, 8:] = 0
    maps[1, :, :8] = 0
    return maps


class TestBoxSensitivity:
    """Sums of relevance against falls of the output."""

    def test_contributions_of_a_linear_model_are_perfect(self) -> None:
        inputs = torch.rand(2, 3, 16, 16)
        found = box_sensitivity(linear, inputs, contributions(inputs), TARGETS, box=5, boxes=30, baseline=0.0)
        torch.testing.assert_close(found, torch.ones(2).double(), atol=1e-5, rtol=0)
        reversed_sign = box_sensitivity(linear, inputs, -contributions(inputs), TARGETS, box=5, baseline=0.0)
        torch.testing.assert_close(reversed_sign, -torch.ones(2).double(), atol=1e-5, rtol=0)

    def test_by_a_loop(self) -> None:
        inputs, maps = torch.rand(2, 3, 16, 16), torch.randn(2, 16, 16)
        generator = torch.Generator().manual_seed(4)
        tops, lefts = (torch.randint(13, (9, 1), generator=generator) for _ in range(2))
        sums, falls = torch.zeros(2, 9), torch.zeros(2, 9)
        for i in range(2):
            for k, (top, left) in enumerate(zip(tops.flatten().tolist(), lefts.flatten().tolist(), strict=True)):
                changed = inputs[i : i + 1].clone()
                changed[:, :, top : top + 4, left : left + 4] = 0.5
                sums[i, k] = maps[i, top : top + 4, left : left + 4].sum()
                falls[i, k] = (linear(inputs[i : i + 1]) - linear(changed))[0, TARGETS[i]]
        expected = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(sums, falls, strict=True)])
        found = box_sensitivity(
            linear, inputs, maps, TARGETS, box=4, boxes=9, baseline=0.5, seed=4, internal_batch_size=7
        )
        torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=0)

    def test_a_constant_map_with_equal_sums_is_not_defined(self) -> None:
        inputs = torch.rand(2, 3, 16, 16)
        assert bool(box_sensitivity(linear, inputs, torch.zeros(2, 16, 16), TARGETS).isnan().all())

    def test_batch_is_singles(self) -> None:
        inputs, maps = torch.rand(2, 3, 16, 16), torch.randn(2, 16, 16)
        singles = [
            box_sensitivity(linear, x[None], m[None], t[None], box=5)
            for x, m, t in zip(inputs, maps, TARGETS, strict=True)
        ]
        torch.testing.assert_close(box_sensitivity(linear, inputs, maps, TARGETS, box=5), torch.cat(singles))

    @pytest.mark.parametrize("options", [{"box": 17}, {"boxes": 1}, {"output": "x"}, {"internal_batch_size": 0}])
    def test_options_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(LearnpropError):
            box_sensitivity(linear, torch.rand(2, 3, 16, 16), torch.rand(2, 16, 16), TARGETS, **options)


class TestCompactness:
    """Share of values near 0."""

    def test_counts(self) -> None:
        maps = torch.tensor([[[1.0, -0.05], [0.051, 0.0]], [[-2.0, 0.1], [0.0, 0.2]]])
        torch.testing.assert_close(compactness(maps), torch.tensor([0.5, 0.5]).double())
        torch.testing.assert_close(compactness(maps, 0.2), torch.tensor([0.75, 0.75]).double())
        assert compactness(torch.zeros(1, 4)).item() == 1.0

    def test_out_of_range(self) -> None:
        with pytest.raises(LearnpropError, match="level in"):
            compactness(torch.zeros(1, 4), 1.5)
