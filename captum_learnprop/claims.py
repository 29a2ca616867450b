"""Work that several processes share out by locks on files: whoever holds the lock does it, whoever dies lets it go.

Nobody talks to anybody: the processes need a folder in common and nothing else, on one machine or on many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

locks: ModuleType | None
try:
    import fcntl as locks
except ImportError:  # Windows
    locks = None


class Claim:
    """A lock on a file; the operating system lets it go when the process ends, however it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Lets the next one have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def claim(path: Path, *, wait: bool = False) -> Claim | None:
    """Returns the claim on a file, or None where another process holds it.

    Args:
        path: A file that exists for this alone; it is made where there is none.
        wait: Whether to wait until it is free.

    Raises:
        OSError: The disk has no locks, or the file cannot be made.
    """
    if locks is None:
        raise OSError("this system has no file locks")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        locks.flock(descriptor, locks.LOCK_EX | (0 if wait else locks.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return Claim(descriptor)


def locks_work(folder: Path) -> bool:
    """Returns whether files in a folder can be locked: some shared disks cannot."""
    probe = folder / f".locks-{os.getpid()}"
    try:
        found = claim(probe)
    except OSError:
        return False
    if found is not None:
        found.release()
    with suppress(OSError):
        probe.unlink()
    return True


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Lets one process at a time into the block, where the disk has locks."""
    try:
        found = claim(path, wait=True)
    except OSError:
        found = None
    try:
        yield
    finally:
        if found is not None:
            found.release()
