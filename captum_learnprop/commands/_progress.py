"""How far a command is, with a total and the time left: a bar in a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click
from tqdm import tqdm

SECONDS = 30.0
"""Seconds between two lines."""


class Progress:
    """Progress over a known number of images; used as a context.

    Args:
        total: Number of images.
        what: Name of the work.
        shown: Whether to show anything.
    """

    def __init__(self, total: int, what: str, *, shown: bool = True) -> None:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit="image", disable=not (shown and terminal))
        self._lines = shown and not terminal
        self._total, self._what = total, what
        self.done = self._worked = 0
        self._start = self._told = time.monotonic()

    def advance(self, count: int, *, worked: bool = True) -> None:
        """Counts images; those that were there already are no work, and say nothing of the time left."""
        self.done += count
        self._worked += count if worked else 0
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._told >= SECONDS:
            self._told = now
            click.echo(self.line(now - self._start), err=True)

    def line(self, seconds: float) -> str:
        """Returns the line of a log after so many seconds."""
        text = f"{self._what}: {self.done:,} of {self._total:,} images"
        if not self._worked:
            return text
        speed = self._worked / seconds
        return f"{text}, {speed:.3g} a second, {duration((self._total - self.done) / speed)} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """Returns a time as ``12 s``, ``3 min 20 s`` or ``4 h 10 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
