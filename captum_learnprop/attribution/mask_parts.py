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

CELLS = 4
"""Per side of the grid that parts are drawn on."""

_MODES = ("linear", "bilinear", "trilinear")


class Parts:
    """Draws fields in [0, 1] that masks are multiplied by, the same for all rows.

    A share between 0 and 1 is drawn, then each cell of a grid of `CELLS` per side is in with that probability; between
    cells the field is linear. A mask without space has a cell per value.

    Args:
        shapes: of the masks of each input; one to three dimensions of space, or features.
        spatial: whether each of them has space.
        seed: of the draws.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], spatial: Sequence[bool], seed: int = 0) -> None:
        self.shapes, self.spatial, self.seed = tuple(shapes), tuple(spatial), seed
        self.restart()

    def restart(self) -> None:
        """Begin to draw from the start again."""
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, like: Tensor) -> tuple[Tensor, ...]:
        """A field for each input, ``(1, *shape)``, with the type and device of a tensor."""
        share = torch.rand((), generator=self._generator)
        return tuple(
            self._field(shape, spatial, share).to(like)
            for shape, spatial in zip(self.shapes, self.spatial, strict=True)
        )

    def _field(self, shape: tuple[int, ...], spatial: bool, share: Tensor) -> Tensor:
        if not spatial:
            return (torch.rand(1, *shape, generator=self._generator) < share).float()
        cells = (torch.rand(1, 1, *[CELLS] * len(shape), generator=self._generator) < share).float()
        field = F.interpolate(cells, size=shape, mode=_MODES[len(shape) - 1], align_corners=False)[0]
        shifts = [int(torch.randint(max(1, n // CELLS), (), generator=self._generator)) for n in shape]
        return field.roll(shifts, tuple(range(1, 1 + len(shape))))
