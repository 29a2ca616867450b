"""Scenes of series: two planted shapelets of different classes on the record of a movement.

The ground is *GunPoint* of the UCR archive (Ratanamahatana, Keogh, 2005; Dau et al., *The UCR Time Series Archive*,
2019), 200 records of a hand's position, which the package ``aeon`` brings: nothing is downloaded. Only its file is
read: ``aeon`` itself, which loads a compiler, is not imported. Halves of other shapelets are strewn in as clutter, so
that "there is something" finds nothing.

A series ``(C, L)`` is kept as an image ``(C, 1, L)`` of height 1, so that scores and tables need not tell the two
apart; nets and rules see the series.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.drawing import uniform
from captum_learnprop.scenes.in_chunks import ChunkedSource
from captum_learnprop.scenes.scenes import Scenes, label_rows, members_of

LENGTH = 128
"""Samples of a series."""

SPAN = (18.0, 26.0)
"""Range of the length of a shapelet, in samples."""

HEIGHT = (0.12, 0.2)
"""Range of the largest deflection of a shapelet; a series has the range [0, 1] and its middle at 0.5."""

PIECES = 2
"""Halves of other shapelets in each series."""

GROUND, NOISE = 0.12, 0.012
"""Standard deviations of the ground and of the noise on it."""

DRAWING = 1
"""Grows when the same arguments give other scenes than before."""

_WAVES: dict[str, Callable[[Tensor], Tensor]] = {
    "hump": lambda t: (pi * t).sin(),
    "dip": lambda t: -(pi * t).sin(),
    "wave": lambda t: (2 * pi * t).sin(),
    "mirrored wave": lambda t: -(2 * pi * t).sin(),
    "two humps": lambda t: (2 * pi * t).sin().abs(),
    "two dips": lambda t: -(2 * pi * t).sin().abs(),
    "ramp and drop": lambda t: t.clamp(max=0.9) - 9 * (t - 0.9).clamp(min=0),
    "jump and fall": lambda t: (1 - t).clamp(max=0.9) - 9 * (0.1 - t).clamp(min=0),
}
"""Deflections of about 1 at most, of the place from 0 to 1 within the shapelet; they begin and end at 0."""

CLASSES = tuple(_WAVES)
"""The shapelets by class."""


@dataclass(frozen=True)
class ShapeletSource(ChunkedSource):
    """Series of 128 samples as images ``(1, 1, 128)``: two shapelets of different classes, on a ground with clutter.

    The ground truth is where the asked shapelet lies. Splits share no record of the ground.
    """

    size = LENGTH

    @property
    def name(self) -> str:
        """``"series"``."""
        return "series"

    @property
    def kind(self) -> str:
        """``"pairs"``."""
        return "pairs"

    @property
    def questions_per_scene(self) -> int:
        """Two, one for each shapelet."""
        return 2

    def chunk(self, count: int, split: str, generator: torch.Generator) -> Scenes:
        """Returns ``count`` series on records of a split.

        Raises:
            LearnpropError: aeon is missing, or has no such file.
        """
        return _draw(count, records(split), generator)

    def identity(self) -> dict[str, Any]:
        """Returns a digest of the records."""
        content = hashlib.sha256(_load_records().numpy().tobytes()).hexdigest()
        return {"source": self.name, "drawing": DRAWING, "records": content}

    def class_range(self) -> int:
        """Returns the number of shapelets."""
        return len(CLASSES)


def records(split: str) -> Tensor:
    """Returns the records of a split, ``(S, T)`` with mean 0 and standard deviation 1.

    Raises:
        LearnpropError: aeon is missing, or has no such file.
    """
    every = _load_records()
    return every[members_of(split, torch.zeros(len(every), dtype=torch.int64))]


@lru_cache(maxsize=1)
def _load_records() -> Tensor:
    spec = find_spec("aeon")
    if spec is None or not spec.submodule_search_locations:
        raise LearnpropError(
            "the scenes of series need aeon, which brings their ground: pip install 'captum-learnprop[grid]'"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data" / "GunPoint"
    found = [read_ts(folder / f"GunPoint_{part}.ts") for part in ("TRAIN", "TEST")]
    every = torch.cat(found)
    return (every - every.mean(1, keepdim=True)) / every.std(1, keepdim=True)


def read_ts(path: Path) -> Tensor:
    """Returns the series ``(S, T)`` in a ``.ts`` file of one channel and one length; classes are left out.

    Args:
        path: The file: comments and a head, then ``@data`` and a line ``value,value,...:class`` for each series.

    Raises:
        LearnpropError: There is no such file, or it holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LearnpropError(f"cannot read {path}: {error.strerror or error}") from error
    start = next((number for number, line in enumerate(lines) if line.strip().lower() == "@data"), len(lines))
    rows = [line.partition(":")[0].split(",") for line in lines[start + 1 :] if line.strip()]
    try:
        return torch.tensor([[float(value) for value in row] for row in rows]).reshape(len(rows), len(rows[0]))
    except (ValueError, IndexError, RuntimeError) as error:
        raise LearnpropError(f"{path} holds no series of one length: {error}") from error


def _draw(count: int, ground: Tensor, generator: torch.Generator) -> Scenes:
    """Returns series: a window of a record, pieces of shapelets, two shapelets, noise."""
    first = torch.randint(len(CLASSES), (count,), generator=generator)
    step = torch.randint(1, len(CLASSES), (count,), generator=generator)
    targets = torch.stack([first, (first + step) % len(CLASSES)], 1)
    values = 0.5 + GROUND * _windows(ground, count, generator)
    spans, starts = _places(count, generator)
    for piece in range(2, 2 + PIECES):
        classes = torch.randint(len(CLASSES), (count,), generator=generator)
        half = torch.randint(2, (count, 1), generator=generator)
        values = values + _deflection(classes, starts[:, piece], spans[:, piece], generator, half)
    masks = []
    for planted in range(2):
        start, span = starts[:, planted], spans[:, planted]
        values = values + _deflection(targets[:, planted], start, span, generator)
        masks.append(_within(start, span))
    values = values + NOISE * torch.randn(values.shape, generator=generator)
    return Scenes(
        images=values.clamp(0, 1)[:, None, None, :],
        labels=label_rows(targets, len(CLASSES)),
        masks=torch.stack(masks, 1)[:, :, None, :],
        targets=targets,
    )


def _windows(ground: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns random windows of random records, forwards or backwards: ``(N, L)``."""
    chosen = ground[torch.randint(len(ground), (count,), generator=generator)]
    starts = torch.randint(ground.shape[1] - LENGTH + 1, (count, 1), generator=generator)
    windows = chosen.gather(1, starts + torch.arange(LENGTH))
    backwards = torch.rand(count, 1, generator=generator) < 0.5
    return torch.where(backwards, windows.flip(1), windows) * uniform((count, 1), 0.5, 1.2, generator)


def _places(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns lengths and first samples ``(N, 2 + PIECES)``: everything has a slot of its own, in random order."""
    slots = 2 + PIECES
    spans = uniform((count, slots), *SPAN, generator)
    order = torch.rand(count, slots, generator=generator).argsort(1)
    room = LENGTH / slots - spans
    return spans, order * (LENGTH / slots) + torch.rand(count, slots, generator=generator) * room


def _within(start: Tensor, span: Tensor) -> Tensor:
    """Returns which samples lie in a shapelet, ``(N, L)`` bool."""
    t = (torch.arange(LENGTH) + 0.5 - start[:, None]) / span[:, None]
    return (t >= 0) & (t <= 1)


def _deflection(
    classes: Tensor, start: Tensor, span: Tensor, generator: torch.Generator, half: Tensor | None = None
) -> Tensor:
    """Returns what shapelets add to series, ``(N, L)``; with ``half (N, 1)`` only the first or the second half."""
    t = (torch.arange(LENGTH) + 0.5 - start[:, None]) / span[:, None]
    inside = (t >= 0) & (t <= 1)
    if half is not None:
        inside &= (t >= 0.5) == half.bool()
    every = torch.stack([wave(t) for wave in _WAVES.values()], 1)
    shape = every[torch.arange(len(t)), classes]
    return shape * inside * uniform((len(t), 1), *HEIGHT, generator)
