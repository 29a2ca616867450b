"""Options of a training: how rules are learned, and where one training reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import SIGNS
from captum_learnprop.training.occlusion import FILL_KINDS, IMAGES
from captum_learnprop.training.regions import KINDS
from zennit_rules.core.scalars import plain_fields

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
"""The learning rate as a share of the first one, by the share of the steps that are done."""

PRECISIONS: dict[str | None, torch.dtype | None] = {None: None, "float32": None, "bfloat16": torch.bfloat16}
"""The type of autocast by the name of a precision; None goes without."""

EPOCHS = 4.5
"""How often training goes over its rows where no steps are given. On photographs the maps of gates get worse after five
times, and those of DeepLIFT better until four; the maps of digits get better until five at least (validation scenes,
one or two seeds, `docs/concepts/objective.md`)."""

STEPS = (20, 80)
"""The least and the most steps of that."""

_CHOICES: Mapping[str, Collection[str | None]] = {
    "schedule": SCHEDULES, "sign": SIGNS, "precision": PRECISIONS, "regions": KINDS, "fill": FILL_KINDS,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions:
    """How rules are trained; `RuleTrainer` explains each field under the same name.

    Raises:
        LearnpropError: An option is out of range, or a name unknown.
    """

    quantity: str = "logit"
    sign: str = "absolute"
    smoothing: float = 0.025
    chooses_smoothing: bool = False
    outlines: float = 0.0
    steps: int | None = None
    batch_size: int = 12
    lr: float = 0.03
    schedule: str = "cosine"
    warmup: int = 0
    clip: float = 1.0
    deletions: int = 96
    regions: str = "both"
    fill: str = IMAGES
    validate_every: int = 10
    patience: int | None = None
    seed: int = 0
    internal_batch_size: int = 64
    precision: str | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        for name, low in (("steps", 1), ("batch_size", 1), ("validate_every", 1), ("internal_batch_size", 1)):
            if (value := getattr(self, name)) is not None and value < low:
                raise LearnpropError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not (self.lr > 0 and self.clip > 0):
            raise LearnpropError(f"lr and clip must be positive, got lr={self.lr}, clip={self.clip}")
        for name in ("warmup", "seed", "smoothing", "outlines"):
            if not getattr(self, name) >= 0:
                raise LearnpropError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                choices = ", ".join(map(str, known))
                raise LearnpropError(f"unknown {name} {getattr(self, name)!r}; choose one of {choices}")
        if self.deletions < 3:
            raise LearnpropError(f"deletions must be at least 3, a correlation needs them, got {self.deletions}")
        if self.patience is not None and self.patience < 1:
            raise LearnpropError(f"patience must be at least 1 validation, got {self.patience}")

    def steps_for(self, training_rows: int) -> int:
        """Returns the number of steps; where none is given as many as go `EPOCHS` times over the rows, within `STEPS`.

        Args:
            training_rows: Rows that are trained on; a row is one image with one target.
        """
        if self.steps is not None:
            return self.steps
        least, most = STEPS
        return min(max(round(EPOCHS * training_rows / self.batch_size), least), most)

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0, of options whose steps are a number."""
        assert self.steps is not None
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        return self.lr * SCHEDULES[self.schedule]((step - self.warmup) / max(self.steps - self.warmup, 1))

    def passes(self, training_rows: int, validation_rows: int) -> int:
        """Returns the attribution passes of a whole training; one is a forward and a backward pass of one image.

        A row of a step counts two, its map and the gradient of that; a row of a validation counts one.

        Args:
            training_rows: Rows that are trained on; a row is one image with one target.
            validation_rows: Rows that are held out.
        """
        steps = self.steps_for(training_rows)
        validations = 1 + math.ceil(steps / self.validate_every)  # before the first step, and after the last
        return 2 * steps * min(self.batch_size, training_rows) + validations * validation_rows


@dataclass(frozen=True)
class FitOptions:
    """The files of one training, and what it shows; `RuleTrainer.fit` explains the fields.

    Attributes:
        examples_dir: Folder for images and deletions; None keeps none.
        checkpoint: File that the run is saved in and resumed from; None saves nothing.
        checkpoint_every: Steps between checkpoints, at least 1.
        log_dir: Folder for the log; None keeps it in memory.
        show_progress: Whether progress bars are drawn.
        on_step: Called after every step with its row of the log.
    """

    examples_dir: Path | None = None
    checkpoint: Path | None = None
    checkpoint_every: int = 20
    log_dir: Path | None = None
    show_progress: bool = False
    on_step: Callable[[dict[str, float]], None] | None = None

    def make_folders(self) -> None:
        """Makes the folders now, and refuses what would fail only after the measuring.

        Raises:
            LearnpropError: A folder cannot be made, or that of the checkpoint does not exist.
        """
        for folder in (self.log_dir, self.examples_dir):
            try:
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LearnpropError(f"cannot make the folder {folder}: {error}") from error
        if self.checkpoint is not None and not self.checkpoint.parent.is_dir():
            raise LearnpropError(
                f"cannot write the checkpoint {self.checkpoint}: the folder {self.checkpoint.parent} does not exist"
            )
