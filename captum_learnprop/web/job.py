"""Long work while the page is open: in a thread of its own, with progress, until it is done or cancelled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from captum_learnprop.errors import LearnpropError
from zennit_rules import RuleError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Cancelled(Exception):
    """The visitor has ended a job."""


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        share: From 0 to 1.
        words: The same in words.
        seconds: How long it goes on.
    """

    share: float
    words: str
    seconds: float


class Job(Generic[T]):
    """Work in a thread, which says how far it is by `note` and is ended by `cancel`.

    Args:
        work: Is called with the job, and calls `note` or `check` often.
        what: What errors call it, such as ``"the training"``.
    """

    def __init__(self, work: Callable[[Job[T]], T], what: str) -> None:
        self._work, self._what = work, what
        self._cancelled = threading.Event()
        self._share, self._words = 0.0, "starting"
        self._found: list[T] = []
        self._error: Exception | None = None
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ends the work when it next looks."""
        self._cancelled.set()

    @property
    def running(self) -> bool:
        """Whether the work goes on."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> Progress:
        """Waits for the end, but not longer than some seconds, and returns how far the work is."""
        self._thread.join(seconds)
        return Progress(self._share, self._words, time.monotonic() - self._started)

    def result(self) -> T:
        """Returns what the work gave, once it is done.

        Raises:
            Cancelled: It was cancelled.
            LearnpropError: It failed; the message says why.
        """
        self._thread.join()
        if self._found:
            return self._found[0]
        if isinstance(self._error, Cancelled):
            raise self._error
        if isinstance(self._error, (LearnpropError, RuleError)):
            raise LearnpropError(str(self._error)) from self._error
        raise LearnpropError(f"{self._what} failed: {type(self._error).__name__}: {self._error}") from self._error

    def note(self, share: float, words: str) -> None:
        """Says how far the work is.

        Args:
            share: From 0 to 1.
            words: The same in words.

        Raises:
            Cancelled: The job was cancelled.
        """
        self.check()
        self._share, self._words = min(1.0, max(0.0, share)), words

    def check(self) -> None:
        """Ends the work if the job was cancelled.

        Raises:
            Cancelled: It was.
        """
        if self._cancelled.is_set():
            raise Cancelled(f"{self._what} was cancelled; nothing of it was kept")

    def _run(self) -> None:
        try:
            self._found.append(self._work(self))
        # Whatever a net raises is told on the page, by result().
        except Exception as error:
            if not isinstance(error, (Cancelled, LearnpropError, RuleError)):
                _LOG.exception("%s failed", self._what)
            self._error = error
