"""What metrics refuse: inputs, maps and targets that do not fit each other, and values without an order."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError


def require_maps(inputs: Tensor, maps: Tensor, targets: Tensor) -> None:
    """Checks that there are inputs ``(B, C, H, W)`` and a finite map and a target for each.

    Raises:
        LearnpropError: they are not.
    """
    if inputs.dim() != 4 or not inputs.numel():
        raise LearnpropError(f"inputs must be (B, C, H, W) and not empty, got {tuple(inputs.shape)}")
    batch, _, height, width = inputs.shape
    if tuple(maps.shape) not in ((batch, height, width), (batch, 1, height, width)):
        raise LearnpropError(
            f"maps must be {(batch, height, width)} or {(batch, 1, height, width)} for inputs "
            f"{tuple(inputs.shape)}, got {tuple(maps.shape)}; sum colour channels first"
        )
    require_order(maps, "map")
    require_targets(targets, batch)


def require_targets(targets: Tensor, batch: int) -> None:
    """Checks that there is one class for each of a batch.

    Raises:
        LearnpropError: there is not.
    """
    if targets.shape != (batch,) or targets.dtype != torch.int64:
        raise LearnpropError(
            f"targets must be int64 of shape ({batch},), got {targets.dtype} of {tuple(targets.shape)}"
        )


def require_order(values: Tensor, name: str) -> None:
    """Checks that all values ``(B, ...)`` are finite, so that they can be ranked.

    Raises:
        LearnpropError: some are not; it names the first of the batch.
    """
    bad = ~values.flatten(1).isfinite().all(1)
    if bad.any():
        raise LearnpropError(f"{name} {int(bad.nonzero()[0])} has NaN or infinite values; no ranking exists")


def require_batch_size(internal_batch_size: int) -> None:
    """Checks that the size of an internal batch is at least 1.

    Raises:
        LearnpropError: it is less.
    """
    if internal_batch_size < 1:
        raise LearnpropError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
