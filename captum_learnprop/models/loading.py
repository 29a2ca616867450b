"""Loading what ``--model`` names."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.models.own_file import file_of_module, is_file, is_module, model_of_file, model_of_module
from captum_learnprop.plugins.manager import get_manager

_HUGGING_FACE = ("huggingface", "hf")


def load_model(spec: str, weights: str | None = None, checkpoint: str | Path | None = None) -> nn.Module:
    """Returns a model in evaluation mode.

    Args:
        spec: ``"record"`` or ``"record:argument"``, such as ``"digits_cnn"`` or ``"torchvision:resnet18"``; or
            ``"FILE.py:FUNCTION"`` or ``"package.module:FUNCTION"``, a function of one's own that returns the model.
        weights: Name of published weights, such as ``"DEFAULT"``, if the record knows any.
        checkpoint: File with parameters.

    Raises:
        LearnpropError: If there is no such model, or its parameters cannot be loaded.
    """
    if is_file(spec):
        return model_of_file(spec, weights, checkpoint).eval()
    record, _, argument = spec.partition(":")
    if _is_module(spec):
        return model_of_module(spec, weights, checkpoint).eval()
    entry = get_manager().get("model", record)
    model = entry.make(argument or None, weights, checkpoint)
    if not isinstance(model, nn.Module):
        whose = f"{entry.label}: " if entry.home else ""
        raise LearnpropError(f"{whose}model {spec!r} is not a torch.nn.Module but {type(model).__name__}")
    return model.eval()


def files_of(spec: str) -> list[Path]:
    """Returns the files that ``--model`` itself names, whose content decides what the model is.

    Args:
        spec: What ``--model`` named: a Python file, or a folder of Hugging Face; anything else has none.
    """
    if is_file(spec):
        return [Path(spec if spec.endswith(".py") else spec.rpartition(":")[0])]
    record, _, argument = spec.partition(":")
    if _is_module(spec):
        return [file_of_module(spec)]
    if record not in _HUGGING_FACE:
        return []
    path = Path(argument)
    found = [path, path / "config.json", path / "preprocessor_config.json", *sorted(path.glob("*.safetensors"))]
    return [file for file in found if file.is_file()]


def _is_module(spec: str) -> bool:
    """Returns whether ``--model`` names a function in a module, and no record of a plugin."""
    return spec.partition(":")[0] not in get_manager().available("model") and is_module(spec)
