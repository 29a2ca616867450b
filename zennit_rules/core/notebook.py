"""What a notebook shows of rules: small tables in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tabulate import tabulate

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
    body = tabulate(list(rows[:most]), headers=list(header), tablefmt="html", disable_numparse=True)
    more = f"<div>... and {len(rows) - most} more</div>" if len(rows) > most else ""
    return f"<div>{escape(caption)}</div>{body}{more}"


__all__ = ["MOST_ROWS", "html_table"]
