"""Random draws that can be made again: dropout masks of one forward pass, in another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Draws:
    """The state of torch's global generators, as it is now."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw from here; afterwards the generators are as they were before."""
        before = Draws()
        self._restore()
        try:
            yield
        finally:
            before._restore()

    def _restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


__all__ = ["Draws"]
