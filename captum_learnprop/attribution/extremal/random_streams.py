"""Streams of random numbers: rows that share a stream see the same numbers, whichever other rows are there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class RandomStreams:
    """Random numbers for rows, drawn on the CPU.

    Args:
        seed: The seed of stream 0. The others follow far away, so that streams of neighbouring seeds differ.
    """

    APART = 1_000_003

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.restart()

    def restart(self) -> None:
        """Begin to draw from the start again."""
        self._generators: dict[int, torch.Generator] = {}

    def draw(
        self, function: Callable[[torch.Generator], tuple[Tensor, ...]], streams: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """What a function draws, once for each stream.

        Args:
            function: Draws tensors of one ``shape`` each from a generator.
            streams: The streams of the rows, ``(R,)`` integers; stream 0 for all where it is None.

        Returns:
            ``(R, *shape)`` for each tensor; ``(1, *shape)`` where all rows have one stream.
        """
        if streams is None:
            used, where = [0], None
        else:
            unique, where = streams.unique(return_inverse=True)
            used = unique.tolist()
        drawn = zip(*(function(self._generator(stream)) for stream in used), strict=True)
        found = tuple(torch.stack(each) for each in drawn)
        return found if where is None or len(used) == 1 else tuple(each[where] for each in found)

    def _generator(self, stream: int) -> torch.Generator:
        if stream not in self._generators:
            self._generators[stream] = torch.Generator().manual_seed(self.seed + self.APART * stream)
        return self._generators[stream]
