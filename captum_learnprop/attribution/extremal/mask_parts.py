"""Random parts of masks: what a mask keeps must help by itself, whichever other parts of it are there.

A search over whole masks may put a piece where it only works together with another one. If only a random part of the
mask counts at each step, every piece has to help on average over the rest. On scenes of digits that finds more of the
object.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .random_streams import RandomStreams

CELLS = 4
"""Cells per side of the grid that parts are drawn on; a shorter side has as many as pixels."""

_MODES = ("linear", "bilinear", "trilinear")


class Parts:
    """Draws fields in [0, 1] that masks are multiplied by, the same for all rows of a stream.

    A share is drawn, then each cell of a grid of `CELLS` per side is in with that probability; between cells the field
    is linear. A mask without space has a cell per value. Draws that are averaged take their shares from strata, and
    fields come in pairs of which the second has, as far as the share allows, the cells that the first leaves out: a
    mean of few draws is then nearer to that of many.

    Args:
        shapes: Shapes of the masks of each input; one to three dimensions of space, or features.
        spatial: Whether each of them has space.
        seed: The seed of the draws.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], spatial: Sequence[bool], seed: int = 0) -> None:
        self.shapes, self.spatial, self._streams = tuple(shapes), tuple(spatial), RandomStreams(seed)

    def restart(self) -> None:
        """Begin to draw from the start again."""
        self._streams.restart()

    def __call__(
        self, like: Tensor, streams: Tensor | None = None, draw: int = 0, draws: int = 1
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """A pair of fields for each input, ``(R, *shape)`` each, or ``(1, *shape)`` for a single stream.

        Args:
            like: A tensor of the type and on the device of the fields.
            streams: The streams of the rows, ``(R,)``; one for all by default.
            draw: Number of this draw among those that are averaged; its share lies in ``[draw, draw + 1] / draws``.
            draws: Number of draws that are averaged.
        """

        def fields(generator: torch.Generator) -> tuple[Tensor, ...]:
            share = (draw + torch.rand((), generator=generator)) / draws
            pairs = (
                self._pair(shape, spatial, share, generator)
                for shape, spatial in zip(self.shapes, self.spatial, strict=True)
            )
            return tuple(field.to(like) for pair in pairs for field in pair)

        found = self._streams.draw(fields, streams)
        return found[0::2], found[1::2]

    def _pair(self, shape: tuple[int, ...], spatial: bool, share: Tensor, generator: torch.Generator) -> list[Tensor]:
        """A field of a shape and one with the other cells."""
        cells = [min(CELLS, n) for n in shape] if spatial else list(shape)
        chance = torch.rand(1, 1, *cells, generator=generator)
        both = [(each < share).float() for each in (chance, 1 - chance)]
        if not spatial:
            return [each[0, 0] for each in both]
        shifts = [int(torch.randint(max(1, n // CELLS), (), generator=generator)) for n in shape]
        fields = [
            F.interpolate(each, size=shape, mode=_MODES[len(shape) - 1], align_corners=False)[0, 0] for each in both
        ]
        return [field.roll(shifts, tuple(range(len(shape)))) for field in fields]
