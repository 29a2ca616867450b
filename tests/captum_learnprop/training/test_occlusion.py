"""Occlusion regression: what the cache holds, what the loss is, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_learnprop.evaluation.maps import MapError, reduce_channels, smooth
from captum_learnprop.training.occlusion import (
    OcclusionCache,
    OcclusionError,
    build_cache,
    correlation,
    occlusion_loss,
    random_fills,
    random_regions,
    region_mass,
)
from captum_learnprop.training.shared import FitError, fit_maps


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def linear_model(weights: torch.Tensor):  # type: ignore[no-untyped-def]
    """Two classes; the second sums the weighted pixels of all channels."""

    def model(images: torch.Tensor) -> torch.Tensor:
        score = (images.sum(1) * weights).flatten(1).sum(1)
        return torch.stack([-score, score], 1)

    return model


@pytest.fixture
def cache() -> OcclusionCache:
    """Random regions and drops in float64."""
    torch.manual_seed(3)
    regions = random_regions(3 * 12, 10, 8, generator()).reshape(3, 12, 10, 8)
    return OcclusionCache(regions, torch.randn(3, 12).double())


def test_loss_is_one_minus_numpys_correlation(cache: OcclusionCache) -> None:
    maps = torch.rand(3, 10, 8).double()
    each = []
    for one, regions, drops in zip(maps, cache.regions, cache.drops, strict=True):
        mass = [one[region].sum().item() for region in regions]
        each.append(np.corrcoef(mass, drops.numpy())[0, 1])
    assert occlusion_loss(maps, cache).item() == pytest.approx(1 - np.mean(each), abs=1e-10)


def test_gradient_agrees_with_finite_differences(cache: OcclusionCache) -> None:
    maps = torch.rand(3, 10, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: occlusion_loss(values, cache), maps)


@pytest.mark.parametrize("sign", ["absolute", "positive", "signed"])
def test_gradient_through_reduction_and_smoothing(cache: OcclusionCache, sign: str) -> None:
    torch.manual_seed(0)
    attribution = torch.randn(3, 3, 10, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda values: occlusion_loss(smooth(reduce_channels(values, sign), 0.8), cache), attribution
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e20])
def test_loss_does_not_depend_on_the_scale_of_a_map(cache: OcclusionCache, scale: float) -> None:
    maps = torch.rand(3, 10, 8).double()
    assert occlusion_loss(maps * scale, cache).item() == pytest.approx(occlusion_loss(maps, cache).item(), abs=1e-9)


def test_constant_rows_have_no_correlation_and_a_finite_gradient() -> None:
    rows = torch.zeros(2, 5, requires_grad=True)
    value = correlation(rows, torch.randn(2, 5))
    assert value.tolist() == [0.0, 0.0]
    value.sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_cache_holds_what_a_linear_model_loses() -> None:
    torch.manual_seed(0)
    weights = torch.rand(16, 16)
    images = torch.ones(4, 3, 16, 16)
    images[:, :, 0] = 0.0  # gives fills a range; its own weight is zero
    weights[0] = 0.0
    targets = torch.tensor([0, 1, 1, 0])
    model = linear_model(weights)
    kept = build_cache(model, images, targets, deletions=20, output="logit", seed=5)
    assert kept.regions.shape == (4, 20, 16, 16)
    # The target's score falls (class 1) or rises (class 0) with the weights removed: fills are darker than 1.
    assert (kept.drops[1:3] >= -1e-4).all()
    assert (kept.drops[[0, 3]] <= 1e-4).all()
    removed = region_mass(weights.expand(4, -1, -1), kept.regions)
    assert (correlation(removed, kept.drops)[1:3] > 0.6).all()
    assert (correlation(removed, kept.drops)[[0, 3]] < -0.6).all()


def test_cache_is_deterministic_and_runs_the_model_without_gradient() -> None:
    images, targets = torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 0])
    weights = torch.rand(16, 16, requires_grad=True)
    first = build_cache(linear_model(weights), images, targets, deletions=5, output="logit", seed=1)
    again = build_cache(linear_model(weights), images, targets, deletions=5, output="logit", seed=1)
    assert torch.equal(first.regions, again.regions)
    assert torch.equal(first.drops, again.drops)
    assert not first.drops.requires_grad
    other = build_cache(linear_model(weights), images, targets, deletions=5, output="logit", seed=2)
    assert not torch.equal(first.drops, other.drops)
    assert torch.equal(first[1:2].drops, first.drops[1:2])


def test_regions_are_never_empty_and_come_in_many_sizes() -> None:
    share = random_regions(2000, 64, 48, generator()).flatten(1).float().mean(1)
    assert share.min() > 0
    assert share.max() < 1
    assert (share < 0.02).float().mean() > 0.1
    assert (share > 0.2).float().mean() > 0.1
    covered = random_regions(2000, 64, 48, generator()).float().mean(0)
    assert covered.min() > 0.5 * covered.mean()  # the corners are removed as often as the middle
    assert random_regions(50, 5, 5, generator()).flatten(1).any(1).all()


def test_fills_vary_stay_in_range_and_hold_no_fixed_baseline() -> None:
    low, high = torch.tensor([-2.0, 0.0, 1.0]), torch.tensor([2.0, 1.0, 3.0])
    fills = random_fills(200, (3, 8, 8), low, high, generator())
    for channel in range(3):
        assert fills[:, channel].min() >= low[channel]
        assert fills[:, channel].max() <= high[channel]
    means = fills.mean((2, 3))
    assert (means.std(0) > 0.15 * (high - low)).all()


def test_smoothing_keeps_mass_away_from_the_border_and_constants_everywhere() -> None:
    point = torch.zeros(1, 21, 21).double()
    point[0, 10, 10] = 1.0
    smoothed = smooth(point, 1.5)
    assert smoothed.sum().item() == pytest.approx(1.0)
    distance = (torch.arange(21) - 10.0) ** 2
    variance = (smoothed[0].sum(0) * distance).sum().item()
    assert variance == pytest.approx(1.5**2, rel=0.05)
    torch.testing.assert_close(smooth(torch.full((1, 5, 5), 2.0), 2.0), torch.full((1, 5, 5), 2.0))
    assert smooth(point, 0.0) is point


def test_fit_maps_finds_the_weights_of_a_linear_model() -> None:
    torch.manual_seed(0)
    truth = torch.zeros(12, 12)
    truth[3:7, 4:9] = 1.0
    images, targets = torch.ones(96, 3, 12, 12), torch.ones(96, dtype=torch.long)
    images[:, :, 0] = 0.0  # gives fills a range: darker than 1
    kept = build_cache(lambda x: linear_model(truth)(x) * 0.01, images, targets, deletions=40, output="logit")
    weights = torch.full((12, 12), 0.5, requires_grad=True)

    def make_maps(batch: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        return weights.expand(len(batch), -1, -1)

    losses = fit_maps(make_maps, [weights], images, targets, kept, steps=60, lr=0.02, batch_size=32, seed=0)
    assert len(losses) == 60
    assert losses[-1] < losses[0] - 0.15
    assert correlation(weights.detach().reshape(1, -1), truth.reshape(1, -1)) > 0.8  # starts at 0: constant
    assert weights.grad is None


def test_fit_maps_keeps_the_last_good_values_when_the_loss_breaks() -> None:
    images, targets = torch.rand(8, 3, 12, 12), torch.ones(8, dtype=torch.long)
    kept = build_cache(linear_model(torch.rand(12, 12)), images, targets, deletions=5, output="logit")
    weights = torch.rand(12, 12, requires_grad=True)
    calls = []

    def make_maps(batch: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        calls.append(weights.detach().clone())
        broken = float("nan") if len(calls) == 3 else 1.0
        return (weights * broken).expand(len(batch), -1, -1)

    with pytest.raises(FitError, match="step 2"):
        fit_maps(make_maps, [weights], images, targets, kept, steps=9, lr=0.1, batch_size=4, seed=0)
    assert torch.equal(weights.detach(), calls[-1])
    assert not torch.equal(calls[0], calls[1])


def test_bad_requests_are_named() -> None:
    images, targets = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    model = linear_model(torch.rand(8, 8))
    with pytest.raises(OcclusionError, match="not empty"):
        build_cache(model, images[:0], targets[:0])
    with pytest.raises(OcclusionError, match="NaN or infinite"):
        build_cache(model, images * float("nan"), targets)
    with pytest.raises(OcclusionError, match="int64"):
        build_cache(model, images, targets.float())
    with pytest.raises(OcclusionError, match="got 2"):
        build_cache(model, images, targets, deletions=2)
    with pytest.raises(OcclusionError, match="'probability'"):
        build_cache(model, images, targets, output="probability")
    kept = build_cache(model, images, targets, deletions=3)
    with pytest.raises(OcclusionError, match="do not fit"):
        occlusion_loss(torch.rand(2, 8, 7), kept)
    with pytest.raises(MapError, match="sign"):
        reduce_channels(images, "negative")
    with pytest.raises(FitError, match="no parameter"):
        fit_maps(lambda x, t: x[:, 0], [], images, targets, kept, steps=1, lr=0.1, batch_size=1, seed=0)
    with pytest.raises(FitError, match="steps"):
        fit_maps(
            lambda x, t: x[:, 0], [torch.rand(1, requires_grad=True)], images, targets, kept,
            steps=0, lr=0.1, batch_size=1, seed=0,
        )  # fmt: skip
