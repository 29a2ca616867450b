"""What ``learnprop attribute`` was asked for, and what it did."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captum_learnprop.commands._request import ModelRequest


@dataclass(frozen=True)
class Request(ModelRequest):
    """What the command line asked for; the fields are the options of :data:`command`."""

    method: str
    composite: str | None
    gate: str | None
    start: str | None
    pooling: str | None
    rule_option: dict[str, Any]
    method_option: dict[str, Any]
    rules: Path | None
    steps: int | None
    images: Path
    recursive: bool
    target: int | str
    out: Path
    overwrite: bool
    hdf5: bool | None
    dataset_file: bool
    batch_size: int
    threads: int | None
    sign: str | None
    smoothing: float | None
    outlines: float | None
    workers: int | None
    layout: str | None
    shard_size: int | None


@dataclass
class Report:
    """What a run did, by image id; filled while it works, so that an interrupted run has one too."""

    computed: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    found: int = 0

    @property
    def done(self) -> int:
        """The number of images whose maps are there."""
        return len(self.computed) + len(self.resumed)

    def __str__(self) -> str:
        counts = f"{self.done} of {self.found} images done"
        if self.resumed:
            counts += f" ({len(self.resumed)} from an earlier run)"
        return counts + (f", {len(self.skipped)} skipped" if self.skipped else "")


def layout_of(folder: Path) -> str | None:
    """Returns the layout of the run in a folder, ``"files"`` or ``"shards"``; None where none is known."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return str(found.get("layout", "files"))
    except (OSError, ValueError, AttributeError):
        return None
