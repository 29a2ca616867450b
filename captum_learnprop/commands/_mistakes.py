"""Mistakes of the user, by whoever notices them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from captum_learnprop.errors import LearnpropError

_MISTAKES = (ValueError, OSError, AssertionError)


@contextmanager
def users_mistakes(kinds: tuple[type[Exception], ...] = _MISTAKES) -> Iterator[None]:
    """Turns what captum, zennit, the model's code and the file system tell mistakes by into an error with one line.

    Args:
        kinds: The exceptions that tell of one.

    Raises:
        LearnpropError: Such an exception was raised in the block; it is chained to it.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, LearnpropError):
            raise
        raise LearnpropError(str(error) or type(error).__name__) from error
