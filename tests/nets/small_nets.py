"""Nets and images that a training test can afford."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE = 16
CLASSES = 4


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Two convolutions with batch norm, a max-pool, one linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
            nn.Flatten(), nn.Linear(32, CLASSES),
        )  # fmt: skip
    return model.to(dtype).eval()


def images(count: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise with one bright square each, ``(count, 3, 16, 16)`` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    pictures = 0.5 * torch.rand(count, 3, SIZE, SIZE, generator=generator)
    corner = torch.randint(0, SIZE - 5, (count, 2), generator=generator)
    for picture, (row, column) in zip(pictures, corner.tolist(), strict=True):
        picture[:, row : row + 5, column : column + 5] += 0.5
    return pictures.to(dtype)
