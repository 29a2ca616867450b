"""Reading ahead and writing behind: in order, bounded, and with the errors of the threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from captum_learnprop.commands._pipeline import Writer, read_ahead, readers


class TestReadAhead:
    def test_in_order_and_never_too_far(self) -> None:
        started, taken, lock = [0], [0], threading.Lock()
        furthest = 0

        def read(item: int) -> int:
            nonlocal furthest
            with lock:
                started[0] += 1
                furthest = max(furthest, started[0] - taken[0])
            time.sleep(0.001 * (item % 3))
            return item

        batches = [list(range(start, start + 4)) for start in range(0, 80, 4)]
        for batch, found in read_ahead(batches, lambda batch: batch, read, threads=3, ahead=8):
            assert found == batch
            time.sleep(0.002)
            taken[0] += len(found)
        assert taken[0] == 80
        assert 4 < furthest <= 8 + 2 * 4

    def test_batches_are_asked_for_when_they_are_needed(self) -> None:
        asked = []

        def batches() -> Iterator[list[int]]:
            for number in range(10):
                asked.append(number)
                yield [number]

        with closing(read_ahead(batches(), lambda batch: batch, str, threads=1, ahead=2)) as ready:
            assert next(ready) == ([0], ["0"])
            assert asked == [0, 1, 2]

    def test_an_error_is_raised_where_it_is_read(self) -> None:
        ready = read_ahead([[1], [0]], lambda batch: batch, lambda item: 1 / item, threads=1, ahead=1)
        assert next(ready) == ([1], [1.0])
        with pytest.raises(ZeroDivisionError):
            next(ready)

    def test_readers(self) -> None:
        assert 1 <= readers() <= 8


def give(writer: Writer, tasks: list[Callable[[], object]], then: BaseException | None = None) -> None:
    """Gives a writer tasks, and fails in the end where that is asked for."""
    with writer:
        for task in tasks:
            writer.do(task)
        if then is not None:
            raise then


class TestWriter:
    def test_does_all_in_order(self) -> None:
        done: list[int] = []
        with Writer() as writer:
            for number in range(20):
                writer.do(done.append, number)
        assert done == list(range(20))

    def test_an_interruption_loses_nothing(self) -> None:
        done: list[int] = []

        def slowly() -> None:
            time.sleep(0.01)
            done.append(len(done))

        with pytest.raises(KeyboardInterrupt):
            give(Writer(), [slowly] * 3, KeyboardInterrupt())
        assert done == [0, 1, 2]

    def test_nothing_is_done_after_an_error(self) -> None:
        done: list[int] = []
        with pytest.raises(OSError, match="full"):
            give(Writer(ahead=10), [lambda: done.append(1), fail, lambda: done.append(2), lambda: done.append(3)])
        assert done == [1]

    def test_what_interrupts_is_told_before_what_fails(self) -> None:
        with pytest.raises(ValueError, match="first"):
            give(Writer(), [fail], ValueError("first"))


def fail() -> None:
    raise OSError("full")
