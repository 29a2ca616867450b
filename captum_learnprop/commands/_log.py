"""What the program logs, as the user of the command line sees it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

_LIBRARY = "captum_learnprop"


class EchoHandler(logging.Handler):
    """A handler that writes warnings to stderr, one line each, as ``warning: ...``."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        click.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


@contextmanager
def logs_shown() -> Iterator[None]:
    """Shows what the library logs as warnings for as long as a command runs.

    Whoever uses the library from Python sets up ``logging.getLogger("captum_learnprop")`` as any other logger; its
    level INFO tells of validations and checkpoints.
    """
    handler, logger = EchoHandler(), logging.getLogger(_LIBRARY)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
