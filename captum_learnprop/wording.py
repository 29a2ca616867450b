"""Words for what a result shows of itself: one line as its ``repr``, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


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


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in HTML; what looks like HTML in its cells is shown as it is.

    Args:
        head: titles of the columns.
        rows: of cells.

    >>> html_table(["layer", "share"], [["conv1", "0.50"]])
    '<table><thead><tr><th>layer</th><th>share</th></tr></thead><tbody><tr><td>conv1</td><td>0.50</td></tr></tbody></table>'
    """
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
