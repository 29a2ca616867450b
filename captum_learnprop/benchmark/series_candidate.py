"""A net of series in the benchmark, whose images have height 1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from captum_learnprop.benchmark.candidate import Candidate


class OnImagesOfHeightOne(nn.Module):
    """A net of series as one of images.

    Args:
        net: It takes series ``(B, C, L)``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the net's outputs ``(B, classes)`` for images ``(B, C, 1, L)``."""
        output: Tensor = self.net(images.squeeze(2))
        return output


@dataclass(frozen=True)
class SeriesCandidate(Candidate):
    """A net of series ``(B, C, L)`` that methods are compared on.

    Scenes, maps and scores are those of images ``(B, C, 1, L)``; rules are learned for the net as it is. The net itself
    normalises; ``preprocessing.crop`` is the length.

    Attributes:
        channels: Channels of a series.
    """

    channels: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a series as an image, ``(C, 1, L)``."""
        return (self.channels, 1, self.side)

    def inputs(self, images: Tensor) -> Tensor:
        """Returns the series ``(B, C, L)`` of images ``(B, C, 1, L)``."""
        return images.squeeze(2)

    def on_pixels(self, net: nn.Module | None = None, *, resize: bool = False) -> nn.Module:
        """Returns a net, by default its own, as one that takes images ``(B, C, 1, L)``."""
        return OnImagesOfHeightOne(self.net if net is None else net).eval()
