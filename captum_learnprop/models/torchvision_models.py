"""torchvision's classifiers, as ``torchvision:NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.models.checkpoints import load_into, read_state

# Auxiliary classifiers of Inception v3 and GoogLeNet: they only run in training mode.
_AUXILIARY = ("AuxLogits", "aux1", "aux2")


def torchvision_model(name: str | None, weights: str | None = None, checkpoint: str | Path | None = None) -> nn.Module:
    """Returns a torchvision classification model in evaluation mode, without auxiliary classifiers.

    Args:
        name: One of ``torchvision.models.list_models(module=torchvision.models)``.
        weights: ``"DEFAULT"`` or a member of the model's weights, such as ``"IMAGENET1K_V1"``; torchvision
            downloads them once.
        checkpoint: A ``.safetensors``, ``.pt`` or ``.pth`` file. The number of classes follows the file.
            With neither, parameters are random, drawn from torch's global generator.

    Raises:
        LearnpropError: If the model, the weights or the file do not exist, or do not fit each other.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name is None:
        raise LearnpropError("which torchvision model? Name it as in 'torchvision:resnet18'")
    if name not in known:
        raise LearnpropError(f"torchvision has no classification model {name!r}{did_you_mean(name, known)}")
    if weights is not None and checkpoint is not None:
        raise LearnpropError(f"weights {weights!r} and checkpoint {str(checkpoint)!r} exclude each other")
    if weights is not None:
        return _published(name, weights)
    if checkpoint is not None:
        return _from_checkpoint(name, Path(checkpoint))
    return _build(name)


def _build(name: str, **options: Any) -> nn.Module:
    if name in {"inception_v3", "googlenet"}:
        # Left open, torchvision warns that its default will change.
        options.setdefault("init_weights", True)
    return _without_auxiliary(torchvision.models.get_model(name, **options))


def _without_auxiliary(model: nn.Module) -> nn.Module:
    for auxiliary in _AUXILIARY:
        if hasattr(model, auxiliary):
            setattr(model, auxiliary, None)
            model.aux_logits = False  # type: ignore[assignment]
    return model.eval()


def _published(name: str, weights: str) -> nn.Module:
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        names = list(known.__members__)
        raise LearnpropError(
            f"{name} has no weights {weights!r}; torchvision publishes: {', '.join(names) or 'none'}"
            f"{did_you_mean(weights, names)}"
        )
    try:
        return _without_auxiliary(torchvision.models.get_model(name, weights=known[weights]))
    except (OSError, RuntimeError) as error:
        raise LearnpropError(f"cannot get the weights {weights!r} of {name}: {error}") from error


def _from_checkpoint(name: str, path: Path) -> nn.Module:
    state = {key: value for key, value in read_state(path).items() if not key.startswith(_AUXILIARY)}
    model = _build(name)
    last = list(model.state_dict())[-1]
    classes = state[last].shape[0] if last in state and state[last].dim() else None
    if classes not in (None, model.state_dict()[last].shape[0]):
        # The last tensor belongs to the classifier: a fine-tuned model has its own number of classes.
        model = _build(name, num_classes=classes)
    return load_into(model, name, path, state)
