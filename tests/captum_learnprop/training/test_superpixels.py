"""Superpixels: they follow what an image shows, whatever its channels, dimensions and range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.occlusion import box_regions, generator_of, random_boxes
from captum_learnprop.training.superpixels import MOST_PARTS, SCALES, random_superpixels, superpixels


def with_disc(channels: int, *spatial: int) -> tuple[Tensor, Tensor]:
    """A bright disc (ball) on a dark ground with a little texture, and where it is."""
    middle = [side / 2 for side in spatial]
    places = torch.meshgrid(*(torch.arange(side) for side in spatial), indexing="ij")
    distance = sum((place - at) ** 2 for place, at in zip(places, middle, strict=True))
    inside = distance < (min(spatial) / 4) ** 2
    texture = 0.05 * torch.rand(channels, *spatial, generator=generator_of(0, 0))
    return texture + inside, inside


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("spatial", [(64, 48), (16, 20, 24)])
@pytest.mark.parametrize("scale", [1.0, -300.0])
def test_superpixels_stop_at_outlines(channels: int, spatial: tuple[int, ...], scale: float) -> None:
    image, inside = with_disc(channels, *spatial)
    label = superpixels(scale * image + 7, 25)
    mixed = 0
    for one in label.unique():
        share = inside[label == one].double().mean().item()
        mixed += int((label == one).sum()) if 0.1 < share < 0.9 else 0
    assert mixed < 0.05 * inside.numel()


def test_a_flat_image_gets_about_the_number_asked_for() -> None:
    for spatial in ((96, 96), (2000, 1), (1500, 4), (40, 40, 2)):
        for count in SCALES:
            found = len(superpixels(torch.ones(3, *spatial), count).unique())
            assert 0.7 * count <= found <= 1.4 * count


def test_large_images_are_reduced_and_brought_back() -> None:
    image, inside = with_disc(1, 600, 400)
    label = superpixels(image, 25)
    assert label.shape == (600, 400)
    pure = sum(int(inside[label == one].double().mean() > 0.9) for one in label.unique())
    assert pure >= 1


@pytest.mark.parametrize("shape", [(3, 32, 40), (1, 3, 3), (2, 8, 9, 10), (1, 1, 30), (3, 2, 1)])
def test_regions_are_unions_of_superpixels_of_one_scale(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape, generator=generator_of(1, 1))
    regions = random_superpixels(image, 20, generator_of(2, 0))
    assert regions.dtype == torch.bool
    assert regions.shape == (20, *shape[1:])
    labels = [superpixels(image, scale) for scale in SCALES]
    for region in regions:
        parts = [label[region].unique() for label in labels]
        whole = [
            torch.equal(torch.isin(label, part), region) and 1 <= len(part) <= MOST_PARTS
            for label, part in zip(labels, parts, strict=True)
        ]
        assert any(whole)


def test_the_generator_decides_and_the_range_does_not() -> None:
    image = torch.rand(3, 24, 24, generator=generator_of(1, 1))
    first = random_superpixels(image, 12, generator_of(5, 0))
    assert torch.equal(first, random_superpixels(image, 12, generator_of(5, 0)))
    assert torch.equal(first, random_superpixels(4 * image - 2, 12, generator_of(5, 0)))
    assert not torch.equal(first, random_superpixels(image, 12, generator_of(6, 0)))


def test_images_of_one_size_take_the_same_numbers() -> None:
    after = []
    for image in (torch.ones(1, 20, 20), torch.rand(4, 20, 20, generator=generator_of(1, 1))):
        generator = generator_of(3, 0)
        random_superpixels(image, 7, generator)
        after.append(torch.rand(3, generator=generator))
    assert torch.equal(*after)


def test_signals_get_boxes() -> None:
    found = random_superpixels(torch.rand(2, 50, generator=generator_of(1, 1)), 9, generator_of(3, 0))
    assert torch.equal(found, box_regions(random_boxes(9, (50,), generator_of(3, 0)), (50,)))


def test_a_table_is_refused() -> None:
    with pytest.raises(LearnpropError, match=r"superpixels are of images .*got \(5,\)"):
        random_superpixels(torch.rand(5, generator=generator_of(1, 1)), 3, generator_of(0, 0))
