"""The scripts of the grid run, on little: a net is trained, rules are learned, and a table comes out."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from fake_packages import fake_aeon

from captum_learnprop.benchmark import grid_data
from captum_learnprop.benchmark.net_training import Schedule

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    object.__setattr__(data := grid_data.GRID_DATA["series"], "schedule", Schedule(64, 2, batch_size=16))
    assert data.schedule.epochs == 2
    nets, out = tmp_path / "nets", tmp_path / "out"
    little = [
        "--data", "series", "--net", "vgg", "--nets", str(nets), "--out", str(out), "--seeds", "0", "--questions", "4",
        "--steps", "2", "--training-scenes", "4", "--methods", "saliency", "Grad-CAM", "gates, untrained",
        "gates, learned",
    ]  # fmt: skip
    with fake_aeon(tmp_path, monkeypatch):
        monkeypatch.setattr(grid_data, "TESTED", 16)
        run("benchmarks/grid.py", *little, monkeypatch=monkeypatch)
        said = capsys.readouterr().out
        assert "vgg for series" in said
        table = (out / "grid.md").read_text()
        assert "| series | vgg |" in table
        assert len(list((out / "cells").iterdir())) == 4
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
        run("benchmarks/grid.py", *little, monkeypatch=monkeypatch)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == before  # nothing is done again
        assert "vgg for series" not in capsys.readouterr().out
        run("benchmarks/grid.py", *little, "--report-only", monkeypatch=monkeypatch)
        assert (out / "grid.md").read_text() == table
        run("train_grid_nets.py", "--data", "series", "--net", "vgg", "--nets", str(nets), monkeypatch=monkeypatch)
        assert capsys.readouterr().out.count("epoch") == 0  # it is there
