"""What channels of a layer respond to: the parts of a user's images where they are most active."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LearnpropError

CROP = 0.3
"""Side of a crop as a fraction of the image's sides."""


@dataclass(frozen=True)
class ChannelCrops:
    """The images in which some channels are most active, cut out around the place; ``N`` channels, ``K`` crops each.

    Attributes:
        channels: Numbers of the channels, ``(N,)``.
        crops: Parts of the images, ``(N, K, C, h, w)``, the most active first.
        values: Activation at their centres, ``(N, K)``.
        samples: Number of the image that each comes from, in the order of the batches, ``(N, K)``.
    """

    channels: Tensor
    crops: Tensor
    values: Tensor
    samples: Tensor


class MostActive:
    """Gathers, batch by batch, the images in which channels are most active.

    Args:
        channels: Numbers of the channels.
        count: Crops of each channel, one of an image at most.
        crop: Side of a crop as a fraction of the image's sides, in (0, 1].

    Raises:
        LearnpropError: For numbers out of range.
    """

    def __init__(self, channels: Sequence[int], count: int, crop: float = CROP) -> None:
        if not 0 < crop <= 1:
            raise LearnpropError(f"crop is a fraction of the image's sides in (0, 1], got {crop!r}")
        if count < 1 or not len(channels):
            raise LearnpropError(f"crops need a channel and a count of at least 1, got {list(channels)} and {count}")
        self.channels, self.count, self.crop = torch.as_tensor(channels), count, crop
        self._found: list[list[tuple[float, int, Tensor]]] = [[] for _ in channels]
        self._seen = 0

    def see(self, images: Tensor, activation: Tensor) -> None:
        """Look at a batch.

        Args:
            images: ``(B, C, H, W)``.
            activation: What the layer makes of them, ``(B, channels, h, w)``.

        Raises:
            LearnpropError: For other shapes, or channels that the layer does not have.
        """
        if images.dim() != 4 or activation.dim() != 4:
            raise LearnpropError(
                f"crops are of images (B, C, H, W) and a layer (B, C, h, w), got {tuple(images.shape)} and "
                f"{tuple(activation.shape)}"
            )
        if int(self.channels.max()) >= activation.shape[1] or int(self.channels.min()) < 0:
            raise LearnpropError(f"channels {self.channels.tolist()}: the layer has {activation.shape[1]}")
        own = activation.detach()[:, self.channels.to(activation.device)].flatten(2)
        values, places = (each.cpu() for each in own.max(2))
        for number, found in enumerate(self._found):
            for sample, image in enumerate(images):
                value = float(values[sample, number])
                if len(found) < self.count or value > found[-1][0]:
                    part = self._part(image, int(places[sample, number]), activation.shape[2:])
                    found.append((value, self._seen + sample, part))
                    found.sort(key=lambda one: -one[0])
                    del found[self.count :]
        self._seen += len(images)

    def _part(self, image: Tensor, place: int, grid: Sequence[int]) -> Tensor:
        """The part of an image around a place of the layer's grid; beyond the border its values are repeated."""
        sides = [max(1, round(self.crop * n)) for n in image.shape[1:]]
        centre = [(each + 0.5) / n for each, n in zip(divmod(place, grid[1]), grid, strict=True)]
        starts = [round(c * n - side / 2) for c, n, side in zip(centre, image.shape[1:], sides, strict=True)]
        (up, left), (high, wide) = starts, sides
        around = F.pad(image.detach().cpu()[None], (wide, wide, high, high), mode="replicate")[0]
        return around[:, up + high : up + 2 * high, left + wide : left + 2 * wide].clone()

    def crops(self) -> ChannelCrops:
        """What was found.

        Raises:
            LearnpropError: Without an image; ``K`` is lower than asked for where there were fewer images.
        """
        if not self._seen:
            raise LearnpropError("crops need at least one batch of images")
        values, samples, parts = ([[one[field] for one in found] for found in self._found] for field in range(3))
        return ChannelCrops(
            channels=self.channels,
            crops=torch.stack([torch.stack(each) for each in parts]),  # type: ignore[arg-type]
            values=torch.tensor(values),
            samples=torch.tensor(samples),
        )


def batches_of_images(batches: Iterable[Tensor]) -> Iterable[Tensor]:
    """Batches that are tensors of images.

    Raises:
        LearnpropError: For anything else.
    """
    for images in batches:
        if not isinstance(images, Tensor):
            raise LearnpropError(f"crops are of batches of images (B, C, H, W), got {type(images).__name__}")
        yield images
