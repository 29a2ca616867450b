"""How images become the input of a model, and what its classes are called: whatever the model itself tells."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.transforms import InterpolationMode

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import first_layer
from captum_learnprop.images import Preprocessing, torchvision_weights
from captum_learnprop.models.hugging_face import preprocessing_beside
from captum_learnprop.models.own_file import is_file, is_module

_LOG = logging.getLogger(__name__)

_TORCHVISION = "torchvision:"


def preprocessing_of(
    spec: str,
    module: nn.Module,
    weights: str | None = None,
    size: int | None = None,
    normalization: str = "auto",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Preprocessing:
    """Returns how images become inputs of a model.

    A module says it by an attribute ``preprocessing``, timm by ``pretrained_cfg``, Hugging Face by the files of its
    folder, torchvision by the weights. Any other model is given images of 224 pixels in [0, 1]: a plugin's their
    middle square, one's own whole images, squeezed, which are grey where its first layer takes one channel.

    Args:
        spec: What ``--model`` named.
        module: The model.
        weights: Name of its weights, for torchvision's models.
        size: Side of the input, in place of what the model says.
        normalization: ``"auto"``, ``"imagenet"`` or ``"none"``.
        mean: Mean of the normalisation, of pixels in [0, 1], in place of any other; one number for all channels, or one
            for each.
        std: Its deviation.

    Raises:
        LearnpropError: The attribute is something else, there are no such weights, or numbers do not fit.
    """
    found = told(spec, module, weights)
    silent = normalization == "auto" and mean is None and std is None
    own = is_file(spec) or is_module(spec)
    if found is None and own and silent:
        _LOG.warning(
            "%s does not say how images are normalised: pixels stay in [0, 1]; give the module an attribute "
            "'preprocessing', or choose --normalization imagenet or none, or --mean and --std", spec,
        )  # fmt: skip
    # What a plugin makes normalises its input itself, as a rule.
    if found is None:
        found = assumed_for(module) if own else Preprocessing().without_normalization()
    preprocessing = found
    if normalization == "none":
        preprocessing = preprocessing.without_normalization()
    if normalization == "imagenet":
        preprocessing = replace(preprocessing, mean=Preprocessing.mean, std=Preprocessing.std)
    return changed(preprocessing, size, mean, std)


def changed(
    preprocessing: Preprocessing,
    size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Preprocessing:
    """Returns a preprocessing with what was given in place of its own.

    Args:
        preprocessing: It.
        size: Side of the input in pixels.
        mean: Mean of the normalisation, of pixels in [0, 1]; one number for all channels, or one for each.
        std: Its deviation.

    Raises:
        LearnpropError: Something is no such number.
    """
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise LearnpropError(f"size must be a number of pixels, the side of the input, got {size!r}")
        preprocessing = preprocessing.at_size(size)
    channels = len(preprocessing.mean)
    if mean is not None:
        preprocessing = replace(preprocessing, mean=_per_channel("mean", mean, channels))
    if std is not None:
        preprocessing = replace(preprocessing, std=_per_channel("std", std, channels))
    if len(preprocessing.mean) != len(preprocessing.std):
        raise LearnpropError(f"mean has {len(preprocessing.mean)} channels, std {len(preprocessing.std)}: give both")
    return preprocessing


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    try:
        values = (float(value),) if isinstance(value, (int, float)) else tuple(map(float, value))
    except (TypeError, ValueError) as error:
        raise LearnpropError(f"{name} must be a number or one for each channel, got {value!r}") from error
    values = values * channels if len(values) == 1 else values
    if len(values) not in (1, 3):
        raise LearnpropError(f"{name} needs a number for each of 3 channels, or 1 for grey pictures, got {len(values)}")
    if max(map(abs, values)) > 1:
        raise LearnpropError(f"{name} {value!r} is not in units of pixels in [0, 1]: divide by 255")
    if name == "std" and min(values) <= 0:
        raise LearnpropError(f"std must be above 0, got {value!r}")
    return values


def names_in(path: str | Path) -> tuple[str, ...]:
    """Returns the names of classes in a file, one on each line, in the order of the model's outputs.

    Raises:
        LearnpropError: There is no such file, or it holds no text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LearnpropError(f"the names of classes in {path} cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def assumed_for(module: nn.Module) -> Preprocessing:
    """Returns how images become inputs of a model that says nothing of it: squeezed, in [0, 1], grey where it asks."""
    preprocessing = Preprocessing(squeeze=True).without_normalization()
    grey = getattr(first_layer(module)[1], "in_channels", None) == 1
    return replace(preprocessing, mean=(0.0,), std=(1.0,)) if grey else preprocessing


def class_names_of(spec: str, module: nn.Module, weights: str | None = None) -> tuple[str, ...] | None:
    """Returns the names of a model's classes, in order; None where nothing tells them.

    Args:
        spec: What ``--model`` named.
        module: The model; its attribute ``class_names`` comes first.
        weights: Name of its weights: those of torchvision and timm know their classes, random ones have none.

    Raises:
        LearnpropError: The attribute is something else than names.
    """
    names = getattr(module, "class_names", None)
    if names is not None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise LearnpropError(f"class_names of {type(module).__name__} must be a tuple of names, got {names!r}")
        return tuple(names)
    if spec.startswith(_TORCHVISION) and weights is not None:
        known = torchvision_weights(spec.removeprefix(_TORCHVISION), weights).meta.get("categories")
        return tuple(known) if known else None
    configuration = _timm_configuration(module)
    if configuration is not None:
        trained = weights is not None and configuration.get("num_classes") == len(imagenet_names())
        return imagenet_names() if trained else None
    return _hugging_face_names(module)


def imagenet_names() -> tuple[str, ...]:
    """Returns the names of ImageNet's 1,000 classes in order, as torchvision spells them."""
    return tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def told(spec: str, module: nn.Module, weights: str | None = None) -> Preprocessing | None:
    """Returns how a model, or where it comes from, says that images become its inputs; None where nothing says so.

    Args:
        spec: What ``--model`` named; empty for a module that was made in Python.
        module: The model.
        weights: Name of its weights, for torchvision's models.

    Raises:
        LearnpropError: Its attribute ``preprocessing`` is something else, or there are no such weights.
    """
    found = getattr(module, "preprocessing", None)
    # A layer of that name does it in the forward pass, and tells nothing.
    if found is not None and not isinstance(found, nn.Module):
        if not isinstance(found, Preprocessing):
            raise LearnpropError(
                f"preprocessing of {type(module).__name__} must be a captum_learnprop.images.Preprocessing, "
                f"got {type(found).__name__}"
            )
        return found
    if spec.startswith(_TORCHVISION):
        name = spec.removeprefix(_TORCHVISION)
        return Preprocessing() if weights is None else Preprocessing.of_weights(name, weights)
    configuration = _timm_configuration(module)
    if configuration is not None:
        return _of_timm(configuration)
    if _hugging_face_configuration(module) is None:
        return None
    beside = preprocessing_beside(module)
    if beside is not None:
        return beside
    side = getattr(_hugging_face_configuration(module), "image_size", None)
    if isinstance(side, (tuple, list)):
        side = side[0]
    # What their processors do, but for the mean and the deviation, which differ between models.
    side = side if isinstance(side, int) else Preprocessing.crop
    return Preprocessing(side, side, squeeze=True)


def _timm_configuration(module: nn.Module) -> Mapping[str, Any] | None:
    found = getattr(module, "pretrained_cfg", None)
    return found if isinstance(found, Mapping) and "input_size" in found else None


def _of_timm(configuration: Mapping[str, Any]) -> Preprocessing:
    side = configuration["input_size"][-1]
    interpolation = configuration.get("interpolation", "bilinear")
    known = {mode.value for mode in InterpolationMode}
    return Preprocessing(
        max(side, math.floor(side / configuration.get("crop_pct", 1.0))),
        side,
        tuple(configuration["mean"]),
        tuple(configuration["std"]),
        interpolation if interpolation in known else "bilinear",
        configuration.get("crop_mode") == "squash",
    )


def _hugging_face_configuration(module: nn.Module) -> Any:
    found = getattr(module, "config", None)
    return found if hasattr(found, "id2label") and hasattr(found, "model_type") else None


def _hugging_face_names(module: nn.Module) -> tuple[str, ...] | None:
    labels = getattr(_hugging_face_configuration(module), "id2label", None)
    if not labels:
        return None
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    # What transformers fills in where nothing is known.
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
