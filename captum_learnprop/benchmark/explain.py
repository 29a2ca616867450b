"""What every hand-made method is once it is built for a model: a function of images and targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.chunks import rows_together
from captum_learnprop.errors import LearnpropError
from zennit_rules.errors import RuleError, RuleWarning

Explain = Callable[[Tensor, Tensor], Tensor]
"""``(images (B, C, H, W), targets (B,)) -> attribution (B, C, H, W) or map (B, 1, H, W)``."""

Build = Callable[[nn.Module, Tensor], Explain]
"""``(model, example (1, C, H, W)) -> explain``: makes a method for a model and for images of the example's size."""

GREY = 0.5
"""What stands for nothing in an image in [0, 1]: the middle of the range."""

_MOST_ROWS = 256
"""Images that go through the net at once where a method makes many images of one."""


def rows_at_once(images: Tensor) -> int:
    """Returns how many images of the size of ``images (B, C, H, W)`` go through the net together, at least 1."""
    return rows_together(_MOST_ROWS, images.shape[1:], images.device)


def resized(maps: Tensor, images: Tensor) -> Tensor:
    """Returns maps ``(B, 1, h, w)`` brought to the size of ``images (B, C, H, W)``, by bilinear interpolation."""
    return F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)


@contextmanager
def wrong_maps_raise() -> Iterator[None]:
    """Turns warnings about what rules do not reach into errors: nobody who runs a table reads a warning.

    Raises:
        LearnpropError: Inside, something in the net has no rule, or rules cannot be put on it at all.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuleWarning)
            yield
    except (RuleWarning, RuleError) as error:
        raise LearnpropError(str(error)) from error


def tried(explain: Explain, example: Tensor) -> Explain:
    """Returns the method after it has explained an example ``(1, C, H, W)``, so that it fails when it is built.

    Raises:
        LearnpropError: The method cannot explain the model, with the reason.
    """

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        with wrong_maps_raise():
            return explain(images, targets).detach().to(images.dtype)

    attribute(example, torch.zeros(len(example), dtype=torch.long, device=example.device))
    return attribute
