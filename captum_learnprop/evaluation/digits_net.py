"""A small VGG-like net for the digit scenes, shipped trained, for demonstrations, examples and tests."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.scenes import NUM_CLASSES

FORMAT_VERSION = "1"
"""Version of the weights file: names of the tensors and of the metadata."""

WEIGHTS = resources.files("captum_learnprop.evaluation") / "assets" / "digits_cnn.safetensors"
"""The weights that ``examples/train_digits_net.py`` wrote."""


class WeightsError(LearnpropError):
    """A weights file that is damaged, of another format, or of another net."""


class Normalize(nn.Module):
    """``(x - 0.5) / 0.25`` for images in [0, 1]: part of the net, so that users explain the image itself."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, same shape."""
        return (images - 0.5) / 0.25


class DigitsNet(nn.Module):
    """Six convolutions with batch norm and ReLU, four max-pools, two linear layers; 274 thousand parameters.

    Maps images ``(B, 3, 64, 64)`` in [0, 1] to ten logits ``(B, 10)``, one per digit class. The classes do
    not exclude each other: ``logits.sigmoid()`` is the probability that the digit is in the scene.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.features = nn.Sequential(
            *_convolution(3, 16),
            nn.MaxPool2d(2),
            *_convolution(16, 32),
            *_convolution(32, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 96),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(96 * 4 * 4, 96), nn.ReLU(), nn.Linear(96, NUM_CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 10)`` of images ``(B, 3, 64, 64)`` in [0, 1]."""
        logits: Tensor = self.classifier(self.features(self.normalize(images)))
        return logits


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def load(path: str | Path | None = None, *, device: torch.device | str = "cpu") -> DigitsNet:
    """The trained net in evaluation mode.

    Args:
        path: a weights file written by ``examples/train_digits_net.py``; None is the shipped one.
        device: where the parameters are put.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: the file is damaged or holds another net.
    """
    tensors, metadata = _read(path)
    if metadata.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"weights file has format version {metadata.get('format_version')!r}, this version of "
            f"captum-learnprop reads {FORMAT_VERSION!r}; train anew with examples/train_digits_net.py"
        )
    net = DigitsNet()
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"weights file does not hold a DigitsNet: {error}") from error
    return net.to(device).eval()


def weights_metadata(path: str | Path | None = None) -> dict[str, str]:
    """How the weights were trained: format version, seed, accuracies, schedule."""
    return _read(path)[1]


def _read(path: str | Path | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path is None:
        with resources.as_file(WEIGHTS) as shipped:
            return _read(shipped)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights file {str(path)!r}; train one with examples/train_digits_net.py")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"weights file {str(path)!r} cannot be read: {error}") from error
