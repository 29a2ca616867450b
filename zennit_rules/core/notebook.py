"""What a notebook shows of rules: small tables in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

MOST_ROWS = 30
"""The rows that are shown of a table; a line says how many there are beyond."""


def html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], most: int = MOST_ROWS) -> str:
    """Returns a table in HTML, for ``_repr_html_``.

    Args:
        caption: A line above the table.
        header: Names of the columns.
        rows: Texts, as many a row as there are columns; all are escaped.
        most: Rows that are shown.
    """
    lines = [f"<div>{escape(caption)}</div>", "<table>", f"<thead>{_row('th', header)}</thead>", "<tbody>"]
    lines += [_row("td", row) for row in rows[:most]]
    lines += ["</tbody>", "</table>"]
    if len(rows) > most:
        lines.append(f"<div>... and {len(rows) - most} more</div>")
    return "\n".join(lines)


def _row(tag: str, texts: Sequence[str]) -> str:
    cells = "".join(f'<{tag} style="text-align: left">{escape(text)}</{tag}>' for text in texts)
    return f"<tr>{cells}</tr>"


__all__ = ["MOST_ROWS", "html_table"]
