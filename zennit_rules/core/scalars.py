"""Numbers as options: a tensor or an array without dimensions is the number that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor


def plain(value: Any) -> Any:
    """The Python number of a 0-d tensor, a 0-d array or a NumPy scalar; anything else as it is.

    Options come out of computations (``areas=fractions.mean()``, ``lr=np.float32(0.1)``), and whoever checks one for
    being an int or a float, stores it as JSON or compares it must find a number.
    """
    without_dims = isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0
    return value.item() if without_dims or isinstance(value, np.generic) else value


def plain_options(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The same of every value of a mapping; None stays None."""
    return None if options is None else {name: plain(value) for name, value in options.items()}


def plain_fields(record: Any) -> None:
    """The same of every field of a frozen dataclass, and of the members of its tuples; called when one is made."""
    for one in fields(record):
        value = getattr(record, one.name)
        object.__setattr__(record, one.name, tuple(map(plain, value)) if type(value) is tuple else plain(value))
