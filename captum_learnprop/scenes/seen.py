"""What a model sees in scenes: only where it sees an object can a map of its output show it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import output_of, warn_of_training
from captum_learnprop.scenes.scenes import Scenes, label_rows

BATCH = 16
"""Images in one forward pass."""


def seen_by(model: nn.Module, scenes: Scenes, top: int = 10) -> Scenes:
    """Returns the scenes all of whose classes are among the model's highest outputs.

    Args:
        model: Takes images in [0, 1] and returns ``(B, classes)``.
        scenes: Scenes with known classes.
        top: How many of the highest classes count as seen, at least 1.

    Raises:
        LearnpropError: A class is out of the model's range or unknown; or no scene is seen.
    """
    return scenes[require_seen(is_seen(model, scenes, top), top)]


def is_seen(model: nn.Module, scenes: Scenes, top: int = 10) -> Tensor:
    """Returns whether all classes of each scene are among the model's highest outputs, ``(N,)`` bool.

    Arguments are those of `seen_by`.

    Raises:
        LearnpropError: A class is out of the model's range or unknown.
    """
    if top < 1:
        raise LearnpropError(f"top must be at least 1, got {top}")
    output = _outputs(model, scenes.images)
    classes = output.shape[1]
    low, high = int(scenes.targets.min()), int(scenes.targets.max())
    if low < 0:
        raise LearnpropError("these scenes do not say which class their objects are: use asked_of(model, scenes) first")
    if high >= classes:
        raise LearnpropError(
            f"the scenes ask for class {high}, but the model's classes are 0 to {classes - 1}: "
            "give the class numbers of this model, or the model that they are of"
        )
    highest = output.topk(min(top, classes), 1).indices
    return (scenes.targets[:, :, None] == highest[:, None, :]).any(2).all(1)


def require_seen(seen: Tensor, top: int) -> Tensor:
    """Returns what `is_seen` returned, if a scene is seen.

    Raises:
        LearnpropError: None is.
    """
    if not seen.any():
        raise LearnpropError(
            f"no scene that the model sees: of {len(seen)} scenes none has all its classes among the {top} highest "
            "outputs; check the class numbers and the preprocessing, draw more scenes or fewer objects, or raise top"
        )
    return seen


def asked_of(model: nn.Module, scenes: Scenes) -> Scenes:
    """Returns scenes where the class that the model predicts stands for each unknown one (-1).

    Args:
        model: Takes images in [0, 1] and returns ``(B, classes)``.
        scenes: Scenes of one object each; known classes stay.

    Raises:
        LearnpropError: A class is out of the model's range.
    """
    output = _outputs(model, scenes.images)
    targets = torch.where(scenes.targets < 0, output.argmax(1)[:, None], scenes.targets)
    if int(targets.max()) >= output.shape[1]:
        raise LearnpropError(
            f"the scenes ask for class {int(targets.max())}, but the model's classes are 0 to {output.shape[1] - 1}"
        )
    return replace(scenes, targets=targets, labels=label_rows(targets, output.shape[1]))


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Returns what a model says of images, on the processor: ``(N, classes)``."""
    warn_of_training(model)
    parameter = next(model.parameters(), None)
    device = images.device if parameter is None else parameter.device
    dtype = images.dtype if parameter is None else parameter.dtype
    rows = []
    with torch.no_grad():
        for batch in images.split(BATCH):
            output = output_of(model, (batch.to(device, dtype),), model=model)
            if output.ndim != 2:
                raise LearnpropError(f"the model returns {tuple(output.shape)}, where scenes need (B, classes)")
            rows.append(output.float().cpu())
    return torch.cat(rows)
