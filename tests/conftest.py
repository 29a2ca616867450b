"""What all tests share: one thread, a fixed seed for each test, and Ctrl-C as Python has it."""

from __future__ import annotations

import signal

import pytest
import torch

torch.set_num_threads(1)

# A shell ignores Ctrl-C for what it starts in the background; the tests mean the Ctrl-C that Python begins with.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed the generator of torch before each test; the seed, for tests that need another generator."""
    torch.manual_seed(0)
    return 0
