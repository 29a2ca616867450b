"""MaxMask and AreaMask: values worked out by hand, exact areas, smoothing, gradients, errors."""

from __future__ import annotations

import pytest
import torch
from pairwise import crossed
from torch import Tensor

from captum_learnprop import LearnpropError, MaxMask
from captum_learnprop.maps import smooth
from captum_learnprop.training.masks import FLAT, AreaMask, total_variation

# One sample, two channels, 1 x 3 pixels.
SIGNED = torch.tensor([[[[1.0, -4.0, 0.0]], [[-2.0, 3.0, 1.0]]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [("max", [2 / 4, 4 / 4, 1 / 4]), ("sum", [3 / 7, 7 / 7, 1 / 7]), ("positive", [1 / 3, 3 / 3, 1 / 3])],
)
def test_values_by_hand(reduce: str, expected: list[float]) -> None:
    mask = MaxMask(reduce)(SIGNED)
    torch.testing.assert_close(mask, torch.tensor([[[expected]]], dtype=torch.float64))


@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_features_have_no_channels(reduce: str) -> None:
    mask = MaxMask(reduce)(torch.tensor([[1.0, -2.0, 0.0, 4.0]]))
    torch.testing.assert_close(mask, torch.tensor([[0.25, 0.5, 0.0, 1.0]]))


@crossed(
    shape=[(3,), (3, 4), (3, 2, 5), (3, 2, 4, 5), (3, 2, 3, 4, 5)],
    options=[{}, {"sigma": 0.2}, {"power": 0.5}, {"sigma": 0.2, "power": 0.5}],
    reduce=["max", "sum", "positive"],
)
def test_shapes_and_range(shape: tuple[int, ...], options: dict[str, float], reduce: str) -> None:
    a = torch.randn(shape).abs() if len(shape) == 1 else torch.randn(shape)
    mask = MaxMask(reduce, **options)(a)
    assert mask.shape == (shape if len(shape) < 3 else (shape[0], 1, *shape[2:]))
    assert (mask >= 0).all()
    assert (mask <= 1 + 1e-6).all()
    torch.testing.assert_close(mask.reshape(3, -1).amax(dim=1), torch.ones(3))


@pytest.mark.parametrize("options", [{}, {"sigma": 0.1, "power": 0.5}], ids=str)
def test_a_sample_without_attribution_is_masked_out(options: dict[str, float]) -> None:
    a = torch.randn(2, 3, 6, 6)
    a[1] = 0.0
    mask = MaxMask(**options)(a.requires_grad_())
    assert float(mask[0].detach().max()) == pytest.approx(1.0)
    assert not mask[1].any()
    (gradient,) = torch.autograd.grad(mask.square().sum(), a)
    assert gradient.isfinite().all()


def test_only_the_scale_of_a_sample_is_lost() -> None:
    a = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    scale = torch.tensor([1e-12, 1e9], dtype=torch.float64).reshape(2, 1, 1, 1)
    torch.testing.assert_close(MaxMask()(a * scale), MaxMask()(a))


def test_samples_do_not_see_each_other() -> None:
    a = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    mask = MaxMask(sigma=0.1, power=0.5)
    for i in range(4):
        torch.testing.assert_close(mask(a)[i : i + 1], mask(a[i : i + 1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("power", [0.5, 0.25, 2.0])
def test_power_keeps_both_ends_and_is_close_to_the_power(power: float) -> None:
    a = torch.tensor([[0.0, 0.1, 0.5, 1.0]], dtype=torch.float64)
    mask = MaxMask(power=power)(a)
    assert mask[0, 0] == 0.0
    assert mask[0, 3] == pytest.approx(1.0, abs=1e-12)
    # The offset that keeps the slope at 0 finite shifts values by less than its own power.
    torch.testing.assert_close(mask, a**power, rtol=0, atol=2 * 1e-4 ** min(power, 1.0))


def test_smoothing_spreads_a_point_evenly_and_is_measured_in_parts_of_the_side() -> None:
    a = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    a[0, 0, 10, 10] = 1.0
    mask = MaxMask(sigma=2 / 21)(a)[0, 0]
    torch.testing.assert_close(mask, mask.T)
    torch.testing.assert_close(mask, mask.flip(0))
    gaussian = torch.exp(-0.5 * ((torch.arange(21, dtype=torch.float64) - 10) / 2) ** 2)
    gaussian[(torch.arange(21) - 10).abs() > 6] = 0.0  # three standard deviations
    torch.testing.assert_close(mask, gaussian[:, None] * gaussian)


@pytest.mark.parametrize("reduce", ["max", "sum", "positive"])
@pytest.mark.parametrize("options", [{}, {"sigma": 0.3}, {"power": 0.5}, {"sigma": 0.3, "power": 0.5}], ids=str)
def test_gradients_by_finite_differences(reduce: str, options: dict[str, float]) -> None:
    a = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MaxMask(reduce, **options), (a,))
    flat = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MaxMask(reduce, **options), (flat,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaxMask("mean"), r"reduce='mean'.*'max', 'sum' or 'positive'"),
        (lambda: MaxMask(sigma=-0.1), r"sigma=-0\.1.*sigma must be >= 0"),
        (lambda: MaxMask(power=0.0), r"power=0\.0.*power > 0"),
        (lambda: MaxMask(power=float("nan")), r"power=nan"),
    ],
)
def test_errors(build: object, message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        build()  # type: ignore[operator]


def test_repr_says_how_it_was_made() -> None:
    assert eval(repr(MaxMask("sum", sigma=0.1, power=0.5)), {"MaxMask": MaxMask}).sigma == 0.1


def test_dtype_is_kept() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        mask: Tensor = MaxMask(sigma=0.1, power=0.5)(torch.randn(1, 2, 8, 8).to(dtype))
        assert mask.dtype == dtype


# -- AreaMask --------------------------------------------------------------------------------------------------------

KINDS = ["normal", "heavy", "sparse", "steps", "constant", "zero"]


def maps_of(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """Maps ``(3, 24, 20)`` of one kind: heavy tails, few values, ties, none at all."""
    normal = torch.randn(3, 24, 20, dtype=torch.float64)
    kinds = {
        "normal": normal,
        "heavy": (2 * normal).exp(),
        "sparse": normal.abs() * (torch.rand(3, 24, 20) > 0.98),
        "steps": (normal > 0.5).double() + (normal > 1).double(),
        "constant": torch.full_like(normal, 3.7),
        "zero": torch.zeros_like(normal),
    }
    return kinds[kind].to(dtype)


def area_of(masks: Tensor) -> Tensor:
    return masks.double().flatten(1).mean(1)


@crossed(kind=KINDS, temperature=[1.0, 0.1, 0.001], dtype=[torch.float32, torch.float64])
def test_area_is_exact(kind: str, temperature: float, dtype: torch.dtype) -> None:
    maps = maps_of(kind, dtype)
    for area in (0.002, 0.2, 0.97):
        masks = AreaMask(area, temperature=temperature).of_maps(maps)
        assert masks.dtype == dtype
        assert masks.shape == maps.shape
        assert ((masks >= 0) & (masks <= 1)).all()
        torch.testing.assert_close(area_of(masks), torch.full((3,), area, dtype=torch.float64), rtol=0, atol=1e-6)


def test_area_mask_by_hand() -> None:
    # Mean 1/4, mean absolute deviation 3/8: one pixel stands 8/3 of a deviation above the others.
    maps = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    mask = AreaMask(0.3, temperature=0.5).of_maps(maps)[0].flatten()
    assert mask[1] == mask[2] == mask[3]
    assert float(mask.mean()) == pytest.approx(0.3, abs=1e-9)
    apart = torch.logit(mask[0]) - torch.logit(mask[1])
    assert float(apart) == pytest.approx(1 / (0.5 * (3 / 8 + FLAT / 4)), rel=1e-9)


def test_a_colder_mask_is_the_top_share() -> None:
    maps = maps_of("normal")
    mask = AreaMask(0.25, temperature=1e-4).of_maps(maps)
    kept = maps.flatten(1).argsort(1, descending=True)[:, : 24 * 20 // 4]
    binary = torch.zeros(3, 24 * 20, dtype=torch.float64).scatter(1, kept, 1.0).reshape(3, 24, 20)
    assert float((mask - binary).abs().mean()) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_kept_and_ties_stay_ties(kind: str) -> None:
    maps = maps_of(kind)
    for row, mask in zip(maps.flatten(1), AreaMask().of_maps(maps).flatten(1), strict=True):
        order = row.argsort()
        assert (mask[order].diff() >= 0).all()
        assert len(mask.unique()) <= len(row.unique())


@pytest.mark.parametrize("value", [0.0, 3.7, -1e-20, 1e20])
def test_a_constant_map_keeps_the_area_everywhere(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        maps = torch.full((2, 5, 7), value, dtype=dtype, requires_grad=True)
        masks = AreaMask(0.3).of_maps(maps)
        torch.testing.assert_close(masks, torch.full_like(masks, 0.3), rtol=0, atol=1e-3)
        (gradient,) = torch.autograd.grad(masks[:, 0].sum(), maps)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_area_mask_is_blind_to_scale(kind: str) -> None:
    maps, mask = maps_of(kind), AreaMask(sigma=0.05)
    for scale in (1e-30, 7.0, 1e30):
        torch.testing.assert_close(mask.of_maps(maps * scale), mask.of_maps(maps), rtol=1e-9, atol=1e-9)


def test_one_strong_pixel_leaves_the_mask_almost_as_it_was() -> None:
    maps = torch.randn(1, 64, 64).abs()
    struck = maps.clone()
    struck[0, 0, 0] = 300.0
    assert float((AreaMask().of_maps(struck) - AreaMask().of_maps(maps)).abs().mean()) < 0.01


def test_an_area_for_each_sample() -> None:
    maps, areas = maps_of("normal"), torch.tensor([0.05, 0.5, 0.9])
    masks = AreaMask().of_maps(maps, areas)
    torch.testing.assert_close(area_of(masks), areas.double(), rtol=0, atol=1e-6)
    for row in range(3):
        one = slice(row, row + 1)
        assert torch.equal(AreaMask().of_maps(maps[one], areas[one]), masks[one])
        assert torch.equal(AreaMask(float(areas[row])).of_maps(maps[one]), masks[one])


@pytest.mark.parametrize("shape", [(3,), (3, 8), (3, 2, 9), (3, 2, 6, 7), (3, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("reduce", ["max", "sum", "positive", "signed"])
def test_area_masks_of_attributions(shape: tuple[int, ...], reduce: str) -> None:
    mask = AreaMask(0.4, reduce=reduce)(torch.randn(shape))
    assert mask.shape == (shape if len(shape) < 3 else (shape[0], 1, *shape[2:]))
    torch.testing.assert_close(mask.reshape(3, -1).double().mean(1), torch.full((3,), 0.4).double(), atol=1e-6, rtol=0)


def test_an_attribution_is_reduced_and_a_map_is_not() -> None:
    attribution = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    strengths = {
        "max": attribution.abs().amax(1),
        "sum": attribution.abs().sum(1),
        "positive": attribution.clamp(min=0).sum(1),
        "signed": attribution.sum(1),
    }
    for reduce, strength in strengths.items():
        mask = AreaMask(reduce=reduce, sigma=0.1)
        torch.testing.assert_close(mask(attribution)[:, 0], mask.of_maps(strength))
    assert not torch.allclose(AreaMask().of_maps(strengths["signed"]), AreaMask().of_maps(strengths["signed"].abs()))
    torch.testing.assert_close(
        AreaMask(sigma=1 / 8).of_maps(attribution[:, 0]), AreaMask().of_maps(smooth(attribution[:, 0], 1.0))
    )


def test_max_masks_of_maps() -> None:
    maps = torch.tensor([[[1.0, -4.0], [2.0, 0.0]]])
    assert MaxMask().of_maps(maps).tolist() == [[[0.25, 1.0], [0.5, 0.0]]]
    assert MaxMask("positive").of_maps(maps).tolist() == [[[0.5, 0.0], [1.0, 0.0]]]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"sigma": 0.3}, {"area": 0.7}], ids=str)
def test_gradients_of_area_masks_by_finite_differences(options: dict[str, float]) -> None:
    maps = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    areas = torch.tensor([0.2, 0.6], dtype=torch.float64, requires_grad=True)
    mask = AreaMask(**options)
    assert torch.autograd.gradcheck(mask.of_maps, (maps,), atol=1e-4)
    assert torch.autograd.gradcheck(mask.of_maps, (maps, areas), atol=1e-4)
    attribution = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mask, (attribution,), atol=1e-4)


def test_second_derivatives_of_area_masks() -> None:
    maps = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    areas = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(AreaMask(temperature=1.0).of_maps, (maps, areas), atol=1e-4)


def test_no_direction_changes_the_area() -> None:
    maps = maps_of("normal").requires_grad_()
    (gradient,) = torch.autograd.grad(AreaMask().of_maps(maps).sum(), maps)
    assert float(gradient.abs().max()) < 1e-9


def test_half_precision_keeps_its_dtype() -> None:
    masks = AreaMask(0.3).of_maps(torch.randn(2, 16, 16).bfloat16())
    assert masks.dtype == torch.bfloat16
    torch.testing.assert_close(area_of(masks), torch.full((2,), 0.3).double(), rtol=0, atol=1e-3)


def test_area_masks_refuse() -> None:
    for options, message in (
        ({"area": 0.0}, r"area=0\.0.*in \(0, 1\)"),
        ({"area": 1.0}, r"area=1\.0"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"sigma": -1.0}, r"sigma=-1\.0"),
        ({"reduce": "mean"}, r"reduce='mean'.*'signed'"),
    ):
        with pytest.raises(LearnpropError, match=message):
            AreaMask(**options)  # type: ignore[arg-type]
    maps = torch.rand(2, 3, 3)
    with pytest.raises(LearnpropError, match=r"\(2,\), one for each sample, got \(3,\)"):
        AreaMask().of_maps(maps, torch.tensor([0.1, 0.2, 0.3]))
    for bad in (0.0, 1.5, torch.tensor([0.5, float("nan")])):
        with pytest.raises(LearnpropError, match=r"in \(0, 1\)"):
            AreaMask().of_maps(maps, bad)


def test_area_mask_says_how_it_was_made() -> None:
    mask = AreaMask(0.3, temperature=0.2, reduce="max", sigma=0.1)
    assert eval(repr(mask), {"AreaMask": AreaMask}) == mask


# -- total variation -------------------------------------------------------------------------------------------------


def test_total_variation_by_hand() -> None:
    masks = torch.tensor([[[0.0, 1.0], [0.5, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert total_variation(masks).tolist() == [(0.5 + 0.0) / 2 + (1.0 + 0.5) / 2, 0.0]
    assert total_variation(torch.ones(2, 1, 1)).tolist() == [0.0, 0.0]
    assert torch.autograd.gradcheck(total_variation, (torch.rand(2, 3, 4, 2, dtype=torch.float64, requires_grad=True),))
