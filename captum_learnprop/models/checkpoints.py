"""Files of parameters: reading them, and saying how one does not fit a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError, did_you_mean

_CHECKPOINTS = (".safetensors", ".pt", ".pth")

# Under these names training scripts commonly keep the parameters beside the optimiser.
_NESTED = ("state_dict", "model_state_dict", "model")


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns the parameters in a file, by name.

    Args:
        path: A ``.safetensors``, ``.pt`` or ``.pth`` file: a state dict alone, or under ``state_dict``,
            ``model_state_dict`` or ``model``.

    Raises:
        LearnpropError: There is no such file, it cannot be read, or it holds something else.
    """
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


def load_into(model: nn.Module, name: str, path: Path, state: dict[str, Tensor]) -> nn.Module:
    """Returns the model with the parameters of a file.

    Args:
        model: It gets them.
        name: What errors call it.
        path: Where they come from, for errors.
        state: The content of the file.

    Raises:
        LearnpropError: They do not fit.
    """
    check_fit(name, path, model.state_dict(), state)
    # Only a count of batches can be missing now, which nothing in evaluation mode reads.
    model.load_state_dict(state, strict=False)
    return model


def check_fit(name: str, path: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Refuses parameters that do not fit a model.

    Args:
        name: What the error calls the model.
        path: Where the parameters come from.
        expected: Those of the model.
        found: Those of the file.

    Raises:
        LearnpropError: Names are missing or unexpected, or shapes differ; it names up to three of each.
    """
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
