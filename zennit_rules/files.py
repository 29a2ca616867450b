"""Writing whole files: one is there under its name only when all of it has reached the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path`` to write to; the file is renamed only when all went well.

    Args:
        path: Where the file goes, in a folder that exists; an earlier file is replaced in one move, or kept.

    Raises:
        OSError: The disk is full, the folder is missing or read-only, the name does not fit, and the like; nothing of
            the new file is left.
    """
    # The name says nothing of the final one, which may be as long as the disk allows; the suffix stays last, because
    # writers choose the format by it.
    temporary = path.with_name(f".{uuid4().hex}{path.suffix if len(path.suffix) <= 16 else ''}")
    try:
        yield temporary
        # Without the flush to disk a power cut could leave an empty file under the final name.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
