"""Regions: what is removed together, and how it is kept."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.regions import MAX_BOXES, box_regions, packed, random_boxes, random_regions, unpacked

SPATIAL = [(24,), (12, 16), (6, 8, 10)]


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def regions_of(count: int, spatial: tuple[int, ...], seed: int = 0) -> Tensor:
    return box_regions(random_boxes(count, spatial, generator(seed)), spatial)


class TestBoxes:
    @pytest.mark.parametrize("spatial", SPATIAL, ids=str)
    def test_shape_and_range(self, spatial: tuple[int, ...]) -> None:
        boxes = random_boxes(300, spatial, generator())
        assert boxes.shape == (300, MAX_BOXES, len(spatial), 2)
        assert boxes.dtype == torch.int32
        start, length = boxes[..., 0], boxes[..., 1]
        used = (length > 0).all(-1)
        assert ((length > 0) == used[..., None]).all()  # unused in all dimensions or in none
        assert used[:, 0].all()
        assert set(used.sum(1).tolist()) == set(range(1, MAX_BOXES + 1))
        size = torch.tensor(spatial)
        assert (length <= size).all()
        assert ((start + length > 0) & (start < size))[used].all()  # at least one pixel is inside
        assert (start < 0).any()
        assert (start + length > size).any()

    @pytest.mark.parametrize("spatial", SPATIAL, ids=str)
    def test_every_pixel_is_removed_equally_often(self, spatial: tuple[int, ...]) -> None:
        count = 6000
        covered = regions_of(count, spatial).double().mean(0)
        share = covered.mean()
        deviation = (share * (1 - share) / count).sqrt()
        assert (covered - share).abs().max() < 5 * deviation  # 480 pixels at most: 5 sigma hardly ever

    def test_they_come_in_many_sizes(self) -> None:
        share = regions_of(2000, (64, 48)).flatten(1).float().mean(1)
        assert share.max() < 1
        assert (share < 0.02).float().mean() > 0.1
        assert (share > 0.2).float().mean() > 0.1

    @pytest.mark.parametrize("spatial", [(1,), (3,), (2, 2), (5, 1), (3, 4, 2), (64, 48)], ids=str)
    def test_no_region_is_empty(self, spatial: tuple[int, ...]) -> None:
        assert regions_of(500, spatial).flatten(1).any(1).all()

    def test_same_generator_same_boxes(self) -> None:
        assert torch.equal(random_boxes(9, (8, 8), generator(1)), random_boxes(9, (8, 8), generator(1)))
        assert not torch.equal(random_boxes(9, (8, 8), generator(1)), random_boxes(9, (8, 8), generator(2)))


class TestRegions:
    @pytest.mark.parametrize("spatial", [(7,), (5, 6), (4, 3, 5)], ids=str)
    def test_they_are_the_union_of_their_boxes(self, spatial: tuple[int, ...]) -> None:
        boxes = random_boxes(20, spatial, generator(3)).reshape(4, 5, MAX_BOXES, len(spatial), 2)
        regions = box_regions(boxes, spatial)
        assert regions.shape == (4, 5, *spatial)
        assert regions.dtype == torch.bool
        for outer, inner in itertools.product(range(4), range(5)):
            for pixel in itertools.product(*map(range, spatial)):
                inside = any(
                    all(start <= x < start + length for x, (start, length) in zip(pixel, box, strict=True))
                    for box in boxes[outer, inner].tolist()
                )
                assert bool(regions[(outer, inner, *pixel)]) == inside


class TestKinds:
    def test_half_of_each(self) -> None:
        """By turns: boxes that would be drawn alone, and regions that follow a picture of two halves."""
        image = torch.zeros(3, 96, 100)
        image[:, :, 17:] = 1.0
        regions = random_regions(image, 21, generator(4))
        assert regions.shape == (21, 96, 100)
        assert torch.equal(regions[::2], regions_of(11, (96, 100), 4))
        edges = regions[1::2, :, 16] != regions[1::2, :, 17]
        others = regions[1::2, :, 1:] != regions[1::2, :, :-1]
        assert edges.float().mean() > 3 * others.float().mean()

    def test_alone(self) -> None:
        image = torch.rand(3, 24, 24, generator=generator())
        assert torch.equal(random_regions(image, 9, generator(4), "boxes"), regions_of(9, (24, 24), 4))
        assert random_regions(image, 9, generator(4), "superpixels").shape == (9, 24, 24)

    def test_boxes_of_small_pictures(self) -> None:
        image = torch.rand(3, 95, 200, generator=generator())
        assert torch.equal(random_regions(image, 9, generator(4)), regions_of(9, (95, 200), 4))

    @pytest.mark.parametrize("shape", [(2, 30), (1, 6, 7, 8)], ids=str)
    def test_boxes_of_anything_but_pictures(self, shape: tuple[int, ...]) -> None:
        image = torch.rand(shape, generator=generator())
        for kind in ("both", "superpixels"):
            assert torch.equal(random_regions(image, 9, generator(4), kind), regions_of(9, shape[1:], 4))

    def test_unknown(self) -> None:
        with pytest.raises(LearnpropError, match="unknown regions 'discs'; choose one of both, boxes, superpixels"):
            random_regions(torch.zeros(3, 8, 8), 4, generator(), "discs")


@pytest.mark.parametrize("shape", [(7,), (8,), (3, 9), (3, 5, 6), (1, 2, 3, 5)], ids=str)
def test_bits_are_read_as_they_were_drawn(shape: tuple[int, ...]) -> None:
    drawn = random_regions(torch.rand(shape, generator=generator()), 6, generator())
    bits = packed(drawn)
    assert bits.dtype == torch.uint8
    assert bits.shape == (6, -(-drawn[0].numel() // 8))
    assert torch.equal(unpacked(bits, shape), drawn)
    assert torch.equal(unpacked(bits.reshape(2, 3, -1), shape), drawn.reshape(2, 3, *drawn.shape[1:]))
