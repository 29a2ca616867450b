"""Agreement: distances, area and total variation worked out by hand; the fill; gradients; errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_learnprop import Agreement, LearnpropError
from captum_learnprop.training.objectives import MaskedPass, noise_fill

ORIGINAL = torch.tensor([[0.0, 2.0, 1.0], [1.0, -1.0, 0.0]], dtype=torch.float64)
MASKED = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
MASK = torch.tensor([[0.0, 1.0, 0.5, 0.5], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)


def result(target: Any = None, masked: Tensor = MASKED, masks: tuple[Tensor, ...] = (MASK,)) -> MaskedPass:
    rows, index = torch.arange(2), torch.tensor([1, 2])
    return MaskedPass(
        ORIGINAL, masked, ORIGINAL[rows, index], masked[rows, index], [1, 2] if target is None else target, masks
    )


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [[1, 2], torch.tensor([1, 2]), [torch.tensor(1), torch.tensor(2)]], ids=str)
@pytest.mark.parametrize("distance", ["auto", "cross_entropy"])
def test_cross_entropy_by_hand(distance: str, target: Any) -> None:
    e = torch.e
    expected = torch.tensor(
        [-torch.log(torch.tensor(e / (e + e + 1))), -torch.log(torch.tensor(e**3 / (1 + 1 + e**3)))]
    ).double()
    torch.testing.assert_close(Agreement(distance, area=0)(result(target)), expected, rtol=1e-6, atol=0)


def test_kl_by_hand() -> None:
    p, q = ORIGINAL.exp(), MASKED.exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    torch.testing.assert_close(Agreement("kl", area=0)(result()), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(
        Agreement("kl", area=0)(result(masked=ORIGINAL)), torch.zeros(2, dtype=torch.float64), atol=1e-15, rtol=0
    )


def test_relative_by_hand() -> None:
    # Explained entries: 2 became 1; 0 became 3, and the size of 0 is the square root of eps.
    eps = torch.finfo(torch.float64).eps ** 0.5
    expected = torch.tensor([(1 / (2 + eps)) ** 2, (3 / eps) ** 2], dtype=torch.float64)
    torch.testing.assert_close(Agreement("relative", area=0)(result()), expected)


@pytest.mark.parametrize("target", [(1,), [(1,), (2,)], None])
def test_auto_is_relative_without_class_indices(target: Any) -> None:
    given = MaskedPass(ORIGINAL, MASKED, ORIGINAL[:, 1], MASKED[:, 1], target, (MASK,))
    torch.testing.assert_close(Agreement()(given), Agreement("relative")(given))


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3, 4)], ids=str)
def test_auto_is_relative_for_other_outputs(shape: tuple[int, ...]) -> None:
    original, masked = torch.randn(shape), torch.randn(shape)
    flat = [t.reshape(2, -1)[:, 0] for t in (original, masked)]
    given = MaskedPass(original, masked, flat[0], flat[1], 0, (MASK.float(),))
    torch.testing.assert_close(Agreement()(given), Agreement("relative")(given))


@pytest.mark.parametrize(("negative", "positive"), [(-1, 2), ([-1, -3], [2, 0]), (torch.tensor([-2]), 1)], ids=str)
def test_negative_classes_count_from_the_end(negative: Any, positive: Any) -> None:
    torch.testing.assert_close(Agreement()(result(negative)), Agreement()(result(positive)))


def test_area_by_hand() -> None:
    plain = Agreement("kl", area=0)(result())
    torch.testing.assert_close(
        Agreement("kl", area=2.0)(result()), plain + 2 * torch.tensor([0.5, 0.75], dtype=torch.float64)
    )
    two = result(masks=(MASK, torch.ones(2, 1, 2, 2, dtype=torch.float64)))
    torch.testing.assert_close(
        Agreement("kl", area=2.0)(two), plain + 2 * torch.tensor([1.5, 1.75], dtype=torch.float64)
    )


def test_total_variation_by_hand() -> None:
    plain = Agreement("kl", area=0)(result())
    # Features: |1 - 0| + |0.5 - 1| + 0 over three pairs; 0 + 0 + 1 over three.
    torch.testing.assert_close(
        Agreement("kl", area=0, total_variation=3.0)(result()), plain + torch.tensor([1.5, 1.0], dtype=torch.float64)
    )
    image = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    image[0, 0] = torch.tensor([[0.0, 1.0], [0.5, 1.0]])  # down: 0.5, 0; across: 1, 0.5
    found = Agreement("kl", area=0, total_variation=1.0)(result(masks=(image,)))
    torch.testing.assert_close(found, plain + torch.tensor([0.25 + 0.75, 0.0], dtype=torch.float64))


def test_a_mask_of_one_pixel_has_no_variation() -> None:
    one = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        Agreement(area=0, total_variation=5.0)(result(masks=(one,))), Agreement(area=0)(result(masks=(one,)))
    )


# -- masked inputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, 0, 0.5, -2])
def test_apply_with_a_number(baseline: float) -> None:
    x, m = torch.randn(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(Agreement(baseline=baseline).apply(x, m), m * x + (1 - m) * baseline)


def test_apply_with_a_function() -> None:
    x, m = torch.randn(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    mean = x.mean(dim=(2, 3), keepdim=True)
    masked = Agreement(baseline=lambda inputs: inputs.mean(dim=(2, 3), keepdim=True)).apply(x, m)
    torch.testing.assert_close(masked, m * x + (1 - m) * mean)


@pytest.mark.parametrize("baseline", [0.0, 0.5, "noise"])
def test_the_ends_of_a_mask(baseline: Any) -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(Agreement(baseline=baseline).apply(x, torch.ones(2, 1, 4, 4, dtype=x.dtype)), x)
    nothing = torch.zeros(2, 1, 4, 4, dtype=x.dtype)
    torch.manual_seed(3)
    removed = Agreement(baseline=baseline).apply(x, nothing)
    torch.manual_seed(3)
    torch.testing.assert_close(removed, noise_fill(x) if baseline == "noise" else torch.full_like(x, baseline))


@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 2, 7), (4, 3, 8, 8), (4, 2, 3, 4, 5)], ids=str)
def test_noise_does_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    torch.manual_seed(1)
    together = noise_fill(x)
    assert together.shape == x.shape
    for i in range(4):
        torch.manual_seed(1)
        torch.testing.assert_close(noise_fill(x[i : i + 1]), together[i : i + 1])


def test_noise_has_the_samples_mean_and_spread() -> None:
    x = 5.0 + 2.0 * torch.randn(1, 200, 12, 12, dtype=torch.float64)
    fill = noise_fill(x)
    assert float(fill.mean()) == pytest.approx(5.0, abs=0.3)
    assert float(fill.std()) == pytest.approx(2.0 * (1 / 3 + 1 / 4) ** 0.5, rel=0.1)  # uniform and half a normal
    assert not torch.equal(noise_fill(x), fill)  # drawn anew
    constant = torch.full((1, 2, 4, 4), 3.0)
    torch.testing.assert_close(noise_fill(constant), constant)


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cross_entropy", "kl", "relative"])
def test_gradients_by_finite_differences(distance: str) -> None:
    masked = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    objective = Agreement(distance, area=0.7, total_variation=0.3)

    def loss(masked: Tensor, mask: Tensor) -> Tensor:
        rows, index = torch.arange(2), torch.tensor([1, 0])
        given = MaskedPass(ORIGINAL, masked, ORIGINAL[rows, index], masked[rows, index], [1, 0], (mask,))
        return objective(given) if distance != "relative" else objective(given)[:1]

    assert torch.autograd.gradcheck(loss, (masked, mask))


def test_masked_inputs_by_finite_differences() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    m = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    for baseline in (0.0, 0.5, lambda inputs: inputs.mean(dim=(2, 3), keepdim=True)):
        assert torch.autograd.gradcheck(lambda m, b=baseline: Agreement(baseline=b).apply(x, m), (m,))


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "l2"}, r"distance='l2'.*cross_entropy"),
        ({"area": -1.0}, r"area=-1\.0.*negative"),
        ({"total_variation": -0.5}, r"total_variation=-0\.5.*negative"),
        ({"baseline": "blur"}, r"baseline='blur'.*number, a function or 'noise'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        Agreement(**options)


@pytest.mark.parametrize("distance", ["cross_entropy", "kl"])
def test_distances_that_need_classes(distance: str) -> None:
    flat = MaskedPass(ORIGINAL[:, 0], MASKED[:, 0], ORIGINAL[:, 0], MASKED[:, 0], None, (MASK,))
    with pytest.raises(LearnpropError, match=r"needs outputs \(B, C > 1\).*\(2,\).*relative"):
        Agreement(distance)(flat)


def test_cross_entropy_needs_class_indices() -> None:
    with pytest.raises(LearnpropError, match=r"one class index per sample.*\(1, 2\)"):
        Agreement("cross_entropy")(result((1, 2)))
