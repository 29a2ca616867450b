"""What the browser draws: pictures and maps as numbers, in JSON that is wrapped as base64.

A text in base64 has no character that means something in HTML or in a template, whatever names of files and classes
are in it; the script in ``assets`` writes them as text.
"""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.explanation import Explanation
from captum_learnprop.explanation.framing import Frame
from captum_learnprop.plot import SIGNED_COLOURS, map_scale

LONGEST = 640
"""Pixels of the longer side of a picture that is sent."""

LONGEST_MAP = 320
"""Values along the longer side of a map that is sent; of a larger map they are means."""

_THUMBNAIL = 132
_FULL = 32767
"""The number that stands for a map's largest value."""


def element(name: str, data: Any, label: str = "") -> str:
    """Returns an element of the page's script with its data.

    Args:
        name: ``"maps"``, ``"patches"``, ``"examples"`` or ``"note"``.
        data: What JSON can hold.
        label: Nothing, or an id.
    """
    packed = b64encode(json.dumps(data, separators=(",", ":")).encode()).decode()
    return f'<learnprop-{name} data="{packed}"{label and f" id={label}"}></learnprop-{name}>'


def picture_address(image: Image.Image, longest: int = LONGEST) -> str:
    """Returns a picture as the address of itself, a JPEG no larger than is drawn."""
    small = image.convert("RGB")
    if max(small.size) > longest:
        small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()


def thumbnail(image: Image.Image) -> str:
    """Returns a small picture as the address of itself."""
    return picture_address(image, _THUMBNAIL)


def maps_data(found: Sequence[Explanation], address: str) -> dict[str, Any]:
    """Returns what the browser needs of explanations of one picture and target.

    Args:
        found: One for each method.
        address: The picture, as `picture_address` gives it.
    """
    first = found[0]
    height, width = first.map.shape
    return {
        "picture": address,
        "title": first.title,
        "target": first.target,
        "width": width,
        "height": height,
        "frame": frame_data(first.frame),
        "palette": _packed((255 * colormaps[SIGNED_COLOURS](np.linspace(0, 1, 256))[:, :3]).round().astype(np.uint8)),
        "maps": [_map_data(one) for one in found],
    }


def frame_data(frame: Frame) -> dict[str, float] | None:
    """Returns the part of a picture that the model sees, as shares of its sides; None where that is all of it."""
    if frame.complete:
        return None
    return {
        "top": frame.rows.start / frame.height,
        "bottom": frame.rows.stop / frame.height,
        "left": frame.columns.start / frame.width,
        "right": frame.columns.stop / frame.width,
    }


def _map_data(found: Explanation) -> dict[str, Any]:
    values = _smaller(found.map).numpy()
    largest = float(np.abs(values).max())
    whole = np.zeros(values.shape, np.int16) if largest == 0 else np.rint(values * (_FULL / largest)).astype("<i2")
    return {
        "method": found.method,
        "cost": str(found.cost),
        "sign": found.sign,
        "rows": values.shape[0],
        "columns": values.shape[1],
        "values": _packed(whole),
        "unit": largest / _FULL,
        "scale": map_scale(found.map.double().numpy()),
        "largest": float(found.map.abs().max()),
    }


def _smaller(values: Tensor) -> Tensor:
    longest = max(values.shape)
    if longest <= LONGEST_MAP:
        return values.float()
    size = [max(1, round(side * LONGEST_MAP / longest)) for side in values.shape]
    return F.interpolate(values[None, None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0, 0]


def _packed(values: np.ndarray[Any, Any]) -> str:
    return b64encode(np.ascontiguousarray(values).tobytes()).decode()
