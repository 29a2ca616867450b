"""Occlusion: what replaces regions, what a model loses, and how a map is compared with that."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import reduce_channels, smooth
from captum_learnprop.training.map_similarity import correlation
from captum_learnprop.training.occlusion import (
    FILL_KINDS,
    DeletionFills,
    generator_of,
    measure_drops,
    random_fills,
    region_mass,
)
from captum_learnprop.training.quantities import logit, softmax
from captum_learnprop.training.regions import box_regions, random_boxes

SPATIAL = [(24,), (12, 16), (6, 8, 10)]


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def regions_of(count: int, spatial: tuple[int, ...], seed: int = 0) -> Tensor:
    return box_regions(random_boxes(count, spatial, generator(seed)), spatial)


class TestGeneratorOf:
    def test_each_image_has_its_own(self) -> None:
        pairs = list(itertools.product(range(4), range(4)))
        firsts = [torch.rand(3, generator=generator_of(*pair)).tolist() for pair in pairs]
        assert len({tuple(first) for first in firsts}) == len(pairs)  # (0, 1) is not (1, 0)
        assert firsts == [torch.rand(3, generator=generator_of(*pair)).tolist() for pair in pairs]

    def test_neighbours_are_unrelated(self) -> None:
        rows = torch.stack([torch.rand(2000, generator=generator_of(0, index)) for index in range(4)])
        off_diagonal = torch.corrcoef(rows)[~torch.eye(4, dtype=torch.bool)]
        assert off_diagonal.abs().max() < 0.1


class TestFills:
    def test_they_vary_and_stay_in_range(self) -> None:
        low, high = torch.tensor([-2.0, 0.0, 1.0]), torch.tensor([2.0, 1.0, 3.0])
        fills = random_fills(200, (3, 8, 8), low, high, generator())
        assert fills.shape == (200, 3, 8, 8)
        assert (fills >= low.reshape(3, 1, 1)).all()
        assert (fills <= high.reshape(3, 1, 1)).all()
        assert (fills.mean((2, 3)).std(0) > 0.15 * (high - low)).all()  # no fixed baseline
        assert (fills.std((2, 3)).mean(0) > 0.05 * (high - low)).all()  # no flat colour

    @pytest.mark.parametrize("shape", [(2, 9), (1, 4, 5), (3, 2, 3, 4)], ids=str)
    def test_any_number_of_dimensions(self, shape: tuple[int, ...]) -> None:
        same = torch.full((shape[0],), 0.5)
        assert random_fills(4, shape, same, same, generator()).shape == (4, *shape)
        torch.testing.assert_close(random_fills(4, shape, same, same, generator()), torch.full((4, *shape), 0.5))


class TestDeletionFills:
    def test_they_are_other_images(self) -> None:
        pool = torch.rand(5, 3, 4, 4, generator=generator())
        for index in range(8):
            fills = DeletionFills("images", pool).draw(60, index, generator())
            source = (fills[:, None] == pool).flatten(2).all(2)
            assert (source.sum(1) == 1).all()
            assert set(source.float().argmax(1).tolist()) == {0, 1, 2, 3, 4} - {index}

    def test_mixed_ones_are_of_both_kinds(self) -> None:
        pool = torch.rand(5, 3, 4, 4, generator=generator())
        fills = DeletionFills("mixed", pool).draw(200, 2, generator())
        taken = (fills[:, None] == pool).flatten(2).all(2).any(1)
        assert 0.35 < taken.float().mean() < 0.65

    def test_one_image_has_no_other(self) -> None:
        pool = torch.rand(1, 3, 4, 4, generator=generator())
        low, high = pool.amin((0, 2, 3)), pool.amax((0, 2, 3))
        fills = DeletionFills("images", pool).draw(6, 0, generator(3))
        assert torch.equal(fills, random_fills(6, (3, 4, 4), low, high, generator(3)))

    @pytest.mark.parametrize("kind", FILL_KINDS)
    def test_of_a_table(self, kind: str) -> None:
        pool = torch.randn(5, 7, generator=generator())
        fills = DeletionFills(kind, pool).draw(30, 1, generator())
        assert fills.shape == (30, 7)
        assert ((fills >= pool.amin(0) - 1e-6) & (fills <= pool.amax(0) + 1e-6)).all()

    def test_unknown(self) -> None:
        with pytest.raises(LearnpropError, match="unknown fill 'black'; choose one of images, colours, mixed"):
            DeletionFills("black", torch.zeros(2, 3, 4, 4))


def linear(weights: Tensor):  # type: ignore[no-untyped-def]
    """Two classes; the second sums the weighted pixels of all channels, the first is its negative."""

    def model(images: Tensor) -> Tensor:
        score = (images.sum(1) * weights).flatten(1).sum(1)
        return torch.stack([-score, score], 1)

    return model


def drops_of(weights: Tensor, image: Tensor, quantity=logit, seed: int = 5, **options: int) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Regions ``(20, ...)`` and drops ``(2, 20)`` of both classes."""
    random = generator(seed)
    regions = regions_of(20, tuple(image.shape[1:]), seed)
    fills = random_fills(20, tuple(image.shape), torch.zeros(3), torch.ones(3), random)
    return regions, measure_drops(linear(weights), image, torch.tensor([0, 1]), regions, fills, quantity, **options)


class TestDrops:
    @pytest.mark.parametrize("spatial", [(20,), (16, 16), (6, 6, 6)], ids=str)
    def test_of_a_linear_model(self, spatial: tuple[int, ...]) -> None:
        weights = torch.rand(spatial, generator=generator())
        regions, drops = drops_of(weights, torch.ones(3, *spatial))
        # Fills are darker than 1: class 1 loses by every deletion what class 0 gains.
        assert drops.shape == (2, 20)
        assert drops.dtype == torch.float32
        assert (drops[1] > 0).all()
        torch.testing.assert_close(drops[0], -drops[1])
        removed = region_mass(weights[None], regions[None])
        assert correlation(removed, drops[1:]).item() > 0.6

    def test_without_gradient(self) -> None:
        _, drops = drops_of(torch.rand(8, 8, requires_grad=True), torch.rand(3, 8, 8, requires_grad=True))
        assert not drops.requires_grad

    def test_batches_change_nothing(self) -> None:
        weights, image = 0.02 * torch.rand(8, 8, generator=generator()), torch.rand(3, 8, 8, generator=generator(1))
        _, together = drops_of(weights, image, softmax)
        _, apart = drops_of(weights, image, softmax, internal_batch_size=3)
        torch.testing.assert_close(apart, together, rtol=0, atol=1e-6)
        assert together.abs().mean() > 1e-3
        _, other = drops_of(weights, image, softmax, seed=6)
        assert not torch.allclose(other, together)


class TestMassAndCorrelation:
    @pytest.mark.parametrize("spatial", [(9,), (5, 6), (4, 3, 5)], ids=str)
    def test_mass(self, spatial: tuple[int, ...]) -> None:
        maps = torch.rand(3, *spatial, generator=generator())
        regions = regions_of(12, spatial).reshape(3, 4, *spatial)
        mass = region_mass(maps, regions)
        for row, deletion in itertools.product(range(3), range(4)):
            assert mass[row, deletion].item() == pytest.approx(maps[row][regions[row, deletion]].sum().item(), abs=1e-5)

    def test_correlation_is_that_of_numpy(self) -> None:
        first = torch.randn(6, 12, generator=generator(), dtype=torch.float64)
        second = torch.randn(6, 12, generator=generator(1), dtype=torch.float64) - first
        expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(first.numpy(), second.numpy(), strict=True)]
        np.testing.assert_allclose(correlation(first, second).numpy(), expected, atol=1e-12)
        assert correlation(first, 3 * first + 2).tolist() == pytest.approx([1.0] * 6)
        assert correlation(first, 2 - first).tolist() == pytest.approx([-1.0] * 6)

    @pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e20])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_scale_does_not_matter(self, scale: float, dtype: torch.dtype) -> None:
        rows = torch.rand(3, 12, generator=generator()).to(dtype)
        other = torch.randn(3, 12, generator=generator(1)).to(dtype)
        torch.testing.assert_close(correlation(rows * scale, other), correlation(rows, other), rtol=0, atol=2e-6)

    def test_constant_rows_have_none_and_a_finite_gradient(self) -> None:
        for rows in (torch.zeros(2, 5), torch.full((2, 5), 0.25)):
            for first, second in ((rows, torch.randn(2, 5)), (torch.randn(2, 5), rows)):
                first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
                value = correlation(first, second)
                assert value.tolist() == [0.0, 0.0]
                value.sum().backward()
                assert first.grad is not None
                assert second.grad is not None
                assert first.grad.isfinite().all()
                assert second.grad.isfinite().all()

    def test_rows_do_not_see_each_other(self) -> None:
        first, second = torch.rand(2, 4, 7, generator=generator())
        alone = torch.cat([correlation(a[None], b[None]) for a, b in zip(first, second, strict=True)])
        torch.testing.assert_close(correlation(first, second), alone)

    @pytest.mark.parametrize("sign", ["absolute", "positive", "signed"])
    def test_gradient_from_attribution_to_loss(self, sign: str) -> None:
        regions = regions_of(24, (10, 8)).reshape(2, 12, 10, 8)
        drops = torch.randn(2, 12, generator=generator(), dtype=torch.float64)
        attribution = torch.randn(2, 3, 10, 8, generator=generator(1), dtype=torch.float64, requires_grad=True)

        def loss(values: Tensor) -> Tensor:
            return 1 - correlation(region_mass(smooth(reduce_channels(values, sign), 0.8), regions), drops)

        assert torch.autograd.gradcheck(loss, attribution)


class TestSmoothing:
    def test_mass_spread_and_constants(self) -> None:
        point = torch.zeros(1, 21, 21).double()
        point[0, 10, 10] = 1.0
        smoothed = smooth(point, 1.5)
        assert smoothed.sum().item() == pytest.approx(1.0)
        distance = (torch.arange(21) - 10.0) ** 2
        assert (smoothed[0].sum(0) * distance).sum().item() == pytest.approx(1.5**2, rel=0.05)
        torch.testing.assert_close(smooth(torch.full((1, 5, 5), 2.0), 2.0), torch.full((1, 5, 5), 2.0))
        assert smooth(point, 0.0) is point
