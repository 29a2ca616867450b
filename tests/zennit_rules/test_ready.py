"""Rule sets that ship with the package: their names, their nets, their size; and half precision on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import zennit_rules as zr
from captum_learnprop import LearnedPropagation
from captum_learnprop.models import load_model

NAMES = ("efficientnet_lite0/gates", "efficientnet_lite0/lrp")


@pytest.fixture(scope="module")
def lite() -> nn.Module:
    return load_model("efficientnet_lite:0")


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()


@pytest.fixture
def rules(net: nn.Module) -> zr.RuleSet:
    rules = zr.RuleSet.build(net, torch.rand(2, 3, 8, 8), gate="feature")
    with torch.no_grad():
        for parameter in rules.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return rules


class TestByName:
    def test_all_are_listed(self) -> None:
        assert zr.ready_rules() == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_each_fits_its_net_and_gives_maps(self, lite: nn.Module, name: str) -> None:
        rules = zr.RuleSet.load(name, lite)
        assert {parameter.dtype for parameter in rules.parameters()} == {torch.float32}
        assert rules.coverage().share == 1.0
        assert rules.training["best_step"] > 0  # it was trained, and validation found it better than its start
        assert rules.training["validation_loss"] < rules.training["start_validation_loss"]
        image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        maps = LearnedPropagation(lite, rules=name).maps(image, 285)
        assert maps.shape == (1, 64, 64)
        assert bool(maps.isfinite().all())
        assert bool(maps.any())

    @pytest.mark.parametrize("name", NAMES)
    def test_the_model_can_come_later(self, lite: nn.Module, name: str) -> None:
        zr.RuleSet.load(name).check_model(lite, check_weights=True)

    def test_other_weights_and_other_nets_are_refused(self, net: nn.Module) -> None:
        other = load_model("efficientnet_lite:0")
        with torch.no_grad():
            next(other.parameters()).mul_(1.01)
        with pytest.raises(zr.RuleError, match="with other weights"):
            zr.RuleSet.load(NAMES[0], other)
        zr.RuleSet.load(NAMES[0], other, check_weights=False)
        with pytest.raises(zr.RuleError, match="belongs to another model"):
            zr.RuleSet.load(NAMES[0], net)

    def test_a_file_of_that_path_comes_first(
        self, rules: zr.RuleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "efficientnet_lite0").mkdir()
        rules.save(NAMES[0])
        assert len(zr.RuleSet.load(NAMES[0]).sites) == len(rules.sites)

    def test_an_unknown_name_lists_the_known_ones(self) -> None:
        with pytest.raises(zr.RuleError) as told:
            zr.RuleSet.load("efficientnet_lite0/gate")
        assert "none of that name ships with the package; ready ones: " + ", ".join(NAMES) in str(told.value)
        assert "; did you mean 'efficientnet_lite0/gates'" in str(told.value)

    @pytest.mark.parametrize("path", ["missing.safetensors", "folder/missing.safetensors", "/no/such/rules"])
    def test_a_missing_file_is_none_of_them(self, path: str) -> None:
        with pytest.raises(zr.RuleError, match=f"^no rule set at {path}$"):
            zr.RuleSet.load(path)

    def test_they_are_composites_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from zennit.composites import COMPOSITES

        zr.register_trained("ready_lrp", NAMES[1])
        assert COMPOSITES.pop("ready_lrp").default_rules.training["model"] == "efficientnet_lite:0"

    def test_they_are_small(self) -> None:
        sizes = {name: (zr.ready.FOLDER / f"{name}.safetensors").stat().st_size for name in NAMES}
        assert all(size < 400_000 for size in sizes.values()), sizes


class TestHalfPrecision:
    def test_the_file_is_half_as_large_and_read_as_float32(self, rules: zr.RuleSet, tmp_path: Path) -> None:
        full = rules.save(tmp_path / "full.safetensors").stat().st_size
        half = rules.save(tmp_path / "half.safetensors", dtype=torch.float16)
        values = sum(parameter.numel() for parameter in rules.parameters())
        assert full - half.stat().st_size == pytest.approx(2 * values, abs=64)
        for read, kept in zip(zr.RuleSet.load(half).parameters(), rules.parameters(), strict=True):
            assert read.dtype is torch.float32
            torch.testing.assert_close(read, kept, rtol=1e-3, atol=1e-6)

    def test_values_that_overflow_are_refused(self, rules: zr.RuleSet, tmp_path: Path) -> None:
        with torch.no_grad():
            rules.parameters()[0].fill_(1e6)
        with pytest.raises(zr.RuleError, match="infinite"):
            rules.save(tmp_path / "half.safetensors", dtype=torch.float16)
        assert not list(tmp_path.iterdir())
