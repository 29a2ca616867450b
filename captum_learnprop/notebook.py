"""What a notebook shows of a result: a small table in HTML, beside the one line of its ``repr``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Returns a table in HTML; what looks like HTML in its cells is shown as it is.

    Args:
        head: titles of the columns.
        rows: of cells.
        caption: a line above the table; none if empty.

    >>> html_table(["layer", "share"], [["conv1", "0.50"]])
    '<table><thead><tr><th>layer</th><th>share</th></tr></thead><tbody><tr><td>conv1</td><td>0.50</td></tr></tbody></table>'
    """
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{above}<thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
