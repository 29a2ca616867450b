"""Which model a rule set belongs to."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from .modules import named_modules


def architecture(model: nn.Module) -> str:
    """Returns a digest of module types and of the names and shapes of parameters and buffers (16 hex digits).

    Biases do not count: zennit 1.0.0's canonizers leave a bias of zeros in the ``state_dict`` of layers without one.
    """
    digest = hashlib.sha256()
    for name, module in named_modules(model):
        digest.update(f"{name}:{type(module).__name__};".encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not name.endswith("bias"):
            digest.update(f"{name}:{tuple(tensor.shape)};".encode())
    return digest.hexdigest()[:16]


def weights(model: nn.Module) -> str:
    """Digest of the values of parameters and buffers, as float32 (16 hex digits); biases of zeros do not count."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor) and not (name.endswith("bias") and not tensor.any()):
            values = tensor.detach()
            if values.is_floating_point():
                values = values.to(torch.float32)
            digest.update(name.encode())
            digest.update(values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
