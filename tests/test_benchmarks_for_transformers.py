"""The benchmarks of vision transformers run, on little."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)  # a script finds its neighbours
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


def test_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    run(
        "vit_quality.py", "--scenes", "1", "--validation-scenes", "1", "--training-scenes", "4", "--steps", "2",
        "--methods", "CDAM", "saliency", "--rules", "learned_attnlrp", "--out", str(out), monkeypatch=monkeypatch,
    )  # fmt: skip
    table = json.loads(out.read_text())
    assert list(table) == ["CDAM", "saliency", "learned_attnlrp, start", "learned_attnlrp, trained"]
    for row in table.values():
        assert 0 < row["AP"] <= 1
        assert 0 <= row["compact"] <= 1
        assert -1 <= row["box"] <= 1
    assert "CDAM" in capsys.readouterr().out


def test_cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("cdam_cost.py", "--model", "vit_b_32", "--runs", "1", "--samples", "2", "--loop", "1", monkeypatch=monkeypatch)
    row = json.loads(capsys.readouterr().out)
    assert row["samples"] == 2
    assert row["CDAM / forward"] > 0
    assert row["loop of CDAMs / forward"] > 0
