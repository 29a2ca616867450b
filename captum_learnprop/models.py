"""Models by name, as ``--model record[:argument]`` asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.plugins.manager import get_manager
from captum_learnprop.scenes import digits_net, reference_nets

__all__ = ["digits_cnn", "load_model", "reference_net", "torchvision_model"]

# Auxiliary classifiers of Inception v3 and GoogLeNet: they only run in training mode.
_AUXILIARY = ("AuxLogits", "aux1", "aux2")

_CHECKPOINTS = (".safetensors", ".pt", ".pth")

# Under these names training scripts commonly keep the parameters beside the optimiser.
_NESTED = ("state_dict", "model_state_dict", "model")


def load_model(spec: str, weights: str | None = None, checkpoint: str | Path | None = None) -> nn.Module:
    """Return a model in evaluation mode.

    Args:
        spec: ``"record"`` or ``"record:argument"``, such as ``"digits_cnn"`` or ``"torchvision:resnet18"``.
        weights: Name of published weights, such as ``"DEFAULT"``, if the record knows any.
        checkpoint: File with parameters.

    Raises:
        LearnpropError: If there is no such model, or its parameters cannot be loaded.
    """
    record, _, argument = spec.partition(":")
    entry = get_manager().get("model", record)
    model = entry.make(argument or None, weights, checkpoint)
    if not isinstance(model, nn.Module):
        whose = f"{entry.label}: " if entry.home else ""
        raise LearnpropError(f"{whose}model {spec!r} is not a torch.nn.Module but {type(model).__name__}")
    return model.eval()


def torchvision_model(name: str | None, weights: str | None = None, checkpoint: str | Path | None = None) -> nn.Module:
    """Return a torchvision classification model in evaluation mode, without auxiliary classifiers.

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


def digits_cnn(
    argument: str | None = None, weights: str | None = None, checkpoint: str | Path | None = None
) -> nn.Module:
    """Return the small digit classifier, trained, in evaluation mode.

    Args:
        argument: Nothing; there is one such model.
        weights: Nothing; its weights ship with the package.
        checkpoint: A file written by ``examples/train_reference_nets.py``, in place of the shipped one.

    Raises:
        LearnpropError: If an argument or weights are named, or the file is missing or damaged.
    """
    if argument is not None or weights is not None:
        raise LearnpropError(f"digits_cnn is one model with its own weights; leave out {argument or weights!r}")
    try:
        return digits_net.load(checkpoint)
    except (ValueError, OSError) as error:
        raise LearnpropError(f"digits_cnn: {error}") from error


def reference_net(
    argument: str | None = None, weights: str | None = None, checkpoint: str | Path | None = None
) -> nn.Module:
    """Return one of the small reference nets of the scenes, trained, in evaluation mode.

    Args:
        argument: ``"<architecture>-<task>"``, such as ``"resnet-digits"``: one of vgg, resnet, inception, and
            one of digits, patch, parts; or ``"vit-digits"``.
        weights: Nothing; the weights ship with the package.
        checkpoint: A file written by ``examples/train_reference_nets.py``, in place of the shipped one.

    Raises:
        LearnpropError: If there is no such net, weights are named, or the file is missing or damaged.
    """
    known = [f"{kind}-{task}" for kind in reference_nets.ARCHITECTURES for task in reference_nets.OUTPUT_OF_TASK]
    known += [f"{kind}-{reference_nets.TRANSFORMER_TASK}" for kind in reference_nets.TRANSFORMERS]
    if argument is None:
        raise LearnpropError("which reference net? Name it as in 'reference:resnet-digits'")
    if argument not in known:
        raise LearnpropError(
            f"no reference net {argument!r}{did_you_mean(argument, known) or '; choose ' + ', '.join(known)}"
        )
    if weights is not None:
        raise LearnpropError(f"reference nets have their own weights; leave out {weights!r}")
    try:
        return reference_nets.load(*argument.split("-"), path=checkpoint)
    except (ValueError, OSError) as error:
        raise LearnpropError(f"reference net {argument}: {error}") from error


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
    state = {key: value for key, value in _read(path).items() if not key.startswith(_AUXILIARY)}
    model = _build(name)
    last = list(model.state_dict())[-1]
    classes = state[last].shape[0] if last in state and state[last].dim() else None
    if classes not in (None, model.state_dict()[last].shape[0]):
        # The last tensor belongs to the classifier: a fine-tuned model has its own number of classes.
        model = _build(name, num_classes=classes)
    _check_fit(name, path, model.state_dict(), state)
    model.load_state_dict(state)
    return model


def _read(path: Path) -> dict[str, Tensor]:
    """Return the parameters in a file, by name."""
    if not path.is_file():
        raise LearnpropError(f"there is no checkpoint {str(path)!r}")
    if path.suffix not in _CHECKPOINTS:
        raise LearnpropError(
            f"checkpoint {str(path)!r} must be a .safetensors, .pt or .pth file"
            f"{did_you_mean(path.suffix, _CHECKPOINTS)}"
        )
    try:
        content = _load(path)
    # Damaged files surface as errors of zip, pickle, torch or safetensors.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LearnpropError(f"checkpoint {str(path)!r} cannot be read: {reason}") from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise LearnpropError(f"checkpoint {str(path)!r} does not hold a state dict of tensors")
    # DataParallel puts this before every name.
    return {key.removeprefix("module."): value for key, value in content.items()}


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_fit(name: str, path: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    # Checkpoints from before batch norm counted its batches lack this buffer; torch fills it in.
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    described = "; ".join(f"{what}: {_some(keys)}" for what, keys in faults.items() if keys)
    if described:
        raise LearnpropError(f"checkpoint {str(path)!r} does not fit {name}: {described}")


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
