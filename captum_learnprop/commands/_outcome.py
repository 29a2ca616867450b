"""Writing what a command has found, file by file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import WriteError


def write_outcome(folder: Path, writers: Mapping[str, Callable[[Path], Path]], *, again: str) -> None:
    """Writes files and says so.

    Args:
        folder: Where they go.
        writers: By name of the file, a function that writes a path and returns it.
        again: What running the command again does, for the error.

    Raises:
        LearnpropError: A file cannot be written.
    """
    for name, write in writers.items():
        try:
            click.echo(f"wrote {write(folder / name)}")
        except OSError as error:
            reason = str(error) if isinstance(error, WriteError) else f"cannot write {folder / name}: {error}"
            raise LearnpropError(f"{reason}; make room, or name another --out, and run again: {again}") from error
