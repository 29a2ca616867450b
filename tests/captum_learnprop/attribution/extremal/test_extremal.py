"""Extremal perturbations: on models whose best mask is known, and as a method of captum."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import captum.attr as ca
import pytest
import torch
from captum.metrics import infidelity, sensitivity_max
from captum.testing.attr.helpers.test_config import config as CONFIG
from torch import Tensor, nn
from untouched import assert_untouched, snapshot

import captum_learnprop as cl
from captum_learnprop.attribution.extremal.areas import level_of
from captum_learnprop.attribution.extremal.mask_parts import Parts
from captum_learnprop.attribution.extremal.perturbations import Blur, Fade, Noise
from captum_learnprop.attribution.rewards import contrastive, probability
from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import smooth
from captum_learnprop.plot import area_curves


def disc_of(size: int, radius: float = 0.12, centre: tuple[float, float] = (0.55, 0.4)) -> Tensor:
    """A disc in a square, bool."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (rows - centre[0] * size) ** 2 + (columns - centre[1] * size) ** 2 < (radius * size) ** 2


class Visible(nn.Module):
    """Output 0: ten times the part of a disc that can be seen; output 1: that of another."""

    def __init__(self, size: int, gain: float = 10.0) -> None:
        super().__init__()
        discs = torch.stack([disc_of(size), disc_of(size, centre=(0.3, 0.75))]).float()
        self.register_buffer("weights", gain * discs / discs.sum((1, 2), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bhw,chw->bc", x.mean(1), self.weights.to(x.dtype))


def iou_with_best(mask: Tensor, disc: Tensor, area: float) -> float:
    """IoU of a bool mask with the nearest set of the area that has the highest score."""
    wanted, hit = round(area * mask.numel()), int((mask & disc).sum())
    beside = int(mask.sum()) - hit
    size = int(disc.sum())
    shared = min(hit, wanted) if wanted <= size else hit + min(beside, wanted - size)
    return shared / (int(mask.sum()) + wanted - shared)


@pytest.mark.parametrize("area", [0.02, 0.05, 0.2])
def test_at_its_own_area_a_disc_is_found(area: float) -> None:
    disc = disc_of(32, math.sqrt(area / math.pi))
    own = float(disc.float().mean())
    mask = cl.ExtremalPerturbation(lambda x: x[:, 0, disc].mean(1, keepdim=True)).attribute(
        torch.ones(1, 1, 32, 32), 0, areas=own, perturbation="fade"
    )[0, 0]
    assert iou_with_best(mask > 0.5, disc, own) >= 0.92
    assert float((mask > 0.5).float().mean()) == pytest.approx(own, rel=0.05)


def test_exact_optimum_of_small_nets() -> None:
    """Every mask is tried; the search must come within 2 % of the best one."""
    generator = torch.Generator().manual_seed(1)
    near = []
    for _ in range(8):
        each, first = (torch.randn(s, generator=generator) for s in ((16,), (16, 8)))
        pairs = 0.5 * torch.randn(16, 16, generator=generator).triu(1)

        def net(x: Tensor, each: Tensor = each, pairs: Tensor = pairs, first: Tensor = first) -> Tensor:
            y = x @ each + ((x @ pairs) * x).sum(1)
            return (y + (x @ first).relu().sum(1))[:, None]

        chosen = torch.tensor(list(itertools.combinations(range(16), 4)))
        best = float(net(torch.zeros(len(chosen), 16).scatter_(1, chosen, 1.0)).max())
        mask, found = cl.ExtremalPerturbation(net).attribute(
            torch.ones(1, 16), 0, areas=0.25, n_steps=100, return_masks=True
        )
        assert sorted(mask[0].tolist()) == [0.0] * 12 + [1.0] * 4
        near.append(float(found.rewards) >= 0.98 * best)
    assert sum(near) >= 7


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_more_steps_find_nothing_worse(variant: str) -> None:
    model, x = net(), torch.randn(2, 2, 16, 16)
    rewards = [
        cl.ExtremalPerturbation(model)
        .attribute(x, 1, areas=[0.1, 0.3], variant=variant, n_steps=n_steps, return_masks=True)[1]
        .rewards[:, 0]
        for n_steps in (100, 150, 250)
    ]
    assert bool((rewards[0] <= rewards[1] + 1e-5).all())
    assert bool((rewards[1] <= rewards[2] + 1e-5).all())


def test_levels_leave_the_wanted_number_above() -> None:
    fields = torch.rand(3, 50, dtype=torch.float64)
    ones = torch.tensor([1, 10, 50])
    assert torch.equal((fields > level_of(fields, ones)).sum(1), ones)


@pytest.mark.parametrize("size", [32, 64, pytest.param(112, marks=pytest.mark.slow)])
def test_masks_cover_a_known_disc(size: int) -> None:
    model, areas = Visible(size), (0.05, 0.1, 0.2)
    masks, found = cl.ExtremalPerturbation(model).attribute(
        torch.ones(1, 1, size, size), 0, areas=areas, perturbation="fade", return_masks=True
    )
    assert masks.shape == (1, 3, size, size)
    assert bool(found.converged.all())
    assert int(found.steps.max()) <= 250
    for mask, area, realised in zip(masks[0] > 0.5, areas, found.realised[0, :, 0].tolist(), strict=True):
        assert abs(realised / area - 1) <= 0.1
        assert realised == pytest.approx(float(mask.double().mean()))
        assert iou_with_best(mask, disc_of(size), area) >= 0.9
    assert bool((found.rewards[0] > 8.5).all())


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_variants_find_the_class_that_is_asked_for(variant: str) -> None:
    size = 32
    masks = cl.ExtremalPerturbation(Visible(size)).attribute(
        torch.ones(2, 1, size, size), [0, 1], areas=0.1, variant=variant, perturbation="fade"
    )
    for mask, centre in zip(masks[:, 0], ((0.55, 0.4), (0.3, 0.75)), strict=True):
        assert float((mask[disc_of(size, centre=centre)] > 0.5).float().mean()) > 0.95


def test_the_unit_of_the_output_does_not_matter() -> None:
    x = torch.rand(1, 1, 32, 32)
    one, other = (
        cl.ExtremalPerturbation(Visible(32, gain)).attribute(x, 0, perturbation="fade", n_steps=60)
        for gain in (1.0, 1024.0)
    )
    torch.testing.assert_close(one, other)


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("perturbation", ["blur", "noise"])
def test_sixteen_images_and_four_areas_equal_singles(perturbation: str) -> None:
    model, x = net(), torch.randn(16, 2, 20, 24)
    targets, areas = torch.arange(16) % 4, [0.05, 0.1, 0.2, 0.4]
    method = cl.ExtremalPerturbation(model)
    options: dict[str, Any] = {"areas": areas, "n_steps": 12, "perturbation": perturbation}
    before = snapshot(model, x)
    together = method.attribute(x, targets, **options)
    assert together.shape == (16, 4, 20, 24)
    assert_untouched(before, model, x)
    for i in (0, 7, 15):
        alone = method.attribute(x[i : i + 1], int(targets[i]), **options)
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=0)
    assert not torch.allclose(together[:1], method.attribute(x[:1], 1, **options))


class TwoInputs(nn.Module):
    """A sequence and features; one more argument scales the outcome of each sample."""

    def forward(self, a: Tensor, b: Tensor, scale: Tensor, power: int) -> Tensor:
        return torch.stack([a[:, 0, 5:9].sum(1) + b[:, 2], a[:, 1, :4].sum(1)], 1) * scale[:, None] ** power


def test_tuples_other_dimensions_and_further_arguments() -> None:
    a, b = torch.ones(3, 2, 40), torch.ones(3, 6)
    maps = cl.ExtremalPerturbation(TwoInputs()).attribute(
        (a, b), 0, (torch.tensor([1.0, 2.0, 3.0]), 1), areas=0.17, perturbation="fade"
    )
    assert isinstance(maps, tuple)
    assert [m.shape for m in maps] == [(3, 1, 40), (3, 6)]
    assert bool((maps[0][:, 0, 5:9] > 0.5).all())
    assert (maps[1] > 0.5).nonzero()[:, 1].tolist() == [2, 2, 2]
    several = cl.ExtremalPerturbation(TwoInputs()).attribute(
        (a, b), 0, (torch.ones(3), 1), areas=[0.2, 0.5], perturbation="fade", n_steps=20
    )
    assert [m.shape for m in several] == [(3, 2, 40), (3, 2, 6)]
    volume = torch.zeros(1, 1, 8, 9, 10)
    volume[..., 2:6, 3:7, 3:7] = 1.0
    mask = cl.ExtremalPerturbation(lambda v: v.flatten(1).sum(1)).attribute(volume, areas=0.1, perturbation="fade")
    assert mask.shape == (1, 1, 8, 9, 10)
    assert float(mask[volume == 1].mean()) > 0.9


def test_rows_that_are_done_leave_and_chunks_and_progress_work(capsys: pytest.CaptureFixture[str]) -> None:
    sizes: list[int] = []
    model = Visible(16)
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    options: dict[str, Any] = {"areas": [0.05, 0.3], "perturbation": "fade"}
    x = torch.ones(1, 1, 16, 16)
    whole = cl.ExtremalPerturbation(model).attribute(x, 0, show_progress=True, **options)
    assert max(sizes) == 2
    assert "extremal masks" in capsys.readouterr().err
    sizes.clear()
    chunked = cl.ExtremalPerturbation(model).attribute(x, 0, internal_batch_size=1, **options)
    assert max(sizes) == 1
    torch.testing.assert_close(chunked, whole, atol=1e-3, rtol=0)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([3.0 + 0.0 * x.flatten(1).sum(1), x.flatten(1).sum(1)], 1)


def test_a_constant_model_and_a_zero_reward_end_in_a_warning_and_a_neutral_mask() -> None:
    x = torch.rand(2, 1, 24, 24) + 0.1
    method = cl.ExtremalPerturbation(Constant())
    with pytest.warns(cl.NeutralMaskWarning, match=r"samples \[0\] does not change with the mask"):
        masks, found = method.attribute(x, [0, 1], areas=0.2, perturbation="fade", return_masks=True)
    assert found.neutral.flatten().tolist() == [True, False]
    assert torch.equal(masks[0], torch.full((1, 24, 24), 0.2))
    assert float(masks[1].std()) > 0.1
    with pytest.warns(cl.NeutralMaskWarning, match="the wanted area everywhere"):
        zero = method.attribute(x, 1, reward=lambda output, target: 0.0 * output[:, 0])
    assert torch.equal(zero, torch.full((2, 1, 24, 24), 0.1))
    with pytest.warns(cl.NeutralMaskWarning):  # a blur leaves a constant image as it is
        method.attribute(torch.ones(1, 1, 24, 24), 1)


def test_extremal_area_is_that_of_the_disc_and_its_curve_is_drawn() -> None:
    size = 20
    model = Visible(size)
    disc = float(disc_of(size).float().mean())
    found = cl.ExtremalPerturbation(model).extremal_area(
        torch.ones(2, 1, size, size), [0, 0], share=0.9, perturbation="fade", areas=(0.02, 0.08), halvings=2
    )
    assert torch.equal(found.area[0], found.area[1])
    assert 0.9 * disc <= float(found.area[0]) <= 1.3 * disc
    assert found.mask[0].shape == (2, 1, size, size)
    assert found.curve.shape == found.curve_areas.shape == (2, 4)
    assert bool((found.curve_areas.diff(dim=1) >= 0).all())
    at = int((found.curve_areas[0] - found.area[0]).abs().argmin())
    assert float(found.curve[0, at]) >= 0.9
    figure = area_curves(found.curve_areas, found.curve, share=0.9, extremal=found.area)
    assert len(figure.axes[0].lines) == 5
    with pytest.raises(LearnpropError, match="must both be"):
        area_curves(found.curve_areas, found.curve[0])
    never = cl.ExtremalPerturbation(model).extremal_area(
        torch.ones(1, 1, size, size), 0, share=2.0, perturbation="fade", areas=(0.1,), n_steps=30
    )
    assert bool(never.area.isnan().all())


def test_blur_has_no_dark_borders_and_its_derivative_is_right() -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    blur = Blur(x)
    rows = torch.tensor([1, 0, 1])
    torch.testing.assert_close(blur(torch.ones(3, 9, 8).double(), rows), x[rows])
    constant = Blur(torch.full((1, 1, 16, 16), 0.7))
    torch.testing.assert_close(constant(torch.zeros(1, 16, 16), torch.tensor([0])), torch.full((1, 1, 16, 16), 0.7))
    half = blur(torch.full((3, 9, 8), 0.5).double(), rows)
    levels = [smooth(x.flatten(0, 1), 20 / 224 * 8 * (1 - n / 7)).reshape(x.shape) for n in (3, 4)]
    torch.testing.assert_close(half, (0.5 * (levels[0] + levels[1]))[rows])
    masks = (0.05 + 0.9 * torch.rand(3, 9, 8, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: blur(m, rows), (masks,))


def test_fade_and_noise() -> None:
    x, rows = torch.randn(2, 3, 5, 5), torch.tensor([0, 1, 1])
    mask = torch.rand(3, 5, 5)
    torch.testing.assert_close(Fade(x, 0.5)(mask, rows), mask[:, None] * x[rows] + 0.5 * (1 - mask[:, None]))
    noise = Noise(x, seed=3)
    first, second = noise(torch.zeros(3, 5, 5), rows), noise(torch.zeros(3, 5, 5), rows)
    noise.restart()
    assert torch.equal(noise(torch.zeros(3, 5, 5), rows), first)
    noise.restart()
    own = noise(torch.zeros(3, 5, 5), torch.zeros_like(rows), torch.tensor([0, 2, 0]))
    torch.testing.assert_close(own[0], first[0])
    assert torch.equal(own[2], own[0])
    assert not torch.equal(own[1], own[0])
    assert not torch.equal(first, second)
    assert bool(((first >= x[rows].amin((2, 3), True)) & (first <= x[rows].amax((2, 3), True))).all())
    torch.testing.assert_close(noise(torch.ones(3, 5, 5), rows), x[rows])


@pytest.mark.parametrize("perturbation", ["fade", "blur", "noise", "own"])
def test_contributions_are_masks_times_what_is_taken_away(perturbation: str) -> None:
    model, x = net(), torch.randn(2, 2, 16, 16)
    gone = {
        "fade": torch.full_like(x, 0.3),
        "blur": smooth(x.flatten(0, 1), 20 / 224 * 16).reshape(x.shape),
        "noise": x.flatten(2).sort(2).values[:, :, 127, None, None].expand_as(x),
        "own": x.flip(3),
    }[perturbation]
    options: dict[str, Any] = {"target": 1, "n_steps": 10, "perturbation": perturbation}
    if perturbation == "fade":
        options["baselines"] = 0.3
    if perturbation == "own":
        options["perturbation"] = lambda inputs, masks: masks * inputs + (1 - masks) * inputs.flip(3)
    masks = cl.ExtremalPerturbation(model).attribute(x, areas=[0.1, 0.2], **options)
    method = cl.ExtremalPerturbation(model, multiply_by_inputs=True)
    assert method.multiplies_by_inputs
    several = method.attribute(x, areas=[0.1, 0.2], **options)
    torch.testing.assert_close(several, masks[:, :, None] * (x - gone)[:, None])
    torch.testing.assert_close(method.attribute(x, areas=0.1, **options), several[:, 0])


def test_contributions_of_tuples_and_features() -> None:
    model, x, y = TwoInputs(), torch.randn(2, 2, 40), torch.randn(2, 6)
    options: dict[str, Any] = {
        "target": 0, "additional_forward_args": (torch.ones(2), 1), "n_steps": 10, "baselines": (0.0, 0.5),
    }  # fmt: skip
    masks = cl.ExtremalPerturbation(model).attribute((x, y), areas=[0.2], **options)
    method = cl.ExtremalPerturbation(model, multiply_by_inputs=True)
    for areas, pick in (([0.2], slice(None)), (0.2, 0)):
        first, second = method.attribute((x, y), areas=areas, **options)
        torch.testing.assert_close(first, (masks[0][:, :, None] * x[:, None])[:, pick])
        torch.testing.assert_close(second, (masks[1] * (y - 0.5)[:, None])[:, pick])


@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 7), (3, 2, 4, 5), (3, 2, 2, 3, 4)])
def test_noise_takes_away_what_differs_from_the_median(shape: tuple[int, ...]) -> None:
    x, rows = torch.randn(shape), torch.tensor([2, 0])
    masks = torch.zeros(2, *(shape[1:] if len(shape) == 2 else shape[2:]))
    change = Noise(x).change(masks, rows)
    assert change.shape == (2, *shape[1:])
    for got, row in zip(change, rows, strict=True):
        channels = zip(got[None], x[row][None], strict=True) if len(shape) == 2 else zip(got, x[row], strict=True)
        for one, values in channels:
            torch.testing.assert_close(one, values - values.median())


@pytest.mark.parametrize("areas", [0.1, [0.1, 0.2]])
def test_softened_masks_are_smoothed_when_they_are_finished(areas: Any) -> None:
    model, x = net(), torch.randn(2, 2, 16, 20)
    options: dict[str, Any] = {"target": 1, "areas": areas, "n_steps": 10, "perturbation": "fade"}
    plain = cl.ExtremalPerturbation(model).attribute(x, **options)
    soft, found = cl.ExtremalPerturbation(model).attribute(x, **options, soften=0.1, return_masks=True)
    expected = smooth(plain.flatten(0, 1), 1.6).reshape(plain.shape)
    assert not torch.allclose(plain, expected, atol=0.05)
    torch.testing.assert_close(soft, expected)
    torch.testing.assert_close(found.masks[0], plain)
    contributions = cl.ExtremalPerturbation(model, multiply_by_inputs=True).attribute(x, **options, soften=0.1)
    one_more = (slice(None), slice(None), None) if isinstance(areas, list) else (slice(None),)
    torch.testing.assert_close(contributions, expected[one_more] * (x[:, None] if isinstance(areas, list) else x))


def test_masks_without_space_are_not_softened() -> None:
    model, x, y = TwoInputs(), torch.randn(2, 2, 40), torch.randn(2, 6)
    options: dict[str, Any] = {"target": 0, "additional_forward_args": (torch.ones(2), 1), "n_steps": 10}
    plain = cl.ExtremalPerturbation(model).attribute((x, y), areas=[0.2, 0.4], **options)
    soft = cl.ExtremalPerturbation(model).attribute((x, y), areas=[0.2, 0.4], soften=0.05, **options)
    torch.testing.assert_close(soft[0], smooth(plain[0].flatten(0, 1), 2.0).reshape(plain[0].shape))
    assert not torch.allclose(soft[0], plain[0], atol=0.05)
    assert torch.equal(soft[1], plain[1])


@pytest.mark.parametrize("soften", [-0.1, 1.0, True, "much", float("nan")])
def test_soften_out_of_range(soften: Any) -> None:
    with pytest.raises(cl.LearnpropError, match="soften is a fraction"):
        cl.ExtremalPerturbation(net()).attribute(torch.randn(1, 2, 16, 16), 1, soften=soften)


def test_rewards() -> None:
    output = torch.tensor([[-200.0, -150.0, -300.0], [1.0, 2.0, 4.0]])
    assert contrastive(output, [1, 0]).tolist() == [50.0, -3.0]
    assert contrastive(output, 2).tolist() == [-150.0, 2.0]
    torch.testing.assert_close(probability(output, 2), output.softmax(1)[:, 2])
    torch.testing.assert_close(probability(output[:, :1], 0), output[:, 0].sigmoid())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_follow_the_input(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    mask = cl.ExtremalPerturbation(model).attribute(torch.randn(1, 2, 16, 16, dtype=dtype), 1, n_steps=5)
    assert mask.dtype is torch.promote_types(dtype, torch.float32)
    assert bool(mask.isfinite().all())


def test_autocast_leaves_masks_in_single_precision() -> None:
    x = torch.randn(1, 2, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mask = cl.ExtremalPerturbation(net()).attribute(x, 1, n_steps=5)
    assert mask.dtype is torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"areas": 1.5}, r"shares of the input in \(0, 1\), got 1.5"),
        ({"areas": []}, "areas is empty"),
        ({"variant": "keep"}, "unknown variant 'keep'; choose one of preserve, delete, dual"),
        ({"reward": "logits"}, "unknown reward 'logits'; choose one of logit"),
        ({"reward": lambda output, target: output}, "must give one number per row"),
        ({"perturbation": "smear"}, "unknown perturbation 'smear'"),
        ({"perturbation": "blur", "baselines": 0}, "leave them out"),
        ({"perturbation": lambda x, m: x[..., :3]}, "it must keep the shape"),
        ({"baselines": torch.zeros(7, 7)}, "does not broadcast"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1"),
        ({"internal_batch_size": True}, "internal_batch_size must be"),
        ({"sigma": 3.0}, "sigma is a fraction"),
        ({"target": 9}, "target 9 does not fit"),
        ({"reward": lambda output, target: output[:, 0] / 0}, "NaN or infinite for samples"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, Any], message: str) -> None:
    model, x = net(), torch.randn(2, 2, 16, 16)
    before = snapshot(model, x)
    with pytest.raises(ValueError, match=message):
        cl.ExtremalPerturbation(model).attribute(x, **{"target": 1, **options})
    assert_untouched(before, model, x)


def test_a_model_in_training_mode_is_named_and_comes_back_as_it_was() -> None:
    model, x = net().train(), torch.randn(2, 2, 16, 16)
    before = snapshot(model, x)
    with pytest.warns(UserWarning, match=r"call model.eval\(\)"):
        cl.ExtremalPerturbation(model).attribute(x, 1, n_steps=3)
    assert_untouched(before, model, x)


# -- captum ------------------------------------------------------------------------------------------------------------

PLAIN = [c for c in CONFIG if ca.Saliency in c["algorithms"]]


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


class Few(cl.ExtremalPerturbation):
    def attribute(self, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.NeutralMaskWarning)
            return super().attribute(*args, **{"n_steps": 6, **kwargs})

    attribute.__wrapped__ = attribute  # type: ignore[attr-defined]


@pytest.mark.parametrize("config", PLAIN, ids=[c["name"] for c in PLAIN])
def test_captums_table(config: dict[str, Any]) -> None:
    model, args = copy.deepcopy(config["model"]), config["attribute_args"]
    method = Few(model)
    attribution = ca.NoiseTunnel(method) if config.get("noise_tunnel") else method
    before = snapshot(model, *as_tuple(args["inputs"]))
    maps = attribution.attribute(**args)
    assert isinstance(maps, tuple) == isinstance(args["inputs"], tuple)
    for mask, x in zip(as_tuple(maps), as_tuple(args["inputs"]), strict=True):
        assert mask.shape == (x.shape if x.dim() < 3 else (len(x), 1, *x.shape[2:]))
        assert bool(((mask >= 0) & (mask <= 1)).all()) or config.get("noise_tunnel")
    with pytest.raises((AssertionError, IndexError), match="target"):
        attribution.attribute(**{**args, "target": 100_000})
    assert_untouched(before, model, *as_tuple(args["inputs"]))


def test_captums_metrics() -> None:
    model, x = net(), torch.randn(2, 2, 16, 16)
    method = Few(model)
    mask = method.attribute(x, target=1)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    score = infidelity(model, perturb, x, mask.expand_as(x), target=1, n_perturb_samples=3)
    sensitive = sensitivity_max(method.attribute, x, target=1, n_perturb_samples=2)
    for values in (score, sensitive):
        assert values.shape == (2,)
        assert bool(values.isfinite().all())
    assert method.get_name() == "Few"
    assert not method.multiplies_by_inputs
    with pytest.raises(NotImplementedError, match="attribute_future"):
        method.attribute_future()


class TwoDiscs(nn.Module):
    """One of two discs is enough for the output: the larger of their visible shares."""

    def __init__(self) -> None:
        super().__init__()
        rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        self.discs = torch.stack([((rows - 16) ** 2 + (columns - c) ** 2 <= 16).float() for c in (8, 24)])

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.einsum("bhw,dhw->bd", x.mean(1), self.discs) / self.discs.sum((1, 2))
        return torch.logsumexp(12 * shares, 1, keepdim=True) / 12


class TestParts:
    """Random parts of the mask count at each step."""

    def test_fields_are_shared_drawn_anew_and_repeatable(self) -> None:
        parts = Parts([(16, 20), (5,)], [True, False], seed=3)
        like = torch.zeros(2, 16, 20)
        (first, opposite), (other, _) = parts(like), parts(like)
        assert [field.shape for field in first] == [field.shape for field in opposite] == [(1, 16, 20), (1, 5)]
        assert not torch.equal(first[0], other[0])
        parts.restart()
        assert torch.equal(parts(like)[0][0], first[0])
        parts.restart()
        for fields, before in zip(parts(like, torch.tensor([2, 0, 0])), (first, opposite), strict=True):
            assert [field.shape for field in fields] == [(3, 16, 20), (3, 5)]
            for field, shared in zip(fields, before, strict=True):
                assert torch.equal(field[1:], shared.expand_as(field[1:]))
                assert not torch.equal(field[0], shared[0])
        for which in (0, 1):
            fields = torch.cat([parts(like)[which][0] for _ in range(400)])
            assert 0 <= fields.min() < 0.01 < 0.99 < fields.max() <= 1
            assert abs(float(fields.mean()) - 0.5) < 0.05

    def test_shares_come_from_strata_and_pairs_are_opposite(self) -> None:
        parts, like = Parts([(16, 16), (200,)], [True, False]), torch.zeros(1)
        for draw in range(4):
            drawn = [parts(like, None, draw, 4) for _ in range(200)]
            shares = torch.stack([first[1].mean() for first, _ in drawn])
            assert abs(float(shares.mean()) - (draw + 0.5) / 4) < 0.02
            assert float(shares.std()) < 0.1  # .07 from the stratum and .03 from 200 values
            for first, second in drawn:
                for one, other in zip(first, second, strict=True):
                    kept = one + other  # up to a share of one half no cell is in both, above it each is in one
                    assert bool((kept <= 1 + 1e-6).all() if draw < 2 else (kept >= 1 - 1e-6).all())

    def test_with_enough_draws_both_pieces_of_the_evidence_are_covered(self) -> None:
        model, x = TwoDiscs(), torch.ones(1, 1, 32, 32)
        options: dict[str, Any] = {
            "target": 0, "areas": 0.14, "perturbation": "fade", "n_steps": 120, "step": 1 / 16, "sigma": 1 / 16,
        }  # fmt: skip

        def least(**more: Any) -> float:
            mask = cl.ExtremalPerturbation(model).attribute(x, **options, **more)[0, 0]
            return min(float((mask * disc).sum() / disc.sum()) for disc in model.discs)

        assert min(least(parts=True, draws=4, seed=seed) for seed in range(3)) > 0.9

    def test_rewards_are_those_of_the_whole_mask(self) -> None:
        model, x = TwoDiscs(), torch.ones(2, 1, 32, 32)
        masks, found = cl.ExtremalPerturbation(model).attribute(
            x, target=0, areas=[0.1, 0.2], parts=True, perturbation="fade", n_steps=30, return_masks=True
        )
        expected = torch.stack([model(x * masks[:, [i]])[:, 0] for i in range(2)], 1)
        torch.testing.assert_close(found.rewards, expected, rtol=1e-5, atol=1e-6)

    def test_batch_is_singles(self) -> None:
        model, x = TwoDiscs(), torch.rand(3, 1, 32, 32)
        options = {"target": 0, "areas": 0.1, "parts": True, "draws": 2, "perturbation": "noise", "n_steps": 20}
        together = cl.ExtremalPerturbation(model).attribute(x, **options)
        singles = torch.cat([cl.ExtremalPerturbation(model).attribute(x[i : i + 1], **options) for i in range(3)])
        assert torch.equal(together, singles)

    @pytest.mark.parametrize("chunk", [None, 1, 4])
    def test_each_area_draws_numbers_of_its_own(self, chunk: int | None) -> None:
        model, x = TwoDiscs(), torch.rand(3, 1, 32, 32)
        options: dict[str, Any] = {"target": 0, "parts": True, "perturbation": "noise", "n_steps": 8, "seed": 5}
        twice = cl.ExtremalPerturbation(model).attribute(x, areas=[0.1, 0.1], internal_batch_size=chunk, **options)
        first = cl.ExtremalPerturbation(model).attribute(x, areas=0.1, **options)
        other = cl.ExtremalPerturbation(model).attribute(x, areas=0.1, **options | {"seed": 5 + 1_000_003})
        torch.testing.assert_close(twice, torch.cat([first, other], 1), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(first, other, atol=0.05)

    def test_areas_without_draws_are_searched_together(self) -> None:
        rows = []

        class Counting(TwoDiscs):
            def forward(self, x: Tensor) -> Tensor:
                rows.append(len(x))
                return super().forward(x)

        cl.ExtremalPerturbation(Counting()).attribute(
            torch.rand(1, 1, 32, 32), target=0, areas=[0.1, 0.2, 0.3], perturbation="fade", n_steps=3
        )
        assert rows.count(3) >= 4  # three steps and the finished masks

    def test_draws_out_of_range(self) -> None:
        with pytest.raises(cl.LearnpropError, match="draws must be"):
            cl.ExtremalPerturbation(TwoDiscs()).attribute(torch.ones(1, 1, 32, 32), target=0, draws=0)


def test_the_curve_over_areas_hardly_falls() -> None:
    torch.manual_seed(7)
    areas = [0.05, 0.1, 0.2, 0.4]
    _, found = cl.ExtremalPerturbation(net()).attribute(
        torch.randn(3, 2, 16, 16), [0, 1, 2], areas=areas, perturbation="fade", return_masks=True
    )
    before, after = found.rewards[:, :-1], found.rewards[:, 1:]
    assert bool((after >= before - 0.01 * before.abs()).all()), found.rewards


def test_seeds_of_drawn_rewards_agree() -> None:
    """What is drawn differs by seed, but hardly what is found."""
    model, disc = Visible(24), disc_of(24)
    x = (disc | disc_of(24, centre=(0.3, 0.75))).float()[None, None]
    masks = torch.cat([
        cl.ExtremalPerturbation(model).attribute(
            x, 0, areas=0.08, n_steps=100, perturbation="noise", parts=True, draws=2, seed=seed
        )
        for seed in range(5)
    ])  # fmt: skip
    kept = model(masks)[:, 0]
    assert float((kept.max() - kept.min()) / kept.mean()) <= 0.03, kept
    assert not torch.equal(masks[0], masks[1])
