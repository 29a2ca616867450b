"""A figure of the channels that suffice for a class: how often each is in the mask, and what it responds to."""

from __future__ import annotations

from torch import Tensor

from ...errors import LearnpropError
from ...plot import NotebookFigure, to_hwc
from .channel_crops import ChannelCrops


def channel_figure(
    mean: Tensor,
    crops: ChannelCrops,
    *,
    title: str | None = None,
    offset: float | Tensor = 0.0,
    scale: float | Tensor = 1.0,
) -> NotebookFigure:
    """Draws a row per channel: its mean mask as a bar, then the crops in which it is most active.

    Args:
        mean: Mean mask of all channels for one area, ``(C,)``: a row of `ChannelSummary.mean`.
        crops: Crops of some channels, from `LayerExtremalPerturbation.crops`.
        title: Headline, e.g. the name of the class.
        offset: What is added to the crops' values after ``scale``, a number or ``(C, 1, 1)`` of the images.
        scale: What the crops' values are multiplied by, likewise: with both, normalised images get their colours back.

    Raises:
        LearnpropError: Shapes that do not fit.
    """
    if mean.dim() != 1 or int(crops.channels.max()) >= len(mean):
        raise LearnpropError(
            f"mean must be (C,) with an entry for channels {crops.channels.tolist()}, got {tuple(mean.shape)}"
        )
    rows, columns = crops.crops.shape[:2]
    figure = NotebookFigure(figsize=(1.1 * columns + 2.0, 1.05 * rows + (0.5 if title else 0.2)), layout="constrained")
    grid = figure.subplots(rows, columns + 1, squeeze=False, width_ratios=[1.6, *[1.0] * columns])
    for own, channel, parts, values in zip(grid, crops.channels.tolist(), crops.crops, crops.values, strict=True):
        bar = own[0]
        bar.barh([0], [float(mean[channel])], color="#4c78a8", height=0.5)
        bar.set(xlim=(0, 1), ylim=(-1, 1), yticks=[])
        bar.set_title(f"channel {channel}: {float(mean[channel]):.2f}", fontsize=8, loc="left")
        bar.tick_params(labelsize=6, labelbottom=own is grid[-1])
        bar.spines[["top", "right"]].set_visible(False)
        for axes, part, value in zip(own[1:], parts, values, strict=True):
            axes.imshow(to_hwc((part * scale + offset).clamp(0, 1)), interpolation="nearest")
            axes.set_title(f"{float(value):.2g}", fontsize=6, pad=2)
            axes.set_axis_off()
    grid[-1][0].set_xlabel("mean mask", fontsize=7)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure
