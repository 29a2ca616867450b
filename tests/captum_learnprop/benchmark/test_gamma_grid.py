"""The search for gammas: its settings are zennit's rules, its score is the trainer's objective, its budget holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.benchmark import gamma_grid
from captum_learnprop.benchmark.gamma_grid import GAMMA, GROUPS, PAIRS, Grid, Search, Setting, search
from captum_learnprop.benchmark.hand_made import hand_made
from captum_learnprop.benchmark.hand_made_lrp import Lrp
from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import SIGNS, postprocess
from captum_learnprop.training.examples import Examples
from captum_learnprop.training.regions import unpacked
from captum_learnprop.training.trainer import RuleTrainer

SIZE = 24
EXAMPLE = torch.full((1, 3, SIZE, SIZE), 0.5)
SMALL = Grid("small", (0.0, 0.5), 2, (0.0, 0.25), rows=5)


class Net(nn.Module):
    """Normalisation, three convolutions and two dense layers; some outputs are negative."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, stride=4)
        self.second = nn.Conv2d(4, 4, 3, stride=2)
        self.third = nn.Conv2d(4, 4, 1)
        self.dense = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.mul_(0.2 if name.endswith("bias") else 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first((x - 0.5) / 0.25))
        x = F.relu(self.third(F.relu(self.second(x))))
        logits: Tensor = self.head(F.relu(self.dense(x.amax((2, 3)))))
        return logits


@pytest.fixture
def model() -> nn.Module:
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def examples(model: nn.Module, images: Tensor) -> Examples:
    return RuleTrainer(model, deletions=6).measure(images, targets_per_image=2)


def test_grids_hold_what_people_try() -> None:
    assert len(PAIRS) == 15
    assert len(GROUPS) == 7**4 * 2
    for grid in (PAIRS, GROUPS, SMALL):
        settings = [grid[index] for index in range(len(grid))]
        assert len(set(settings)) == len(grid)
        assert {one.first for one in settings} == set(grid.firsts)
        assert {one.dense for one in settings} == set(grid.dense)
        for group in range(grid.groups):
            assert {one.convolutions[group] for one in settings} == set(grid.convolutions)
        for index in (-1, len(grid)):
            with pytest.raises(IndexError, match=f"has {len(grid)} settings"):
                grid[index]


def test_settings_are_drawn_at_random_and_all_of_them_in_order() -> None:
    drawn = GROUPS.draw(90, seed=0)
    assert len(set(drawn)) == 90
    assert drawn == GROUPS.draw(90, seed=0)
    assert drawn != GROUPS.draw(90, seed=1)
    assert len({one.dense for one in drawn}) == 7
    assert PAIRS.draw(1000, seed=0) == [PAIRS[index] for index in range(len(PAIRS))]


def test_a_setting_with_one_gamma_is_the_hand_made_rule(model: nn.Module, images: Tensor) -> None:
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    expected = hand_made("LRP epsilon gamma, box").build(model, images[:1])(images, targets)
    for gammas in ((0.25,), (0.25, 0.25, 0.25)):
        torch.testing.assert_close(Setting(gammas, 0.0).lrp()(model, EXAMPLE)(images, targets), expected)
    for other in (Setting((0.25,), 0.1), Setting((0.5,), 0.0), Setting((0.25,), 0.0, GAMMA)):
        assert not torch.allclose(other.lrp()(model, EXAMPLE)(images, targets), expected, rtol=0.01)


def gamma_share(layer: Any, a: Tensor, relevance: Tensor, gamma: float) -> Tensor:
    """The gamma rule for activations of any sign, from its definition: contributions of the output's own sign count
    ``1 + gamma`` times."""
    a = a.detach()
    z = layer(a)

    def shares(sign: int) -> Tensor:
        weights = [
            layer.weight
            + gamma * layer.weight.clamp(min=0 if side * sign > 0 else None, max=0 if side * sign < 0 else None)
            for side in (1, -1)
        ]
        parts = [a.clamp(min=0).requires_grad_(), a.clamp(max=0).requires_grad_()]
        extra = gamma * (layer.bias.clamp(min=0) if sign > 0 else layer.bias.clamp(max=0))
        outputs = [_linear(layer, part, weight) for part, weight in zip(parts, weights, strict=True)]
        bias = (layer.bias + extra).reshape(-1, *(1,) * (z.ndim - 2))
        mine = (z > 0) if sign > 0 else (z < 0)
        share = torch.where(mine, relevance / (sum(outputs) + bias).detach().where(mine, torch.ones(())), 0)
        gradients = torch.autograd.grad(sum(outputs), parts, share)
        return sum(part.detach() * gradient for part, gradient in zip(parts, gradients, strict=True))  # type: ignore

    return shares(1) + shares(-1)


def _linear(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride)


@pytest.mark.parametrize("gammas", [(0.1, 0.5, 1.0), (10.0, 0.25, 0.0)])
def test_each_group_has_its_gamma(gammas: tuple[float, ...], model: nn.Module, images: Tensor) -> None:
    model, images = model.double(), images.double()
    net: Any = model
    outputs = model(images).detach()
    assert (outputs < 0).any()
    assert (outputs > 0).any()
    x = (images - 0.5) / 0.25
    first = F.relu(net.first(x))
    second = F.relu(net.second(first))
    third = F.relu(net.third(second))
    pooled, places = F.max_pool2d(third, third.shape[2:], return_indices=True)
    dense = F.relu(net.dense(pooled.flatten(1)))
    for target in range(3):
        seed = torch.zeros_like(outputs)
        seed[:, target] = outputs[:, target]
        relevance = gamma_share(net.head, dense, seed, 0.3)
        relevance = gamma_share(net.dense, pooled.flatten(1), relevance, 0.3)
        at_third = torch.zeros_like(third).flatten(2).scatter_(2, places.flatten(2), relevance[:, :, None])
        relevance = gamma_share(net.third, second, at_third.reshape(third.shape), gammas[2])
        relevance = gamma_share(net.second, first, relevance, gammas[1])
        expected = gamma_share(net.first, x, relevance, gammas[0])
        explain = Setting(gammas, 0.3, GAMMA).lrp()(model, images[:1])
        got = explain(images, torch.full((len(images),), target))
        scale = expected.detach().abs().max()
        torch.testing.assert_close(got / scale, expected.detach() / scale, atol=1e-4, rtol=1e-3)


def test_groups_are_equal_parts_in_the_order_of_depth() -> None:
    names = [str(number) for number in range(7)]
    assert gamma_grid._by_depth(names, 3) == [["0", "1"], ["2", "3"], ["4", "5", "6"]]
    assert gamma_grid._by_depth(names, 1) == [names]
    assert gamma_grid._by_depth(names[:2], 3) == [[], ["0"], ["1"]]


def test_the_score_is_the_objective_of_the_trainer(model: nn.Module, examples: Examples) -> None:
    found = search(model, SMALL, examples, budget=5 * len(SMALL), smoothing=0.05)
    assert [one.setting for one in found.trace] == [SMALL[index] for index in range(len(SMALL))]
    assert found.best.score == max(one.score for one in found.trace)
    assert len({one.score for one in found.trace}) > len(SMALL) // 2
    rows = examples.rows(torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:5])
    regions = unpacked(rows["regions"], (3, SIZE, SIZE))
    for one in found.trace[:3]:
        attribution = one.setting.lrp()(model, EXAMPLE)(rows["inputs"], rows["targets"])
        by_sign = {}
        for sign in SIGNS:
            values = []
            for sample, region, drops in zip(postprocess(attribution, sign, 0.05), regions, rows["drops"], strict=True):
                root = region.flatten(1).sum(1) ** gamma_grid.TERM.density
                mass = torch.stack([sample[part].sum() for part in region]) / root
                correlation = torch.corrcoef(torch.stack([mass, drops / root]))[0, 1]
                values.append(correlation.nan_to_num(0.0))  # of a map without mass
            by_sign[sign] = torch.stack(values).mean().item()
        assert one.score == pytest.approx(max(by_sign.values()), abs=1e-5)
        assert by_sign[one.sign] == max(by_sign.values())


def test_a_map_that_overflows_predicts_nothing(examples: Examples) -> None:
    judge = gamma_grid._Judge(examples.rows(torch.arange(4)), 0.025, gamma_grid.TERM)
    perfect = judge(SMALL[0], lambda images, targets: torch.rand_like(images))
    broken = judge(SMALL[0], lambda images, targets: torch.full_like(images, torch.inf))
    assert broken.score == 0.0
    assert perfect.score != 0.0


@pytest.mark.parametrize(
    ("grid", "budget", "rows", "settings"),
    [
        (SMALL, 80, 5, 16), (SMALL, 5 * 7 + 3, 5, 7), (replace(SMALL, rows=None), 50, 3, 16),
        (replace(SMALL, rows=None), 10**6, 16, 16), (replace(SMALL, rows=100), 40, 16, 2),
    ],
)  # fmt: skip
def test_the_budget_is_not_exceeded(
    grid: Grid,
    budget: int,
    rows: int,
    settings: int,
    model: nn.Module,
    examples: Examples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    explained: list[int] = []
    on = Lrp.on

    def watched(self: Lrp, *net: Any) -> Any:
        explain = on(self, *net)

        def counted(images: Tensor, targets: Tensor) -> Tensor:
            explained.append(len(images))
            return explain(images, targets)

        return counted

    monkeypatch.setattr(Lrp, "on", watched)
    if rows * settings > 100:  # the count is what matters here
        monkeypatch.setattr(
            Lrp, "on", lambda self, *net: lambda images, targets: (explained.append(len(images)), images)[1]
        )
    found = search(model, grid, examples, budget=budget)
    assert (found.rows, len(found.trace), found.settings) == (rows, settings, settings)
    assert sum(explained) == found.passes == rows * settings <= budget
    assert found.finished


def test_a_budget_that_is_too_small_is_refused(model: nn.Module, examples: Examples) -> None:
    for grid, budget in ((SMALL, 4), (replace(SMALL, rows=None), 15)):
        with pytest.raises(LearnpropError, match=f"small: {budget} attribution passes and 16 rows are too few"):
            search(model, grid, examples, budget=budget)


def test_a_net_with_inputs_of_one_size() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 14 * 14, 3)).eval()
    measured = RuleTrainer(net, deletions=6).measure(torch.rand(6, 1, 16, 16))
    assert len(search(net, replace(SMALL, groups=1), measured, budget=10).trace) == 2


def test_an_interrupted_search_goes_on(model: nn.Module, examples: Examples) -> None:
    whole = search(model, SMALL, examples, budget=40)
    saved: list[str] = []

    def stop(found: Search) -> None:
        saved.append(json.dumps(found.config()))
        if len(found.trace) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(model, SMALL, examples, budget=40, on_scored=stop)
    known = Search.of(json.loads(saved[-1]))
    assert not known.finished
    assert known.trace == whole.trace[:3]
    went_on: list[int] = []
    again = search(
        model, SMALL, examples, budget=40, known=known, on_scored=lambda found: went_on.append(len(found.trace))
    )
    assert went_on == [4, 5, 6, 7, 8]
    assert replace(again, seconds=0) == replace(whole, seconds=0)
    for changed in ({"seed": 1}, {"budget": 45}):
        with pytest.raises(LearnpropError, match="one of other settings; delete it"):
            search(model, SMALL, examples, **{"budget": 40, **changed}, known=known)


def test_the_model_is_untouched(model: nn.Module, examples: Examples) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    search(model, SMALL, examples, budget=10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
