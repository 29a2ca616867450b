"""``learnprop demo`` with fewer mosaics: its table, its figure, its ground truth, and what it says of mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from captum_learnprop.cli import cli
from captum_learnprop.commands import _demonstration_photographs, demo
from captum_learnprop.commands._demonstration_mosaics import make_mosaics, read_squares
from captum_learnprop.commands._demonstration_photographs import (
    CLASS_AUC,
    POINTING,
    SHARE,
    MosaicQuestions,
    best_treatment,
    scores_of,
)

SMALL = 32


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


@pytest.fixture
def questions() -> MosaicQuestions:
    """All four questions about each of two mosaics."""
    mosaics = make_mosaics(read_squares(), 2, size=SMALL, seed=0)
    return MosaicQuestions(
        mosaics.images.repeat_interleave(4, 0), mosaics.targets.flatten(), torch.arange(4).repeat(2),
        torch.arange(2).repeat_interleave(4),
    )  # fmt: skip


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


class TestMosaics:
    def test_the_first_ones_do_not_depend_on_how_many(self) -> None:
        squares = read_squares()
        few, many = (make_mosaics(squares, count, size=SMALL, seed=3) for count in (1, 3))
        assert torch.equal(few.images, many.images[:1])
        assert not torch.equal(make_mosaics(squares, 1, size=SMALL, seed=4).images, few.images)
        assert many.images.shape == (3, 3, SMALL, SMALL)
        assert 0 <= many.images.min() <= many.images.max() <= 1

    def test_each_quarter_shows_another_class(self) -> None:
        mosaics = make_mosaics(read_squares(), 3, size=SMALL, seed=0)
        assert [len(set(classes)) for classes in mosaics.targets.tolist()] == [4, 4, 4]
        grey = read_squares()[[s.target for s in read_squares()].index(872)]  # the one photograph without colour
        cells = mosaics.images[0].unfold(1, SMALL // 2, SMALL // 2).unfold(2, SMALL // 2, SMALL // 2)
        spread = cells.permute(1, 2, 0, 3, 4).flatten(0, 1).std(1).mean((1, 2))
        assert mosaics.targets[0, spread.argmin()] == grey.target


class TestScores:
    def test_the_truth_has_the_highest(self, questions: MosaicQuestions) -> None:
        scores = scores_of(questions.masks.double(), questions)
        assert all(bool((values == 1).all()) for values in scores.values())
        assert bool((questions.masks.flatten(1).sum(1) == SMALL * SMALL // 4).all())

    def test_the_quarter_across_has_the_lowest(self, questions: MosaicQuestions) -> None:
        scores = scores_of(questions.masks.flip(1, 2).double(), questions)
        assert all(bool((scores[name] == 0).all()) for name in (SHARE, POINTING))
        assert bool((scores[CLASS_AUC] < 0.5).all())

    def test_the_treatment_that_suits_is_found(self, questions: MosaicQuestions) -> None:
        truth = questions.masks.float()[:4, None].expand(-1, 3, -1, -1)  # all mosaics are asked in the same order

        def negative_elsewhere(images: Tensor, targets: Tensor) -> Tensor:
            return 2 * truth - 1.5

        assert best_treatment(negative_elsewhere, questions).sign in ("positive", "signed")


class TestMistakes:
    @pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "skimage"])
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
