"""What a training will cost, said before it is spent: passes at first, then minutes and gigabytes."""

from __future__ import annotations

import sys
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from captum_learnprop.progress import duration, say
from captum_learnprop.training import smoothing_choice
from captum_learnprop.training.options import TrainingOptions

ATTRIBUTION = 4.0
"""How many times as long as a bare forward pass an attribution pass of a training takes, roughly: 3 to 5 with gates, to
8 with LRP, of EfficientNet-Lite0 and ResNet-18 at 224 px. The first step tells better."""


def image_count(data: Any) -> int | None:
    """Returns how many images data for training hold, if they say so."""
    if isinstance(data, tuple) and data and isinstance(data[0], torch.Tensor):
        data = data[0]
    if isinstance(data, DataLoader):
        data = data.dataset
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a data set that inherits a length and has none
        return None


def peak_memory(device: torch.device) -> int | None:
    """Returns the most bytes that were in use so far: of a device, or of the process with everything in it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@dataclass(frozen=True)
class Announcement:
    """The cost of one training.

    Attributes:
        options: How rules are trained.
        images: Number of images, or None.
        deletions: Regions that are removed from each; 0 where none are.
        targets_per_image: Number of rows that an image makes.
        held_out: Share of the images that are held out.
        shown: Whether anything is said.
    """

    options: TrainingOptions
    images: int | None
    deletions: int
    targets_per_image: int
    held_out: float
    shown: bool

    @property
    def _each(self) -> int:
        """Forward passes of an image: what the model says of it, and of deletions beside the whole."""
        return self.deletions + 2 if self.deletions else 1

    def passes(self, images: int) -> tuple[int, int]:
        """Returns the forward passes of measuring and choosing, and the attribution passes of training."""
        kept = round(images * self.held_out)
        rows = (images - kept) * self.targets_per_image
        measuring = images * self._each
        if self.options.chooses_smoothing:
            measuring += smoothing_choice.passes(kept)
        return measuring, self.options.passes(rows, kept * self.targets_per_image)

    def before(self) -> None:
        """Says how many passes there will be."""
        if not self.shown:
            return
        if self.images is None:
            say(f"training: {self._each} forward passes for each image, then attribution passes")
            return
        measuring, training = self.passes(self.images)
        deletions = f" with {self.deletions} deletions each" if self.deletions else ""
        passes = f"{measuring:,} forward passes, {training:,} attribution passes"
        say(f"training on {self.images:,} images{deletions}: {passes}")

    def after_image(self, seconds: float) -> None:
        """Says how long it will take, from the time that measuring an image took."""
        if not self.shown or self.images is None:
            return
        each = seconds / self._each
        measuring, training = self.passes(self.images)
        say(
            f"that takes about {duration(each * measuring)} for measuring and, roughly, "
            f"{duration(each * ATTRIBUTION * training)} for training"
        )

    def after_step(self, seconds: float, left: int, device: torch.device) -> None:
        """Says how long the steps that are left will take, from the time of one, and how much memory it took."""
        if not self.shown:
            return
        peak = peak_memory(device)
        memory = "" if peak is None else f", {peak / 2**30:.1f} GiB of memory at most"
        say(f"{left} more steps take about {duration(seconds * left)}{memory}")
