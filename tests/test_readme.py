"""README's Python blocks run, in order, as one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zennit.composites import COMPOSITES

    monkeypatch.chdir(tmp_path)
    before = dict(COMPOSITES)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    try:
        exec(compile("\n".join(blocks), "README.md", "exec"), names)
    finally:
        for name in COMPOSITES.keys() - before.keys():
            del COMPOSITES[name]
    assert (tmp_path / "rules.safetensors").is_file()
    assert names["attribution"].shape == names["x"].shape  # type: ignore[attr-defined]
    assert bool(names["relevance"].abs().sum() > 0)  # type: ignore[attr-defined]


def test_files_it_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^):]+)\)", prose) + re.findall(r"`python (\S+)`", prose):
        assert (ROOT / target).exists(), target
