"""Small pictures of scenes as HTML, for notebooks."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

PIXELS = 96
"""Height and width of a thumbnail on the page."""

MOST = 8
"""Number of images that are shown."""


def thumbnails(images: Tensor, captions: Sequence[str], headline: str) -> str:
    """Returns a row of the first images as HTML, with the picture data inside.

    Args:
        images: ``(N, 3, H, W)`` in [0, 1].
        captions: ``N`` words, one below each image.
        headline: Text above the row.
    """
    shown = "".join(_thumbnail(image, caption) for image, caption in zip(images[:MOST], captions[:MOST], strict=True))
    more = f"<span>and {len(images) - MOST} more</span>" if len(images) > MOST else ""
    return f"<div><div>{escape(headline)}</div>{shown}{more}</div>"


def _thumbnail(image: Tensor, caption: str) -> str:
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        '<figure style="display:inline-block;margin:4px;text-align:center">'
        f'<img src="data:image/png;base64,{data}" width="{PIXELS}" height="{PIXELS}" style="image-rendering:pixelated">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
