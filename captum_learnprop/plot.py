"""Figures of attributions: one image beside many maps, many methods side by side.

Figures are built on `matplotlib.figure.Figure` directly: no window system, no global state of pyplot, safe
in threads. A notebook shows them by itself (see `NotebookFigure`).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.files import replacing
from zennit_rules._moved import renamed

Array = NDArray[np.float64]

SIGNED_COLOURS = "RdBu_r"
"""Diverging: red speaks for the target, blue against it, white is zero."""

POSITIVE_COLOURS = "magma"
OUTLINE_COLOUR = "#00d0ff"

HIGHLIGHT_COLOUR = "#c8102e"
GROUP_COLOURS = ("#4c78a8", "#59a14f", "#e8871e", "#8c6bb1", "#7f7f7f", "#c9a227", "#17a2a2", "#b07aa1")


class NotebookFigure(Figure):
    """A figure that a notebook shows by itself, as the result of a cell.

    Matplotlib does this only for sessions in which pyplot has been set up. Where it has, its own way of showing a
    figure takes precedence, so that the figure appears once.
    """

    def _repr_png_(self) -> bytes:
        """Returns the figure as PNG: what Jupyter asks a result for."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def to_hwc(image: Tensor | NDArray[np.floating]) -> Array:
    """Returns an image as ``(H, W, 3)`` in [0, 1], from ``(3, H, W)``, ``(1, H, W)``, ``(H, W)`` or ``(1, C, H, W)``.

    Values outside [0, 1] (a normalised image, say) are brought into it by the image's own range; an image
    that lies in it is left as it is. Grey images get three equal channels.

    Raises:
        LearnpropError: another shape, or values that are not finite.
    """
    array = _to_array(image)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] not in (1, 3) or not array.size:
        raise LearnpropError(f"an image must be (3, H, W), (1, H, W), (H, W) or one of a batch of 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise LearnpropError("the image has NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < 0.0 or high > 1.0:
        array = (array - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.repeat(array.transpose(1, 2, 0), 3 // array.shape[0], axis=2)


def normalize_map(attribution: Tensor | NDArray[np.floating], *, percentile: float = 99.0) -> Array:
    """Returns a map ``(H, W)`` scaled to [-1, 1], zero staying zero; a leading channel axis is summed.

    The scale is a percentile of the absolute values, so that a few extreme pixels do not hide the rest;
    values beyond it are clipped. Where that percentile is zero (most pixels are) the maximum is the scale;
    a map of zeros stays zero.

    Args:
        attribution: ``(H, W)``, ``(C, H, W)`` or ``(1, C, H, W)``.
        percentile: in (0, 100].

    Raises:
        LearnpropError: another shape, values that are not finite, or a percentile out of range.
    """
    if not 0.0 < percentile <= 100.0:
        raise LearnpropError(f"percentile must be in (0, 100], got {percentile}")
    array = _to_array(attribution)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3:
        array = array.sum(0)
    if array.ndim != 2 or not array.size:
        raise LearnpropError(f"a map must be (H, W), (C, H, W) or one of a batch of 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise LearnpropError(f"the map has {int((~np.isfinite(array)).sum())} NaN or infinite values")
    scale = map_scale(array, percentile=percentile)
    return np.clip(array / scale, -1.0, 1.0) if scale > 0.0 else np.zeros_like(array)


def map_scale(values: Array, *, percentile: float = 99.0) -> float:
    """Returns the value that `normalize_map` brings to 1, 0 for a map of zeros."""
    size = np.abs(values)
    return float(np.percentile(size, percentile)) or float(size.max())


def overlay(
    image: Tensor | NDArray[np.floating],
    attribution: Tensor | NDArray[np.floating],
    *,
    strength: float = 0.75,
) -> Array:
    """Returns the image in grey with the map's colour where the map is large: ``(H, W, 3)`` in [0, 1].

    Args:
        image: An image in a layout that `to_hwc` takes.
        attribution: A map in a layout that `normalize_map` takes, of the image's height and width.
        strength: opacity of the colour where the map is at its largest, in [0, 1].

    Raises:
        LearnpropError: Sizes differ, or the image or map cannot be drawn.
    """
    background, scaled = to_hwc(image), normalize_map(attribution)
    if background.shape[:2] != scaled.shape:
        raise LearnpropError(f"image {background.shape[:2]} and map {scaled.shape} differ in height or width")
    grey = np.repeat(background.mean(2, keepdims=True), 3, axis=2)
    opacity = strength * np.abs(scaled)[..., None]
    return np.asarray((1.0 - opacity) * grey + opacity * _colour(scaled, signed=True), dtype=np.float64)


def compare(
    maps: Mapping[str, Tensor | Sequence[Tensor]],
    images: Tensor | Sequence[Tensor],
    *,
    row_titles: Sequence[str] | None = None,
    outlines: Tensor | Sequence[Tensor] | None = None,
    captions: Mapping[str, str] | None = None,
    title: str | None = None,
) -> NotebookFigure:
    """Draws one row per image, the image first, then one column per method.

    Maps without negative values are drawn from dark to light, signed ones from blue through white to red;
    all maps of a method share the choice, so that a column reads the same from top to bottom.

    Args:
        maps: by method, ``(N, H, W)`` or ``(N, C, H, W)`` or a sequence of single maps.
        images: ``(N, 3, H, W)`` or a sequence of single images.
        row_titles: ``N`` words at the left of each row.
        outlines: ``N`` boolean masks ``(H, W)``, drawn as a contour over every map and image: the ground
            truth.
        captions: a second line under a method's name, e.g. its score.
        title: headline of the figure.

    Raises:
        LearnpropError: No map or image, numbers of rows that differ, or one that cannot be drawn.
    """
    rows = len(images)
    if not maps or not rows:
        raise LearnpropError("nothing to draw: maps and images must not be empty")
    for name, batch in maps.items():
        if len(batch) != rows:
            raise LearnpropError(f"{name!r} has {len(batch)} maps for {rows} images")
    for name, values in (("row_titles", row_titles), ("outlines", outlines)):
        if values is not None and len(values) != rows:
            raise LearnpropError(f"{name} has {len(values)} entries for {rows} images")
    figure = NotebookFigure(figsize=(1.75 * (len(maps) + 1), 1.72 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, len(maps) + 1, squeeze=False)
    for row in range(rows):
        outline = None if outlines is None else _to_array(outlines[row])
        _draw(axes[row, 0], to_hwc(images[row]), outline)
        if row_titles is not None:
            axes[row, 0].set_ylabel(row_titles[row], fontsize=10)
    axes[0, 0].set_title("image", fontsize=10)
    for column, (name, batch) in enumerate(maps.items(), start=1):
        scaled = [normalize_map(batch[row]) for row in range(rows)]
        signed = any((one < 0.0).any() for one in scaled)
        for row, one in enumerate(scaled):
            outline = None if outlines is None else _to_array(outlines[row])
            _draw(axes[row, column], _colour(one, signed=signed), outline)
        caption = (captions or {}).get(name)
        axes[0, column].set_title(name if caption is None else f"{name}\n{caption}", fontsize=10)
    if title is not None:
        figure.suptitle(title, fontsize=12)
    return figure


@dataclass(frozen=True)
class CostQuality:
    """A point of `cost_quality`.

    Attributes:
        name: Label of the point.
        group: Points of one group share a colour.
        cost: Place on the horizontal axis, above 0.
        quality: Place on the vertical axis.
        error: Half the length of the error bar, 0 for none.
        highlighted: Whether it is drawn large and in red, with a bold label.
        labelled: Whether it is named; the others are drawn small and in grey.
    """

    name: str
    group: str
    cost: float
    quality: float
    error: float = 0.0
    highlighted: bool = False
    labelled: bool = True


def cost_quality(
    panels: Mapping[str, Sequence[CostQuality]], *, cost: str, quality: str, title: str | None = None
) -> NotebookFigure:
    """Draws quality against cost, one panel each; all have the same two axes, that of cost is logarithmic.

    Names stand at the right of their panel in the order of quality, each joined to its point by a thin line, so that
    crowded points stay readable. Points that are not labelled are the grey background that the others are seen against:
    the vertical axis fits the labelled ones, and triangles at its lower end stand for those that are worse.

    Args:
        panels: Points by the panel's title.
        cost: Label of the horizontal axis.
        quality: Label of the vertical axis.
        title: Headline of the figure.

    Raises:
        LearnpropError: There is nothing to draw, a cost is not positive, or values are not finite.
    """
    points = [point for panel in panels.values() for point in panel]
    if not points or not all(panels.values()):
        raise LearnpropError("nothing to draw: every panel needs a point")
    for point in points:
        if not (np.isfinite([point.cost, point.quality, point.error]).all() and point.cost > 0 and point.error >= 0):
            raise LearnpropError(f"{point.name!r} has cost {point.cost}, quality {point.quality}, error {point.error}")
    groups = list(dict.fromkeys(point.group for point in points if point.labelled and not point.highlighted))
    colours = {group: GROUP_COLOURS[index % len(GROUP_COLOURS)] for index, group in enumerate(groups)}
    most = max(sum(point.labelled for point in panel) for panel in panels.values())
    height = max(5.0, _LABEL_INCHES * most + 1.6)
    longest = max(len(point.name) for point in points if point.labelled) if most else 0
    width = max(4.4, 2.6 + _LETTER_INCHES * longest) * max(len(panels), 1.5)
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    row[0].set_ylim(_limits([point for point in points if point.labelled] or points))
    for axes, (name, panel) in zip(row, panels.items(), strict=True):
        _draw_panel(axes, panel, colours)
        _name_points(axes, [point for point in panel if point.labelled], colours, _LABEL_INCHES / (height - 1.6))
        axes.set_title(name, fontsize=11, loc="left")
    row[0].set_ylabel(quality)
    figure.supxlabel(cost, fontsize=10)
    if title is not None:
        figure.suptitle(textwrap.fill(title, int(11 * width)), fontsize=12)
    return figure


def _limits(points: Sequence[CostQuality]) -> tuple[float, float]:
    low = min(point.quality - point.error for point in points)
    high = max(point.quality + point.error for point in points)
    room = 0.06 * (high - low) or 0.05
    return low - room, high + room


_LABEL_INCHES = 0.17
"""Height of a label's line in `cost_quality`, in inches."""

_LETTER_INCHES = 0.075
"""Width of a letter of a bold label there."""

_BACKGROUND_COLOUR = "#b4b4b4"


def _draw_panel(axes: Axes, points: Sequence[CostQuality], colours: Mapping[str, str]) -> None:
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    bottom = axes.get_ylim()[0]
    for point in points:
        colour = _colour_of(point, colours)
        if point.quality < bottom:
            axes.plot(point.cost, bottom, marker="v", color=colour, markersize=4.5, clip_on=False)
            continue
        axes.errorbar(
            point.cost, point.quality, yerr=point.error or None, fmt="o", color=colour, ecolor=colour,
            markersize=7 if point.highlighted else 5.5 if point.labelled else 3.5,
            elinewidth=1.1 if point.labelled else 0.7, zorder=2 + point.labelled + point.highlighted,
        )  # fmt: skip
    axes.grid(True, which="major", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)


def _colour_of(point: CostQuality, colours: Mapping[str, str]) -> str:
    if not point.labelled:
        return _BACKGROUND_COLOUR
    return HIGHLIGHT_COLOUR if point.highlighted else colours[point.group]


def _name_points(axes: Axes, points: Sequence[CostQuality], colours: Mapping[str, str], gap: float) -> None:
    """Writes names in a column at the right, from the lowest quality up, as near to their points as the gap allows."""
    points = sorted(points, key=lambda point: point.quality)
    low, high = axes.get_ylim()
    wanted = [(point.quality - low) / (high - low) for point in points]
    for place, point in zip(_spread(wanted, min(gap, 0.985 / max(len(points), 1))), points, strict=True):
        colour = _colour_of(point, colours)
        axes.annotate(
            f"{point.name}  {point.quality:.2f}", (point.cost, point.quality), (1.05, place),
            textcoords="axes fraction", va="center", fontsize=8, color=colour, annotation_clip=False,
            fontweight="bold" if point.highlighted else "normal",
        )  # fmt: skip
        axes.annotate(
            "", (point.cost, point.quality), (1.045, place), textcoords="axes fraction", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Returns rising places in [0, 1], at least ``gap`` apart, near the wanted ones, which rise."""
    places: list[float] = []
    for value in wanted:
        places.append(max(value, places[-1] + gap if places else 0.0))
    ceiling = 0.985  # leaves the title alone
    for index in range(len(places) - 1, -1, -1):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    return places


def area_curves(
    areas: Tensor, preserved: Tensor, *, share: float | None = None, extremal: Tensor | None = None
) -> NotebookFigure:
    """Draws how the preserved output grows with the area of extremal masks, a line per sample.

    Args:
        areas: ``(B, P)``, ascending; `ExtremalArea.curve_areas`.
        preserved: ``(B, P)``, what of the reward is preserved; `ExtremalArea.curve`.
        share: that was asked for, drawn as a line.
        extremal: ``(B,)``, the smallest areas that suffice, drawn as points; NaN for none.

    Raises:
        LearnpropError: shapes that do not fit.
    """
    if areas.dim() != 2 or areas.shape != preserved.shape or not areas.numel():
        raise LearnpropError(f"areas {tuple(areas.shape)} and preserved {tuple(preserved.shape)} must both be (B, P)")
    figure = NotebookFigure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for row, (x, y) in enumerate(zip(_to_array(areas), _to_array(preserved), strict=True)):
        colour = GROUP_COLOURS[row % len(GROUP_COLOURS)]
        axes.plot(x, y, marker=".", color=colour, label=f"sample {row}")
        at = float("nan") if extremal is None else float(extremal[row])
        if np.isfinite(at):
            axes.plot([at], [np.interp(at, x, y)], "o", color=colour, markerfacecolor="none", markersize=11)
    if share is not None:
        axes.axhline(share, color=HIGHLIGHT_COLOUR, linewidth=0.8, linestyle="--")
    axes.set(xlabel="area of the mask", ylabel="share of the output that is preserved", xscale="log")
    if len(areas) > 1:
        axes.legend(fontsize=7, frameon=False)
    return figure


def alignment_curves(reports: Sequence[Any]) -> NotebookFigure:
    """Draws how rules compare by layer: alignment with the input, cosine of two classes, convergence, cascades.

    Args:
        reports: `evaluation.analysis.RuleReport`, one line each.

    Raises:
        LearnpropError: no report.
    """
    if not reports:
        raise LearnpropError("nothing to draw: give at least one report")
    panels = (
        ("alignment", "cosine with the input (centred)"), ("classes", "cosine of two classes"),
        ("convergence", "cosine of random vectors"), ("cascading", "re-initialised from the output on"),
    )  # fmt: skip
    figure = NotebookFigure(figsize=(11, 6.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for row, report in enumerate(reports):
            values = list(getattr(report, name).values())
            colour = GROUP_COLOURS[row % len(GROUP_COLOURS)]
            axes.plot(range(len(values)), values, marker=".", color=colour, label=report.rule)
        labels = list(getattr(reports[0], name))
        step = max(1, len(labels) // 10)
        axes.set_xticks(range(0, len(labels), step), labels[::step], rotation=30, ha="right", fontsize=6)
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        axes.set_title(title, fontsize=9)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def theory_curves(
    widths: Mapping[str, Sequence[tuple[int, float, float, float]]],
    fractions: Sequence[tuple[float, float, float, float]],
    orthogonal: Mapping[str, Sequence[tuple[int, float, float, float]]],
) -> NotebookFigure:
    """Draws closed forms of alignment as lines, simulated layers as points with bands of 95 %.

    Args:
        widths: by coefficients, ``(units, closed form, mean, half of the band)``.
        fractions: ``(share of units, closed form, mean, half of the band)``.
        orthogonal: as ``widths``, of layers with orthogonal rows.

    Raises:
        LearnpropError: nothing to draw.
    """
    if not widths or not fractions or not orthogonal:
        raise LearnpropError("nothing to draw: give points by width, by share, and of orthogonal rows")
    figure = NotebookFigure(figsize=(12, 3.8), layout="constrained")
    left, right, last = figure.subplots(1, 3)
    for axes, lines in ((left, widths), (last, orthogonal)):
        for row, (name, points) in enumerate(lines.items()):
            _draw_theory(axes, points, GROUP_COLOURS[row % len(GROUP_COLOURS)], name)
    _draw_theory(right, fractions, GROUP_COLOURS[0], "equal coefficients")
    last.set(xlabel="units, orthogonal rows", xscale="log")
    left.set(xlabel="units", ylabel="cosine with the input", xscale="log")
    right.set(xlabel="share of units that pass", xscale="log")
    for axes in figure.axes:
        places = sorted({float(x) for line in axes.lines for x in np.atleast_1d(line.get_xdata())})
        axes.set_xticks(places, [f"{place:g}" for place in places], fontsize=7)
        axes.minorticks_off()
    left.legend(fontsize=7, frameon=False)
    return figure


def _draw_theory(axes: Axes, points: Sequence[tuple[float, float, float, float]], colour: str, name: str) -> None:
    x, closed, mean, half = (np.array(values) for values in zip(*points, strict=True))
    axes.plot(x, closed, color=colour, label=name, linewidth=1)
    axes.errorbar(x, mean, yerr=half, fmt="o", color=colour, markersize=3, capsize=2)


def training_curves(rows: Sequence[Mapping[str, float]]) -> NotebookFigure:
    """Draws loss, its terms and the validation loss by step, the learning rate on a small axis below.

    Args:
        rows: Rows of a training log, from `training.log.read_log`: ``step``, ``loss``, ``lr``, values of terms, and
            ``validation loss`` where there was a validation. What is missing or not finite is left out.

    Raises:
        LearnpropError: no row, or a row without ``step``.
    """
    if not rows or not all("step" in row for row in rows):
        raise LearnpropError("nothing to draw: a training log has rows with a column 'step'")
    names = dict.fromkeys(name for row in rows for name in row)
    terms = [name for name in names if name not in _NO_TERMS and not name.startswith("validation ")]
    figure = NotebookFigure(figsize=(7.0, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    _draw_column(upper, rows, "loss", color="#4c78a8", linewidth=1.6)
    for index, name in enumerate(terms if len(terms) > 1 else ()):  # the only term is the loss
        colour = GROUP_COLOURS[(index + 1) % len(GROUP_COLOURS)]
        _draw_column(upper, rows, name, color=colour, linewidth=0.9, alpha=0.8)
    _draw_column(upper, rows, "validation loss", color=HIGHLIGHT_COLOUR, linewidth=1.6, marker="o", markersize=4)
    upper.set_ylabel("loss")
    if upper.lines:
        upper.legend(frameon=False, fontsize=8)
    _draw_column(lower, rows, "lr", color="#7f7f7f", linewidth=1.2)
    lower.set_ylim(bottom=0.0)
    lower.set_ylabel("learning rate", fontsize=8)
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.grid(True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


_NO_TERMS = ("step", "lr", "loss", "gradient norm")


def _draw_column(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, **style: Any) -> None:
    """A line through the finite values of a column, none where it has none."""
    points = [(row["step"], row[name]) for row in rows if np.isfinite(row.get(name, np.nan))]
    if points:
        axes.plot(*zip(*points, strict=True), label=name, **style)


def check_figure_path(path: str | Path) -> Path:
    """Returns the path, whose suffix says in which format a figure is written.

    Raises:
        LearnpropError: It has no suffix, or one of no known format.
    """
    path = Path(path)
    known = [f".{name}" for name in Figure().canvas.get_supported_filetypes()]
    if not path.suffix:
        raise LearnpropError(f"{str(path)!r} has no suffix to take the format from; write e.g. {path.name + '.png'!r}")
    if path.suffix.lower() not in known:
        raise LearnpropError(
            f"{str(path)!r}: unknown format {path.suffix!r}, known: {', '.join(known)}"
            f"{did_you_mean(path.suffix, known)}"
        )
    return path


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 120) -> Path:
    """Writes a figure as a whole: an interrupted run leaves no half file.

    The format is that of the suffix, e.g. ``.png`` or ``.pdf``. Missing folders are made.

    Raises:
        LearnpropError: the path has no suffix, or one of no known format.
        WriteError: the disk is full, or the folder is read-only.
    """
    path = check_figure_path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=dpi)
    return path


def _draw(axes: Axes, picture: Array, outline: Array | None) -> None:
    axes.imshow(picture, interpolation="nearest")
    if outline is not None and 0 < outline.sum() < outline.size:
        axes.contour(outline, levels=[0.5], colors=OUTLINE_COLOUR, linewidths=1.0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colour(scaled: Array, *, signed: bool) -> Array:
    """Returns colours ``(H, W, 3)`` of a map in [-1, 1], or in [0, 1] where it is not signed."""
    if signed:
        return np.asarray(colormaps[SIGNED_COLOURS]((scaled + 1.0) / 2.0)[..., :3], dtype=np.float64)
    return np.asarray(colormaps[POSITIVE_COLOURS](scaled)[..., :3], dtype=np.float64)


def _to_array(values: Tensor | NDArray[np.floating]) -> Array:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


__getattr__ = renamed(__name__, {"PlotError": "LearnpropError"})
