"""How many rows go through a model together: what a user allows, and no more than a processor's caches hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

PROCESSOR_PIXELS = 64 * 64 * 64
"""Pixels that go through a model together on a processor. EfficientNet-Lite0 at 224 pixels takes .033 s an image in
forward passes of 2 images and .135 s in passes of 64, and a training step a third of the memory."""


def rows_together(most: int, shape: Sequence[int], device: torch.device) -> int:
    """Returns how many rows go through a model together, at least 1.

    Args:
        most: Number that is allowed.
        shape: Shape of one input, ``(C, *spatial)``, or ``(F,)`` of a table.
        device: Where the model is; other devices than processors take all that is allowed.
    """
    if device.type != "cpu":
        return most
    return max(1, min(most, PROCESSOR_PIXELS // math.prod(shape[1:])))
