"""Maps that know nothing of the net, or next to nothing: what a method must beat."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from captum_learnprop.benchmark.explain import Explain
from captum_learnprop.maps import per_axis, smooth

CONTRAST_SMOOTHING = 1 / 56
"""Blur of the distance from the median colour, as a fraction of the sides."""


def random_map(model: nn.Module, example: Tensor) -> Explain:
    """Returns uniform noise ``(B, 1, H, W)`` in [0, 1), seeded by the image and the target, as a control."""

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        maps = []
        for image, target in zip(images, targets, strict=True):
            seed = zlib.crc32(image.cpu().contiguous().numpy().tobytes()) + int(target)
            maps.append(torch.rand(1, *image.shape[-2:], generator=torch.Generator().manual_seed(seed)))
        return torch.stack(maps).to(images)

    return attribute


def centre_prior(model: nn.Module, example: Tensor) -> Explain:
    """Returns a Gaussian in the middle, ``(B, 1, H, W)`` in (0, 1], a quarter of the image wide.

    Objects tend to be there.
    """

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = torch.linspace(-2, 2, height), torch.linspace(-2, 2, width)
        bump = torch.exp(-0.5 * (rows[:, None] ** 2 + columns[None] ** 2))
        return bump.expand(len(images), 1, height, width).to(images)

    return attribute


def intensity(model: nn.Module, example: Tensor) -> Explain:
    """Returns the distance of each pixel from the image's mean colour, ``(B, 1, H, W)``, not negative.

    It redraws the image and knows nothing of the net.
    """

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        return (images - images.mean((2, 3), keepdim=True)).square().sum(1, keepdim=True).sqrt()

    return attribute


def contrast(model: nn.Module, example: Tensor) -> Explain:
    """Returns the blurred distance of each pixel from the image's median colour, ``(B, 1, H, W)``, not negative."""

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        median = images.flatten(2).median(2).values[..., None, None]
        distance = (images - median).square().sum(1).sqrt()
        return smooth(distance, per_axis(CONTRAST_SMOOTHING, distance.shape[1:]))[:, None]

    return attribute
