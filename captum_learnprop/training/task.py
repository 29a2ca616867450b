"""The task of one training: the model and its rules, what is minimised, and on which rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from captum_learnprop.errors import TrainingWarning
from captum_learnprop.training.distributed import Processes
from captum_learnprop.training.examples import LABELS, Collection
from captum_learnprop.training.losses import Losses
from captum_learnprop.training.options import PRECISIONS, TrainingOptions
from captum_learnprop.training.parts import Part
from captum_learnprop.training.random_nets import random_nets
from captum_learnprop.training.rule_maps import RuleMaps
from captum_learnprop.training.terms import Objective
from zennit_rules import RuleSet
from zennit_rules.core import fingerprint

_RECALIBRATION = 32
"""The number of rows that the batch norms of re-initialised nets are measured on."""


@dataclass(frozen=True)
class TrainingTask:
    """What one training learns, and from what.

    Attributes:
        model: The model, in evaluation mode.
        rules: The rules, as they are before the first step; training changes them in place.
        build_options: What they were built with, arguments of `RuleSet.build`.
        objective: What is minimised.
        options: How.
        what: What was measured of the images.
        training: The rows that are trained on.
        held_out: The rows that are validated on; there may be none.
        processes: The processes that share the work.
        device: Where the model is.
    """

    model: nn.Module
    rules: RuleSet
    build_options: Mapping[str, Any]
    objective: Objective
    options: TrainingOptions
    what: Collection
    training: Part
    held_out: Part
    processes: Processes
    device: torch.device

    def losses(self) -> Losses:
        """Returns what computes losses by the rules; makes the re-initialised nets where a term asks for them."""
        random_maps: list[RuleMaps] = []
        if self.objective.needs_randomized:
            some = self.training.rows(torch.arange(min(_RECALIBRATION, len(self.training))))["inputs"]
            nets = random_nets(self.model, self.options.seed, some.to(self.device))
            random_maps = [self._maps(net) for net in nets]
        return Losses(
            objective=self.objective,
            quantity=self.what.quantity,
            maps=self._maps(self.model),
            random_maps=random_maps,
            options=self.options,
            processes=self.processes,
            device=self.device,
        )

    def _maps(self, model: nn.Module) -> RuleMaps:
        options = self.options
        precision = PRECISIONS[options.precision]
        return RuleMaps(model, self.rules, options.sign, options.smoothing, precision, options.outlines)

    @property
    def has_held_out_images(self) -> bool:
        """Whether rows of images, not of a table, are held out."""
        return len(self.held_out) > 0 and self.held_out.rows(torch.arange(1))["inputs"].dim() > 2

    def config(self) -> dict[str, Any]:
        """Returns what a checkpoint must share with this training, ready for JSON but for the objective's options."""
        build_options = {**self.build_options, "gate": self.rules.config["gate"]}
        options = {**vars(self.options), "precision": self.options.precision or "float32"}
        del options["internal_batch_size"]  # decides memory, not the result
        return {
            **options, **{name: str(value) for name, value in build_options.items()}, **self.what.config(),
            "objective": self.objective.config(), "training rows": len(self.training),
            "validation rows": len(self.held_out), "architecture": self.rules.architecture,
            "weights": fingerprint.weights(self.model), "data": self.training.examples.digest,
            "validation data": self.held_out.examples.digest,
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Returns what was asked for and what it was learned from, ready for JSON."""
        return {
            "objective": self.objective.config(),
            **vars(self.options),
            "smoothing_in_training": self.options.smoothing,
            "targets": self.what.targets,
            "targets_per_image": self.what.targets_per_image,
            "images": self.training.examples.images,
            "training_rows": len(self.training),
            "validation_rows": len(self.held_out),
            "rows_per_class": {str(c): int(n) for c, n in enumerate(self.training.targets().bincount()) if n},
        }

    def warn_of_missing_classes(self) -> None:
        """Warns of classes without a training image: rules are shared by all, but these were never seen.

        Only labels say which classes are meant.

        Warns:
            TrainingWarning: There are such classes.
        """
        seen = set(self.training.targets().tolist())
        missing = [c for c in range(self.training.examples.classes) if c not in seen]
        if missing and self.what.targets == LABELS:
            some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            warnings.warn(
                f"no training image of {len(missing)} of {self.training.examples.classes} classes ({some}): "
                "maps of these rest on rules learned from the others",
                TrainingWarning,
                stacklevel=3,
            )
