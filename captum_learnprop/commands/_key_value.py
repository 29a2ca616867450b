"""Options that name an option: ``NAME=VALUE``, given as often as needed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import click


class KeyValue(click.ParamType):
    """``NAME=VALUE``: a value in JSON, ``inf``, or a bare word for a string.

    Args:
        example: What an error shows as right, e.g. ``"position=true"``.
    """

    name = "name=value"

    def __init__(self, example: str) -> None:
        self.example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Returns the name and the value."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not key.isidentifier():
            self.fail(f"{value!r} is not NAME=VALUE, such as {self.example}", param, ctx)
        try:
            return key, _parsed(text)
        except ValueError:
            self.fail(
                f"the value of {value!r} is neither JSON nor inf nor a word; write e.g. {self.example} or per=layer",
                param, ctx,
            )  # fmt: skip


def _parsed(text: str) -> Any:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        if text in ("inf", "-inf"):
            return float(text)
        # A misspelled constant must not become a string, which counts as true.
        if re.fullmatch(r"[A-Za-z_+]+", text) is None or text.lower() in ("true", "false", "null", "none", "nan"):
            raise
        return text
    if isinstance(parsed, float) and math.isnan(parsed):
        raise ValueError(text)
    return parsed


def as_dict(ctx: click.Context, parameter: click.Parameter, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs as a dictionary, each name once; a callback of click."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"{name!r} is given twice")
    return dict(pairs)
