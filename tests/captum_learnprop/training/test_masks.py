"""MaxMask: values worked out by hand, smoothing, gradients, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_learnprop import LearnpropError, MaxMask

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


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 5), (3, 2, 4, 5), (3, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("options", [{}, {"sigma": 0.2}, {"power": 0.5}, {"sigma": 0.2, "power": 0.5}], ids=str)
@pytest.mark.parametrize("reduce", ["max", "sum", "positive"])
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
