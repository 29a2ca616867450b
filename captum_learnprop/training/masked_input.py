"""An objective of per-sample learning as a term of shared learning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.targets import select_target
from captum_learnprop.training.batch import Batch
from captum_learnprop.training.masks import Mask
from captum_learnprop.training.objectives import MaskedPass, SampleObjective
from captum_learnprop.training.terms import Term


@dataclass(frozen=True)
class MaskedInput(Term):
    """A term by which an objective such as `objectives.Agreement` judges the masked input: the paper's family.

    Args:
        objective: Judges the masked output, one value per row.
        mask: Turns the map, as an attribution ``(B, 1, *spatial)``, into a mask.
    """

    objective: SampleObjective
    mask: Mask

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the loss of each row, ``(B,)``."""
        mask = self.mask(batch.maps if batch.table else batch.maps[:, None])
        # Such an objective draws from the global generator, one draw for all rows: seeded by the step, so that chunks
        # of a step see the same.
        with torch.random.fork_rng(devices=[batch.inputs.device] if batch.inputs.is_cuda else []):
            torch.manual_seed(batch.draws.seed * 1_000_003 + batch.draws.step)
            masked = self.objective.apply(batch.inputs, mask).to(batch.inputs.dtype)
        output = batch.model(masked)
        original, targets = batch.outputs, batch.targets
        return self.objective(
            MaskedPass(
                original, output, select_target(original, targets), select_target(output, targets), targets, (mask,)
            )
        )

    def config(self) -> dict[str, Any]:
        """Returns name and options in plain types."""
        return {
            "term": type(self).__name__,
            "objective": re.sub(r" at 0x\w+", "", repr(self.objective)),
            "mask": repr(self.mask),
        }
