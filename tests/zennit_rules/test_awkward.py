"""Models that hooks easily get silently wrong: checkpointed, patched, threaded, or two of them on one composite."""

from __future__ import annotations

import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
        with pytest.raises(LearnpropError, match="activation checkpointing"):
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


def in_thread(work: Any) -> Any:
    """What ``work()`` returns or raises in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


class TestThreads:
    def test_another_thread_runs_the_plain_model(self) -> None:
        """In the middle of a pass by the rules."""

        class Slow(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.tanh = nn.Tanh()

            def forward(self, x: Tensor) -> Tensor:
                y = F.relu(self.tanh(x))
                if len(x) == 1:
                    others.append(in_thread(lambda: gradient(self, z)))
                return F.relu(y - 0.1)

        model, others = Slow(), []
        x, z = torch.randn(1, 3), torch.randn(2, 3)
        rules = moved(model, z, "channel")
        with rules.applied(model):
            expected = gradient(model, z)
            found = gradient(model, torch.cat([x, z]))[1:]
            gradient(model, x)
        assert torch.equal(others[0], gradient(model, z))
        assert torch.equal(found, expected)
        assert not torch.equal(expected, others[0])

    @pytest.mark.parametrize("name", ["gates", "lrp", "deeplift", "attnlrp"])
    def test_two_explain_at_once(self, name: str) -> None:
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
        x = torch.randn(3, 4, dtype=torch.float64)
        rules, other = zr.RuleSet.build(model, x, name), zr.RuleSet.build(model, x, gate="quadrant")
        with torch.no_grad():
            for parameter in (*rules.parameters(), *other.parameters()):
                parameter.uniform_(0, 0.5)
        methods = [LearnedPropagation(model, rules=one) for one in (rules, rules, other)]
        methods.append(LearnedPropagation(model, rules=methods[0].rules))  # type: ignore[arg-type]
        expected, plain = [method.attribute(x, 1) for method in methods], gradient(model, x)

        def work(index: int) -> list[float]:
            if index == len(methods):
                return [float((gradient(model, x) - plain).abs().max()) for _ in range(20)]
            return [float((methods[index].attribute(x, 1) - expected[index]).abs().max()) for _ in range(20)]

        with ThreadPoolExecutor(5) as pool:
            assert max(max(part) for part in pool.map(work, range(5))) < 1e-12
        assert all("forward" not in vars(module) for module in model.modules())
        assert all("__reduce_ex__" not in vars(module) for module in model.modules())

    def test_one_composite_in_two_threads_is_refused(self) -> None:
        model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3)
        composite = zr.LearnedGradient()
        with composite.context(model):
            expected = gradient(model, x)
            with pytest.raises(zr.RuleError, match=r"registered on a model by another thread.*rules.composite\(\)"):
                in_thread(lambda: composite.register(model))
            assert torch.equal(gradient(model, x), expected)
            assert composite.rules.sites
        in_thread(lambda: composite.register(model))
        composite.remove()
        assert "forward" not in vars(model)

    def test_rules_that_other_threads_alone_could_have_used(self) -> None:
        model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3)
        rules = zr.RuleSet.build(model, x)
        alone = "applied to Sequential in one thread, and other threads alone ran it"
        with pytest.warns(zr.RuleWarning, match=alone), rules.applied(model):
            in_thread(lambda: gradient(model, x))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with rules.applied(model):
                in_thread(lambda: gradient(model, x))
                gradient(model, x)

    def test_learning_beside_a_thread_that_explains(self) -> None:
        model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(2, 3)
        method = LearnedPropagation(model, gate="channel")
        expected = method.attribute(x, 1, n_steps=2)
        with zr.RuleSet.build(model, x).applied(model):
            gradient(model, x)
            found = in_thread(lambda: method.attribute(x, 1, n_steps=2))
        assert torch.equal(found, expected)


def test_copies_of_a_data_parallel_model_run_in_other_threads() -> None:
    model = nn.DataParallel(nn.ReLU())
    with zr.LearnedGradient().context(model):  # without devices it runs its module
        pass
    model.device_ids = [0, 1]
    with pytest.raises(zr.RuleError, match=r"DataParallel.*pass `model.module`"), zr.LearnedGradient().context(model):
        pass


class TestOneCompositeOnSeveralModels:
    def test_each_has_rules_of_its_own(self) -> None:
        composite, x = zr.LearnedGradient(gate="channel"), torch.randn(2, 3)
        with composite.context(nn.Sequential(nn.Linear(9, 9), nn.ReLU())):
            pass  # registered, but no site was met: still free
        models = [nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)) for width in (4, 5, 4)]
        sets = []
        for model in models:
            with composite.context(model):
                gradient(model, x)
            sets.append(composite.rules)
            assert [p.shape[1] for p in composite.parameters()] == [model[0].out_features]
        assert len({id(rules) for rules in sets}) == 3
        with composite.context(models[0]):
            gradient(models[0], x)
        assert composite.rules is sets[0]
        assert len(composite.rules.sites) == 1

    def test_the_first_keeps_the_rules_there_were(self) -> None:
        composite, model = zr.LearnedGradient(), nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        rules = composite.rules
        with composite.context(model):
            gradient(model, torch.randn(2, 3))
        assert composite.rules is rules
        assert rules.sites

    def test_rules_that_were_given_stay_with_their_model(self) -> None:
        first, second = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        composite = zr.RuleSet.build(first, torch.randn(2, 3)).composite()
        with composite.context(first):
            pass
        with pytest.raises(zr.RuleError, match="belongs to another model"), composite.context(second):
            pass

    def test_a_model_is_not_kept_alive(self) -> None:
        composite, model = zr.LearnedGradient(), nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        with composite.context(model):
            gradient(model, torch.randn(2, 3))
        dead = weakref.ref(model)
        del model
        gc.collect()
        assert dead() is None


def test_options_beside_a_rule_set_must_be_its_own() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3)
    rules = zr.RuleSet.build(model, x, gate="quadrant")
    for options in ({"gate": "channel"}, {"start": "deconvnet"}, {"composite": "learned_guided_backprop"}):
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
