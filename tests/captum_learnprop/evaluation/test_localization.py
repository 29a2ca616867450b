"""Localisation scores against scikit-learn and against their definitions."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.localization import (
    average_precision,
    class_auc,
    grid_pointing,
    pointing_game,
    relevance_mass,
    relevance_rank_accuracy,
)


def case(levels: int | None, seed: int = 0, batch: int = 6, side: int = 9) -> tuple[torch.Tensor, ...]:
    """Random maps (with ties where ``levels`` is given) and two disjoint masks."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, side, side, generator=generator)
    if levels:
        maps = (maps * levels / 2).round()
    kind = torch.randint(0, 3, (batch, side, side), generator=generator)
    return maps, kind == 0, kind == 1


@pytest.mark.parametrize("levels", [None, 8, 2], ids=["distinct", "some ties", "many ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_average_precision_is_sklearns(levels: int | None, dtype: torch.dtype) -> None:
    maps, masks, _ = case(levels)
    expected = [
        average_precision_score(mask.flatten().numpy(), one.flatten().numpy())
        for one, mask in zip(maps, masks, strict=True)
    ]
    np.testing.assert_allclose(average_precision(maps.to(dtype), masks).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("levels", [None, 8, 2], ids=["distinct", "some ties", "many ties"])
def test_class_auc_is_sklearns_over_the_two_objects(levels: int | None) -> None:
    maps, masks, others = case(levels)
    expected = []
    for one, mask, other in zip(maps, masks, others, strict=True):
        used = mask | other
        expected.append(roc_auc_score(mask[used].numpy(), one[used].numpy()))
    np.testing.assert_allclose(class_auc(maps, masks, others).numpy(), expected, atol=1e-12)


def test_constant_maps_score_what_chance_scores() -> None:
    _, masks, others = case(None)
    maps = torch.full(masks.shape, 3.0)
    share = masks.flatten(1).double().mean(1)
    torch.testing.assert_close(average_precision(maps, masks), share)
    torch.testing.assert_close(pointing_game(maps, masks), share)
    torch.testing.assert_close(relevance_mass(maps, masks), share)
    torch.testing.assert_close(relevance_rank_accuracy(maps, masks), share)
    torch.testing.assert_close(class_auc(maps, masks, others), torch.full_like(share, 0.5))


@pytest.mark.parametrize("score", [average_precision, pointing_game, relevance_mass, relevance_rank_accuracy])
def test_the_mask_itself_is_perfect_and_a_channel_axis_is_allowed(score) -> None:  # type: ignore[no-untyped-def]
    _, masks, _ = case(None)
    ones = torch.ones(len(masks), dtype=torch.float64)
    torch.testing.assert_close(score(masks.float(), masks), ones)
    torch.testing.assert_close(score(masks.float()[:, None], masks[:, None]), ones)


def test_class_auc_of_the_mask_and_of_its_opposite() -> None:
    _, masks, others = case(None)
    assert class_auc(masks.float(), masks, others).eq(1.0).all()
    assert class_auc(others.float(), masks, others).eq(0.0).all()


def test_pointing_game_within_a_tolerance() -> None:
    maps = torch.zeros(1, 9, 9)
    maps[0, 4, 7] = 1.0
    masks = torch.zeros(1, 9, 9, dtype=torch.bool)
    masks[0, 4, 4] = True
    assert [pointing_game(maps, masks, tolerance=pixels).item() for pixels in (0, 2, 3)] == [0.0, 0.0, 1.0]
    diagonal = torch.zeros(1, 9, 9)
    diagonal[0, 6, 6] = 1.0  # at distance 2.83: the ball is round, not square
    assert [pointing_game(diagonal, masks, tolerance=pixels).item() for pixels in (2, 3)] == [0.0, 1.0]


def test_relevance_mass_ignores_negative_values_and_survives_tiny_ones() -> None:
    maps = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]])
    masks = torch.tensor([[[True, False], [True, False]]])
    for scale in (1.0, 1e-30):
        assert relevance_mass(maps * scale, masks).item() == pytest.approx(0.75)
    assert relevance_mass(-maps.abs(), masks).item() == 0.0


def test_a_map_does_not_depend_on_its_batch() -> None:
    maps, masks, others = case(8)
    for index in range(len(maps)):
        one = slice(index, index + 1)
        assert average_precision(maps[one], masks[one]) == average_precision(maps, masks)[one]
        assert class_auc(maps[one], masks[one], others[one]) == class_auc(maps, masks, others)[one]


def test_what_cannot_be_scored_is_refused() -> None:
    maps, masks, others = case(None)
    broken = maps.clone()
    broken[2, 0, 0] = float("nan")
    with pytest.raises(LearnpropError, match="map 2 has NaN"):
        average_precision(broken, masks)
    with pytest.raises(LearnpropError, match="differ in shape"):
        average_precision(maps[:, 1:], masks)
    with pytest.raises(LearnpropError, match="sum colour channels"):
        average_precision(maps[:, None].expand(-1, 3, -1, -1), masks[:, None].expand(-1, 3, -1, -1))
    with pytest.raises(LearnpropError, match="bool"):
        average_precision(maps, masks.float())
    with pytest.raises(LearnpropError, match=r"masks\[0\] has no pixel"):
        pointing_game(maps, torch.zeros_like(masks))
    with pytest.raises(LearnpropError, match="share pixels"):
        class_auc(maps, masks, masks | others)
    with pytest.raises(LearnpropError, match="tolerance"):
        pointing_game(maps, masks, tolerance=-1)
    with pytest.raises(LearnpropError, match="has no pixel"):
        relevance_rank_accuracy(maps, torch.zeros_like(masks))


@pytest.mark.parametrize("levels", [None, 8, 2], ids=["distinct", "some ties", "many ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_accuracy_is_that_of_numpy_over_random_orders_of_ties(levels: int | None, dtype: torch.dtype) -> None:
    maps, masks, _ = case(levels)
    draws = np.random.default_rng(0)
    expected = []
    for one, mask in zip(maps.flatten(1).numpy(), masks.flatten(1).numpy(), strict=True):
        size, scores = mask.sum(), []
        for _ in range(4000 if levels else 1):
            order = np.lexsort((draws.random(len(one)), -one))
            scores.append(mask[order[:size]].mean())
        expected.append(np.mean(scores))
    found = relevance_rank_accuracy(maps.to(dtype), masks).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3 if levels else 1e-12)


def test_rank_accuracy_under_ties_is_the_mean_over_all_orders() -> None:
    values = [2.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    inside = [False, True, True, False, True, False]
    scores = []
    for order in permutations(range(6)):
        ranked = sorted(order, key=lambda i: -values[i])
        scores.append(sum(inside[i] for i in ranked[:3]) / 3)
    found = relevance_rank_accuracy(torch.tensor(values).reshape(1, 2, 3), torch.tensor(inside).reshape(1, 2, 3))
    assert found.item() == pytest.approx(np.mean(scores), abs=1e-12)


@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grid_pointing_is_that_of_loops(grid: int, dtype: torch.dtype) -> None:
    maps = torch.randn(9, 6, 12, dtype=dtype)
    cells = torch.arange(9) % grid**2
    expected = []
    for one, cell in zip(maps.numpy(), cells.tolist(), strict=True):
        height, width = 6 // grid, 12 // grid
        top, left = cell // grid * height, cell % grid * width
        positive = np.maximum(one, 0)
        expected.append(positive[top : top + height, left : left + width].sum() / positive.sum())
    np.testing.assert_allclose(grid_pointing(maps, cells, grid).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(grid_pointing(maps[:, None] * 1e-30, cells, grid).numpy(), expected, rtol=1e-5)


def test_grid_pointing_of_the_cell_of_constants_and_of_nothing_positive() -> None:
    cells = torch.arange(4)
    own = torch.zeros(4, 4, 4)
    for index in range(4):
        own[index, index // 2 * 2 :, index % 2 * 2 :][:2, :2] = 0.1
    assert grid_pointing(own, cells).eq(1.0).all()
    assert grid_pointing(-own, cells).eq(0.0).all()
    assert grid_pointing(torch.ones(4, 4, 4), cells).eq(0.25).all()
    assert grid_pointing(torch.zeros(4, 4, 4), cells).eq(0.0).all()


@pytest.mark.parametrize("score", [average_precision, pointing_game, relevance_mass, relevance_rank_accuracy])
def test_layout_and_batch_do_not_matter(score) -> None:  # type: ignore[no-untyped-def]
    maps, masks, _ = case(8)
    strided = maps.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert torch.equal(score(strided, masks), score(maps, masks))
    assert torch.equal(
        torch.cat([score(maps[i : i + 1], masks[i : i + 1]) for i in range(len(maps))]), score(maps, masks)
    )


def test_mosaics_that_cannot_be_scored_are_refused() -> None:
    maps, cells = torch.rand(2, 4, 4), torch.tensor([0, 1])
    with pytest.raises(LearnpropError, match="cannot be cut into 3 x 3"):
        grid_pointing(maps, cells, 3)
    with pytest.raises(LearnpropError, match="cannot be cut into 2 x 2"):
        grid_pointing(maps[0], cells)
    with pytest.raises(LearnpropError, match="cells must be int64"):
        grid_pointing(maps, cells.float())
    with pytest.raises(LearnpropError, match="cells must be 0 to 3"):
        grid_pointing(maps, cells + 3)
    with pytest.raises(LearnpropError, match="sum colour channels"):
        grid_pointing(maps[:, None].expand(-1, 3, -1, -1), cells)
