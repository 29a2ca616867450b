"""README is short, its Python blocks run as one program, its commands and links exist."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from markdown_code import ROOT, blocks, check_command, commands, languages, run

README = ROOT / "README.md"


def test_it_is_short() -> None:
    assert len(README.read_bytes()) <= 10_000


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(blocks(README, "python")) >= 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # README shows today's names
        warnings.filterwarnings("ignore", "invalid escape sequence")  # Python 3.10, compiling what others wrote
        names = run(README)
    assert (tmp_path / "rules.safetensors").is_file()
    x = names["x"]
    assert names["attribution"].shape == names["relevance"].shape == x.shape
    assert names["maps"].shape == (len(x), *x.shape[2:])
    assert names["patches"].shape == (len(x), 1, 8, 8)
    assert names["smooth"].shape == (len(x), 1, *x.shape[2:])
    for name in ("attribution", "maps", "relevance", "patches", "smooth"):
        assert bool(names[name].isfinite().all()), name
        assert bool((names[name].abs().flatten(1).sum(1) > 0).all()), name


def test_every_block_is_checked() -> None:
    assert languages(README) <= {"python", "console"}


def test_two_commands() -> None:
    (first, *_) = blocks(README, "console")
    assert first.splitlines() == [
        "pip install '.[demo]' && learnprop demo",
        "pip install '.[test]' && pytest -n 2 --dist loadfile",
    ]


def test_commands_exist() -> None:
    for words in commands(README):
        check_command(words)


def test_files_it_names_exist() -> None:
    prose = re.sub(r"```.*?```", "", README.read_text(), flags=re.S)
    named = re.findall(r"\]\(([^):]+)\)", prose) + re.findall(r"`python (\S+)`", prose)
    assert len(named) > 10
    for target in named:
        assert (ROOT / target).exists(), target
