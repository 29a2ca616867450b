"""Leave a model's buffers as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo changes of buffers (running statistics of a model in training mode)."""
    kept = [(b, b.detach().clone()) for b in model.buffers()] if any(m.training for m in model.modules()) else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
