"""Writing whole files: one is there under its name only when all of it has reached the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from captum_learnprop.errors import LearnpropError

__all__ = ["WriteError", "printable", "replacing", "write_bytes", "write_text"]


class WriteError(LearnpropError, OSError):
    """A file that could not be written; nothing is there under its name, or what was there before.

    Attributes:
        errno: Number of the system's error, as in `OSError`; None where a library does not tell it.
    """


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path`` to write to; the file is renamed only when all went well.

    Raises:
        WriteError: The disk is full, the folder is read-only, the name does not fit, and the like.
    """
    # The name says nothing of the final one, which may be as long as the disk allows; the suffix stays last, because
    # writers choose the format by it.
    temporary = path.with_name(f".{uuid4().hex}{path.suffix if len(path.suffix) <= 16 else ''}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Without the flush to disk a power cut could leave an empty file under the final name.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        found = _of_the_disk(error)
        if found is None:
            raise
        raise _write_error(path, *found) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes a file as a whole.

    Raises:
        WriteError: It could not be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes a text file as a whole, in UTF-8; bytes of file names that are no UTF-8 are written as escapes.

    Raises:
        WriteError: It could not be written.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Returns a text in one line that can be shown: control characters and bytes that are no text as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _write_error(path: Path, reason: str, number: int | None) -> WriteError:
    error = WriteError(f"cannot write {printable(str(path))}: {reason}")
    error.errno = number
    return error


def _of_the_disk(error: BaseException | None) -> tuple[str, int | None] | None:
    """Returns the reason and the number of the system's error behind an error; None if there is none.

    HDF5 tells both in the text of its errors alone, and raises a second error while it closes the file.
    """
    while error is not None and not isinstance(error, LearnpropError):
        told = re.search(r"errno = (\d+), error message = '([^']*)'", str(error))
        if told is not None:
            return told[2], int(told[1])
        if isinstance(error, OSError):
            return error.strerror or str(error), error.errno
        error = error.__cause__ or error.__context__
    return None
