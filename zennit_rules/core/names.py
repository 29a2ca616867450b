"""Names that users type: what they may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` with the known names that are close to one that is not known; "" for none."""
    close = difflib.get_close_matches(name, list(known)) if isinstance(name, str) else []
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


__all__ = ["did_you_mean"]
