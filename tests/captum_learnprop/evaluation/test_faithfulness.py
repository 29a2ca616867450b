"""Deletion, insertion and the area between orders against a slow re-implementation, and with known answers."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from pairwise import crossed
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter
from torch import nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.baselines import BASELINES, BLUR_SIGMA, fill_values
from captum_learnprop.evaluation.faithfulness import (
    CurveOptions,
    _Options,
    deletion,
    deletion_curve,
    insertion,
    insertion_curve,
    lerf_curve,
    morf_curve,
    morf_lerf_area,
)


@pytest.fixture
def setting() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A small net, inputs, maps with ties, targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 4, 5)).double().eval()
    maps = (torch.randn(4, 8, 6) * 2).round()
    return model, torch.rand(4, 3, 8, 6).double(), maps, torch.tensor([0, 3, 3, 1])


def slow_curve(model, image, fill, map_, target, steps, quantity, insert, sign=-1):  # type: ignore[no-untyped-def]
    """Python lists and one forward pass per point."""
    pixels = [(sign * float(map_[row, column]), row, column) for row in range(8) for column in range(6)]
    pixels.sort()
    curve = []
    for step in range(steps + 1):
        changed = fill.clone() if insert else image.clone()
        for _, row, column in pixels[: round(step * len(pixels) / steps)]:
            changed[:, row, column] = (image if insert else fill)[:, row, column]
        curve.append(quantity(model(changed[None]))[0, target].item())
    return curve


@crossed(insert={"deletion": False, "insertion": True}, steps=[1, 7, 48], output=["softmax", "sigmoid", "logit"])
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
    expected_areas = [trapezoid(curve, dx=1 / steps) for curve in expected]
    np.testing.assert_allclose(areas.numpy(), expected_areas, atol=1e-12)


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
    with pytest.raises(LearnpropError, match="map 1 has NaN or infinite"):
        deletion(model, inputs, broken, targets)
    with pytest.raises(LearnpropError, match="sum colour channels"):
        deletion(model, inputs, inputs, targets)
    with pytest.raises(LearnpropError, match="targets must be int64"):
        deletion(model, inputs, maps, targets.float())
    with pytest.raises(LearnpropError, match="number of pixels 48, got 49"):
        deletion(model, inputs, maps, targets, steps=49)
    with pytest.raises(LearnpropError, match="unknown output 'probability'"):
        deletion(model, inputs, maps, targets, output="probability")
    with pytest.raises(LearnpropError, match="logit can be zero"):
        insertion(model, inputs, maps, targets, output="logit", relative=True)
    with pytest.raises(LearnpropError, match="does not broadcast"):
        deletion(model, inputs, maps, targets, baseline=torch.zeros(7))


@pytest.mark.parametrize("output", ["softmax", "logit"])
@pytest.mark.parametrize("baseline", [0.3, "mean", "noise", "blur", "zero", pytest.param(torch.sin, id="sin")])
def test_orders_and_the_area_between_them_are_those_of_the_definition(setting, baseline, output: str) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    quantity = {"softmax": lambda x: x.softmax(1), "logit": lambda x: x}[output]
    fill = fill_values(baseline, inputs, seed=5)
    options = {"baseline": baseline, "steps": 7, "output": output, "seed": 5}
    areas = []
    for curve, sign in ((lerf_curve, 1), (morf_curve, -1)):
        with torch.no_grad():
            rows = zip(inputs, fill, maps, targets, strict=True)
            expected = [slow_curve(model, *row, 7, quantity, False, sign) for row in rows]
        np.testing.assert_allclose(curve(model, inputs, maps, targets, **options).numpy(), expected, atol=1e-12)
        areas.append(trapezoid(expected, dx=1 / 7, axis=1))
    between = morf_lerf_area(model, inputs, maps, targets, **options)
    np.testing.assert_allclose(between.numpy(), areas[0] - areas[1], atol=1e-12)


def test_the_area_between_orders_of_a_constant_map_is_zero_and_of_the_true_one_positive() -> None:
    torch.manual_seed(1)
    weights = torch.rand(16).double()

    def model(images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) @ weights)[:, None]

    inputs, targets = torch.ones(1, 1, 4, 4).double(), torch.zeros(1, dtype=torch.long)
    options = {"steps": 16, "output": "logit"}
    assert morf_lerf_area(model, inputs, torch.ones(1, 4, 4), targets, **options).item() == 0.0
    true = morf_lerf_area(model, inputs, weights.reshape(1, 4, 4), targets, **options)
    false = morf_lerf_area(model, inputs, -weights.reshape(1, 4, 4), targets, **options)
    assert true > 0
    torch.testing.assert_close(true, -false)


def test_baselines_by_name_are_those_of_numpy() -> None:
    inputs = torch.rand(3, 2, 20, 17, dtype=torch.float64)
    array = inputs.numpy()
    mean = array.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(fill_values("mean", inputs).numpy(), np.broadcast_to(mean, array.shape), atol=1e-12)
    blurred = gaussian_filter(array, (0, 0, BLUR_SIGMA, BLUR_SIGMA), mode="nearest", truncate=3.0)
    np.testing.assert_allclose(fill_values("blur", inputs).numpy(), blurred, atol=1e-12)
    standard = (fill_values("noise", inputs, seed=3).numpy() - mean) / array.std((2, 3), keepdims=True)
    np.testing.assert_allclose(standard, np.broadcast_to(standard[:1], standard.shape), atol=1e-12)
    assert abs(standard.mean()) < 0.1
    assert abs(standard.std() - 1) < 0.1
    assert fill_values("zero", inputs).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(BASELINES))
def test_a_baseline_follows_its_seed_not_its_batch_nor_the_global_generator(name: str, dtype: torch.dtype) -> None:
    inputs = torch.rand(3, 2, 6, 8).to(dtype).transpose(2, 3)
    state = torch.get_rng_state()
    fill = fill_values(name, inputs, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert fill.dtype == dtype
    assert fill.shape == inputs.shape
    torch.testing.assert_close(fill[1:2], fill_values(name, inputs[1:2], seed=1))
    assert (name == "noise") == (not torch.equal(fill, fill_values(name, inputs, seed=2)))


def test_a_function_as_baseline_sees_the_inputs_and_may_give_a_number() -> None:
    inputs = torch.rand(2, 3, 4, 4)
    assert torch.equal(fill_values(lambda x: x.flip(3), inputs), inputs.flip(3))
    assert fill_values(lambda x: 2.0, inputs).eq(2).all()
    assert fill_values(lambda x: x.new_zeros(3, 1, 1), inputs).shape == inputs.shape


@pytest.mark.parametrize("score", [deletion, insertion, morf_lerf_area])
def test_layout_and_type_of_inputs_and_maps_do_not_matter(setting, score) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    expected = score(model, inputs, maps, targets, steps=6, baseline="blur")
    strided = inputs.transpose(1, 3).contiguous().transpose(1, 3)
    mirrored = maps.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert not mirrored.is_contiguous()
    torch.testing.assert_close(score(model, strided, mirrored, targets, steps=6, baseline="blur"), expected)
    single = score(model.float(), inputs.float(), maps.float(), targets, steps=6, baseline="blur")
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=1e-5)


def test_options_are_declared_once_for_types_and_once_for_defaults() -> None:
    assert {field.name for field in fields(_Options)} == set(CurveOptions.__annotations__)
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        deletion(len, torch.zeros(1), torch.zeros(1), torch.zeros(1), step=3)  # type: ignore[call-arg, arg-type]


def test_options_out_of_range_and_targets_that_do_not_exist_are_refused(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, maps, targets = setting
    with pytest.raises(LearnpropError, match="unknown baseline 'grey'"):
        deletion(model, inputs, maps, targets, baseline="grey")
    with pytest.raises(LearnpropError, match="internal_batch_size must be at least 1"):
        lerf_curve(model, inputs, maps, targets, internal_batch_size=0)
    for wrong in (5, -1):
        with pytest.raises(LearnpropError, match="targets must be classes 0 to 4"):
            morf_lerf_area(model, inputs, maps, torch.full((4,), wrong))
    with pytest.raises(LearnpropError, match=r"must give \(B, classes\)"):
        deletion(lambda x: model(x)[:, 0], inputs, maps, targets)
    with pytest.raises(LearnpropError, match="not empty"):
        deletion(model, inputs[:0], maps[:0], targets[:0])
