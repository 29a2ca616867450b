"""What a small net takes and gives, so that one architecture serves pictures and series, and any number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError


@dataclass(frozen=True)
class Form:
    """The shapes that a net is built for, and the layers that go with their axes.

    Attributes:
        classes: Number of outputs.
        channels: Channels of the input.
        size: Length of each axis of the input, a multiple of 16.
        dims: Number of axes: 1 for series ``(B, channels, size)``, 2 for images ``(B, channels, size, size)``.

    Raises:
        LearnpropError: A number is out of range.

    >>> Form(classes=6, channels=1, size=128, dims=1).conv(1, 8, 3)
    Conv1d(1, 8, kernel_size=(3,), stride=(1,))
    """

    classes: int = 10
    channels: int = 3
    size: int = 64
    dims: int = 2

    def __post_init__(self) -> None:
        if self.dims not in (1, 2):
            raise LearnpropError(f"nets have 1 or 2 axes, got dims={self.dims!r}")
        if min(self.classes, self.channels, self.size) < 1 or self.size % 16:
            raise LearnpropError(f"classes and channels are at least 1 and the size a multiple of 16, got {self}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an input without the batch: ``(channels, size)`` or ``(channels, size, size)``."""
        return (self.channels, *[self.size] * self.dims)

    @property
    def axes(self) -> tuple[int, ...]:
        """The numbers of the axes of positions: ``(2,)`` or ``(2, 3)``."""
        return tuple(range(2, 2 + self.dims))

    def conv(self, *args: Any, **options: Any) -> nn.Module:
        """Returns a convolution; the arguments are torch's."""
        return (nn.Conv1d if self.dims == 1 else nn.Conv2d)(*args, **options)

    def norm(self, channels: int) -> nn.Module:
        """Returns a batch norm."""
        return (nn.BatchNorm1d if self.dims == 1 else nn.BatchNorm2d)(channels)

    def max_pool(self, kernel: int) -> nn.Module:
        """Returns a max-pool as a module."""
        return (nn.MaxPool1d if self.dims == 1 else nn.MaxPool2d)(kernel)

    def mean_pool(self) -> nn.Module:
        """Returns the mean over positions as a module, which keeps the axes."""
        return (nn.AdaptiveAvgPool1d if self.dims == 1 else nn.AdaptiveAvgPool2d)(1)

    def max_pooled(self, x: Tensor, kernel: int, **options: Any) -> Tensor:
        """Returns the result of a max-pool that is a function and no module."""
        pooled: Tensor = (F.max_pool1d if self.dims == 1 else F.max_pool2d)(x, kernel, **options)
        return pooled


IMAGES = Form()
"""The form of the shipped nets: images of 64 x 64 pixels, ten classes."""
