"""Similarity of maps: values by hand, scale, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from captum_learnprop.training.map_similarity import COMPRESSIONS, SIMILARITIES, SOFT, compress

FIRST = torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 3.0, -1.0]], dtype=torch.float64)
SECOND = torch.tensor([[2.0, 0.0, 0.0, 2.0], [4.0, 0.0, 0.0, 4.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", [4 / math.sqrt(6 * 8), -4 / math.sqrt(10 * 32)]),
        ("overlap", [1 / 4 + 1 / 4, 0.0]),
        ("pearson", [0.0, (-0.5 * 2 + 0.5 * 2 - 2.5 * 2 - 1.5 * 2) / math.sqrt(9 * 16)]),
    ],
)
def test_values_by_hand(name: str, expected: list[float]) -> None:
    found = SIMILARITIES[name](FIRST, SECOND)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_scale_sign_of_the_order_and_zeros(name: str) -> None:
    first, second = torch.rand(3, 40), torch.rand(3, 40)
    alike = SIMILARITIES[name](first, second)
    torch.testing.assert_close(SIMILARITIES[name](second, first), alike)
    torch.testing.assert_close(SIMILARITIES[name](first * 1e-25, second * 1e25), alike)
    torch.testing.assert_close(SIMILARITIES[name](first, 3 * first), torch.ones(3))
    assert not SIMILARITIES[name](torch.zeros(3, 40), second).any()


@pytest.mark.parametrize("name", list(SIMILARITIES))
@pytest.mark.parametrize("power", list(COMPRESSIONS))
def test_gradients_by_finite_differences(name: str, power: str) -> None:
    first, second = (torch.randn(2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda a, b: SIMILARITIES[name](compress(a, power), compress(b, power)), (first, second)
    )
    zeros = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    value = SIMILARITIES[name](compress(zeros, power), second)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (zeros, second)))


def test_compression_by_hand() -> None:
    rows = torch.tensor([[2.0, -6.0, 0.0, 8.0]], dtype=torch.float64)  # mean absolute value 4
    ratio = [0.5, -1.5, 0.0, 2.0]
    torch.testing.assert_close(compress(rows, "none"), torch.tensor([ratio], dtype=torch.float64))
    root = [r / math.sqrt(abs(r) + SOFT) for r in ratio]
    torch.testing.assert_close(compress(rows, "sqrt"), torch.tensor([root], dtype=torch.float64))
    log = [math.copysign(math.log(1 + abs(r) / SOFT), r) for r in ratio]
    torch.testing.assert_close(compress(rows, "log"), torch.tensor([log], dtype=torch.float64))


@pytest.mark.parametrize("power", list(COMPRESSIONS))
def test_compression_keeps_order_and_forgets_scale(power: str) -> None:
    rows = torch.randn(2, 30, dtype=torch.float64)
    found = compress(rows, power)
    assert torch.equal(found.argsort(1), rows.argsort(1))
    torch.testing.assert_close(compress(rows * 1e-30, power), found)
    assert not compress(torch.zeros(1, 4), power).any()
