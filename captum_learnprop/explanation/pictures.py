"""Whatever a user has for a picture, as an upright image, or as the very input of the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import read_image, upright_rgb

Given: TypeAlias = "str | Path | Image.Image | NDArray[Any] | Tensor"
"""What is taken for a picture."""


def several(images: Any) -> tuple[list[Any], bool]:
    """Returns pictures one by one, and whether several were given.

    Args:
        images: One, or a list or tuple of them; a batch of floating-point tensors ``(B, C, H, W)`` counts as B.
    """
    if isinstance(images, (list, tuple)):
        if not images:
            raise LearnpropError("there is no image: the list is empty")
        return [part for one in images for part in several(one)[0]], True
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4:
        return list(images), len(images) > 1
    return [images], False


def picture_of(given: Given) -> Image.Image | Tensor:
    """Returns an upright RGB image, or the input of a model ``(C, H, W)`` where a floating-point tensor was given.

    Args:
        given: A path; an image of PIL; an array or a tensor of bytes, ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``; an
            array of numbers in [0, 1] in such a shape; or a floating-point tensor ``(C, H, W)``, which is what the
            model takes, already prepared.

    Raises:
        LearnpropError: It is none of these.
    """
    if isinstance(given, (str, os.PathLike)):
        return read_image(_local(given))
    if isinstance(given, Image.Image):
        return upright_rgb(given)
    if isinstance(given, Tensor):
        return _of_tensor(given)
    if isinstance(given, np.ndarray):
        return _of_array(given)
    if hasattr(given, "pixel_values"):
        raise LearnpropError('this is what an image processor returned: pass its "pixel_values", or the picture itself')
    raise LearnpropError(
        f"an image is a path, an image of PIL, an array or a tensor, or a list of them; got {type(given).__name__}"
    )


def _local(given: str | os.PathLike[str]) -> Path:
    text = os.fspath(given)
    if "://" in text:
        raise LearnpropError(
            f"{text} is an address, and nothing is downloaded here: save the picture and give its path"
        )
    path = Path(text)
    if not path.exists():
        raise LearnpropError(f"there is no image {text}")
    if path.is_dir():
        raise LearnpropError(f"{text} is a folder: name one picture, or use 'learnprop attribute' for all of them")
    return path


def _of_tensor(given: Tensor) -> Image.Image | Tensor:
    if given.dtype == torch.uint8:
        return _of_array(given.detach().cpu().numpy())
    if not given.is_floating_point():
        raise LearnpropError(
            f"a tensor of {given.dtype} is no picture: bytes (torch.uint8), or numbers in floating point"
        )
    if given.ndim != 3:
        raise LearnpropError(
            f"a tensor of one picture is (C, H, W) or (1, C, H, W), got {tuple(given.shape)}: give several as a list "
            "or a batch"
        )
    if not bool(torch.isfinite(given).all()):
        raise LearnpropError("the tensor has values that are NaN or infinite")
    return given


def _of_array(given: NDArray[Any]) -> Image.Image:
    if given.dtype == np.bool_ or given.size == 0:
        raise LearnpropError(f"an array of {given.dtype}, {given.shape}, is no picture")
    if given.dtype != np.uint8:
        if not np.issubdtype(given.dtype, np.floating):
            raise LearnpropError(f"an array of {given.dtype} is no picture: bytes (uint8), or numbers in [0, 1]")
        low, high = float(given.min()), float(given.max())
        if not (low >= 0 and high <= 1):
            hint = "divide by 255" if low >= 0 and high <= 255 else "what a model takes goes in as a tensor"
            raise LearnpropError(
                f"an array of numbers is a picture in [0, 1], and this one has {low:g} to {high:g}: {hint}"
            )
        given = np.rint(given * 255).astype(np.uint8)
    shown = given
    if shown.ndim == 3 and shown.shape[-1] not in (1, 3, 4) and shown.shape[0] in (1, 3, 4):
        shown = np.moveaxis(shown, 0, -1)
    if shown.ndim == 3 and shown.shape[-1] == 1:
        shown = shown[..., 0]
    if shown.ndim != 2 and not (shown.ndim == 3 and shown.shape[-1] in (3, 4)):
        raise LearnpropError(f"an array of a picture is (H, W), (H, W, 3) or (3, H, W), got {given.shape}")
    return upright_rgb(Image.fromarray(np.ascontiguousarray(shown)))


def pixels_of(image: Image.Image) -> Tensor:
    """Returns an image as ``(3, H, W)``, float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def named(given: Given, number: int) -> str:
    """Returns what a picture is called: the name of its file, or its number."""
    return Path(given).name if isinstance(given, (str, os.PathLike)) else f"image {number}"


__all__: Sequence[str] = ["Given", "named", "picture_of", "pixels_of", "several"]
