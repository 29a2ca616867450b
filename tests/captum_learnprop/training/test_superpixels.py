"""Superpixels: unions of parts of a picture."""

from __future__ import annotations

import pytest
import torch

from captum_learnprop.training.superpixels import SEGMENTS, random_superpixels, superpixels


def picture(side: int, channels: int = 3) -> torch.Tensor:
    """A disc of another colour, off the middle, and a little noise."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = (row - 0.4 * side) ** 2 + (column - 0.6 * side) ** 2 < (0.25 * side) ** 2
    noise = 0.02 * torch.rand(channels, side, side, generator=torch.Generator().manual_seed(0))
    return disc.float() * torch.linspace(0.4, 0.9, channels)[:, None, None] + noise


@pytest.mark.parametrize(("side", "channels"), [(64, 3), (96, 1), (150, 3), (224, 3), (300, 2)])
def test_they_follow_outlines(side: int, channels: int) -> None:
    """Nearly every superpixel is inside the disc or outside of it."""
    image = picture(side, channels)
    disc = image[-1] > 0.5
    for labels in superpixels(image):
        assert labels.shape == (side, side)
        inside = torch.zeros(int(labels.max()) + 1).scatter_add_(0, labels.flatten(), disc.flatten().float())
        size = labels.flatten().bincount()
        mixed = torch.minimum(inside, size - inside).sum() / side**2
        assert mixed < 0.03
        assert (size > 0).all()


def test_scales() -> None:
    counts = [int(labels.max()) + 1 for labels in superpixels(picture(128))]
    assert len(counts) == len(SEGMENTS)
    assert counts == sorted(counts)
    assert counts[-1] > 5 * counts[0]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 255.0])
def test_any_range_of_values(scale: float) -> None:
    image = picture(64)
    for first, second in zip(superpixels(image), superpixels(scale * image - 3 * scale), strict=True):
        assert (first == second).float().mean() > 0.95


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 2, 3), (3, 4, 4), (3, 5, 40), (3, 64, 64), (12, 20, 20)], ids=str)
@pytest.mark.parametrize("draw", [torch.zeros, torch.rand], ids=["flat", "noise"])
def test_regions_of_odd_pictures(shape: tuple[int, ...], draw: object) -> None:
    image = draw(shape)  # type: ignore[operator]
    regions = random_superpixels(image, 30, torch.Generator().manual_seed(0))
    assert regions.shape == (30, *shape[1:])
    assert regions.dtype == torch.bool
    assert regions.flatten(1).any(1).all()
    if shape[1] * shape[2] > 1:
        assert not regions.flatten(1).all(1).any()


def test_they_depend_on_image_and_generator_alone() -> None:
    image = picture(64)
    first, second = (random_superpixels(image, 12, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, random_superpixels(image, 12, torch.Generator().manual_seed(4)))
