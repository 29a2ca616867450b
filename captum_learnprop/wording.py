"""Words for what a result shows of itself in the one line of its ``repr``."""

from __future__ import annotations

from collections.abc import Mapping


def counted(number: int, what: str) -> str:
    """Returns a number of things in words.

    >>> counted(1, "layer"), counted(3, "sample")
    ('1 layer', '3 samples')
    """
    return f"{number} {what}" + "s" * (number != 1)


def listed(values: Mapping[str, float], most: int = 6) -> str:
    """Returns values by name in a line; of many those in the middle are left out.

    >>> listed({"conv1": 0.5, "conv2": 0.25})
    "'conv1' 0.500, 'conv2' 0.250"
    """
    parts = [f"{name!r} {value:.3f}" for name, value in values.items()]
    if len(parts) > most:
        parts = [*parts[: most // 2], "...", *parts[-(most // 2) :]]
    return ", ".join(parts)
