"""How far long work is, with a total and the time left: a bar in a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS = 30.0
"""Seconds between two lines."""


class Progress:
    """Progress over a known number of things; used as a context.

    Args:
        total: Number of things; None where nobody knows.
        what: Name of the work.
        shown: Whether to show anything.
        unit: What is counted.
    """

    def __init__(self, total: int | None, what: str, *, shown: bool = True, unit: str = "image") -> None:
        terminal = in_terminal()
        self._bar = tqdm(total=total, desc=what, unit=unit, disable=not (shown and terminal))
        self._lines = shown and not terminal
        self._total, self._what, self._unit = total, what, unit
        self.done = self._worked = 0
        self._start = self._told = time.monotonic()

    def advance(self, count: int, *, worked: bool = True) -> None:
        """Counts things; those that were there already are no work, and say nothing of the time left."""
        self.done += count
        self._worked += count if worked else 0
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._told >= SECONDS:
            self._told = now
            say(self.line(now - self._start))

    def note(self, text: str) -> None:
        """Shows something beside the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def line(self, seconds: float) -> str:
        """Returns the line of a log after so many seconds."""
        of_all = "" if self._total is None else f" of {self._total:,}"
        text = f"{self._what}: {self.done:,}{of_all} {self._unit}s"
        if not self._worked:
            return text
        speed = self._worked / seconds
        left = "" if self._total is None else f", {duration((self._total - self.done) / speed)} left"
        return f"{text}, {speed:.3g} a second{left}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def in_terminal() -> bool:
    """Whether what is shown goes to a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(text: str) -> None:
    """Shows a line, above a bar where there is one."""
    if sys.stderr is not None:
        tqdm.write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """Returns a time as ``12 s``, ``3 min 20 s`` or ``4 h 10 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
