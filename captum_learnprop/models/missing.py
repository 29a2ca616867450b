"""Packages of the extras: what is said where one is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from captum_learnprop.errors import LearnpropError


@contextmanager
def package(name: str, *, extra: str) -> Iterator[None]:
    """Says how a package is installed where importing it fails.

    Args:
        name: Name of the package, as it is imported.
        extra: The extra that brings it.

    Raises:
        LearnpropError: It, or something that it needs, is not installed.
    """
    try:
        yield
    except ImportError as error:
        why = "is not installed" if error.name == name else f"cannot be imported ({error})"
        raise LearnpropError(f"{name} {why}: pip install 'captum-learnprop[{extra}]'") from error
