"""Terms and their sums: values by hand, scale, gradients through the map, rows and chunks, errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.draws import Draws
from captum_learnprop.training.masks import AreaMask, MaxMask
from captum_learnprop.training.quantities import quantity
from captum_learnprop.training.terms import (
    TERMS,
    Area,
    Batch,
    ClassContrast,
    Necessity,
    Objective,
    OcclusionRegression,
    RandomizationContrast,
    Sufficiency,
    Term,
    TotalVariation,
)

ROWS, CLASSES, SPATIAL, DELETIONS = 4, 3, (5, 6), 7

CONFIGURATIONS: dict[str, Term] = {
    "pearson": OcclusionRegression(),
    "cosine": OcclusionRegression("cosine"),
    "sufficiency": Sufficiency(),
    "sufficiency of a max mask": Sufficiency(MaxMask(sigma=0.2), None, "noise"),
    "necessity": Necessity(),
    "necessity of one area": Necessity(AreaMask(temperature=0.5), 0.3, ("mean", "blur"), ()),
    "necessity of the mask's area": Necessity(AreaMask(0.1), None),
    "area": Area(),
    "area of a square root": Area(MaxMask("positive", sigma=0.1, power=0.5)),
    "total variation": TotalVariation(),
    "class contrast": ClassContrast(),
    "strongest class": ClassContrast("strongest", "overlap"),
    "class correlation": ClassContrast(similarity="pearson"),
    "randomization": RandomizationContrast(),
    "randomization, log": RandomizationContrast(compression="log"),
    "randomization, sqrt": RandomizationContrast("cosine", "sqrt"),
}
EVERY_TERM = pytest.mark.parametrize("term", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())


class Net(nn.Module):
    """A smooth net with a template for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2 * math.prod(SPATIAL), CLASSES)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((torch.tanh(x) + 0.1 * torch.tanh(self.conv(x))).flatten(1))

    def template(self, targets: Tensor) -> Tensor:
        """What each class answers to, ``(B, 2, *SPATIAL)``, of size 1."""
        return self.fc.weight[targets].sign().reshape(-1, 2, *SPATIAL)


@dataclass
class World:
    """Everything of ``ROWS`` rows; ``batch`` cuts rows out, as the trainer does for its chunks."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    maps: Tensor
    regions: Tensor
    drops: Tensor
    mixing: Tensor  # (CLASSES, 3, 3): maps of other targets are made from the map
    random: Tensor

    def batch(self, rows: list[int] | None = None, seed: int = 0, step: int = 0, **changes: Any) -> Batch:
        rows = list(range(len(self.inputs))) if rows is None else rows
        inputs, maps = self.inputs[rows], self.maps[rows]

        def explain(targets: Tensor) -> Tensor:
            return torch.tanh(maps * self.mixing[targets] + maps.roll(1, 2))

        fields: dict[str, Any] = {
            "inputs": inputs,
            "targets": self.targets[rows],
            "maps": maps,
            "outputs": self.model(inputs).detach(),
            "quantity": quantity("softmax"),
            "model": self.model,
            "explain": explain,
            "draws": Draws(seed, step, rows),
            "regions": self.regions[rows],
            "drops": self.drops[rows],
            "explain_randomized": lambda: maps * self.random,
        }
        return Batch(**{**fields, **changes})


@pytest.fixture
def world() -> World:
    torch.manual_seed(1)
    model, targets = Net().double(), torch.tensor([0, 2, 1, 1])
    return World(
        model,
        model.template(targets) + 0.5 * torch.randn(ROWS, 2, *SPATIAL, dtype=torch.float64),
        targets,
        torch.rand(ROWS, *SPATIAL, dtype=torch.float64),
        torch.rand(ROWS, DELETIONS, *SPATIAL) > 0.6,
        torch.randn(ROWS, DELETIONS),
        torch.rand(CLASSES, *SPATIAL, dtype=torch.float64),
        torch.rand(SPATIAL, dtype=torch.float64),
    )


# -- all terms -------------------------------------------------------------------------------------------------------


@EVERY_TERM
def test_one_value_per_row(term: Term, world: World) -> None:
    values = term(world.batch())
    assert values.shape == (ROWS,)
    assert values.dtype == torch.float64
    assert values.isfinite().all()
    assert (values >= 0).all()


@EVERY_TERM
def test_gradients_through_the_maps_by_finite_differences(term: Term, world: World) -> None:
    def value(maps: Tensor) -> Tensor:
        return term(replace_maps(world, maps).batch())

    maps = world.maps.clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (maps,), atol=1e-4)
    (gradient,) = torch.autograd.grad(value(maps).sum(), maps)
    assert (gradient.flatten(1).abs().amax(1) > 0).sum() >= 3  # one row may be clamped


@EVERY_TERM
def test_chunks_are_the_whole(term: Term, world: World) -> None:
    whole = term(world.batch(seed=3, step=5))
    parts = torch.cat([term(world.batch(rows, seed=3, step=5)) for rows in ([0], [1, 2], [3])])
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
    shuffled = term(world.batch([2, 0, 3, 1], seed=3, step=5))
    torch.testing.assert_close(shuffled, whole[[2, 0, 3, 1]], rtol=1e-9, atol=1e-9)


@EVERY_TERM
def test_the_same_draw_gives_the_same_value(term: Term, world: World) -> None:
    first = term(world.batch(seed=1))
    torch.rand(3)
    assert torch.equal(term(world.batch(seed=1)), first)


@pytest.mark.parametrize("name", ["sufficiency", "necessity", "class contrast", "strongest class"])
def test_what_is_random_is_drawn_anew_in_each_step(name: str, world: World) -> None:
    term = CONFIGURATIONS[name]
    values = torch.stack([term(world.batch(step=step)) for step in range(6)])
    assert (values.std(0) > 1e-6).all()


@EVERY_TERM
def test_scale_of_a_map_does_not_count(term: Term, world: World) -> None:
    def explained(scale: float) -> Tensor:
        batch = world.batch()
        given = {
            "explain": lambda targets: batch.explain(targets) * scale,
            "explain_randomized": lambda: world.maps * world.random / scale,
        }
        return term(replace(world.batch(maps=batch.maps * scale), **given))

    expected = explained(1.0)
    for scale in (1e-25, 3.0, 1e25):
        torch.testing.assert_close(explained(scale), expected, rtol=1e-6, atol=1e-9)


@EVERY_TERM
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_constant_maps_give_finite_values_and_gradients(term: Term, value: float, world: World) -> None:
    maps = torch.full_like(world.maps, value).requires_grad_()
    values = term(replace_maps(world, maps).batch())
    assert values.isfinite().all()
    (gradient,) = torch.autograd.grad(values.sum(), maps, allow_unused=True)
    assert gradient is None or gradient.isfinite().all()


@EVERY_TERM
def test_configuration_comes_back(term: Term) -> None:
    config = json.loads(json.dumps(term.config()))
    assert config["term"] == type(term).__name__
    assert Objective.from_config([config]).terms == ((1.0, term),)
    assert eval(repr(term), {**TERMS, "AreaMask": AreaMask, "MaxMask": MaxMask}) == term


@EVERY_TERM
def test_terms_are_values(term: Term) -> None:
    assert hash(term) == hash(replace(term))  # type: ignore[type-var]
    with pytest.raises(FrozenInstanceError):
        term.weight = 1.0  # type: ignore[attr-defined]


@EVERY_TERM
def test_float32_and_parameters_of_the_model_untouched(term: Term, world: World) -> None:
    world.model.float().requires_grad_(True)
    maps = world.maps.float().requires_grad_()
    small = replace(
        world, inputs=world.inputs.float(), maps=maps, mixing=world.mixing.float(), random=world.random.float()
    )
    values = term(small.batch())
    assert values.dtype == torch.float32
    torch.autograd.grad(values.sum(), maps, allow_unused=True)
    assert all(parameter.grad is None for parameter in world.model.parameters())


def test_every_term_is_tested() -> None:
    assert {type(term) for term in CONFIGURATIONS.values()} == set(TERMS.values())
    assert all(name == term.__name__ for name, term in TERMS.items())


def replace_maps(world: World, maps: Tensor) -> World:
    return replace(world, maps=maps)


# -- by hand ---------------------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)


def linear(x: Tensor) -> Tensor:
    """Class 0 sums weighted pixels, class 1 is 0."""
    first = (x[:, 0] * WEIGHTS).sum((1, 2))
    return torch.stack([first, torch.zeros_like(first)], 1)


def small(maps: list[list[float]], **changes: Any) -> Batch:
    """One image of four pixels of value 1; quantity: the weighted sum of pixels, 10."""
    inputs = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    fields: dict[str, Any] = {
        "inputs": inputs,
        "targets": torch.tensor([0]),
        "maps": torch.tensor([maps], dtype=torch.float64),
        "outputs": linear(inputs),
        "quantity": quantity("logit"),
        "model": linear,
        "explain": lambda targets: torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64),
        "draws": Draws(0, 0, [0]),
    }
    return Batch(**{**fields, **changes})


def test_occlusion_regression_by_hand() -> None:
    regions = torch.tensor([[[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [1, 1]]]]).bool()
    # Mass inside the regions: 1, 2, 3, 0.
    for drops, pearson in (
        ([1.0, 2.0, 3.0, 0.0], 1.0),
        ([-2.0, -4.0, -6.0, 0.0], -1.0),
        ([1.0, 0.0, 0.0, 1.0], -2 / math.sqrt(5)),
    ):
        batch = small([[1.0, 2.0], [0.0, 0.0]], regions=regions, drops=torch.tensor([drops]))
        assert float(OcclusionRegression()(batch)) == pytest.approx(1 - pearson)
    # The last drops again: (1 * 1 + 0 * 1) / (sqrt(14) sqrt(2)).
    assert float(OcclusionRegression("cosine")(batch)) == pytest.approx(1 - 1 / math.sqrt(28))


@pytest.mark.parametrize("name", ["zero", "mean"])
def test_masked_inputs_by_hand(name: str) -> None:
    # The mask is 1, 0.5, 0, 0: of 10, 1 + 0.5 * 2 are kept over a fill of 0, and 3 * 0.5 + 4 + ... are left.
    batch = small([[4.0, 2.0], [0.0, 0.0]])
    if name == "zero":
        assert float(Sufficiency(MaxMask(), None, "zero", ())(batch)) == pytest.approx(1 - 2 / 10)
        assert float(Necessity(MaxMask(), None, "zero", ())(batch)) == pytest.approx(8 / 10)
    else:  # The fill of a grey image is the image: nothing to keep, nothing to lose.
        assert float(Sufficiency(MaxMask(), None, "mean", ())(batch)) == 0.0
        assert float(Necessity(MaxMask(), None, "mean", ())(batch)) == 0.0


def test_masked_inputs_are_measured_from_the_fill() -> None:
    inputs = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]], dtype=torch.float64)  # mean 3
    batch = small([[1.0, 0.0], [0.0, 0.0]], inputs=inputs, outputs=linear(inputs))
    # Whole 36, fill 30; the first pixel alone moves it by (4 - 3) * 1.
    assert float(Sufficiency(MaxMask(), None, "mean")(batch)) == pytest.approx(1 - 1 / 6)
    assert float(Necessity(MaxMask(), None, "mean")(batch)) == pytest.approx(5 / 6)


def test_masked_inputs_cannot_win_more_than_the_whole_input() -> None:
    inputs = torch.tensor([[[[1.0, 1.0], [-1.0, 1.0]]]], dtype=torch.float64)  # 1 + 2 - 3 + 4 = 4
    good = small([[1.0, 1.0], [0.0, 1.0]], inputs=inputs, outputs=linear(inputs))  # keeps 7 of 4, leaves -3
    assert float(Sufficiency(MaxMask(), None, "zero", ())(good)) == 0.0
    assert float(Necessity(MaxMask(), None, "zero", ())(good)) == 0.0
    bad = small([[0.0, 0.0], [1.0, 0.0]], inputs=inputs, outputs=linear(inputs))
    assert float(Sufficiency(MaxMask(), None, "zero", ())(bad)) == 1.0
    assert float(Necessity(MaxMask(), None, "zero", ())(bad)) == 1.0


def test_masks_of_a_drawn_area(world: World) -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return world.model(x)

    inputs = torch.ones(ROWS, 2, *SPATIAL, dtype=torch.float64)
    batch = world.batch(inputs=inputs, model=model, outputs=world.model(inputs))
    drawn = 0.1 + 0.4 * world.batch().uniform()
    for term, kept in ((Sufficiency, drawn), (Necessity, 1 - drawn)):
        seen.clear()
        fresh = replace(batch, draws=Draws(0, 0, range(ROWS)))
        term(area=(0.1, 0.5), fill="zero", exclude=())(fresh)
        torch.testing.assert_close(seen[-1].flatten(1).mean(1), kept, rtol=0, atol=1e-6)


def test_area_and_total_variation_by_hand() -> None:
    batch = small([[4.0, -2.0], [0.0, 1.0]])
    assert float(Area()(batch)) == (1 + 0.5 + 0 + 0.25) / 4
    assert float(Area(MaxMask("positive"))(batch)) == (1 + 0.25) / 4
    assert float(TotalVariation()(batch)) == (1 + 0.25) / 2 + (0.5 + 0.25) / 2


def test_class_contrast_by_hand() -> None:
    batch = small([[3.0, 1.0], [0.0, 0.0]])
    assert float(ClassContrast()(batch)) == pytest.approx(1 / math.sqrt(10 * 2))
    assert float(ClassContrast(similarity="overlap")(batch)) == pytest.approx(0.25)
    # Deviations 2, 0, -1, -1 and -0.5, 0.5, -0.5, 0.5: the correlation is negative, which is as good as none.
    assert float(ClassContrast(similarity="pearson")(batch)) == 0.0


def test_the_other_class_is_never_the_target_and_each_of_the_others_comes(world: World) -> None:
    rows = 300
    targets = torch.arange(rows) % 4
    outputs = torch.tensor([[2.0, 2.0, 2.0, 2.0]]).repeat(rows, 1)
    outputs[:, 3] += math.log(8)
    many = replace(
        world, inputs=world.inputs[:1].expand(rows, -1, -1, -1), maps=world.maps[:1].expand(rows, -1, -1),
        targets=targets, regions=world.regions[:1].expand(rows, -1, -1, -1), drops=world.drops[:1].expand(rows, -1),
    )  # fmt: skip
    batch = many.batch(outputs=outputs)
    random = ClassContrast().others(batch)
    strongest = ClassContrast("strongest").others(many.batch(outputs=outputs))
    for others in (random, strongest):
        assert (others != targets).all()
        assert others.dtype == torch.int64
        assert set(others.tolist()) == {0, 1, 2, 3}
    asked = targets != 3
    assert float((random[asked] == 3).float().mean()) == pytest.approx(1 / 3, abs=0.1)
    assert float((strongest[asked] == 3).float().mean()) == pytest.approx(8 / 10, abs=0.1)


def test_far_outputs_still_give_another_class(world: World) -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0], [0.0, -1e4, 1e4], [-1e4, 1e4, -1e4], [1e4, 0.0, 1e4]]).double()
    targets = torch.tensor([0, 2, 1, 1])
    for step in range(20):
        others = ClassContrast("strongest").others(world.batch(step=step, outputs=outputs, targets=targets))
        assert others[:2].tolist() == [2, 0]
        assert (others != targets).all()


def test_randomization_contrast_by_hand() -> None:
    random = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    batch = small([[4.0, 2.0], [0.0, 2.0]], explain_randomized=lambda: random)
    # Deviations 2, 0, -2, 0 and 1, -1, -1, 1.
    assert float(RandomizationContrast()(batch)) == pytest.approx(4 / math.sqrt(8 * 4))
    assert float(RandomizationContrast("cosine")(batch)) == pytest.approx(12 / math.sqrt(24 * 8))
    opposite = small([[0.0, 2.0], [2.0, 0.0]], explain_randomized=lambda: random)
    assert float(RandomizationContrast()(opposite)) == 0.0


def test_compressed_randomization_is_closer_to_a_rank_correlation() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(60, 12, 12, generator=generator, dtype=torch.float64)
    other = 0.6 * normal + 0.8 * torch.randn(60, 12, 12, generator=generator, dtype=torch.float64)
    first, second = (2 * normal).exp(), (2 * other).exp()

    def ranks(maps: Tensor) -> Tensor:
        return maps.flatten(1).argsort(1).argsort(1).double()

    spearman = torch.stack(
        [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(ranks(first), ranks(second), strict=True)]
    )
    rows = list(range(60))
    far = [
        float((RandomizationContrast(compression=c)(
            Batch(
                first[:, None], torch.zeros(60).long(), first, torch.zeros(60, 2), quantity("logit"), nn.Identity(),
                lambda targets: first, Draws(0, 0, rows), explain_randomized=lambda: second,
            )
        ) - spearman).abs().mean())
        for c in ("none", "sqrt", "log")
    ]  # fmt: skip
    assert far[2] < far[1] < far[0]
    assert far[2] < 0.1


# -- sums ------------------------------------------------------------------------------------------------------------


def test_a_sum_of_weighted_terms(world: World) -> None:
    area, variation = Area(), TotalVariation()
    objective = area + 0.5 * variation + OcclusionRegression() * 2
    assert isinstance(objective, Objective)
    assert objective.terms == ((1.0, area), (0.5, variation), (2, OcclusionRegression()))
    assert objective.names == ("Area", "TotalVariation", "OcclusionRegression")
    values = objective.values(world.batch())
    assert list(values) == list(objective.names)
    expected = values["Area"] + 0.5 * values["TotalVariation"] + 2 * values["OcclusionRegression"]
    torch.testing.assert_close(objective(world.batch()), expected)
    torch.testing.assert_close(values["Area"], area(world.batch()))
    assert repr(0.5 * (area + variation)).startswith("0.5 * Area(mask=MaxMask(")
    assert (objective + objective).terms == objective.terms * 2
    assert Objective.of(objective) is objective


def test_terms_of_one_class_are_numbered() -> None:
    assert (Area() + TotalVariation() + Area(MaxMask("sum"))).names == ("Area_1", "TotalVariation", "Area_2")


def test_needs_are_those_of_any_term() -> None:
    plain = Area() + ClassContrast()
    assert (plain.needs_deletions, plain.needs_randomized) == (False, False)
    both = plain + OcclusionRegression() + 0.1 * RandomizationContrast()
    assert (both.needs_deletions, both.needs_randomized) == (True, True)


def test_weight_zero_reports_without_minimising(world: World) -> None:
    maps = world.maps.clone().requires_grad_()
    objective = Area() + 0 * TotalVariation()
    values = objective.values(replace_maps(world, maps).batch())
    assert values["Area"].requires_grad
    assert not values["TotalVariation"].requires_grad
    torch.testing.assert_close(values["TotalVariation"], TotalVariation()(world.batch()))
    torch.testing.assert_close(objective.combine(values), values["Area"])
    with pytest.raises(LearnpropError, match=r"all weights are 0.*0 \* Area"):
        (0 * Area())(world.batch())


def test_chunks_of_a_sum_of_random_terms_are_the_whole(world: World) -> None:
    objective = Sufficiency() + 0.3 * ClassContrast() + Necessity() + 0.2 * ClassContrast("strongest")
    whole = objective(world.batch(step=9))
    parts = torch.cat([objective(world.batch(rows, step=9)) for rows in ([0, 1], [2], [3])])
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


def test_a_sum_comes_back_from_its_configuration() -> None:
    objective = OcclusionRegression() + 0.25 * Sufficiency(AreaMask(temperature=0.2), (0.1, 0.3), ("noise", "mean"))
    config = json.loads(json.dumps(objective.config()))
    assert Objective.from_config(config) == objective
    assert Objective.from_config([{"term": "Area"}]) == Objective.of(Area())


def test_terms_of_others(world: World) -> None:
    @dataclass(frozen=True)
    class Brightness(Term):
        level: float = 0.5

        def __call__(self, batch: Batch) -> Tensor:
            return (batch.maps.flatten(1).mean(1) - self.level).square()

    objective = 2.0 * Brightness(0.1) + Area()
    assert objective.names == ("Brightness", "Area")
    assert objective(world.batch()).shape == (ROWS,)
    assert Objective.from_config(objective.config(), {**TERMS, "Brightness": Brightness}) == objective

    @dataclass(frozen=True)
    class Mean(Term):
        def __call__(self, batch: Batch) -> Tensor:
            return batch.maps.mean()

    with pytest.raises(LearnpropError, match=r"Mean\(\) gave \(\); a term gives one value per row"):
        Objective.of(Mean())(world.batch())


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: OcclusionRegression("l2"), LearnpropError, r"distance 'l2' of OcclusionRegression.*pearson, cosine"),
        (lambda: Sufficiency(area=0.0), LearnpropError, r"area 0\.0 of Sufficiency"),
        (lambda: Necessity(area=(0.4, 0.1)), LearnpropError, r"area \(0\.4, 0\.1\) of Necessity.*lower bound first"),
        (lambda: Sufficiency(MaxMask()), LearnpropError, r"cannot be told its area \(0\.05, 0\.4\); pass area=None"),
        (lambda: Sufficiency(fill="blur"), LearnpropError, r"'blur' is asked for and excluded"),
        (lambda: Necessity(fill="black"), LearnpropError, r"unknown fill 'black'"),
        (lambda: Area(AreaMask()), LearnpropError, r"Area measures a MaxMask, AreaMask"),  # type: ignore[arg-type]
        (lambda: TotalVariation(AreaMask()), LearnpropError, r"TotalVariation measures"),  # type: ignore[arg-type]
        (lambda: ClassContrast("second"), LearnpropError, r"other 'second' of ClassContrast.*random, strongest"),
        (lambda: ClassContrast(similarity="l1"), LearnpropError, r"similarity 'l1'.*pearson, cosine, overlap"),
        (lambda: RandomizationContrast(compression="exp"), LearnpropError, r"compression 'exp'.*none, sqrt, log"),
        (lambda: -1 * Area(), LearnpropError, r"weight -1 of Area.*at least 0"),
        (lambda: math.nan * Area(), LearnpropError, r"weight nan"),
        (lambda: "2" * Area(), LearnpropError, r"weight '2'"),  # type: ignore[operator]
        (lambda: Objective(()), LearnpropError, r"at least one term"),
        (lambda: Objective(((1.0, "Area"),)), LearnpropError, r"'Area' is not a term"),  # type: ignore[arg-type]
        (lambda: Objective.from_config([{"term": "Areas"}]), LearnpropError, r"unknown term 'Areas'; choose one of"),
        (lambda: Objective.from_config([{"term": "Area", "mask": {"mask": "Min"}}]), LearnpropError, r"mask 'Min'"),
        (lambda: Objective.from_config([{"term": "Area", "size": 2}]), LearnpropError, r"term Area cannot.*size"),
        (lambda: Area() + 3, TypeError, r"unsupported operand"),  # type: ignore[operator]
    ],
)  # fmt: skip
def test_requests_that_make_no_sense(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_batches_that_lack_something(world: World) -> None:
    with pytest.raises(LearnpropError, match="has no regions"):
        OcclusionRegression()(world.batch(regions=None, drops=None))
    with pytest.raises(LearnpropError, match="explain_randomized is None"):
        RandomizationContrast()(world.batch(explain_randomized=None))
    with pytest.raises(LearnpropError, match=r"another class.*\(4, 1\)"):
        ClassContrast()(world.batch(outputs=torch.zeros(ROWS, 1), targets=torch.zeros(ROWS).long()))
    with pytest.raises(LearnpropError, match=r"explain gave maps \(4, 5\), expected \(4, 5, 6\)"):
        ClassContrast()(world.batch(explain=lambda targets: world.maps[..., 0]))
    with pytest.raises(LearnpropError, match=r"explain_randomized gave maps"):
        RandomizationContrast()(world.batch(explain_randomized=lambda: world.maps[:2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": torch.rand(ROWS, 6, 5)}, r"maps \(4, 6, 5\) must be"),
        ({"inputs": torch.rand(ROWS, 3)}, r"inputs \(4, 3\)"),
        ({"targets": torch.zeros(3).long()}, r"targets \(3,\).*B = 4"),
        ({"outputs": torch.zeros(ROWS)}, r"outputs \(4,\)"),
        ({"draws": Draws(0, 0, range(3))}, r"draws are of 3 rows, inputs of 4"),
        ({"drops": None}, r"regions and drops come together"),
        ({"drops": torch.zeros(ROWS, 2)}, r"regions \(4, 7, 5, 6\) and drops \(4, 2\)"),
    ],
)
def test_batches_that_do_not_fit(changes: dict[str, Any], message: str, world: World) -> None:
    with pytest.raises(LearnpropError, match=message):
        world.batch(**changes)


def test_random_numbers_of_a_batch(world: World) -> None:
    batch = world.batch()
    assert batch.uniform(2, 3).shape == (ROWS, 2, 3)
    assert batch.normal().shape == (ROWS,)
    assert batch.uniform().dtype == torch.float64
