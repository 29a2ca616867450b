"""ROAD and its imputation against a dense solve in numpy."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.baselines import normal_draws
from captum_learnprop.evaluation.road import linear_imputation, road, road_curve


def slow_imputation(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """One equation per removed pixel, written down one by one, and a dense solve."""
    height, width = removed.shape
    number = {(int(i), int(j)): k for k, (i, j) in enumerate(np.argwhere(removed))}
    left, right = np.zeros((len(number), len(number))), np.zeros((len(number), len(image)))
    for (i, j), k in number.items():
        around = [(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1) if (di, dj) != (0, 0)]
        around = [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width]
        weights = np.array([1 / 6 if a == i or b == j else 1 / 12 for a, b in around])
        weights /= weights.sum()
        left[k, k] = 1
        for (a, b), weight in zip(around, weights, strict=True):
            if (a, b) in number:
                left[k, number[a, b]] -= weight
            else:
                right[k] += weight * image[:, a, b]
    result = image.copy()
    if number:
        for (i, j), values in zip(number, np.linalg.solve(left, right), strict=True):
            result[:, i, j] = values
    return result


def case(height: int, width: int, share: float, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and random masks; the first pixel of each stays."""
    images = torch.rand(batch, 3, height, width, dtype=torch.float64)
    removed = torch.rand(batch, height, width) < share
    removed[:, 0, 0] = False
    return images, removed


@pytest.mark.parametrize(("height", "width"), [(9, 7), (7, 9), (1, 12), (12, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_imputation_is_a_dense_solve(height: int, width: int, share: float) -> None:
    images, removed = case(height, width, share)
    expected = [slow_imputation(x, mask) for x, mask in zip(images.numpy(), removed.numpy(), strict=True)]
    np.testing.assert_allclose(linear_imputation(images, removed).numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(linear_imputation(images.float(), removed[:, None]).numpy(), expected, atol=1e-6)


def test_imputation_reproduces_planes_inside_and_constants_everywhere() -> None:
    slope = torch.arange(12.0, dtype=torch.float64)
    plane = (slope[:, None] + 2 * slope[None]).expand(1, 2, 12, 12)
    removed = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    removed[..., 2:10, 3:11] = True
    torch.testing.assert_close(linear_imputation(plane, removed), plane.contiguous())
    removed = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    removed[..., 5, 7] = False
    torch.testing.assert_close(linear_imputation(plane * 0 + 3, removed), plane * 0 + 3)


def test_removed_values_do_not_matter_and_chunks_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    images, removed = case(8, 8, 0.6)
    expected = linear_imputation(images, removed)
    holes = images.masked_fill(removed[:, None], torch.nan)
    assert torch.equal(linear_imputation(holes, removed), expected)
    # The package exports a function of the same name as the module.
    monkeypatch.setattr(importlib.import_module("captum_learnprop.evaluation.road"), "MAX_FACTORS", 1)
    torch.testing.assert_close(linear_imputation(images, removed), expected, rtol=0, atol=1e-13)
    strided = images.transpose(1, 3).contiguous().transpose(1, 3)
    torch.testing.assert_close(linear_imputation(strided, removed), expected, rtol=0, atol=1e-13)


@pytest.fixture
def setting() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A small net, inputs, maps with ties, targets."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 4, 5)).double().eval()
    maps = (torch.randn(4, 8, 6) * 2).round()
    return model, torch.rand(4, 3, 8, 6).double(), maps, torch.tensor([0, 3, 3, 1])


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "logit", "accuracy"])
def test_scores_are_those_of_the_definition(setting, order: str, output: str) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    percentages = (0, 12.5, 50, 99)
    draws = normal_draws((4, 3, 8, 6), inputs, 7).numpy()
    sign = -1 if order == "morf" else 1
    expected = np.zeros((4, 4))
    for i in range(4):
        ranked = sorted((sign * float(maps[i, r, c]), r, c) for r in range(8) for c in range(6))
        for j, percentage in enumerate(percentages):
            removed = np.zeros((8, 6), dtype=bool)
            for _, row, column in ranked[: min(round(percentage / 100 * 48), 47)]:
                removed[row, column] = True
            imputed = slow_imputation(inputs[i].numpy(), removed) + 0.1 * draws[j] * removed
            with torch.no_grad():
                logits = model(torch.tensor(imputed)[None])[0]
            quantity = {
                "softmax": logits.softmax(0),
                "sigmoid": logits.sigmoid(),
                "logit": logits,
                "accuracy": (logits == logits.max()).double(),
            }[output]
            expected[i, j] = quantity[targets[i]].item()
    options = {"percentages": percentages, "order": order, "output": output, "noise": 0.1, "seed": 7}
    np.testing.assert_allclose(road_curve(model, inputs, maps, targets, **options).numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(road(model, inputs, maps, targets, **options).numpy(), expected.mean(1), atol=1e-10)


def test_batch_equals_singles_and_internal_batches_do_not_matter(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    whole = road(model, inputs, maps, targets)
    torch.testing.assert_close(whole, road(model, inputs, maps[:, None], targets, internal_batch_size=5))
    singles = [road(model, inputs[i : i + 1], maps[i : i + 1], targets[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(singles))


def test_noise_follows_the_seed_and_nothing_else_changes(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    before, state = inputs.clone(), torch.get_rng_state()
    inputs.requires_grad_()
    first = road(model, inputs, maps, targets, seed=1)
    assert not first.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(inputs.detach(), before)
    assert torch.equal(first, road(model, inputs, maps, targets, seed=1))
    assert not torch.equal(first, road(model, inputs, maps, targets, seed=2))
    silent = [road(model, inputs, maps, targets, noise=0.0, seed=seed) for seed in (1, 2)]
    assert torch.equal(*silent)
    # The whole curve in float32 is that in float64 up to rounding.
    single = road(model.float(), inputs.detach().float(), maps.float(), targets, seed=1)
    torch.testing.assert_close(single.double(), first, atol=1e-5, rtol=1e-5)


def test_true_pixels_first_beats_true_pixels_last() -> None:
    class Spot(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([images[:, 0, 3:6, 3:6].sum((1, 2)), images.new_full((len(images),), 4.0)], 1)

    inputs = torch.zeros(1, 1, 9, 9)
    inputs[..., 3:6, 3:6] = 1.0
    map_, target = inputs[:, 0].clone(), torch.tensor([0])
    assert road(Spot(), inputs, map_, target) < road(Spot(), inputs, map_, target, order="lerf") - 0.5
    # A constant map is removed in reading order whichever end comes first.
    constant = torch.ones(1, 9, 9)
    assert torch.equal(road(Spot(), inputs, constant, target), road(Spot(), inputs, constant, target, order="lerf"))


def test_what_cannot_be_measured_is_refused(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    for percentages in ((), (100,), (-1,), (float("nan"),)):
        with pytest.raises(LearnpropError, match="percentages must be"):
            road(model, inputs, maps, targets, percentages=percentages)
    with pytest.raises(LearnpropError, match="unknown order 'random'"):
        road(model, inputs, maps, targets, order="random")
    with pytest.raises(LearnpropError, match="unknown output"):
        road(model, inputs, maps, targets, output="loss")
    with pytest.raises(LearnpropError, match="noise is a standard deviation"):
        road(model, inputs, maps, targets, noise=-1.0)
    with pytest.raises(LearnpropError, match="internal_batch_size"):
        road(model, inputs, maps, targets, internal_batch_size=0)
    with pytest.raises(LearnpropError, match="map 0 has NaN"):
        road(model, inputs, maps / 0 * 0, targets)
    with pytest.raises(LearnpropError, match="targets must be classes"):
        road(model, inputs, maps, targets + 2)
    removed = torch.zeros(4, 1, 8, 6, dtype=torch.bool)
    removed[1] = True
    with pytest.raises(LearnpropError, match="image 1 has no pixel left"):
        linear_imputation(inputs, removed)
    with pytest.raises(LearnpropError, match="removed must be bool"):
        linear_imputation(inputs, torch.zeros(4, 1, 8, 6))
    with pytest.raises(LearnpropError, match="not empty"):
        linear_imputation(inputs[0], torch.zeros(1, dtype=torch.bool))
