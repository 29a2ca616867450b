"""Six small architectures for any of the grid's data sets, and the files that keep trained ones.

The shipped nets of `reference_nets` are four of them for digits; the others are trained by
``examples/train_grid_nets.py`` into a cache and ship nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.files import write_bytes
from captum_learnprop.scenes.conv_next import ConvNeXtLike
from captum_learnprop.scenes.mobile_net import MobileNetLike
from captum_learnprop.scenes.net_form import Form
from captum_learnprop.scenes.photographs import cache_folder
from captum_learnprop.scenes.reference_nets import InceptionLike, ResNetLike, VggLike, ViTLike

FORMAT_VERSION = "1"
"""Version of the files: names of the tensors and of the metadata."""

ARCHITECTURES: dict[str, Callable[[Form], nn.Module]] = {
    "vgg": lambda form: VggLike(form=form),
    "resnet": lambda form: ResNetLike(form=form),
    "inception": lambda form: InceptionLike(form=form),
    "vit": lambda form: ViTLike(form=form),
    "mobilenet": MobileNetLike,
    "convnext": ConvNeXtLike,
}
"""Makers of untrained nets by name."""

IMAGES_ONLY = ("vit",)
"""Architectures that have no form for series."""


def build(architecture: str, form: Form) -> nn.Module:
    """Returns an untrained net.

    Args:
        architecture: A name in `ARCHITECTURES`.
        form: What it takes and gives.

    Raises:
        LearnpropError: There is no such architecture, or it has no such form.
    """
    if architecture not in ARCHITECTURES:
        raise LearnpropError(
            f"unknown architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}"
            f"{did_you_mean(architecture, ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture](form)


def nets_folder(cache: Path | None = None) -> Path:
    """Returns the folder of trained nets in a cache, whether or not it is there; `cache_folder` by default."""
    return (cache_folder() if cache is None else cache) / "nets"


def net_file(architecture: str, data: str, folder: Path) -> Path:
    """Returns the file of a net in a folder."""
    return folder / f"{architecture}_{data}.safetensors"


def write_net(net: nn.Module, path: Path, metadata: Mapping[str, Any]) -> Path:
    """Writes the parameters of a net as a whole, in half precision, and returns the path.

    Args:
        net: The net.
        path: The file, ``.safetensors``; its folder is made where there is none.
        metadata: Facts about it, such as the architecture, data set, schedule and accuracies.

    Raises:
        WriteError: The disk is full, or the folder is read-only.
    """
    text = {**{name: str(value) for name, value in metadata.items()}, "format_version": FORMAT_VERSION}
    return write_bytes(path, save(rounded(net), metadata=text))


def rounded(net: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and statistics in half precision and the default memory format, as files keep them."""
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in net.state_dict().items()
    }


def read_net(path: Path, architecture: str, data: str, form: Form) -> tuple[nn.Module, dict[str, str]]:
    """Returns a trained net in evaluation mode, float32, and how it was trained.

    Args:
        path: A file of `write_net`.
        architecture: The architecture that it must hold.
        data: The data set that it must know.
        form: What it takes and gives.

    Raises:
        FileNotFoundError: There is no such file.
        LearnpropError: It is damaged or holds another net.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no net in {str(path)!r}; train it with examples/train_grid_nets.py")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise LearnpropError(f"{str(path)!r} cannot be read: {error}; delete it to train the net anew") from error
    kept = tuple(metadata.get(name) for name in ("format_version", "architecture", "data"))
    if kept != (FORMAT_VERSION, architecture, data):
        raise LearnpropError(f"{str(path)!r} does not hold {architecture} for {data} of this version; train it anew")
    net = build(architecture, form)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise LearnpropError(f"{str(path)!r} does not fit {architecture} for {data}: {error}") from error
    return net.eval(), metadata
