"""What all tests share: one thread, and a fixed seed for each test."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed the generator of torch before each test; the seed, for tests that need another generator."""
    torch.manual_seed(0)
    return 0
