"""Writing whole files, with errors that a user can act on, and what can be said of a path beforehand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captum_learnprop.errors import LearnpropError

__all__ = ["WriteError", "check_folder", "printable", "replacing", "write_bytes", "write_text"]


class WriteError(LearnpropError, OSError):
    """A file that could not be written; nothing is there under its name, or what was there before.

    Attributes:
        errno: Number of the system's error, as in `OSError`.
    """


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path`` to write to; the file is renamed only when all went well.

    It is `zennit_rules.files.replacing` in a folder that is made where there is none, with an error for the user.

    Args:
        path: Where the file goes; an earlier file is replaced in one move, or kept.

    Raises:
        WriteError: The disk is full, the folder is read-only, the name does not fit, and the like.
    """
    # zennit_rules imports torch, which the command line must not wait for; whoever writes a file has it.
    from zennit_rules import files as whole_files

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        if isinstance(error, LearnpropError):  # of what is written, not of the writing
            raise
        raise _write_error(path, error) from error


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes a file as a whole, and returns its path.

    Args:
        path: Where the file goes; its folder is made where there is none.
        data: All of the content.

    Raises:
        WriteError: It could not be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes a text file as a whole, in UTF-8, and returns its path.

    Args:
        path: Where the file goes; its folder is made where there is none.
        text: All of the content; bytes of file names that are no UTF-8 are written as escapes.

    Raises:
        WriteError: It could not be written.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuses a folder in which nothing could be written after hours of work; makes nothing.

    Args:
        folder: The folder; it need not exist.
        option: Name of the option that it came by, for the error.

    Raises:
        LearnpropError: It is a file, or lies in a folder that may not be written to.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise LearnpropError(f"{option} {folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise LearnpropError(f"cannot write {option} {folder}: no permission to write to {there}, or it is read-only")


def printable(text: str) -> str:
    """Returns a text in one line that can be shown: control characters and bytes that are no text as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _write_error(path: Path, error: OSError) -> WriteError:
    found = WriteError(f"cannot write {printable(str(path))}: {error.strerror or error}")
    found.errno = error.errno
    return found
