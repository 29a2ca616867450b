"""What is known of the model that is explained: how pictures become its input, and what its classes are called."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.transforms import functional as transforms
from torchvision.transforms._presets import SemanticSegmentation

from captum_learnprop.attribution.tokens.concepts import Embedding
from captum_learnprop.errors import InputWarning, LearnpropError
from captum_learnprop.forward import training_mode
from captum_learnprop.images import Preprocessing
from captum_learnprop.models import class_names_of, imagenet_names, load_model, names_in, preprocessing_of
from captum_learnprop.models.inputs import assumed_for, changed, told

Prepare: TypeAlias = Preprocessing | Callable[..., Any]
"""How a picture becomes an input ``(C, H, W)``."""

_LIBRARIES = ("torchvision:", "timm:")
"""Records whose models have random weights unless some are named."""


@dataclass(frozen=True)
class KnownModel:
    """A model, with what is known of it.

    Attributes:
        net: The module, in evaluation mode.
        name: What errors and figures call it.
        prepare: How a picture becomes its input.
        class_names: Names of its classes, None where they are not known.
        multi_label: Whether classes do not exclude each other.
        assumed: What nobody said and is assumed about the input; empty if nothing is.
    """

    net: nn.Module
    name: str
    prepare: Prepare
    class_names: tuple[str, ...] | None = None
    multi_label: bool = False
    assumed: str = ""

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.net.parameters(), torch.zeros(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of its parameters."""
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), torch.float32)

    def warn_of_assumptions(self) -> None:
        """Warns of what is assumed about the input."""
        if self.assumed:
            warnings.warn(self.assumed, InputWarning, stacklevel=4)


def known_model(
    model: nn.Module | str,
    *,
    weights: Any = None,
    checkpoint: str | Path | None = None,
    preprocessing: Prepare | None = None,
    size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    classes: Sequence[str] | str | Path | None = None,
) -> KnownModel:
    """Returns a model with what it, or the caller, says of it.

    Args:
        model: A module, or a name as `captum_learnprop.models.load_model` takes it.
        weights: Of a named model the name of its weights; of torchvision's modules their entry, such as
            ``ResNet50_Weights.DEFAULT``, which tells the preprocessing and the classes.
        checkpoint: File of parameters, for a named model.
        preprocessing: A `Preprocessing`, or a function from a picture of PIL to an input ``(C, H, W)``.
        size: Side of the input, in place of what the model says.
        mean: Mean of the normalisation, of pixels in [0, 1].
        std: Its deviation.
        classes: Names of the classes, a file with one on each line, or ``"imagenet"``.

    Raises:
        LearnpropError: The model is none, is in training mode where that matters, or something that was given does not
            fit.
    """
    entry = weights if hasattr(weights, "transforms") and hasattr(weights, "meta") else None
    if isinstance(model, str):
        chosen = entry.name if entry is not None else weights
        net, name = load_model(model, chosen, checkpoint), model
        if model.startswith(_LIBRARIES) and not (chosen or checkpoint):
            warnings.warn(f"neither weights nor checkpoint: {model} has random weights", InputWarning, stacklevel=4)
    else:
        net, name, chosen = _module(model), type(model).__name__, None
        _refuse_unused(model, weights if entry is None else None, checkpoint)
    _require_evaluation(net)
    if preprocessing is None and entry is not None and not isinstance(model, str):
        preprocessing = entry.transforms()
    prepare, assumed = _prepare(model, net, chosen, preprocessing)
    prepare, assumed = _changed(prepare, assumed, size, mean, std)
    names = _names(classes)
    if isinstance(net, Embedding):
        return KnownModel(net, name, prepare, names, False, assumed)
    if names is None and entry is not None:
        names = tuple(entry.meta.get("categories", ())) or None
    if names is None:
        names = class_names_of(model if isinstance(model, str) else "", net, chosen)
    return KnownModel(net, name, prepare, names, _is_multi_label(net), assumed)


def _module(model: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if inspect.isclass(model) and issubclass(model, nn.Module):
        raise LearnpropError(f"{model.__name__} is a class of models: make one, {model.__name__}(...)")
    if isinstance(model, Mapping):
        raise LearnpropError("a dictionary of parameters is no model: load it into one by load_state_dict()")
    raise LearnpropError(
        f"a model is a torch.nn.Module or a name such as 'torchvision:resnet50', got {type(model).__name__}"
        + ("; wrap the function in a module whose forward calls it" if callable(model) else "")
    )


def _refuse_unused(model: Any, weights: Any, checkpoint: Any) -> None:
    for name, value in (("weights", weights), ("checkpoint", checkpoint)):
        if value is not None:
            raise LearnpropError(
                f"{name}={value!r} is for models by name; {type(model).__name__} is a module that has its parameters"
                + (": give torchvision's entry itself, such as ResNet50_Weights.DEFAULT" if name == "weights" else "")
            )


def _require_evaluation(net: nn.Module) -> None:
    said = training_mode(net)
    if said is not None:
        raise LearnpropError(said)


def _prepare(model: Any, net: nn.Module, weights: Any, given: Prepare | None) -> tuple[Prepare, str]:
    """Returns how pictures become inputs, and what of it is assumed."""
    if given is not None:
        if not isinstance(given, Preprocessing) and not callable(given):
            raise LearnpropError(
                "preprocessing is a captum_learnprop.images.Preprocessing or a function from a picture to a tensor, "
                f"got {type(given).__name__}"
            )
        return given, ""
    if isinstance(model, str):
        return preprocessing_of(model, net, weights), ""  # which says itself what it assumes
    net = net.model if isinstance(net, Embedding) else net
    found = told("", net)
    home = type(net).__module__
    if found is not None and not (hasattr(net, "config") and found.squeeze and found.mean == Preprocessing.mean):
        return found, ""
    if home.startswith("torchvision.models.detection"):
        return transforms.to_tensor, ""  # they take pictures in [0, 1] of any size, and normalise themselves
    if home.startswith("torchvision.models.segmentation"):
        return SemanticSegmentation(resize_size=520), _assumed(net, "520 pixels and ImageNet's normalisation")
    if found is not None:
        return found, _assumed(net, "squares and ImageNet's normalisation")
    if home.startswith("torchvision.models"):
        usual = Preprocessing(256, 224)
        return usual, _assumed(net, "a middle square and ImageNet's normalisation", "weights=, or ")
    return assumed_for(net), _assumed(net, "squares of pixels in [0, 1]")


def _assumed(net: nn.Module, what: str, also: str = "") -> str:
    return (
        f"{type(net).__name__} does not say how pictures become its input, {what} are assumed: give {also}"
        "preprocessing=, or size=, mean= and std="
    )


def _changed(prepare: Prepare, assumed: str, size: Any, mean: Any, std: Any) -> tuple[Prepare, str]:
    """Returns the preprocessing with what was given in place of its own."""
    if size is None and mean is None and std is None:
        return prepare, assumed
    if not isinstance(prepare, Preprocessing):
        raise LearnpropError("size=, mean= and std= change a Preprocessing; a function decides all of it by itself")
    return changed(prepare, size, mean, std), assumed if mean is None and std is None else ""


def _names(classes: Sequence[str] | str | Path | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, str) and classes == "imagenet":
        return imagenet_names()
    if isinstance(classes, (str, os.PathLike)):
        return names_in(classes)
    return tuple(str(name) for name in classes)


def _is_multi_label(net: nn.Module) -> bool:
    said = getattr(net, "multi_label", None)
    if isinstance(said, bool):
        return said
    return bool(getattr(getattr(net, "config", None), "problem_type", None) == "multi_label_classification")


def require_names_fit(known: KnownModel, output: Tensor) -> None:
    """Refuses names of classes that are more or fewer than the model has.

    Raises:
        LearnpropError: They are.
    """
    if known.class_names is not None and output.ndim == 2 and len(known.class_names) != output.shape[1]:
        raise LearnpropError(
            f"{known.name} has {output.shape[1]} classes, and {len(known.class_names)} names are known"
        )
