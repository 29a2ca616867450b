"""What commands on a model and a folder of images share: loading both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_learnprop import models
from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.commands._request import ModelRequest
from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing, torchvision_weights


@dataclass(frozen=True)
class Classifier:
    """A model that has shown that it classifies the images of this run.

    Attributes:
        module: The model, in evaluation mode, on the device of the run.
        name: Its name, as the user wrote it.
        classes: Number of columns of its output.
        class_names: The names of the classes, where the weights tell them.
    """

    module: nn.Module
    name: str
    classes: int
    class_names: tuple[str, ...] | None

    def names(self) -> list[str]:
        """Returns a name for each class, its number where no other is known."""
        return list(self.class_names or map(str, range(self.classes)))

    def check(self, target: int) -> int:
        """Gives the target back.

        Raises:
            LearnpropError: It is no class of this model.
        """
        if not 0 <= target < self.classes:
            raise LearnpropError(
                f"target {target} is out of range: {self.name} has {self.classes} classes, 0 to {self.classes - 1}"
            )
        return target


def load(request: ModelRequest) -> nn.Module:
    """Returns the model in evaluation mode, on its device; random weights are those of the seed.

    Raises:
        LearnpropError: There is no such model, weights or device.
    """
    torch.manual_seed(request.seed)  # a model without weights must be the same one when the run is resumed
    return models.load_model(request.model, request.weights, request.checkpoint).to(_device(request.device)).eval()


def preprocessing_of(request: ModelRequest, module: nn.Module) -> Preprocessing:
    """Returns how images become inputs of the model."""
    return models.preprocessing_of(
        request.model, module, request.weights, request.size, request.normalization, request.mean, request.std
    )


def classifier_of(request: ModelRequest, module: nn.Module, preprocessing: Preprocessing) -> Classifier:
    """Returns the model with its classes; runs it once.

    Raises:
        LearnpropError: It does not take such images, or is no classifier, or names another number of classes.
    """
    classes = Candidate(request.model, module, preprocessing).classes
    names = class_names_of(request, module)
    if names is not None and len(names) != classes:
        raise LearnpropError(f"{request.model} has {classes} classes and names {len(names)}")
    return Classifier(module, request.model, classes, names)


def class_names_of(request: ModelRequest, module: nn.Module) -> tuple[str, ...] | None:
    """Returns the names of the model's classes: those of the file that was given, else what the model says."""
    if request.classes is not None:
        return models.names_in(request.classes)
    return models.class_names_of(request.model, module, request.weights)


def weights_name(request: ModelRequest) -> str | None:
    """Returns the name of the weights, whatever DEFAULT means in this torchvision."""
    name = request.torchvision_name
    if name is None or request.weights is None:
        return request.weights
    return str(torchvision_weights(name, request.weights).name)


def digest(path: Path | None) -> str | None:
    """Returns a file by its content, because paths move; None for none."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path is not None else None


def model_digest(request: ModelRequest) -> dict[str, str]:
    """Returns an entry with the content of the files that ``--model`` names; none where it names no file."""
    files = models.files_of(request.model)
    return {"model_files": " ".join(str(digest(file)) for file in files)} if files else {}


def _device(name: str) -> Any:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    # torch raises RuntimeError, AssertionError or NotImplementedError, by backend.
    except Exception as error:
        raise LearnpropError(f"device {name!r} cannot be used: {error}") from error
    return device
