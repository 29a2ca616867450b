"""Deletion and insertion against a slow re-implementation, and on models with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from captum_learnprop.evaluation.faithfulness import deletion, deletion_curve, insertion, insertion_curve
from captum_learnprop.evaluation.maps import MapError


@pytest.fixture
def setting() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A small net, inputs, maps with ties, targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 4, 5)).double().eval()
    maps = (torch.randn(4, 8, 6) * 2).round()
    return model, torch.rand(4, 3, 8, 6).double(), maps, torch.tensor([0, 3, 3, 1])


def slow_curve(model, image, fill, map_, target, steps, quantity, insert):  # type: ignore[no-untyped-def]
    """Python lists and one forward pass per point."""
    pixels = [(-float(map_[row, column]), row, column) for row in range(8) for column in range(6)]
    pixels.sort()
    curve = []
    for step in range(steps + 1):
        changed = fill.clone() if insert else image.clone()
        for _, row, column in pixels[: round(step * len(pixels) / steps)]:
            changed[:, row, column] = (image if insert else fill)[:, row, column]
        curve.append(quantity(model(changed[None]))[0, target].item())
    return curve


@pytest.mark.parametrize("insert", [False, True], ids=["deletion", "insertion"])
@pytest.mark.parametrize("steps", [1, 7, 48])
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "logit"])
def test_curves_and_areas_are_those_of_the_definition(setting, insert: bool, steps: int, output: str) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    quantity = {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "logit": lambda x: x}[output]
    baseline = torch.rand(4, 3, 8, 6).double()
    with torch.no_grad():
        expected = [
            slow_curve(model, *arguments, steps, quantity, insert)
            for arguments in zip(inputs, baseline, maps, targets, strict=True)
        ]
    options = {"baseline": baseline, "steps": steps, "output": output}
    curves = (insertion_curve if insert else deletion_curve)(model, inputs, maps, targets, **options)
    np.testing.assert_allclose(curves.numpy(), expected, atol=1e-12)
    areas = (insertion if insert else deletion)(model, inputs, maps[:, None], targets, **options)
    trapezoid = [np.trapezoid(curve, dx=1 / steps) for curve in expected]
    np.testing.assert_allclose(areas.numpy(), trapezoid, atol=1e-12)


def test_batch_equals_singles_and_internal_batches_do_not_matter(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    whole = deletion(model, inputs, maps, targets, steps=5)
    torch.testing.assert_close(whole, deletion(model, inputs, maps, targets, steps=5, internal_batch_size=3))
    singles = [deletion(model, inputs[i : i + 1], maps[i : i + 1], targets[i : i + 1], steps=5) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(singles))


def test_the_true_ranking_of_a_linear_model_is_best() -> None:
    torch.manual_seed(1)
    weights = torch.rand(16).double()

    def model(images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) @ weights)[:, None]

    inputs = torch.ones(50, 1, 4, 4).double()
    targets = torch.zeros(50, dtype=torch.long)
    random = torch.rand(50, 4, 4).double()
    options = {"steps": 16, "output": "logit"}
    best = deletion(model, inputs[:1], weights.reshape(1, 4, 4), targets[:1], **options)
    assert (deletion(model, inputs, random, targets, **options) > best).all()
    best = insertion(model, inputs[:1], weights.reshape(1, 4, 4), targets[:1], **options)
    assert (insertion(model, inputs, random, targets, **options) < best).all()


def test_relative_curves_start_or_end_at_one(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    ones = torch.ones(4).double()
    curve = deletion_curve(model, inputs, maps, targets, steps=4, relative=True)
    torch.testing.assert_close(curve[:, 0], ones)
    curve = insertion_curve(model, inputs, maps, targets, steps=4, relative=True)
    torch.testing.assert_close(curve[:, -1], ones)


def test_the_callers_tensors_are_not_changed_and_no_graph_is_kept(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    before = inputs.clone(), maps.clone()
    inputs.requires_grad_()
    assert not deletion(model, inputs, maps, targets, steps=3).requires_grad
    assert torch.equal(inputs.detach(), before[0])
    assert torch.equal(maps, before[1])


def test_what_cannot_be_measured_is_refused(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    broken = maps.clone()
    broken[1, 2, 3] = float("inf")
    with pytest.raises(MapError, match="map 1 has NaN or infinite"):
        deletion(model, inputs, broken, targets)
    with pytest.raises(MapError, match="sum colour channels"):
        deletion(model, inputs, inputs, targets)
    with pytest.raises(MapError, match="targets must be int64"):
        deletion(model, inputs, maps, targets.float())
    with pytest.raises(MapError, match="number of pixels 48, got 49"):
        deletion(model, inputs, maps, targets, steps=49)
    with pytest.raises(MapError, match="unknown output 'probability'"):
        deletion(model, inputs, maps, targets, output="probability")
    with pytest.raises(MapError, match="logit can be zero"):
        insertion(model, inputs, maps, targets, output="logit", relative=True)
    with pytest.raises(MapError, match="does not broadcast"):
        deletion(model, inputs, maps, targets, baseline=torch.zeros(7))
