"""The low-pass mask and the bounded sufficiency loss: values, bounds, gradients."""

from __future__ import annotations

import pytest
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.maps import smooth
from captum_learnprop.training.objectives import MaskedPass
from captum_learnprop.training.sufficiency import KeepProbability, LowPassMask


def passed(original: torch.Tensor, masked: torch.Tensor, mask: torch.Tensor) -> MaskedPass:
    """A pass whose explained entries are given."""
    return MaskedPass(original[:, None], masked[:, None], original, masked, 0, (mask,))


def test_mask_is_the_smoothed_strength_over_its_maximum() -> None:
    torch.manual_seed(0)
    attribution = torch.randn(3, 3, 12, 9).double()
    attribution[2] = 0.0
    mask = LowPassMask(1.5)(attribution)
    strength = smooth(attribution.abs().sum(1), 1.5)
    for index in range(2):
        torch.testing.assert_close(mask[index, 0], strength[index] / strength[index].max())
    assert mask[2].eq(0).all()


def test_loss_is_that_of_the_definition() -> None:
    original, masked = torch.tensor([3.0, -1.0]).double(), torch.tensor([0.0, 2.0]).double()
    mask = torch.rand(2, 1, 4, 4).double()
    loss = KeepProbability(area=0.7)(passed(original, masked, mask))
    for index in range(2):
        p, q = 1 / (1 + (-original[index]).exp()), 1 / (1 + (-masked[index]).exp())
        assert loss[index].item() == pytest.approx((4 * (p - q) ** 2 + 0.7 * mask[index].mean()).item())


def test_loss_is_bounded_where_cross_entropy_is_not() -> None:
    far = torch.tensor([-1e4])
    assert KeepProbability(area=0.0)(passed(-far, far, torch.zeros(1, 1, 2, 2))).item() == pytest.approx(4.0)


def test_mask_of_ones_keeps_the_input_and_of_zeros_blurs_it() -> None:
    inputs = torch.rand(2, 3, 16, 16)
    objective = KeepProbability(blur=2.0)
    torch.testing.assert_close(objective.apply(inputs, torch.ones(2, 1, 16, 16)), inputs)
    blurred = objective.apply(inputs, torch.zeros(2, 1, 16, 16))
    torch.testing.assert_close(blurred[:, 1], smooth(inputs[:, 1], 2.0))


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(1)
    inputs, weights = torch.rand(2, 3, 8, 8).double(), torch.randn(3, 8, 8).double()
    objective = KeepProbability(area=0.5, blur=1.0)

    def loss(attribution: torch.Tensor) -> torch.Tensor:
        mask = LowPassMask(0.7)(attribution)
        masked = (objective.apply(inputs, mask) * weights).flatten(1).sum(1)
        return objective(passed((inputs * weights).flatten(1).sum(1), masked, mask))

    assert torch.autograd.gradcheck(loss, torch.randn(2, 3, 8, 8).double().requires_grad_())


@pytest.mark.parametrize("option", [{"area": -1.0}, {"blur": -0.5}])
def test_negative_options_are_named(option: dict[str, float]) -> None:
    with pytest.raises(LearnpropError, match=str(next(iter(option.values())))):
        KeepProbability(**option)
