"""Figures of attributions: one image beside many maps, many methods side by side.

Figures are built on `matplotlib.figure.Figure` directly: no window system, no global state of pyplot, safe
in threads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_learnprop.errors import LearnpropError

Array = NDArray[np.float64]

SIGNED_COLOURS = "RdBu_r"
"""Diverging: red speaks for the target, blue against it, white is zero."""

POSITIVE_COLOURS = "magma"
OUTLINE_COLOUR = "#00d0ff"


class PlotError(LearnpropError):
    """An image or map that cannot be drawn."""


def to_hwc(image: Tensor | NDArray[np.floating]) -> Array:
    """An image as ``(H, W, 3)`` in [0, 1], from ``(3, H, W)``, ``(1, H, W)``, ``(H, W)`` or ``(1, C, H, W)``.

    Values outside [0, 1] (a normalised image, say) are brought into it by the image's own range; an image
    that lies in it is left as it is. Grey images get three equal channels.

    Raises:
        PlotError: another shape, or values that are not finite.
    """
    array = _to_array(image)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] not in (1, 3) or not array.size:
        raise PlotError(f"an image must be (3, H, W), (1, H, W), (H, W) or one of a batch of 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise PlotError("the image has NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < 0.0 or high > 1.0:
        array = (array - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.repeat(array.transpose(1, 2, 0), 3 // array.shape[0], axis=2)


def normalize_map(attribution: Tensor | NDArray[np.floating], *, percentile: float = 99.0) -> Array:
    """A map ``(H, W)`` scaled to [-1, 1], zero staying zero; a leading channel axis is summed.

    The scale is a percentile of the absolute values, so that a few extreme pixels do not hide the rest;
    values beyond it are clipped. Where that percentile is zero (most pixels are) the maximum is the scale;
    a map of zeros stays zero.

    Args:
        attribution: ``(H, W)``, ``(C, H, W)`` or ``(1, C, H, W)``.
        percentile: in (0, 100].

    Raises:
        PlotError: another shape, values that are not finite, or a percentile out of range.
    """
    if not 0.0 < percentile <= 100.0:
        raise PlotError(f"percentile must be in (0, 100], got {percentile}")
    array = _to_array(attribution)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3:
        array = array.sum(0)
    if array.ndim != 2 or not array.size:
        raise PlotError(f"a map must be (H, W), (C, H, W) or one of a batch of 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise PlotError(f"the map has {int((~np.isfinite(array)).sum())} NaN or infinite values")
    size = np.abs(array)
    scale = float(np.percentile(size, percentile)) or float(size.max())
    return np.clip(array / scale, -1.0, 1.0) if scale > 0.0 else np.zeros_like(array)


def overlay(
    image: Tensor | NDArray[np.floating],
    attribution: Tensor | NDArray[np.floating],
    *,
    strength: float = 0.75,
) -> Array:
    """The image in grey with the map's colour where the map is large: ``(H, W, 3)`` in [0, 1].

    Args:
        image: see `to_hwc`.
        attribution: see `normalize_map`; must have the image's height and width.
        strength: opacity of the colour where the map is at its largest, in [0, 1].

    Raises:
        PlotError: sizes differ, or see `to_hwc` and `normalize_map`.
    """
    background, scaled = to_hwc(image), normalize_map(attribution)
    if background.shape[:2] != scaled.shape:
        raise PlotError(f"image {background.shape[:2]} and map {scaled.shape} differ in height or width")
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
) -> Figure:
    """One row per image, the image first, then one column per method.

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
        PlotError: no map or image, numbers of rows that differ, or see `to_hwc` and `normalize_map`.
    """
    rows = len(images)
    if not maps or not rows:
        raise PlotError("nothing to draw: maps and images must not be empty")
    for name, batch in maps.items():
        if len(batch) != rows:
            raise PlotError(f"{name!r} has {len(batch)} maps for {rows} images")
    for name, values in (("row_titles", row_titles), ("outlines", outlines)):
        if values is not None and len(values) != rows:
            raise PlotError(f"{name} has {len(values)} entries for {rows} images")
    figure = Figure(figsize=(1.75 * (len(maps) + 1), 1.72 * rows + 0.9), layout="constrained")
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


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 120) -> Path:
    """Write a figure under a temporary name, then move it: an interrupted run leaves no half file.

    The format is that of the suffix, e.g. ``.png`` or ``.pdf``. Missing folders are made.

    Raises:
        PlotError: the path has no suffix.
    """
    path = Path(path)
    if not path.suffix:
        raise PlotError(f"{str(path)!r} has no suffix to take the format from; write e.g. {path.name + '.png'!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
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
    """Colours ``(H, W, 3)`` of a map in [-1, 1], or in [0, 1] where it is not signed."""
    if signed:
        return np.asarray(colormaps[SIGNED_COLOURS]((scaled + 1.0) / 2.0)[..., :3], dtype=np.float64)
    return np.asarray(colormaps[POSITIVE_COLOURS](scaled)[..., :3], dtype=np.float64)


def _to_array(values: Tensor | NDArray[np.floating]) -> Array:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)
