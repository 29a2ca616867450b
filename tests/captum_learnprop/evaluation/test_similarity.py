"""Rank correlation against scipy, structural similarity against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.similarity import SIMILARITIES, average_ranks, pearson, spearman, ssim


def case(levels: int | None, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of related maps, with ties where ``levels`` is given."""
    first = torch.randn(5, 2, 13, 14, dtype=dtype)
    second = first + torch.randn(5, 2, 13, 14, dtype=dtype)
    return ((first * levels).round(), (second * levels).round()) if levels else (first, second)


@pytest.mark.parametrize("levels", [None, 2, 1], ids=["distinct", "some ties", "many ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correlations_and_ranks_are_scipys(levels: int | None, dtype: torch.dtype) -> None:
    first, second = case(levels, dtype)
    pairs = list(zip(first.flatten(1).double().numpy(), second.flatten(1).double().numpy(), strict=True))
    np.testing.assert_array_equal(average_ranks(first).numpy(), [stats.rankdata(one) for one, _ in pairs])
    expected = [stats.spearmanr(one, other).statistic for one, other in pairs]
    np.testing.assert_allclose(spearman(first, second).numpy(), expected, atol=1e-12)
    expected = [stats.pearsonr(one, other).statistic for one, other in pairs]
    np.testing.assert_allclose(pearson(first, second).numpy(), expected, atol=1e-12)


def slow_ssim(a: np.ndarray, b: np.ndarray, value_range: float) -> float:
    """A loop over windows."""
    span = np.arange(11) - 5
    window = np.exp(-(span[:, None] ** 2 + span[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x, y = a[row : row + 11, column : column + 11], b[row : row + 11, column : column + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("given", [None, 2.5])
@pytest.mark.parametrize("levels", [None, 1])
def test_ssim_is_that_of_loops(given: float | None, levels: int | None) -> None:
    first, second = case(levels)
    expected = []
    for a, b in zip(first.numpy(), second.numpy(), strict=True):
        value_range = given or max(a.max(), b.max()) - min(a.min(), b.min())
        expected.append(np.mean([slow_ssim(*channel, value_range) for channel in zip(a, b, strict=True)]))
    np.testing.assert_allclose(ssim(first, second, data_range=given).numpy(), expected, atol=1e-12)
    if given:
        np.testing.assert_allclose(ssim(first, second, data_range=torch.full((5,), given)).numpy(), expected)


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_identity_symmetry_scale_layout_and_batch(name: str) -> None:
    similarity = SIMILARITIES[name]
    first, second = case(None)
    found = similarity(first, second)
    assert found.dtype == torch.float64
    torch.testing.assert_close(similarity(first, first), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(similarity(second, first), found)
    torch.testing.assert_close(similarity(first * 1e-200, second * 1e-200), found)
    strided = first.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(similarity(strided, second), found)
    singles = [similarity(first[i : i + 1], second[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(singles), found)


def test_correlations_of_opposites_and_of_constants() -> None:
    first, _ = case(None)
    torch.testing.assert_close(spearman(first, -first), -torch.ones(5, dtype=torch.float64))
    constant = torch.full_like(first, 0.1)
    for correlation in (spearman, pearson):
        assert correlation(first, constant).isnan().all()
        assert correlation(constant, constant).isnan().all()


def test_ssim_of_constants() -> None:
    constant = torch.full((1, 12, 12), 0.1)
    assert ssim(constant, constant).item() == pytest.approx(1.0)
    assert ssim(torch.zeros(1, 12, 12), torch.zeros(1, 12, 12)).item() == pytest.approx(1.0)
    assert 0 < ssim(constant, constant + 1).item() < 0.5


def test_what_cannot_be_compared_is_refused() -> None:
    first, second = case(None)
    for similarity in SIMILARITIES.values():
        with pytest.raises(LearnpropError, match="differ in shape"):
            similarity(first, second[:, :1])
        with pytest.raises(LearnpropError, match="map 0 has NaN"):
            similarity(first / 0, second)
    with pytest.raises(LearnpropError, match="not empty"):
        average_ranks(first[:0])
    with pytest.raises(LearnpropError, match="not empty"):
        spearman(first[0, 0, 0], second[0, 0, 0])
    with pytest.raises(LearnpropError, match="H, W >= 11"):
        ssim(first[..., :10], second[..., :10])
    for wrong in (0.0, -1.0, torch.ones(3)):
        with pytest.raises(LearnpropError, match="data_range must be"):
            ssim(first, second, data_range=wrong)
