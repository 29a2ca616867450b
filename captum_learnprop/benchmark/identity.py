"""How results on disk are told apart: the names of their files, and the settings they must have been computed with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captum_learnprop.errors import LearnpropError
from zennit_rules._moved import renamed

LONGEST_STEM = 72
"""Letters of a name in a file name: net, scenes and method stand in one, which may have 255."""


class SettingsError(LearnpropError):
    """A folder with results of other settings or nets."""


def file_stem(name: str) -> str:
    """Returns a name as a part of a file name: small letters, digits, hyphens; of a long one its end and a digest."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", " plus ")).strip("-")
    if len(stem) <= LONGEST_STEM:
        return stem
    return f"{stem[-LONGEST_STEM:].strip('-')}-{short_digest(name)}"


def short_digest(value: Any) -> str:
    """Returns eight letters that tell plain values apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:8]


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as they come back from a JSON file, so that they compare equal to kept ones."""
    found: dict[str, Any] = json.loads(json.dumps(options, default=repr))
    return found


def require_same(kept: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Checks that a file was computed with the wanted settings; settings that are not wanted are not looked at.

    Args:
        kept: Settings that the file has.
        wanted: Settings of this run.
        path: The file, for the message.

    Raises:
        SettingsError: A setting differs or is missing.
    """
    for name, value in wanted.items():
        if kept.get(name) != value:
            raise SettingsError(
                f"{path} was computed with {name} {kept.get(name)!r}, this run has {value!r}; "
                "choose another folder, or delete the old cells and rules"
            )


__getattr__ = renamed(__name__, {"BenchmarkError": "LearnpropError"})
