"""The place of a model's input in a picture, so that a map of the input becomes one of the picture.

A `Preprocessing` says it itself. Of any other function from pictures to inputs (torchvision's ``weights.transforms()``,
an image processor of Hugging Face, one's own) it is measured, together with the normalisation: what becomes of a black
and a white picture, and of two ramps, one along each side, says where every pixel of the input comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing

_SPREAD = 1e-3
"""Difference of black and white, as a share of the largest one, below which a pixel of the input shows no picture."""

_NEAR = 0.005
"""Share of a side that is not told from nothing."""

_UNEVEN = 0.02
"""How far, as a share of the picture, a ramp may be from a straight line in the middle of the input."""


@dataclass(frozen=True)
class Frame:
    """The part of a picture that a model's input shows.

    Attributes:
        height: Height of the picture in pixels.
        width: Its width.
        top: Upper edge of the part, in pixels of the picture; below 0 where the input shows a margin.
        left: Its left edge.
        tall: Its height.
        wide: Its width.
    """

    height: int
    width: int
    top: float
    left: float
    tall: float
    wide: float

    @classmethod
    def whole(cls, height: int, width: int) -> Frame:
        """Returns the frame of an input that is the picture."""
        return cls(height, width, 0.0, 0.0, float(height), float(width))

    @property
    def rows(self) -> slice:
        """The rows of the picture that the input shows."""
        return slice(max(0, round(self.top)), min(self.height, round(self.top + self.tall)))

    @property
    def columns(self) -> slice:
        """The columns of the picture that the input shows."""
        return slice(max(0, round(self.left)), min(self.width, round(self.left + self.wide)))

    @property
    def complete(self) -> bool:
        """Whether the input shows all of the picture."""
        return (self.rows, self.columns) == (slice(0, self.height), slice(0, self.width))

    def place(self, values: Tensor) -> Tensor:
        """Returns a map of the input ``(h, w)`` as one of the picture, ``(height, width)``.

        It is 0 where the input does not show the picture.
        """
        top, left = round(self.top), round(self.left)
        tall = max(1, round(self.top + self.tall) - top)
        wide = max(1, round(self.left + self.wide) - left)
        resized = values
        if tuple(values.shape) != (tall, wide):
            resized = F.interpolate(
                values[None, None], (tall, wide), mode="bilinear", align_corners=False, antialias=True
            )[0, 0]
        placed = values.new_zeros(self.height, self.width)
        rows, columns = self.rows, self.columns
        placed[rows, columns] = resized[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        return placed


@dataclass(frozen=True)
class Framed:
    """A picture as the input of a model.

    Attributes:
        input: What the model takes, ``(1, C, h, w)``.
        frame: The part of the picture that it shows.
        mean: Mean of the normalisation for each channel, of pixels in [0, 1].
        std: Its deviation.
    """

    input: Tensor
    frame: Frame
    mean: tuple[float, ...]
    std: tuple[float, ...]


def framed(image: Image.Image, preprocessing: Preprocessing | Callable[..., Any]) -> Framed:
    """Returns a picture as the input of a model.

    Args:
        image: Upright, RGB.
        preprocessing: What models say of themselves, or any function of a picture that gives ``(C, h, w)``: resizing,
            cropping, padding and normalising in any order.

    Raises:
        LearnpropError: The function gives something else, or does more than that.
    """
    if isinstance(preprocessing, Preprocessing):
        box = preprocessing.covered(image.width, image.height)
        values = preprocessing.normalize(preprocessing.pixels(image))[None]
        return Framed(values, Frame(image.height, image.width, *box), preprocessing.mean, preprocessing.std)
    values = _input_of(preprocessing, image)
    frame, mean, std = _measured(preprocessing, image.width, image.height, tuple(values.shape))
    return Framed(values[None], frame, mean, std)


def _input_of(function: Callable[..., Any], image: Image.Image) -> Tensor:
    """Returns what a function makes of a picture, ``(C, h, w)``."""
    of_hugging_face = hasattr(function, "preprocess") and hasattr(function, "to_dict")
    options = {"return_tensors": "pt"} if of_hugging_face else {}
    found = function(image, **options)
    found = found["pixel_values"] if of_hugging_face else found
    if isinstance(found, Tensor) and found.ndim == 4 and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 3 or not found.is_floating_point():
        what = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise LearnpropError(
            f"preprocessing must give a floating-point tensor (C, H, W) for a picture of PIL, and gave {what}"
        )
    return found


def _measured(
    function: Callable[..., Any], width: int, height: int, shape: tuple[int, ...]
) -> tuple[Frame, tuple[float, ...], tuple[float, ...]]:
    """Returns the part of a picture that a function keeps, and the mean and deviation of its normalisation."""
    across = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    zero = np.zeros((height, width))
    black, white, x, y = (_input_of(function, _grey(values)) for values in (zero, zero + 255, across, down))
    if tuple(black.shape) != shape or tuple(x.shape) != shape:
        raise _opaque("inputs differ in shape by what pictures show")
    spread = (white - black).double()
    shown = (spread.abs() > _SPREAD * spread.abs().max()).all(0)
    if not bool(shown.any()):
        raise _opaque("a black and a white picture become the same")
    middle = [(one[:, shown]).double().median(1).values for one in (black, white)]
    std = 1 / (middle[1] - middle[0])
    share = [((one - black).double() / torch.where(spread == 0, 1.0, spread)).mean(0) for one in (x, y)]
    left, wide = _snapped(*_span(share[0], shown, 1, width), width)
    top, tall = _snapped(*_span(share[1], shown, 0, height), height)
    frame = Frame(height, width, top, left, tall, wide)
    return frame, tuple((-middle[0] * std).tolist()), tuple(std.tolist())


def _span(ramp: Tensor, shown: Tensor, axis: int, side: int) -> tuple[float, float]:
    """Returns where an axis of the input begins in the picture and how long it is, from what became of a ramp.

    The ramp rises from 0 at the middle of the first pixel to 1 at that of the last. Near the borders of the picture
    resizing repeats pixels, so that only the middle of the input is a straight line.
    """
    length = ramp.shape[axis]
    at = shown.any(1 - axis).nonzero().flatten()
    values = torch.where(shown, ramp, 0.0).sum(1 - axis)[at] / shown.sum(1 - axis)[at]
    places = at.double() + 0.5
    cut = len(at) // 8
    inner = slice(cut, len(at) - cut)
    if len(at) < 2 or side < 2:
        return 0.0, float(side)
    centred = places[inner] - places[inner].mean()
    slope = float((centred * values[inner]).sum() / centred.square().sum())
    start = float(values[inner].mean() - slope * places[inner].mean())
    wrong = float((values[inner] - start - slope * places[inner]).abs().max())
    if slope <= 0 or wrong > max(_UNEVEN, 2 / side):
        raise _opaque("pixels do not stay where they are (it may flip, rotate or draw at random)")
    # A share v of the ramp is v * (side - 1) + 0.5 pixels from the picture's edge.
    return start * (side - 1) + 0.5, length * slope * (side - 1)


def _snapped(start: float, length: float, side: int) -> tuple[float, float]:
    """Returns the whole side where that is what was measured, but for the errors of measuring."""
    near = max(1.0, _NEAR * side)
    return (0.0, float(side)) if abs(start) < near and abs(start + length - side) < near else (start, length)


def _grey(values: np.ndarray[Any, Any]) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def _opaque(why: str) -> LearnpropError:
    return LearnpropError(
        f"this preprocessing is more than resizing, cropping and normalising: {why}. Pass what it gives as a tensor, "
        "or do it in the model's forward pass"
    )
