"""Names that users type: what they may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'a' or 'b'?"`` for a misspelled name, to end an error's text with.

    Upper and lower case count as alike, so that ``default`` finds ``DEFAULT``.

    Args:
        name: What the user typed; anything but a string is near to nothing.
        known: The names that there are.

    Returns:
        The hint, with at most three known names; empty where none is near.
    """
    if not isinstance(name, str):
        return ""
    spelled: dict[str, list[str]] = {}
    for one in known:
        spelled.setdefault(one.casefold(), []).append(one)
    close = [one for near in difflib.get_close_matches(name.casefold(), spelled) for one in spelled[near]]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


__all__ = ["did_you_mean"]
