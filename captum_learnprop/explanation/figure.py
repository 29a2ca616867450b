"""The figure of explanations: each picture with what the model says of it, then a map over it for each method."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.explanation.framing import Frame
from captum_learnprop.explanation.value_figure import draw_input, draw_map, panel_size
from captum_learnprop.plot import OUTLINE_COLOUR, Array, NotebookFigure, overlay, to_hwc

_LONGEST = 640
"""Pixels of the longer side that are drawn."""

_PANEL = 3.2
"""Length of the longer side of a panel in inches."""

_FADED = 0.7
"""How much of what the model does not see turns white."""

_LETTERS = 30
"""Letters in a line of text."""


@dataclass(frozen=True)
class Column:
    """A map of a row.

    Attributes:
        map: ``(H, W)``; of a row ``(F,)``, of series and texts ``(T,)``.
        method: The method's name.
        cost: What the map took, in words.
    """

    map: Tensor
    method: str
    cost: str


@dataclass(frozen=True)
class Row:
    """A picture and the maps of one target.

    Attributes:
        image: ``(3, H, W)`` in [0, 1], or what else is explained, see `values.Values`.
        frame: What the model sees of it.
        title: What the picture is called.
        target: What is explained.
        prediction: Lines of what the model says.
        columns: The maps.
        kind: ``"picture"``, ``"row"``, ``"series"`` or ``"text"``.
        names: Of features, channels or tokens.
    """

    image: Tensor
    frame: Frame
    title: str
    target: str
    prediction: Sequence[str]
    columns: Sequence[Column]
    kind: str = "picture"
    names: Sequence[str] = ()

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of a panel in inches."""
        return _panel_size(self.image) if self.kind == "picture" else panel_size(self.kind, self.names)


def draw(rows: Sequence[Row]) -> NotebookFigure:
    """Draws a row for each picture and target: the picture, then the maps over it.

    Red speaks for the target, blue against it.
    """
    across = 1 + max(len(row.columns) for row in rows)
    heights = [row.size[1] for row in rows]
    width = max(row.size[0] for row in rows)
    figure = NotebookFigure(figsize=(width * across, sum(heights) + 1.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), across, squeeze=False, height_ratios=heights)
    for row, line in zip(rows, axes, strict=True):
        _draw_row(row, list(line))
    return figure


def _draw_row(row: Row, axes: list[Axes]) -> None:
    _draw_panels(row, axes)
    axes[0].set_title(textwrap.shorten(row.title, _LETTERS), fontsize=10)
    axes[0].set_xlabel("\n".join(textwrap.shorten(line, _LETTERS) for line in row.prediction), fontsize=8)
    axes[0].set_ylabel(textwrap.fill(row.target, _LETTERS), fontsize=10)
    for panel, column in zip(axes[1:], row.columns, strict=False):
        panel.set_title(textwrap.fill(column.method, _LETTERS), fontsize=10)
        panel.set_xlabel(column.cost, fontsize=8)
    for panel in axes:
        panel.set_xticks([])
        panel.set_yticks([])
        for spine in panel.spines.values():
            spine.set_visible(False)
    for panel in axes[1 + len(row.columns) :]:
        panel.set_visible(False)


def _draw_panels(row: Row, axes: list[Axes]) -> None:
    """Draws what is explained, and each map of it."""
    if row.kind != "picture":
        first = row.columns[0].map
        draw_input(axes[0], row.kind, row.image, row.names, first)
        for panel, column in zip(axes[1:], row.columns, strict=False):
            draw_map(panel, row.kind, row.image, row.names, column.map, first)
        return
    picture = to_hwc(_small(row.image))
    axes[0].imshow(picture, interpolation="nearest")
    for panel, column in zip(axes[1:], row.columns, strict=False):
        panel.imshow(_over(picture, _small(column.map[None])[0], row.frame), interpolation="nearest")
        _outline(panel, picture, row.frame)


def _over(picture: Array, values: Tensor, frame: Frame) -> Array:
    """Returns the map over the picture, which fades where the model does not see it: ``(H, W, 3)``."""
    shown = overlay(picture.transpose(2, 0, 1), values)
    if frame.complete:
        return shown
    faded = 1 - (1 - _FADED) * (1 - shown)
    top, bottom, left, right = _seen(picture, frame)
    faded[top:bottom, left:right] = shown[top:bottom, left:right]
    return np.asarray(faded, dtype=np.float64)


def _outline(panel: Axes, picture: Array, frame: Frame) -> None:
    if frame.complete:
        return
    top, bottom, left, right = _seen(picture, frame)
    panel.add_patch(
        Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, ls=":", ec=OUTLINE_COLOUR, lw=1.2)
    )


def _seen(picture: Array, frame: Frame) -> tuple[int, int, int, int]:
    scale = picture.shape[0] / frame.height, picture.shape[1] / frame.width
    rows, columns = frame.rows, frame.columns
    return (
        round(rows.start * scale[0]), round(rows.stop * scale[0]),
        round(columns.start * scale[1]), round(columns.stop * scale[1]),
    )  # fmt: skip


def _small(values: Tensor) -> Tensor:
    """Returns an image or a map ``(C, H, W)`` no larger than is drawn."""
    values = values.detach().cpu().float()
    longest = max(values.shape[-2:])
    if longest <= _LONGEST:
        return values
    size = [max(1, round(side * _LONGEST / longest)) for side in values.shape[-2:]]
    return F.interpolate(values[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def _panel_size(image: Tensor) -> tuple[float, float]:
    """Returns width and height in inches; a picture of any shape keeps room for the text below."""
    height, width = image.shape[-2:]
    longest = max(height, width)
    return max(_PANEL * width / longest, 0.6 * _PANEL), max(_PANEL * height / longest, 0.2 * _PANEL)
