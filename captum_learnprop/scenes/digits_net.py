"""The VGG-like reference net of the digit scenes, under the short name that demonstrations and examples use."""

from __future__ import annotations

from pathlib import Path

import torch

from captum_learnprop.errors import LearnpropError as LearnpropError
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.reference_nets import FORMAT_VERSION, Normalize, VggLike
from zennit_rules._moved import renamed

__all__ = ["FORMAT_VERSION", "WEIGHTS", "DigitsNet", "Normalize", "load", "weights_metadata"]

DigitsNet = VggLike

WEIGHTS: Path = reference_nets.weights_file("vgg", "digits")
"""The shipped weights that ``examples/train_reference_nets.py`` wrote."""


def load(path: str | Path | None = None, *, device: torch.device | str = "cpu") -> DigitsNet:
    """The trained net in evaluation mode.

    Its classes do not exclude each other: ``logits.sigmoid()`` is the probability that a digit is in the scene.

    Args:
        path: a weights file written by ``examples/train_reference_nets.py``; None is the shipped one.
        device: where the parameters are put.

    Raises:
        FileNotFoundError: no such file.
        LearnpropError: the file is damaged or holds another net.
    """
    net = reference_nets.load("vgg", "digits", device=device, path=path)
    assert isinstance(net, VggLike)
    return net


def weights_metadata(path: str | Path | None = None) -> dict[str, str]:
    """How the weights were trained: format version, seed, accuracies, schedule."""
    return reference_nets.weights_metadata("vgg", "digits", path)


__getattr__ = renamed(__name__, {"WeightsError": "LearnpropError"})
