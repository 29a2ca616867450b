"""Models that hooks easily get silently wrong: checkpointed, patched, threaded, or two of them on one composite."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import zennit_rules as zr
from captum_learnprop import LearnedPropagation, LearnpropError


class Checkpointed(nn.Module):
    """Two activations, one of them functional, recomputed in the backward pass if asked."""

    def __init__(self, activation: nn.Module, functional: bool, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.activation, self.functional, self.again = activation, functional, again
        self.double()

    def part(self, x: Tensor) -> Tensor:
        x = self.activation(self.a(x))
        return torch.tanh(self.b(x)) if self.functional else self.b(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(checkpoint(self.part, x, use_reentrant=False) if self.again else self.part(x))


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]


def moved(model: nn.Module, x: Tensor, gate: str) -> zr.RuleSet:
    rules = zr.RuleSet.build(model, x, gate=gate)
    with torch.no_grad():
        for parameter in rules.parameters():
            parameter.normal_()
    return rules


@pytest.mark.parametrize("gate", ["channel", "feature"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.GELU()], ids=repr)
class TestCheckpointing:
    def test_modules_are_right(self, gate: str, activation: nn.Module) -> None:
        x = torch.randn(3, 4, dtype=torch.float64)
        plain, again = (Checkpointed(activation, False, flag) for flag in (False, True))
        rules = moved(plain, x, gate)
        with rules.applied(plain):
            expected = gradient(plain, x)
        with rules.applied(again):
            torch.testing.assert_close(gradient(again, x), expected, rtol=1e-12, atol=1e-14)

    def test_what_cannot_be_right_is_loud(self, gate: str, activation: nn.Module) -> None:
        x = torch.randn(3, 4, dtype=torch.float64)
        model = Checkpointed(activation, True, True)
        rules = moved(model, x, gate)
        with rules.applied(model), pytest.raises(Exception, match="different number of tensors"):
            gradient(model, x)
        with pytest.raises(Exception, match="different number of tensors"):
            LearnedPropagation(model, gate=gate).attribute(x, target=1, n_steps=1)


def test_an_instance_with_a_forward_of_its_own_keeps_it() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double(), torch.randn(2, 4).double()
    model[1].forward = lambda z: F.relu(z) * 2
    expected, plain = model(x), gradient(model, x)
    rules = zr.RuleSet.build(model, x)
    assert [site.name for site in rules.sites] == ["1.functional_relu"]
    with rules.applied(model):
        assert torch.equal(model(x), expected)
        torch.testing.assert_close(gradient(model, x), plain)


def test_coverage_is_kept_in_the_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.rrelu(x, training=True)).clamp(0, 6)

    model = Odd()
    rules = zr.RuleSet.build(model, torch.randn(2, 3))
    assert [row.function for row in rules.coverage().missed] == ["RreluWithNoise"]
    assert any(row.function == "Clamp" for row in rules.coverage().rows)
    loaded = zr.RuleSet.load(rules.save(tmp_path / "r.safetensors", model), model)
    assert loaded.coverage() == rules.coverage()


def test_clamps_in_place_are_sites() -> None:
    class Clamps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            y.clamp_(min=0)
            z = y - 0.5
            return z.clamp_min_(0)

    rules = zr.RuleSet.build(Clamps(), torch.randn(2, 3), start="guided_backprop")
    assert [site.name for site in rules.sites] == ["functional_relu", "functional_relu#1"]
    x = torch.randn(2, 3)
    assert torch.equal(Clamps()(x), (x.clamp(min=0) - 0.5).clamp(min=0))


def test_two_threads_on_one_model_are_refused() -> None:
    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 1:
                other = Thread(target=run, args=(torch.randn(2, 3),))
                other.start()
                other.join()
            return F.relu(x)

    model, errors = Slow(), []

    def run(x: Tensor) -> None:
        try:
            model(x)
        except zr.RuleError as error:
            errors.append(str(error))

    with zr.LearnedGradient().context(model):
        model(torch.randn(1, 3))
    assert len(errors) == 1
    assert "two threads" in errors[0]


def test_one_open_composite_is_for_one_model() -> None:
    composite = zr.LearnedGradient()
    with composite.context(nn.Sequential(nn.Linear(9, 9), nn.ReLU())):
        pass  # registered, but no site was met: still free
    first, second = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    with composite.context(first):
        first(torch.randn(2, 3))
    with pytest.raises(zr.RuleError, match="belongs to another model"), composite.context(second):
        pass


def test_options_beside_a_rule_set_must_be_its_own() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3)
    rules = zr.RuleSet.build(model, x, gate="quadrant")
    for options in ({"gate": "feature"}, {"start": "deconvnet"}, {"composite": "learned_guided_backprop"}):
        with pytest.raises(zr.RuleError, match=r"leave .* out"):
            LearnedPropagation(model, rules=rules, **options)
    with pytest.raises(zr.RuleError, match="leave it out"):
        zr.LearnedGradient(gate="feature", rules=rules)
    LearnedPropagation(model, rules=rules, gate="quadrant", start="gradient")


def test_learning_inside_applied_rules_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3)
    with zr.RuleSet.build(model, x).applied(model), pytest.raises(LearnpropError, match=r"outside of rules\.applied"):
        LearnedPropagation(model).attribute(x, target=0)


def test_output_that_is_no_number_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    rules = zr.RuleSet.build(model, x)
    nn.init.constant_(model[2].bias, float("nan"))
    for method in (LearnedPropagation(model), LearnedPropagation(model, rules=rules)):
        with pytest.raises(LearnpropError, match="NaN or infinite"):
            method.attribute(x, target=0)


def test_channels_of_sums_of_linear_maps_come_last() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.linear(F.gelu(self.a(x) + self.b(x)), self.a.weight.T))

    rules = zr.RuleSet.build(Tokens(), torch.randn(2, 5, 4))
    assert [site.channel_dim for site in rules.sites] == [2, 2]
