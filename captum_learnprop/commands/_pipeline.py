"""Reading ahead and writing behind, so that the model need not wait for the disk."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Batch = TypeVar("Batch")

MOST_READERS = 8
"""Threads that read, at most: decoding leaves Python's lock, preparing hardly does."""


def readers() -> int:
    """Returns the number of threads that read where none is asked for: half of the processors this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_READERS, count // 2))


def read_ahead(
    batches: Iterable[Batch], items: Callable[[Batch], list[Item]], read: Callable[[Item], Read], *, threads: int,
    ahead: int,
) -> Generator[tuple[Batch, list[Read]], None, None]:  # fmt: skip
    """Yields batches with what was read for them, in order.

    Args:
        batches: Is asked for the next batch while earlier ones are at work.
        items: Returns what is to be read of a batch.
        read: Reads one item; called in threads.
        threads: Number of threads.
        ahead: Items that are read before they are asked for; no more are ever held, but for those of one batch.
    """
    waiting: deque[tuple[Batch, list[Future[Read]]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(threads, "reader")
    try:
        for batch in batches:
            futures = [pool.submit(read, item) for item in items(batch)]
            waiting.append((batch, futures))
            held += len(futures)
            while held > ahead and waiting:
                first, found = waiting.popleft()
                held -= len(found)
                yield first, [future.result() for future in found]
        for first, found in waiting:
            yield first, [future.result() for future in found]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Writer:
    """A thread that does what it is given, one thing after the other.

    Used as a context, it finishes what it was given before it ends, also where the work was interrupted; what it could
    not do is raised by the next call, or at the end.

    Args:
        ahead: Things that may wait; more make the caller wait.
    """

    def __init__(self, ahead: int = 2) -> None:
        self._tasks: queue.Queue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = queue.Queue(ahead)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)

    def do(self, task: Callable[..., Any], *arguments: Any) -> None:
        """Has something done, after what it was given before.

        Raises:
            BaseException: What an earlier task raised; nothing is done after it.
        """
        self._raise()
        self._tasks.put((task, arguments))

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._tasks.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        failed = False
        while (found := self._tasks.get()) is not None:
            task, arguments = found
            if failed:
                continue
            try:
                task(*arguments)
            # Whatever it is: the thread that waits for it shall raise it.
            except BaseException as error:
                self._error, failed = error, True
