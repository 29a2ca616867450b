"""Tables as text: Markdown for files, aligned columns for a terminal, HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import DataRow, TableFormat, tabulate


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, one line a row, without a line end after the last.

    A ``|`` in a cell would be read as the end of the cell: it becomes ``/``.

    Args:
        head: Titles of the ``C`` columns.
        rows: ``R`` rows of ``C`` cells.

    Example:
        >>> print(markdown(["method", "score"], [["saliency", "0.63"], ["a|b", "-"]]))
        | method | score |
        |---|---|
        | saliency | 0.63 |
        | a/b | - |
    """
    lines = [[cell.replace("|", "/") for cell in line] for line in (head, *rows)]
    return _table(lines, _MARKDOWN, stralign=None, headers="firstrow")


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns rows in columns of equal width, two spaces apart, for a terminal.

    Args:
        head: Titles of the ``C`` columns.
        rows: ``R`` rows of ``C`` cells.

    Example:
        >>> print(columns(["method", "score"], [["saliency", "0.63"], ["random", "-"]]))
        method    score
        saliency  0.63
        random    -
    """
    return _table([head, *rows], "plain")


def html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table for a notebook; what is in the cells is shown as it is and never read as HTML.

    Args:
        head: Titles of the ``C`` columns.
        rows: ``R`` rows of ``C`` cells.
    """
    return str(_table([head, *rows], "html", headers="firstrow"))


def _rule(widths: Sequence[int], alignments: Sequence[str]) -> str:
    return "|---" * len(widths) + "|"


_ROW = DataRow("| ", " | ", " |")
_MARKDOWN = TableFormat(
    lineabove=None, linebelowheader=_rule, linebetweenrows=None, linebelow=None, headerrow=_ROW, datarow=_ROW,
    padding=0, with_header_hide=None,
)  # fmt: skip
"""Tabulate's ``github`` without padding: cells of results are long, most of a table of twenty columns would be
spaces."""


def _table(lines: Sequence[Sequence[str]], style: str | TableFormat, **options: str | None) -> str:
    # Numbers are text that the caller has rounded: tabulate must not read and format them again.
    text: str = tabulate(lines, tablefmt=style, disable_numparse=True, **options)
    return text
