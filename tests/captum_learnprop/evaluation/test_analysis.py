from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import zennit_rules as zr
from captum_learnprop import files
from captum_learnprop.cli import cli
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.analysis import Analysis, RuleReport, analyse, verdicts
from captum_learnprop.evaluation.backward_rules import backward_rule
from captum_learnprop.plot import alignment_curves
from captum_learnprop.scenes import make_scenes, reference_nets


def report(**values: float) -> RuleReport:
    given = {"full": 0.0, "full_absolute": 0.0, "redraws": 0.0, "classes": 0.0, "alignment": 0.0, **values}
    layers = {name: {"first": given.pop(name), "second": 1.0} for name in ("classes", "alignment")}
    return RuleReport(
        rule="some rule", alignment_raw={}, convergence={}, passed_positive={}, passed_negative={}, cascading={},
        verdicts={}, **layers, **given,
    )  # fmt: skip


class TestVerdicts:
    """Numbers in plain words."""

    @pytest.mark.parametrize(
        ("values", "key", "words"),
        [
            ({"full": 0.1}, "weights", "it depends on them"),
            ({"full": 0.3}, "weights", "in part"),
            ({"full": 0.01, "full_absolute": 0.3}, "weights", "in part"),
            ({"full": 0.7}, "weights", "hardly"),
            ({"full": math.nan}, "weights", "nothing can be compared"),
            ({"classes": 0.2}, "class", "has another map"),
            ({"classes": 0.7}, "class", "in part the same"),
            ({"classes": 0.95}, "class", "next to nothing"),
            ({"alignment": 0.1}, "input", "does not redraw it"),
            ({"alignment": 0.4}, "input", "redraws it in part"),
            ({"redraws": 0.4, "full": 0.8}, "input", "may be the input alone"),
        ],
    )
    def test_words(self, values: dict[str, float], key: str, words: str) -> None:
        assert words in verdicts(report(**values))[key]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    model = reference_nets.load("vgg", "digits")
    x = make_scenes("pairs", 4, split="test", seed=3).images
    with torch.no_grad():
        targets = model(x).argmax(1)
    rules = [backward_rule(name, model, x) for name in ("gradient", "guided_backprop")]
    return analyse(model, rules, x, targets, name="digits", internal_batch_size=3)


class TestAnalysis:
    """The shipped digit classifier, two rules."""

    def test_guided_backprop_redraws_more_than_the_gradient(self, analysis: Analysis) -> None:
        gradient, guided = analysis.reports
        assert abs(gradient.full) < 0.15 < guided.full
        assert next(iter(guided.alignment.values())) > next(iter(gradient.alignment.values())) + 0.1
        assert next(iter(guided.classes.values())) > next(iter(gradient.classes.values())) + 0.2
        assert max(guided.passed_negative.values()) == 0
        assert max(gradient.passed_negative.values()) > 0
        assert "depends on them" in gradient.verdicts["weights"]

    def test_layers_and_shares(self, analysis: Analysis) -> None:
        assert next(iter(analysis.retained)) == "features.0"
        assert all(0 < value <= 1 for value in analysis.retained.values())
        assert list(analysis.reports[0].alignment) == list(analysis.retained)

    def test_written_down(self, analysis: Analysis) -> None:
        again = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
        assert again["reports"][1]["rule"] == "guided_backprop"
        text = analysis.to_markdown()
        assert "| guided_backprop |" in text
        assert "* Weights: it depends on them" in text

    def test_figure(self, analysis: Analysis) -> None:
        figure = alignment_curves(analysis.reports)
        assert len(figure.axes) == 4
        assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3, 3]  # two rules and zero
        with pytest.raises(LearnpropError, match="at least one report"):
            alignment_curves([])

    def test_no_rule(self) -> None:
        with pytest.raises(LearnpropError, match="at least one rule"):
            analyse(nn.Linear(2, 2), [], torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


class TestCommand:
    """``learnprop analyse``."""

    def test_trained_rules_and_images_of_a_folder(self, tmp_path: Path) -> None:
        model = reference_nets.load("vgg", "digits")
        scenes = make_scenes("pairs", 3, split="test", seed=3)
        (tmp_path / "images").mkdir()
        for index, image in enumerate(scenes.images):
            pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        zr.RuleSet.build(model, scenes.images, gate="channel").save(tmp_path / "mine.safetensors")
        result = CliRunner().invoke(cli, [
            "analyse", "--model", "reference:vgg-digits", "--images", str(tmp_path / "images"), "--size", "64",
            "--rules", str(tmp_path / "mine.safetensors"), "--rules", "gradient", "--count", "2", "--threads", "1",
            "--out", str(tmp_path / "out"),
        ])  # fmt: skip
        assert result.exit_code == 0, result.output
        found = json.loads((tmp_path / "out" / "analysis.json").read_text())
        mine, gradient = found["reports"]
        assert (mine["rule"], gradient["rule"], found["images"]) == ("mine", "gradient", 2)
        assert mine["full"] == pytest.approx(gradient["full"], abs=1e-3)  # untrained gates are the gradient
        assert (tmp_path / "out" / "analysis.png").stat().st_size > 10_000
        assert "Weights:" in (tmp_path / "out" / "analysis.md").read_text()
        assert "mine\n  Weights:" in result.output

    def test_unknown_rule(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(cli, ["analyse", "--rules", "lime", "--count", "1", "--out", str(tmp_path)])
        assert result.exit_code == 1
        assert "neither a file nor one of gradient, deconvnet" in result.output

    def test_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        result = CliRunner().invoke(
            cli, ["analyse", "--images", str(tmp_path / "none"), "--size", "64", "--out", str(tmp_path / "out")]
        )
        assert result.exit_code == 1
        assert "Traceback" not in result.output

    def test_a_misspelled_rule(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(cli, ["analyse", "--rules", "gradeint", "--count", "1", "--out", str(tmp_path)])
        assert result.exit_code == 1
        assert result.stderr.endswith("; did you mean 'gradient'?\n")

    def test_several_processes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "4")
        result = CliRunner().invoke(cli, ["analyse", "--out", str(tmp_path)])
        assert result.exit_code == 2
        assert "analyse is one of 4 processes" in result.stderr

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analysis: Analysis) -> None:
        def fsync(number: int) -> None:
            if (tmp_path / "analysis.json").exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files.os, "fsync", fsync)
        monkeypatch.setattr("captum_learnprop.commands._analyse_rules.analyse", lambda *_, **__: analysis)
        result = CliRunner().invoke(cli, ["analyse", "--count", "1", "--rules", "gradient", "--out", str(tmp_path)])
        assert result.exit_code == 1
        assert result.stderr == (
            f"error: cannot write {tmp_path / 'analysis.md'}: No space left on device; 2 rules were analysed: make "
            "room, or name another --out, and run again\n"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["analysis.json"]

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "broken.png").write_text("no image")
        result = CliRunner().invoke(
            cli, ["analyse", "--images", str(tmp_path), "--size", "64", "--out", str(tmp_path / "out")]
        )
        assert result.exit_code == 1
        assert result.stderr.splitlines()[:2] == [
            "skipped pipe.png: is a pipe and no regular file",
            "skipped broken.png: cannot read image broken.png: cannot identify image file",
        ]
