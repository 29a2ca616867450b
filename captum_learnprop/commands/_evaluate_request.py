"""What ``learnprop evaluate`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """What the command line asked for; the fields are options."""

    model: tuple[str, ...]
    weights: str | None
    checkpoint: Path | None
    scenes: tuple[str, ...]
    cutouts: Path | None
    labels: Path | None
    backgrounds: Path | None
    images: Path | None
    masks: Path | None
    objects: str
    seen_among: int
    size: int | None
    normalization: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: Path | None
    composite: tuple[str, ...]
    method: tuple[str, ...]
    metric: tuple[str, ...]
    seeds: tuple[int, ...]
    questions: int
    seed: int
    steps: int | None
    sample_steps: int | None
    training_scenes: int | None
    rules: tuple[Path, ...]
    out: Path
    max_hours: float
    report_only: bool
    threads: int
