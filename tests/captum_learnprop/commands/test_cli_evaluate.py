"""``learnprop evaluate``: what it writes, that it goes on and reports, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from fake_distributions import write_distribution
from torch import Tensor, nn

from captum_learnprop import files, plot
from captum_learnprop.benchmark.cost_figure import cost_figure
from captum_learnprop.benchmark.rule_families import RULE_FAMILIES
from captum_learnprop.benchmark.summary import Row, summarise
from captum_learnprop.cli import cli
from captum_learnprop.commands import _compare_methods, _suite_choices, evaluate
from captum_learnprop.plugins import get_manager
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.scenes import FAMILIES
from zennit_rules._compat import COMPOSITES


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 5, stride=4, padding=2)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.relu(self.first(x)).mean((2, 3)))
        return logits


def tiny(architecture: str, task: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(len(architecture) + len(task))
        return Tiny().eval()


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)], obj={"debug": False})


SMALL = (
    "--model", "vgg", "--model", "inception", "--scenes", "patch", "--scenes", "parts", "--questions", 3,
    "--training-scenes", 4, "--steps", 1, "--seeds", "0,1", "--method", "saliency", "--method", "intensity",
    "--method", "gates, learned", "--metric", "average precision", "--metric", "distractor AUC",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("evaluate") / "new"
    patch = pytest.MonkeyPatch()
    patch.setattr(reference_nets, "load", tiny)
    patch.setattr(sys, "argv", ["learnprop", "evaluate", *map(str, SMALL)])
    result = invoke(*SMALL, "--out", out)
    patch.undo()
    return result, out


def test_writes_results_table_and_figure(small: tuple[Result, Path]) -> None:
    result, out = small
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "cells", "examples", "figure.png", "report.html", "results.json", "rules", "table.md",
    ]  # fmt: skip
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((out / "results.json").read_text())
    assert set(document["multiply-adds with a rule of LRP"].values()) == {"100.0%"}
    assert [(row["model"], row["scenes"], row["method"]) for row in document["rows"][:4]] == [
        ("vgg", "patch", "saliency"), ("vgg", "patch", "intensity"), ("vgg", "patch", "gates, learned"),
        ("vgg", "parts", "saliency"),
    ]  # fmt: skip
    learned = document["rows"][2]["estimates"]["average precision"]
    assert (learned["samples"], learned["seeds"]) == (3, 2)
    assert learned["seed_spread"] is not None
    assert document["rows"][0]["estimates"]["average precision"]["seed_spread"] is None
    assert torch.__version__.startswith(document["versions"]["torch"])
    assert document["hardware"]["cores"] >= 1
    assert document["options"]["seeds"] == ["0", "1"]
    assert {one["reference"] for one in document["paired differences"]} == {
        "saliency", "best gradient or CAM", "best hand-made of its family",
    }  # fmt: skip
    assert {row["composite"] for row in document["rows"]} == {None, "learned_gradient"}
    text = (out / "table.md").read_text()
    assert "## inception, parts" in text
    assert "## Hand-made and trained members of each family" in text
    assert "| gradient | gates, learned minus best hand-made of its family | " in text
    assert "- command: learnprop evaluate --model vgg --model inception --scenes patch --scenes parts --q" in text
    (options,) = [line for line in text.splitlines() if line.startswith("- options: ")]
    assert "; seeds 0, 1; questions 3; seed 0; steps 1; training_scenes 4; " in options
    assert "threads 1; system" in text
    assert f"torch {document['versions']['torch']}" in text


def test_prints_the_mean_over_families_of_each_net(small: tuple[Result, Path]) -> None:
    result, out = small
    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").iterdir())]
    rows = [row for row in summarise(cells) if (row.model, row.method) == ("vgg", "saliency")]
    mean = sum(row.estimates["average precision"].mean for row in rows) / 2
    error = sum(row.estimates["average precision"].standard_error ** 2 for row in rows) ** 0.5 / 2
    line = next(line for line in result.stdout.splitlines() if line.startswith("saliency"))
    assert f"{mean:.3f} ± {error:.3f}" in line


def test_goes_on_and_reports_without_computing(small: tuple[Result, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out = small[1]
    cells = {path: path.read_bytes() for path in (out / "cells").iterdir()}
    tables = {name: (out / name).read_text().split("## How")[0] for name in ("table.md",)}
    monkeypatch.setattr(reference_nets, "load", tiny)
    assert invoke(*SMALL, "--out", out).exit_code == 0
    assert cells == {path: path.read_bytes() for path in (out / "cells").iterdir()}
    monkeypatch.setattr(reference_nets, "load", None)  # a report needs no net
    result = invoke(*SMALL, "--out", out, "--report-only")
    assert result.exit_code == 0, result.output
    assert tables == {name: (out / name).read_text().split("## How")[0] for name in tables}


def test_composites_decide_which_trained_rules_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_nets, "load", tiny)
    arguments = (
        "--model", "vgg", "--scenes", "pairs", "--questions", 2, "--training-scenes", 6, "--steps", 2, "--seeds", 0,
        "--method", "LRP epsilon plus", "--method", "LRP, untrained", "--method", "LRP, learned",
        "--method", "LRP gamma grid, 15 pairs", "--metric", "average precision", "--out", tmp_path,
    )  # fmt: skip
    result = invoke(*arguments, "--composite", "learned_deeplift", "--composite", "learned_gradient")
    assert result.exit_code == 1
    assert "unknown method 'LRP, untrained'" in result.output
    result = invoke(*arguments, "--composite", "lrp")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "table.md").read_text()
    families = text.split("## Hand-made and trained members of each family")[1].split("## vgg, pairs")[0]
    differences = [f"LRP, learned minus best {other}" for other in ("hand-made of its family", "gamma grid")]
    for member in ("LRP epsilon plus", "LRP gamma grid, 15 pairs", "LRP, untrained", "LRP, learned", *differences):
        assert f"\n| LRP | {member} | " in families
    assert (tmp_path / "rules" / "vgg_digits_lrp-gamma-grid-15-pairs_scenes0.json").is_file()


def test_a_given_rule_set_is_one_more_row(
    small: tuple[Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_nets, "load", tiny)
    rules = small[1] / "rules" / "vgg_patch_gates_scenes0_seed0.safetensors"
    arguments = (
        "--model",
        "vgg",
        "--scenes",
        "patch",
        "--questions",
        2,
        "--method",
        "random",
        "--metric",
        "rank accuracy",
    )
    result = invoke(*arguments, "--rules", rules, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "table.md").read_text()
    assert f"| rules {rules.stem} |" in text
    assert not (tmp_path / "figure.png").exists()  # no average precision was asked for


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ("--model", "alexnet"),
            1,
            "unknown model 'alexnet'; choose one of vgg, resnet, inception, FILE.py:FUNCTION, ",
        ),
        (("--scenes", "dogs"), 2, "dogs"),
        (("--composite", "learned"), 2, "'learned' is not one of 'learned_gradient'"),
        (("--seeds", "0,x"), 2, "not a list of whole numbers such as 0,1,2"),
        (("--seeds", "-1"), 2, "negative"),
        (("--method", "saliencie"), 1, "unknown method 'saliencie'; choose from 'saliency'"),
        (("--metric", "auc"), 1, "unknown metric 'auc'; choose one of average_precision, class_auc"),
        (("--report-only",), 1, "run it first"),
        (("--rules", "nowhere.safetensors"), 1, "nowhere.safetensors"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], code: int, words: str, tmp_path: Path) -> None:
    result = invoke(*arguments, "--out", tmp_path)
    assert result.exit_code == code
    assert words in " ".join(result.output.split())


def test_rules_that_are_no_rules(tmp_path: Path) -> None:
    (tmp_path / "r.safetensors").write_text("x")
    result = invoke("--rules", tmp_path / "r.safetensors", "--out", tmp_path)
    assert result.exit_code == 1
    assert "truncated or no safetensors file" in " ".join(result.output.split())


def test_names_of_nets_and_scenes_are_those_of_the_package() -> None:
    assert tuple(reference_nets.ARCHITECTURES) == _suite_choices.MODELS
    assert set(FAMILIES) == set(evaluate.SCENES)
    assert [family.composite for family in RULE_FAMILIES] == list(evaluate.COMPOSITES)
    assert all(family.composite in COMPOSITES for family in RULE_FAMILIES)


def test_help_does_not_import_torch() -> None:
    code = "import sys, captum_learnprop.commands.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def results(**scores: dict[str, list[float]]) -> list[Row]:
    """Rows of one net, from scores by family and method."""
    found = []
    for scenes, methods in scores.items():
        for method, values in methods.items():
            scored = {"average precision": values}
            found.append({
                "model": "vgg", "scenes": scenes, "method": method, "family": "gradient", "seed": None, "passes": 2,
                "error": None, "treatment": {"sign": "positive", "sigma": 2.0}, "seconds": 0.002, "recognised": 0.96,
                "scores": scored, "same smoothing": {"scores": scored},
            })  # fmt: skip
    return summarise(found)


def test_error_bars_are_inside_the_figure() -> None:
    points = [plot.CostQuality("a", "lrp", 1.0, 0.5, 0.3), plot.CostQuality("b", "lrp", 2.0, 0.6, 0.01)]
    low, high = plot.cost_quality({"vgg": points}, cost="ms", quality="score").axes[0].get_ylim()
    assert low < 0.2
    assert high > 0.8


def test_means_over_families_are_of_all_families(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = results(
        patch={"whole": [0.2, 0.4], "half": [0.9, 0.9], "single": [0.5, 0.7]},
        parts={"whole": [0.6, 0.8], "single": [0.8]},
    )
    lines = _compare_methods.overview(rows).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["whole", "0.500", "±", "0.071"],
        ["half", "-"],
        ["single", "0.700"],
    ]
    drawn: list[dict[str, Any]] = []

    def spy(panels: dict[str, Any], **labels: str) -> Any:
        drawn.append({"points": [(one.name, one.quality, one.error) for one in panels["vgg"]], **labels})
        return plot.NotebookFigure()

    monkeypatch.setattr(plot, "cost_quality", spy)
    for threads, words in ((1, "one thread"), (4, "4 threads")):
        cost_figure(rows, threads=threads)
        assert drawn[-1]["cost"] == f"milliseconds per image ({words}, log scale)"
    assert drawn[0]["points"] == [
        ("whole", pytest.approx(0.5), pytest.approx(0.0707, abs=1e-4)), ("single", pytest.approx(0.7), 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("--model", "vg"), "'vgg'"),
        (("--scenes", "digit"), "'digits'"),
        (("--composite", "learned_deplift"), "'learned_deeplift'"),
        (("--method", "saliencie"), "'saliency'"),
        (("--metric", "pointing gam"), "'pointing game'"),
    ],
)
def test_did_you_mean(given: tuple[str, ...], meant: str, tmp_path: Path) -> None:
    result = invoke(*given, "--out", tmp_path)
    assert result.exit_code in (1, 2)
    assert f"; did you mean {meant}" in result.stderr


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = invoke("--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "evaluate is one of 2 processes (WORLD_SIZE=2)" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("taken", range(6))
def test_a_full_disk_keeps_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    left = taken

    def fsync(number: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    few = ("--model", "vgg", "--scenes", "patch", "--questions", 2, "--method", "intensity", "--method", "random",
           "--metric", "rank accuracy", "--out", tmp_path)  # fmt: skip
    monkeypatch.setattr(reference_nets, "load", tiny)
    monkeypatch.setattr(files.os, "fsync", fsync)
    result = invoke(*few)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == taken
    if taken == 5:  # two cells, results, table and page
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: cannot write ")
    told = f"No space left on device; {taken} of 2 cells are kept in" if taken < 2 else "all 2 cells are kept in"
    assert told in result.stderr
    left = 100
    again = invoke(*few, *(["--report-only"] if taken >= 2 else []))
    assert again.exit_code == 0, again.output


METRICS_PLUGIN = """
from captum_learnprop.plugins import MetricRecord, hookimpl

def peak(model, inputs, maps, targets):
    return maps.flatten(1).amax(1)

def lit(maps, masks):
    return (maps > maps.mean()).flatten(1).double().mean(1)

@hookimpl
def learnprop_metrics():
    yield MetricRecord("peak", "measuring_plugin:peak", "highest value of the map")
    yield MetricRecord("lit", "measuring_plugin:lit", "share above the mean", needs=("maps", "masks"),
                       bounds=(0.0, 1.0), higher_is_better=False)
"""


def test_a_metric_of_a_plugin_is_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_distribution(tmp_path / "site", "measuring", {"measuring": "measuring_plugin"},
                       {"measuring_plugin": METRICS_PLUGIN})  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(reference_nets, "load", tiny)
    get_manager.cache_clear()
    arguments = ("--model", "vgg", "--scenes", "pairs", "--questions", 3, "--training-scenes", 4, "--seeds", 0,
                 "--steps", 1, "--method", "saliency", "--method", "gates, learned", "--metric", "peak",
                 "--metric", "lit", "--metric", "average_precision", "--metric", "class AUC",
                 "--out", tmp_path / "out")  # fmt: skip
    try:
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        report = invoke(*arguments, "--report-only")
        assert report.exit_code == 0, report.output
    finally:
        get_manager.cache_clear()
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    for row in document["rows"]:
        assert list(row["estimates"]) == ["average precision", "class AUC", "peak", "lit"]
        assert list(row["same"]) == ["average precision", "class AUC", "lit"]  # the others may need the net
    assert {one["score"] for one in document["paired differences"]} == {"average precision", "class AUC", "peak", "lit"}
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| method | average precision ^ | class AUC ^ | peak ^ | lit v | passes | ms / image |" in text


def test_a_metric_and_its_heading_ask_for_the_same(small: tuple[Result, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out = small[1]
    arguments = [{"average precision": "average_precision", "distractor AUC": "class_auc"}.get(str(one), one)
                 for one in SMALL]  # fmt: skip
    before = (out / "table.md").read_text().split("## How")[0]
    monkeypatch.setattr(reference_nets, "load", None)
    result = invoke(*arguments, "--out", out, "--report-only")
    assert result.exit_code == 0, result.output
    assert (out / "table.md").read_text().split("## How")[0] == before
