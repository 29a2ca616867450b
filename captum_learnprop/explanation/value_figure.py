"""Drawings of maps of rows (bars), series (a line over colours) and texts (coloured tokens)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from torch import Tensor

from captum_learnprop.plot import SIGNED_COLOURS, Array

_BARS = 16
"""Features that are drawn: those with the largest values of the first map."""

_LETTERS = 40
"""Letters of a line of a text."""

_LINE = 0.28
"""Height of a bar or of a line of a text in inches."""


def panel_size(kind: str, names: Sequence[str]) -> tuple[float, float]:
    """Returns width and height of a panel in inches."""
    if kind == "series":
        return 3.6, 1.6
    lines = min(_BARS, len(names)) if kind == "row" else _placed(names)[-1][1] + 1
    return 3.2, max(0.8, _LINE * lines)


def draw_input(axes: Axes, kind: str, shown: Tensor, names: Sequence[str], first: Tensor) -> None:
    """Draws the input: values beside the names of features, lines, or tokens."""
    if kind == "series":
        _lines(axes, shown)
    elif kind == "text":
        _tokens(axes, names, None)
    else:
        order = _order(first)
        for place, index in enumerate(order):
            axes.text(0, place, f"{names[index]} = {float(shown[index]):.4g}", fontsize=8, va="center")
        axes.set_ylim(len(order) - 0.5, -0.5)
        left_out = len(names) - len(order)
        if left_out:
            axes.text(0, len(order) - 0.4, f"and {left_out} more", fontsize=7, va="top")


def draw_map(axes: Axes, kind: str, shown: Tensor, names: Sequence[str], values: Tensor, first: Tensor) -> None:
    """Draws a map: red speaks for the target, blue against it."""
    if kind == "series":
        colours = colormaps[SIGNED_COLOURS]((_scaled(values) + 1) / 2)[None]
        axes.imshow(colours, aspect="auto", extent=(-0.5, len(values) - 0.5, 0, 1), interpolation="nearest")
        _lines(axes, shown)
    elif kind == "text":
        _tokens(axes, names, values)
    else:
        order = _order(first)
        bars = values.detach().cpu().double().numpy()[order]
        axes.barh(range(len(order)), bars, color=["#b2182b" if bar > 0 else "#2166ac" for bar in bars])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_ylim(len(order) - 0.5, -0.5)


def html_of_tokens(names: Sequence[str], values: Tensor) -> str:
    """Returns tokens as HTML, coloured by their values, which a pointer shows."""
    spans = [
        f'<span title="{value:.4g}" style="background:{colour};color:{ink};padding:1px 2px">{escape(name)}</span>'
        for name, value, (colour, ink) in zip(names, values.tolist(), _colours(values), strict=True)
    ]
    return f'<p style="line-height:1.8">{" ".join(spans)}</p>'


def _order(first: Tensor) -> list[int]:
    found: list[int] = first.detach().abs().argsort(descending=True, stable=True)[:_BARS].tolist()
    return found


def _scaled(values: Tensor) -> Array:
    """Returns a map in [-1, 1], by its largest value; 0 stays 0."""
    array = values.detach().cpu().double().numpy()
    largest = float(np.abs(array).max(initial=0.0))
    return np.asarray(array / largest if largest > 0 else array, dtype=np.float64)


def _colours(values: Tensor) -> list[tuple[str, str]]:
    """Returns for each token the colours of its ground and of its letters."""
    grounds = colormaps[SIGNED_COLOURS]((_scaled(values) + 1) / 2)
    dark = grounds[:, :3] @ np.array([0.3, 0.6, 0.1]) < 0.5
    return [(to_hex(ground), "white" if one else "black") for ground, one in zip(grounds, dark, strict=True)]


def _lines(axes: Axes, shown: Tensor) -> None:
    """Draws the channels of a series above each other, each in its own range, within [0, 1]."""
    rows = shown.detach().cpu().double().numpy()
    for number, row in enumerate(rows):
        low, high = row.min(), row.max()
        line = (row - low) / (high - low) if high > low else np.full_like(row, 0.5)
        axes.plot((0.1 + 0.8 * line + len(rows) - 1 - number) / len(rows), color="black", linewidth=1)
    axes.set_xlim(-0.5, rows.shape[1] - 0.5)
    axes.set_ylim(0, 1)


def _placed(names: Sequence[str]) -> list[tuple[int, int]]:
    """Returns the first column and the line of each token."""
    column, line, found = 0, 0, []
    for name in names:
        if column and column + len(name) > _LETTERS:
            column, line = 0, line + 1
        found.append((column, line))
        column += len(name) + 1
    return found


def _tokens(axes: Axes, names: Sequence[str], values: Tensor | None) -> None:
    colours = [("white", "black")] * len(names) if values is None else _colours(values)
    places = _placed(names)
    for name, (ground, ink), (column, line) in zip(names, colours, places, strict=True):
        box = {"facecolor": ground, "edgecolor": "none", "pad": 1.0}
        axes.text(
            column / _LETTERS, line, name.replace("$", r"\$"), family="monospace", fontsize=8, color=ink, bbox=box,
            va="center",
        )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(places[-1][1] + 0.5, -0.5)
