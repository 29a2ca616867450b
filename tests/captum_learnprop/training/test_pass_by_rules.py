"""The pass by rules: what it gives, what it leaves behind, and that all of its ways agree."""

from __future__ import annotations

import pytest
import torch
from rule_nets import NETS, images, randomise
from torch import Tensor, nn
from untouched import assert_untouched, snapshot

from captum_learnprop.errors import LearnpropError, TargetError
from captum_learnprop.training.pass_by_rules import (
    RulePass,
    in_training_mode,
    leaves_of,
    left_as_found,
    rules_in_place,
    rules_recorded,
    second_derivatives,
)
from zennit_rules import RuleSet


def moved(model: nn.Module, x: Tensor) -> RuleSet:
    rules = RuleSet.build(model, x, gate="feature")
    torch.manual_seed(3)
    randomise(rules.parameters())
    return rules


def by_hand(model: nn.Module, rules: RuleSet, x: Tensor, target: int) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    with rules.applied(model):
        (found,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
    return found


class TestRulePass:
    @pytest.mark.parametrize("name", NETS)
    @pytest.mark.parametrize("create_graph", [False, True])
    def test_in_place(self, name: str, create_graph: bool) -> None:
        model, x = NETS[name](), images().detach()
        rules = moved(model, x)
        composite, leaves = rules.composite(), leaves_of((x,))
        with left_as_found(model, leaves), rules_in_place(model, composite, create_graph=create_graph):
            run = RulePass.of(model, composite, leaves)
            (found,) = run.attributions(run.seed_of(run.select(2)), create_graph=create_graph)
        assert found.requires_grad == create_graph
        torch.testing.assert_close(found.detach(), by_hand(model, rules, x, 2), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("name", NETS)
    def test_recorded_passes_explain_again_and_again(self, name: str) -> None:
        model, x = NETS[name](), images().detach()
        rules = moved(model, x)
        composite = rules.composite()
        before = snapshot(model)
        with rules_recorded(model, composite):
            run = RulePass.of(model, composite, leaves_of((x,)))
        assert_untouched(before, model)
        for target in (1, 4):
            (found,) = run.attributions(run.seed_of(run.select(target)), keep=True)
            torch.testing.assert_close(found, by_hand(model, rules, x, target), rtol=1e-10, atol=1e-12)

    def test_without_gradients_around(self) -> None:
        model, x = NETS["vgg"](), images().detach()
        composite = moved(model, x).composite()
        with torch.no_grad():
            with rules_recorded(model, composite):
                run = RulePass.of(model, composite, leaves_of((x,)))
            (found,) = run.attributions(run.seed_of(run.select(0)), keep=True)
        assert bool(found.any())

    def test_refuses(self) -> None:
        model, x = NETS["vgg"](), images().detach()
        composite = moved(model, x).composite()
        with rules_in_place(model, composite):
            run = RulePass.of(model, composite, leaves_of((x,)))
            with pytest.raises(TargetError, match="target 9 does not fit"):
                run.select(9)
            with pytest.raises(LearnpropError, match="does not take inputs of shape"):
                RulePass.of(model, composite, leaves_of((x[:, :, :4],)))
        with torch.no_grad():
            model.get_parameter("10.bias").fill_(torch.inf)
        with rules_in_place(model, composite), pytest.raises(LearnpropError, match="NaN or infinite for samples"):
            RulePass.of(model, composite, leaves_of((x,))).select(0)


class TestLeaves:
    def test_copies(self) -> None:
        x = torch.rand(2, 3)
        (leaf,) = leaves_of((x,))
        assert leaf.requires_grad
        assert not x.requires_grad
        assert leaf.data_ptr() != x.data_ptr()

    def test_inputs_that_are_differentiated_are_taken_themselves(self) -> None:
        x, other = torch.rand(2, 3, requires_grad=True), torch.rand(2)
        first, second = leaves_of((x, other), create_graph=True)
        assert first is x
        assert second is not other
        assert leaves_of((x,))[0] is not x


class TestLeftAsFound:
    def test_buffers_and_random_numbers(self) -> None:
        model = nn.BatchNorm1d(3).train()
        x = torch.rand(4, 3)
        before, state = snapshot(model), torch.random.get_rng_state()
        with left_as_found(model, (x,), seed=4, draws=True):
            model(x)
            drawn = torch.rand(3)
        assert_untouched(before, model)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(4)))

    def test_random_numbers_that_nobody_draws_are_left_alone(self) -> None:
        state = torch.random.get_rng_state()
        with left_as_found(lambda x: x):
            torch.rand(1)
        assert not torch.equal(torch.random.get_rng_state(), state)


def test_training_mode() -> None:
    assert in_training_mode(nn.Sequential(nn.Linear(2, 2)))
    assert not in_training_mode(nn.Linear(2, 2).eval())
    assert not in_training_mode(lambda x: x)


def test_attention_can_be_differentiated_twice() -> None:
    q = torch.rand(1, 2, 4, 8, requires_grad=True)
    with second_derivatives():
        out = nn.functional.scaled_dot_product_attention(q, q, q).sum()
        (first,) = torch.autograd.grad(out, q, create_graph=True)
    assert bool(torch.autograd.grad(first.square().sum(), q)[0].any())
