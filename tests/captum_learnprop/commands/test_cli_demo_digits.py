"""``learnprop demo --digits``, reduced: what it prints and writes, and that learning moves maps towards the truth."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result

from captum_learnprop import files
from captum_learnprop.benchmark.comparison import Method, Treatment, choose_treatment, measure, paired_difference
from captum_learnprop.cli import cli
from captum_learnprop.commands import _demonstration_digits, demo
from captum_learnprop.commands._threads import threads
from captum_learnprop.evaluation import deletion
from captum_learnprop.scenes import digits_net, make_scenes


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One small run for all tests of its outcome."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    patch = pytest.MonkeyPatch()
    patch.setattr(_demonstration_digits, "TRAINING_SCENES", 6)
    patch.setattr(_demonstration_digits, "VALIDATION_SCENES", 2)
    patch.setattr(_demonstration_digits, "DELETIONS", 24)
    arguments = ["--digits", "--out", str(out), "--scenes", "3", "--steps", "12", "--sample-steps", "2"]
    result = CliRunner().invoke(demo.command, arguments, catch_exceptions=False)
    patch.undo()
    return result, out


def test_prints_a_row_per_method_and_what_was_learned(reduced: tuple[Result, Path]) -> None:
    result, _ = reduced
    assert result.exit_code == 0
    for name in ("saliency", "guided backprop", "integrated gradients", "learned per sample", "shared rules, learned"):
        assert f"\n{name} " in result.stdout
    assert "6 questions about 3 test scenes" in result.stdout
    assert "parameters learned in" in result.stdout


def test_writes_four_whole_files(reduced: tuple[Result, Path]) -> None:
    _, out = reduced
    assert sorted(path.name for path in out.iterdir()) == [
        "figure.png", "results.json", "rules.safetensors", "table.csv",
    ]  # fmt: skip
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "table.csv").open()))
    document = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in rows] == [row["method"] for row in document["table"]]
    for row in rows:
        values = document["scores"][row["method"]]["average precision"]
        assert len(values) == 6
        assert float(row["average precision"]) == pytest.approx(sum(values) / 6)
        assert 0 < float(row["average precision"]) <= 1
        assert float(row["seconds per image"]) > 0


def test_a_dozen_steps_already_beat_their_start(reduced: tuple[Result, Path]) -> None:
    scores = json.loads((reduced[1] / "results.json").read_text())["scores"]
    learned, start = (
        torch.tensor(scores[name]["average precision"])
        for name in (_demonstration_digits.SHARED, _demonstration_digits.UNTRAINED)
    )
    assert learned.mean() > start.mean() + 0.02


def test_the_saved_rules_give_the_maps_of_the_table(reduced: tuple[Result, Path]) -> None:
    from captum_learnprop.attribution.rules.learned import LearnedPropagation
    from captum_learnprop.evaluation import average_precision

    out = reduced[1]
    document = json.loads((out / "results.json").read_text())
    questions = make_scenes("pairs", 3, split="test", seed=0).questions()
    row = next(row for row in document["table"] if row["method"] == _demonstration_digits.SHARED)
    sign, sigma = row["treatment"].split(", sigma ")
    method = LearnedPropagation(digits_net.load(), rules=out / "rules.safetensors")
    maps = Treatment(sign, float(sigma))(method.attribute(questions.images, questions.targets))
    expected = torch.tensor(document["scores"][_demonstration_digits.SHARED]["average precision"], dtype=torch.float64)
    torch.testing.assert_close(average_precision(maps, questions.masks), expected, atol=1e-4, rtol=0)


def test_a_treatment_is_chosen_for_the_method_and_never_on_test_scenes() -> None:
    questions = make_scenes("pairs", 3, split="validation").questions()
    truth = questions.masks.float()[:, None].expand(-1, 3, -1, -1)
    signed = Method("negative background", lambda images, targets: 2 * truth - 1.5)
    assert choose_treatment(signed, questions).sign == "positive"
    noisy = truth + 0.8 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    assert choose_treatment(Method("noisy", lambda images, targets: noisy), questions).sigma >= 1.0


def test_measured_scores_of_the_truth_and_paired_differences() -> None:
    questions = make_scenes("pairs", 3, split="validation").questions()
    model = digits_net.load()
    exact = Method("truth", lambda images, targets: questions.masks.float()[:, None])
    wrong = Method("other", lambda images, targets: questions.other_masks.float()[:, None])
    plain = Treatment(sigma=0.0)
    truth, other = (measure(method, model, questions, plain, deletion_steps=4) for method in (exact, wrong))
    assert truth.mean("average precision") == 1.0
    assert (truth.mean("class AUC"), other.mean("class AUC")) == (1.0, 0.0)
    options = {"steps": 4, "output": "sigmoid", "baseline": "blur"}
    expected = deletion(model, questions.images, truth.maps, questions.targets, **options)
    assert torch.equal(truth.scores["deletion"], expected)
    assert paired_difference(truth, other, "class AUC") == (1.0, 0.0)


def test_wrong_options_end_with_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(demo.command, ["--digits", "--scenes", "0", "--out", str(tmp_path)])
    assert result.exit_code == 2
    file = tmp_path / "file"
    file.write_text("kept")
    result = CliRunner().invoke(demo.command, ["--digits", "--out", str(file)])
    assert result.exit_code == 2
    assert file.read_text() == "kept"


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    names = ["figure.png", "table.csv", "results.json", "rules.safetensors"]

    def save(path: Path, model: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(number: int) -> None:
        if len(list(tmp_path.glob("out/[!.]*"))) == taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(_demonstration_digits, "learn", lambda *_: (SimpleNamespace(training={}, save=save), {}))
    for name in ("methods", "table"):
        monkeypatch.setattr(_demonstration_digits, name, lambda *_: [])
    for name in ("format_table", "summary"):
        monkeypatch.setattr(_demonstration_digits, name, lambda *_: "")
    for name in ("draw", "write_csv", "write_json"):
        monkeypatch.setattr(_demonstration_digits, name, lambda *given: files.write_text(given[-1], "whole"))
    result = CliRunner().invoke(cli, ["demo", "--digits", "--out", str(tmp_path / "out"), "--scenes", "1"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot write {tmp_path / 'out' / names[taken]}: ")
    assert "No space left on device; make room, or name another --out, and run again" in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names[:taken])


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(cli, ["demo", "--digits", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "demo is one of 2 processes (WORLD_SIZE=2)" in result.stderr


def test_a_place_that_cannot_be_written_to_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    result = CliRunner().invoke(cli, ["demo", "--digits", "--out", str(tmp_path / "a" / "b")])
    assert result.exit_code == 1
    assert "is a file; name a folder" in result.stderr
