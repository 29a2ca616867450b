"""Localisation scores against scikit-learn and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from captum_learnprop.evaluation.localization import (
    MapError,
    average_precision,
    class_auc,
    pointing_game,
    relevance_mass,
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
    torch.testing.assert_close(class_auc(maps, masks, others), torch.full_like(share, 0.5))


@pytest.mark.parametrize("score", [average_precision, pointing_game, relevance_mass])
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
    with pytest.raises(MapError, match="map 2 has NaN"):
        average_precision(broken, masks)
    with pytest.raises(MapError, match="differ in shape"):
        average_precision(maps[:, 1:], masks)
    with pytest.raises(MapError, match="sum colour channels"):
        average_precision(maps[:, None].expand(-1, 3, -1, -1), masks[:, None].expand(-1, 3, -1, -1))
    with pytest.raises(MapError, match="bool"):
        average_precision(maps, masks.float())
    with pytest.raises(MapError, match=r"masks\[0\] has no pixel"):
        pointing_game(maps, torch.zeros_like(masks))
    with pytest.raises(MapError, match="share pixels"):
        class_auc(maps, masks, masks | others)
    with pytest.raises(MapError, match="tolerance"):
        pointing_game(maps, masks, tolerance=-1)
