"""What the first of several processes alone writes and prints."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOG = logging.getLogger(__name__)


def is_main() -> bool:
    """Returns whether this process writes and prints; under ``torchrun``, the first one alone."""
    return int(os.environ.get("RANK", "0")) == 0


def warn(message: str) -> None:
    if is_main():
        _LOG.warning("%s", message)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Prints warnings of the training as one line each, in the first process only."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if not issubclass(category, UserWarning):
                shown(message, category, *rest, **named)
            else:
                warn(str(message))

        warnings.showwarning = show
        yield
