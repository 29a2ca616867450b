"""Leave a model's buffers as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .modules import modules_of


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo changes of buffers: running statistics of a model in training mode, and buffers that are assigned anew.

    In evaluation mode buffers are not copied, so what a forward pass writes *into* one there stays.
    """
    modules = modules_of(model)
    training = any(module.training for module in modules)
    kept = [
        (module, name, buffer, buffer.detach().clone() if training else None)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                if value is not None:
                    buffer.copy_(value)
