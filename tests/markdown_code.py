"""Code in Markdown: fenced blocks, their programs run, and the options that their commands name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from zennit.composites import COMPOSITES

import zennit_rules.gates
from captum_learnprop.cli import cli
from captum_learnprop.plugins import get_manager
from captum_learnprop.scenes import scenes

ROOT = Path(__file__).parents[1]

BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.S | re.M)


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


def languages(page: Path) -> set[str]:
    """Languages of all fenced blocks; directives of MyST are in braces."""
    return {name for name, _ in BLOCK.findall(page.read_text())}


def run(page: Path) -> dict[str, Any]:
    """Run a page's Python blocks as one program, and return its names; what it registers is taken out again.

    Lines are numbered as in the page, so that a traceback points into it.
    """
    names: dict[str, Any] = {"__name__": "page"}
    tables: list[dict[str, Any]] = [COMPOSITES, zennit_rules.gates.GATES, scenes.FAMILIES, scenes.QUESTIONS_PER_SCENE]
    before = [dict(table) for table in tables]
    get_manager.cache_clear()
    try:
        text = page.read_text()
        for block in BLOCK.finditer(text):
            if block[1] == "python":
                padding = "\n" * text.count("\n", 0, block.start(2))
                exec(compile(padding + block[2], str(page), "exec"), names)
    finally:
        get_manager.cache_clear()
        for table, old in zip(tables, before, strict=True):
            for name in table.keys() - old.keys():
                del table[name]
    return names


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every line in the console blocks; ``&&`` parts commands."""
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                yield shlex.split(command, comments=True)


def check_command(words: list[str]) -> None:
    """Check that a call of ``learnprop`` names a command and options that exist, with values that these take.

    Raises:
        AssertionError: For an unknown command, option or choice.
    """
    if "captum_learnprop.cli" in words:
        words = ["learnprop", *words[words.index("captum_learnprop.cli") + 1 :]]
    if words[:1] != ["learnprop"]:
        return
    context = click.Context(cli, info_name="learnprop")
    if words[1].startswith("-"):
        return
    command = cli.get_command(context, words[1])
    assert command is not None, words
    rest = words[2:]
    if isinstance(command, click.Group):
        found = command.get_command(context, rest.pop(0))
        assert found is not None, words
        command = found
    known = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    while rest:
        word = rest.pop(0)
        takes_words = any(isinstance(one, click.Argument) for one in command.params) and command.name != "run"
        if not word.startswith("-") and takes_words:
            continue
        if not word.startswith("-"):
            assert command.name == "run", f"{shlex.join(words)}: {word!r} belongs to no option"
            return  # what follows are the script's own arguments
        assert word in known, f"{shlex.join(words)}: learnprop {command.name} has no option {word}"
        option = known[word]
        if isinstance(option, click.Option) and not option.is_flag and not option.count:
            value = rest.pop(0)
            if isinstance(option.type, click.Choice):
                assert value in option.type.choices, f"{shlex.join(words)}: {word} {value}"
