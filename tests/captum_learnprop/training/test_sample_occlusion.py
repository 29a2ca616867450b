"""Occlusion regression of samples: what is fitted, what chooses, and that a start is only left for something better."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_learnprop import Agreement, LearnedPropagation, LearnpropError, MaxMask
from captum_learnprop.training.joint_descent import JointDescent
from captum_learnprop.training.occlusion import generator_of
from captum_learnprop.training.per_sample import OriginalPass, learn
from captum_learnprop.training.sample_occlusion import OcclusionStep, SampleOcclusion, finished
from captum_learnprop.training.terms import OcclusionRegression
from zennit_rules import LearnedGradient, RuleSet


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(1)
    return Net().double().eval()


def batch(samples: int = 3) -> Tensor:
    """Images with a bright corner, which decides the output."""
    x = 0.1 * torch.randn(samples, 2, 16, 16, generator=generator_of(2, 0), dtype=torch.float64)
    x[:, :, :6, :6] += 1
    return x


OPTIONS = SampleOcclusion(deletions=40, held_out=30)


def made(model: nn.Module, x: Tensor, objective: SampleOcclusion = OPTIONS, gate: str = "feature") -> OcclusionStep:
    deletions = objective.measured(lambda inputs: model(*inputs), (x,), 1).losses()
    leaves = (x.clone().requires_grad_(),)
    original = OriginalPass(model, LearnedGradient(gate=gate, per_sample=True), leaves, 1, ())
    finish = partial(finished, sign="absolute", smoothing=0.025)
    return OcclusionStep(original, deletions, objective, finish, JointDescent(0.5, len(x)))


def value(step: OcclusionStep, maps: Tensor, *, held_out: bool) -> Tensor:
    """The loss of a map, computed from outside."""
    deletions = step.held_out if held_out else step.fitted
    mass = (deletions.regions * finished(maps, "absolute", 0.025).flatten(1)[:, None]).sum(2)
    rows = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mass, deletions.drops, strict=True)]
    return 1 - torch.stack(rows)


@pytest.mark.parametrize("gate", ["element", "channel", "quadrant", "feature"])
def test_learning_lowers_what_is_fitted(gate: str) -> None:
    model, x = net(), batch()
    step = made(model, x, gate=gate)
    (start,), _ = step.run(update=True)
    before = value(step, start, held_out=False)
    for _ in range(5):
        step.run(update=True)
    (last,) = step.original.attributions()
    assert (value(step, last, held_out=False) < before - 1e-3).all()


def test_the_gradient_of_the_loss_is_that_of_finite_differences() -> None:
    model, x = net(), batch(1)
    step = made(model, x, gate="channel")
    (parameter, *_) = step.original.rules.parameters()
    found: dict[str, Tensor] = {}
    (maps,) = step.original.attributions()
    live = maps.detach().requires_grad_()
    v = torch.autograd.grad(step._loss((live,), step.fitted).sum(), live)
    step.original.rule_gradients((maps,), v, lambda site, gate, g: found.update({site: g["raw"].clone()}))
    site = step.original.rules.sites[0].name
    for channel in range(3):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[0, channel] += sign * 1e-5
                ends.append(value(step, step.original.attributions()[0], held_out=False))
                parameter[0, channel] -= sign * 1e-5
        torch.testing.assert_close(found[site][0, channel].reshape(1), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-8)


def test_what_is_judged_are_the_start_and_then_means_of_maps_of_its_size() -> None:
    model, x = net(), batch()
    step, seen, judged = made(model, x), [], []
    for _ in range(4):
        (single,) = step.original.attributions()
        seen.append(single.detach().clone())
        maps, _ = step.run(update=True)
        judged.append(maps[0].clone())
    assert torch.equal(judged[0], seen[0])
    size = [one.abs().mean((1, 2, 3), keepdim=True) for one in seen]
    scaled = [one * size[0] / own for one, own in zip(seen, size, strict=True)]
    torch.testing.assert_close(judged[1], scaled[1])
    torch.testing.assert_close(judged[3], torch.stack(scaled[1:]).mean(0))


def test_the_excess_is_the_held_out_difference_with_its_jackknife_error() -> None:
    model, x = net(), batch(2)
    step = made(model, x)
    (start,), none = step.run(update=True)
    assert torch.equal(none, torch.zeros_like(none))
    (later,), excess = step.run(update=False)
    whole = value(step, later, held_out=True) - value(step, start, held_out=True)
    regions, drops = step.held_out.regions, step.held_out.drops
    parts = []
    for left in range(30):
        others = [d for d in range(30) if d != left]
        step.held_out = type(step.held_out)(regions[:, others], drops[:, others])
        parts.append(value(step, later, held_out=True) - value(step, start, held_out=True))
    error = (torch.stack(parts).var(0, correction=0) * 29).sqrt()
    torch.testing.assert_close(excess, whole + error)


@pytest.mark.parametrize("way", ["learn", "refine"])
@pytest.mark.parametrize("lr", [0.5, 30.0])
def test_a_map_is_the_start_or_better_on_what_is_held_out(way: str, lr: float) -> None:
    """Also with steps that are far too long."""
    model, x = net(), batch(6)
    method = LearnedPropagation(model)
    if way == "refine":
        rules = RuleSet.build(model, x, gate="feature")
        for number, parameter in enumerate(rules.parameters()):
            drawn = torch.randn(parameter.shape, generator=generator_of(3, number), dtype=torch.float64)
            parameter.data.copy_(0.5 * drawn)
        method = LearnedPropagation(model, rules=rules)
    start = method.attribute(x, 1, n_steps=0)
    found = method.attribute(x, 1, n_steps=4, objective=OPTIONS, lr=lr)
    step = made(model, x)
    gain = value(step, start, held_out=True) - value(step, found, held_out=True)
    kept = (found == start).flatten(1).all(1)
    assert ((gain > 0) | kept).all()
    if lr == 0.5 and way == "learn":
        assert not kept.all()


def test_nobody_is_certain_enough() -> None:
    model, x = net(), batch()
    method, never = LearnedPropagation(model), SampleOcclusion(deletions=40, held_out=30, certainty=1e6)
    assert torch.equal(method.attribute(x, 1, n_steps=3, objective=never), method.attribute(x, 1, n_steps=0))


def test_without_effect_the_start_stays() -> None:
    """Deletions that cost nothing teach nothing."""
    model, x = net(), torch.ones(2, 2, 16, 16, dtype=torch.float64)  # its own blur
    method = LearnedPropagation(model)
    torch.testing.assert_close(method.attribute(x, 1), method.attribute(x, 1, n_steps=0))


@pytest.mark.parametrize("baselines", [None, torch.zeros(2, 2, 16, 16)])
def test_a_batch_is_its_samples(baselines: Tensor | None) -> None:
    model, x, target = net(), batch(), [0, 2, 1]
    objective = SampleOcclusion(deletions=20, held_out=10, baselines=baselines)
    method = LearnedPropagation(model)
    together = method.attribute(x, target, objective=objective, seed=4)
    for row, one in enumerate(target):
        alone = method.attribute(x[row : row + 1], one, objective=objective, seed=4)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-12)


class Signals(nn.Module):
    """Takes a signal and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.last = nn.Conv1d(1, 4, 5), nn.Linear(7, 4), nn.Linear(8, 2)

    def forward(self, signal: Tensor, table: Tensor, scale: Any = 1.0) -> Tensor:
        return self.last(torch.cat([self.conv(signal).relu().mean(2), self.fc(table).relu()], 1)) * scale


@pytest.mark.parametrize("scale", [1.0, torch.tensor([[1.0], [2.0], [3.0]])])
def test_signals_tables_and_further_arguments(scale: Any) -> None:
    torch.manual_seed(1)
    model = Signals()
    signal, table = torch.randn(3, 1, 40), torch.randn(3, 7)
    found = LearnedPropagation(model, gate="channel").attribute((signal, table), 1, scale, n_steps=4)
    assert [part.shape for part in found] == [signal.shape, table.shape]
    start = LearnedPropagation(model, gate="channel").attribute((signal, table), 1, scale, n_steps=0)
    assert not torch.equal(found[0], start[0])


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "one deletion": (
        lambda: SampleOcclusion(deletions=1),
        "needs two deletions, .* deletions=1, held_out=64",
    ),
    "two held out": (lambda: SampleOcclusion(held_out=2), "deletions=128, held_out=2"),
    "certainty": (lambda: SampleOcclusion(certainty=-1.0), "certainty=-1.0 .* must not be negative"),
    "smoothing": (lambda: SampleOcclusion(smoothing=-0.1), "smoothing=-0.1 must not be negative"),
    "a mask": (
        lambda: LearnedPropagation(net()).attribute(batch(), 1, objective=OPTIONS, mask=MaxMask()),
        "mask= goes with an objective that judges the masked input",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        make()


def test_a_mask_alone_asks_for_the_objective_of_masks() -> None:
    model, x = net(), batch()
    method = LearnedPropagation(model)
    by_mask = method.attribute(x, 1, n_steps=3, mask=MaxMask())
    assert torch.equal(
        by_mask, method.attribute(x, 1, n_steps=3, mask=MaxMask(), objective=Agreement(baseline="noise"))
    )
    assert not torch.equal(by_mask, method.attribute(x, 1, n_steps=3))


def test_other_terms_are_followed() -> None:
    model, x = net(), batch()
    method = LearnedPropagation(model)
    dense = SampleOcclusion(deletions=40, held_out=30, term=OcclusionRegression(density=1.0))
    assert not torch.equal(method.attribute(x, 1, objective=dense), method.attribute(x, 1, objective=OPTIONS))


def test_learning_goes_on_from_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `learn` returns is the map of the lowest excess."""
    model, x = net(), batch(2)
    step, maps, excess = made(model, x), [], []
    run = step.run

    def watched(*, update: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        found, judged = run(update=update)
        maps.append(found[0].clone())
        excess.append(judged)
        return found, judged

    monkeypatch.setattr(step, "run", watched)
    (found,) = learn(step, 5)
    best = torch.stack(excess).argmin(0)
    for row, number in enumerate(best.tolist()):
        assert torch.equal(found[row], maps[number][row])
