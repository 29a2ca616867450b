"""Random numbers of the rows of a training step: the same however the step is cut into chunks or processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class Draws:
    """The random numbers of some rows of a step.

    Each row has its own stream, which depends on ``(seed, step, row, call)`` only, ``call`` being how often numbers
    were drawn from this object before. So chunks of a step that draw in the same order see what the whole step sees.
    Numbers are made on the CPU in float32: devices agree too.

    Args:
        seed: The seed of the training, at least 0.
        step: The step of the training, at least 0.
        rows: The places of these rows in the whole batch of the step, at least 0 each.
    """

    def __init__(self, seed: int, step: int, rows: Sequence[int]) -> None:
        self.seed, self.step, self.rows = seed, step, tuple(int(row) for row in rows)
        self.calls = 0

    def __repr__(self) -> str:
        return f"Draws(seed={self.seed}, step={self.step}, rows={self.rows}) after {self.calls} calls"

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.rows)

    def uniform(self, *shape: int) -> Tensor:
        """Returns ``(rows, *shape)`` float32, uniform in [0, 1)."""
        return self._draw(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """Returns ``(rows, *shape)`` float32, standard normal."""
        return self._draw(torch.randn, shape)

    def _draw(self, make: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        call, self.calls = self.calls, self.calls + 1
        drawn = [make(shape, generator=self._generator(row, call)) for row in self.rows]
        return torch.stack(drawn) if drawn else torch.empty(0, *shape)

    def _generator(self, row: int, call: int) -> torch.Generator:
        # SeedSequence mixes: neighbouring rows and steps get unrelated streams.
        state = np.random.SeedSequence((self.seed, self.step, row, call)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) & (2**63 - 1))
