"""What ``learnprop train`` was asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captum_learnprop.commands._request import ModelRequest


@dataclass(frozen=True)
class Request(ModelRequest):
    """What the command line asked for; the fields are the options of :data:`command`."""

    images: Path
    recursive: bool
    composite: str
    gate: str
    gate_option: dict[str, Any]
    rule_option: dict[str, Any]
    contrast: bool | None
    positions: bool | None
    fusion: bool
    start: str | None
    pooling: str
    objective: str | None
    quantity: str
    target: str
    targets_per_image: int
    steps: int | None
    batch_size: int
    lr: float | None
    smoothing: float | None
    outlines: float | None
    sign: str | None
    deletions: int
    regions: str
    fill: str
    validation: float
    patience: int | None
    precision: str | None
    internal_batch_size: int
    threads: int | None
    examples_dir: Path | None
    resume: Path | None
    log_dir: Path | None
    out: Path
    overwrite: bool


def placed(request: Request) -> Request:
    """Returns the request with ``cuda`` as the GPU of this process, under ``torchrun``."""
    local = os.environ.get("LOCAL_RANK")
    return replace(request, device=f"cuda:{local}") if request.device == "cuda" and local is not None else request
