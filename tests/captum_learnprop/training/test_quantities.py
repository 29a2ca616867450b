"""Explained quantities: values by hand, far logits, gradients, rows, errors."""

from __future__ import annotations

import math

import pytest
import torch

from captum_learnprop import LearnpropError
from captum_learnprop.training.quantities import QUANTITIES, quantity

NAMES = tuple(QUANTITIES)
LOGITS = torch.tensor([[0.0, math.log(3.0)], [math.log(2.0), 0.0]], dtype=torch.float64)
TARGETS = torch.tensor([1, 0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("softmax", [3 / 4, 2 / 3]),
        ("sigmoid", [3 / 4, 2 / 3]),
        ("logit", [math.log(3), math.log(2)]),
        ("log_probability", [math.log(3 / 4), math.log(2 / 3)]),
        ("log_sigmoid", [math.log(3 / 4), math.log(2 / 3)]),
        ("contrastive_logit", [math.log(3), math.log(2)]),
    ],
)
def test_values_by_hand(name: str, expected: list[float]) -> None:
    torch.testing.assert_close(quantity(name)(LOGITS, TARGETS), torch.tensor(expected, dtype=torch.float64))


def test_contrastive_logit_is_the_log_odds_of_softmax() -> None:
    outputs, targets = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 6, 3, 2, 2])
    torch.testing.assert_close(
        quantity("contrastive_logit")(outputs, targets), torch.logit(quantity("softmax")(outputs, targets))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_far_logits_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    for index in range(3):
        value = quantity(name)(outputs, torch.tensor([index, index]))
        assert value.dtype == dtype
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), outputs)
        assert gradient.isfinite().all()


def test_values_of_far_logits() -> None:
    outputs = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    first, second = torch.tensor([0]), torch.tensor([1])
    assert [quantity("softmax")(outputs, t).item() for t in (first, second)] == [1.0, 0.0]
    assert [quantity("log_probability")(outputs, t).item() for t in (first, second)] == [0.0, -2e4]
    assert [quantity("log_sigmoid")(outputs, t).item() for t in (first, second)] == [0.0, -1e4]
    assert [quantity("contrastive_logit")(outputs, t).item() for t in (first, second)] == [2e4, -2e4]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_finite_differences(name: str) -> None:
    outputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, 0, 1])
    assert torch.autograd.gradcheck(lambda o: quantity(name)(o, targets), (outputs,))
    assert torch.autograd.gradgradcheck(lambda o: quantity(name)(o, targets), (outputs,))


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_each_other(name: str) -> None:
    outputs, targets = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    together = quantity(name)(outputs, targets)
    for row in range(4):
        torch.testing.assert_close(quantity(name)(outputs[row : row + 1], targets[row : row + 1])[0], together[row])
    assert quantity(name)(outputs[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("name", ["sigmoid", "logit", "log_sigmoid"])
def test_one_class_is_enough_without_comparison(name: str) -> None:
    assert quantity(name)(torch.zeros(2, 1), torch.tensor([0, 0])).shape == (2,)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "message"),
    [
        ("softmax", torch.zeros(2, 1), [0, 0], r"softmax compares classes.*\(2, 1\).*'sigmoid'"),
        ("contrastive_logit", torch.zeros(2, 1), [0, 0], r"contrastive_logit compares"),
        ("log_probability", torch.zeros(2, 1), [0, 0], r"log_probability compares"),
        ("logit", torch.zeros(2), [0, 0], r"\(B, classes\), got torch.float32 \(2,\)"),
        ("softmax", torch.zeros(2, 3, 4), [0, 0], r"\(2, 3, 4\)"),
        ("logit", torch.zeros(2, 3, dtype=torch.long), [0, 0], r"torch.int64 \(2, 3\)"),
        ("sigmoid", torch.zeros(2, 3), [0], r"targets must be int64 of shape \(2,\), got torch.int64 \(1,\)"),
        ("sigmoid", torch.zeros(2, 3), [0.0, 1.0], r"got torch.float32"),
        ("logit", torch.zeros(2, 3), [0, 3], r"target 3 does not exist.*3 classes, 0 to 2"),
        ("logit", torch.zeros(2, 3), [-1, 0], r"target -1 does not exist"),
    ],
)
def test_errors(name: str, outputs: torch.Tensor, targets: list[float], message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        quantity(name)(outputs, torch.tensor(targets))


def test_unknown_names() -> None:
    with pytest.raises(LearnpropError, match=r"'probability'; say which one, 'softmax' or 'sigmoid'"):
        quantity("probability")
    with pytest.raises(LearnpropError, match=r"'margin'; choose one of softmax, sigmoid, logit"):
        quantity("margin")
