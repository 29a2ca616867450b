"""The documentation site: code on its pages runs, commands exist, and what readers look for is two clicks away."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from markdown_code import ROOT, blocks, check_command, commands, languages, run

DOCS = ROOT / "docs"
PAGES = sorted(
    [page for page in DOCS.rglob("*.md") if "_build" not in page.parts and "evaluation" not in page.parent.name]
    + [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
)
LOOKED_FOR = {
    "a new gate": "how-to/own-gate",
    "a new LRP rule for a new layer": "how-to/own-lrp-rule",
    "a new metric": "how-to/own-metric",
    "new scenes": "how-to/own-scenes",
    "a new method": "how-to/own-method",
    "any model in one line": "how-to/explain",
    "a page in the browser": "how-to/web",
    "outputs that are no classes": "how-to/explain-other-outputs",
    "rows of a table": "how-to/tabular",
    "a series": "how-to/series",
    "a text": "how-to/text",
    "pytorch-grad-cam": "how-to/grad-cam",
    "a module of Lightning": "how-to/lightning",
    "a plugin": "how-to/plugins",
    "one's own model on the command line": "how-to/own-model",
    "which method is right about one's own model": "how-to/evaluate-your-model",
    "rules on two machines": "how-to/two-machines",
    "what was missed": "concepts/limits",
}
"""By what a reader looks for: the page."""

CHECKED = {"python", "console", "toml", "", "text"}
"""Languages of blocks: run, looked up, or no program. MyST runs ``{code-cell}`` when the site is built."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def entries(page: Path) -> list[str]:
    """Pages in the toctrees of a page, without ending, from the folder of the site."""
    found = []
    for tree in blocks(page, "{toctree}"):
        for line in tree.splitlines():
            if line and not line.startswith(":"):
                named = re.search(r"<(.*)>", line)
                target = page.parent / f"{named[1] if named else line}.md"
                found.append(target.resolve().relative_to(DOCS).with_suffix("").as_posix())
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # pages show today's names
        warnings.filterwarnings("ignore", "invalid escape sequence")  # Python 3.10, compiling what others wrote
        run(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_checked(page: Path) -> None:
    plain = {language for language in languages(page) if not language.startswith("{")}
    assert plain <= CHECKED


@pytest.mark.parametrize("looked_for", LOOKED_FOR)
def test_two_clicks(looked_for: str) -> None:
    page = LOOKED_FOR[looked_for]
    assert (DOCS / f"{page}.md").is_file()
    first = entries(DOCS / "index.md")
    second = [other for one in first for other in entries(DOCS / f"{one}.md")]
    assert page in first + second


def test_every_page_is_reached() -> None:
    reached, todo = set(), ["index"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            todo.extend(entries(DOCS / f"{page}.md"))
    there = {
        page.relative_to(DOCS).with_suffix("").as_posix()
        for page in DOCS.rglob("*.md")
        if "_build" not in page.parts and "jupyter_execute" not in page.parts
    }
    assert reached == there


def test_a_wrong_command_is_found() -> None:
    for line in ("learnprop train --modell x", "learnprop trian", "learnprop train --start-at x", "learnprop demo x"):
        with pytest.raises(AssertionError):
            check_command(line.split())
    with pytest.raises(AssertionError):
        check_command(["learnprop", "train", "--pooling", "hard"])
