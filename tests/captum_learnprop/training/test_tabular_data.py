"""Rules learned on tables ``(N, F)``: features are deleted at random, filled from their range, and never smoothed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.occlusion import generator_of, measure_drops
from captum_learnprop.training.quantities import logit
from captum_learnprop.training.regions import REGION_SIDES, random_features, random_regions

COMPOSITES = ("learned_gradient", "learned_guided_backprop", "learned_epsilon_gamma_box", "learned_deeplift")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def table(count: int = 24) -> Tensor:
    return torch.randn(count, 20, generator=torch.Generator().manual_seed(1))


def fit(model: nn.Module | None = None, data: Any = None, fitting: dict[str, Any] | None = None, **options: Any) -> Any:
    options = {"gate": "channel", "steps": 2, "deletions": 8, **options}
    trainer = cl.RuleTrainer(net() if model is None else model, **options)
    return trainer.fit(table() if data is None else data, **(fitting or {}))


# -- deletions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 2, 5, 200])
def test_regions_are_random_shares_of_the_features(features: int) -> None:
    regions = random_features(400, features, torch.Generator().manual_seed(0))
    assert regions.shape == (400, features)
    assert regions.dtype == torch.bool
    sizes = regions.sum(1)
    assert 0 <= sizes.min() - max(1, round(REGION_SIDES[0] * features)) <= 1
    assert sizes.max() <= max(1, round(REGION_SIDES[1] * features))
    often = regions.float().mean(0)
    assert (often - often.mean()).abs().max() < 0.1  # each feature alike
    if features > 2:
        assert not torch.equal(regions.float().argmax(1), regions.float().argmax(1).sort().values)


def test_drops_of_a_linear_model_are_known() -> None:
    weights, row = torch.randn(3, 6), torch.randn(6)
    regions = random_regions(row, 10, generator_of(0, 0))
    fills = torch.full((10, 6), 0.25)
    drops = measure_drops(lambda x: x @ weights.T, row, torch.tensor([2]), regions, fills, logit)
    torch.testing.assert_close(drops, ((row - 0.25) * weights[2] * regions).sum(1)[None])


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("gate", ["feature", "channel", "quadrant"])
def test_rules_are_trained_saved_loaded_and_give_maps(composite: str, gate: str, tmp_path: Path) -> None:
    model, x = net(), table(3)
    rules = fit(model, composite=composite, gate=gate)
    maps = cl.LearnedPropagation(model, rules=rules).maps(x, 1)
    assert maps.shape == (3, 20)
    attribution = cl.LearnedPropagation(model, rules=rules).attribute(x, 1)
    signed = rules.training["sign"] == "signed"
    torch.testing.assert_close(maps, attribution if signed else attribution.abs())
    rules.save(tmp_path / "rules.safetensors", model)
    again = zr.RuleSet.load(tmp_path / "rules.safetensors", model)
    torch.testing.assert_close(cl.LearnedPropagation(model, rules=again).maps(x, 1), maps)
    refined = cl.LearnedPropagation(model, rules=rules).attribute(x, 1, n_steps=2)
    assert refined.shape == x.shape


def test_the_held_out_loss_falls() -> None:
    trainer = cl.RuleTrainer(net(), gate="quadrant", steps=30, deletions=16, validate_every=10, lr=0.05)
    trainer.fit(table(60))
    losses = [row["validation loss"] for row in trainer.log if "validation loss" in row]
    assert min(losses) < losses[0] - 0.005


@pytest.mark.parametrize("form", ["pair", "dataset", "loader"])
def test_forms_of_data(form: str) -> None:
    x, labels = table(), torch.arange(24) % 3
    pairs = TensorDataset(x, labels)
    data = {"pair": (x, labels), "dataset": pairs, "loader": DataLoader(pairs, batch_size=5)}[form]
    first, other = fit(data=data, fitting={"targets": "labels"}), fit(data=(x, labels), fitting={"targets": "labels"})
    for a, b in zip(first.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_neither_chunks_nor_a_stop_change_the_result(tmp_path: Path) -> None:
    whole, cut = fit(), fit(internal_batch_size=3)
    files = fit(fitting={"examples_dir": tmp_path})
    assert list(tmp_path.rglob("*.safetensors"))
    for other in (cut, files, fit(fitting={"examples_dir": tmp_path})):
        for a, b in zip(whole.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


OBJECTIVES: dict[str, Any] = {
    "sufficiency": cl.Sufficiency(),
    "necessity": cl.Necessity(exclude=("blur",)),
    "smoothed mask": cl.Sufficiency(mask=cl.AreaMask(0.2, sigma=0.1)),
    "area": cl.OcclusionRegression() + 0.1 * cl.Area(),
    "class contrast": cl.OcclusionRegression() + 0.1 * cl.ClassContrast(),
    "randomization": cl.OcclusionRegression() + 0.1 * cl.RandomizationContrast(),
    "agreement": cl.Agreement(baseline="noise"),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_objectives(objective: Any) -> None:
    assert all(parameter.isfinite().all() for parameter in fit(objective=objective).parameters())


def test_masks_of_features_are_not_smoothed() -> None:
    plain, smoothed = (fit(objective=cl.Sufficiency(mask=cl.AreaMask(0.2, sigma=sigma))) for sigma in (0.0, 0.3))
    for a, b in zip(plain.parameters(), smoothed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_makes_no_sense_for_tables_is_refused() -> None:
    with pytest.raises(LearnpropError, match="TotalVariation compares neighbours"):
        fit(objective=cl.OcclusionRegression() + cl.TotalVariation())
    with pytest.raises(LearnpropError, match="'blur' needs neighbours"):
        fit(objective=cl.Sufficiency(exclude=()))
    with pytest.raises(zr.RuleError, match=r"fusion needs one input \(B, C, \*spatial\)"):
        fit(fusion=True)
    with pytest.raises(cl.LearnpropError, match="choose 'feature', 'quadrant' or 'channel'"):
        fit(gate="position")


def test_sequences_are_images_of_one_dimension() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    x = torch.randn(12, 3, 12)
    assert cl.LearnedPropagation(model, rules=fit(model, x)).maps(x[:2], 0).shape == (2, 12)
