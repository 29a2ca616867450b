"""Classes by their names."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from captum_learnprop.errors import TargetError, did_you_mean


def label_number(label: Any, names: Sequence[str] | None) -> int:
    """Returns the number of a class.

    Args:
        label: A number, which is given back, or a name. Upper case and underscores do not count, and one of several
            names that a class has between commas will do.
        names: Names of the model's classes; None where they are not known.

    Raises:
        TargetError: There is no class of that name, there are several, or it is neither a name nor a number.

    Example:
        >>> label_number("Egyptian_cat", ("tabby, tabby cat", "Egyptian cat")), label_number("tabby", ("tabby, cat",))
        (1, 0)
    """
    if not isinstance(label, str):
        try:
            return operator.index(label)
        except TypeError as error:
            raise TargetError(f"a class is a number or a name, got {type(label).__name__}") from error
    if names is None:
        raise TargetError(
            f"the names of the model's classes are not known, so that {label!r} cannot be found: give its number, or "
            "the names with classes="
        )
    wanted = _plain(label)
    found = [number for number, name in enumerate(names) if _plain(name) == wanted]
    found = found or [
        number for number, name in enumerate(names) if wanted in [_plain(part) for part in name.split(",")]
    ]
    if len(found) > 1:
        raise TargetError(f"classes {' and '.join(map(str, found))} are both called {label!r}: give the number")
    if not found:
        hint = did_you_mean(label.replace("_", " "), names) or _parts_hint(wanted, names)
        raise TargetError(f"the model has no class {label!r}{hint}")
    return found[0]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _parts_hint(wanted: str, names: Sequence[str]) -> str:
    """Returns the names that have the wanted one in them, to end an error with."""
    near = [name for name in names if wanted and wanted in _plain(name)][:5]
    return f"; there are {', '.join(map(repr, near))}" if near else ""
