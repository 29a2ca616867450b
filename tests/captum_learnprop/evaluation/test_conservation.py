"""Conservation: known shares, errors, and the measure on networks whose losses are known."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from untouched import assert_untouched, differences, snapshot
from zennit.composites import EpsilonGammaBox, EpsilonPlus

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation import Conservation, conservation, measure_conservation
from captum_learnprop.plugins import PluginManager
from zennit_rules import LearnedEpsilonGammaBox, LearnedGradient, RuleSet, canonizers_for


class TestShare:
    def test_known_values(self) -> None:
        relevance = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
        shares = conservation(relevance, torch.tensor([[0.0, 6.0], [1.0, 0.0]]))
        assert shares.dtype == torch.float64
        torch.testing.assert_close(shares, torch.tensor([0.5, -0.5], dtype=torch.float64))

    def test_several_inputs_add_up(self) -> None:
        parts = (torch.ones(2, 3, 4, 4), torch.full((2, 5), 2.0))
        torch.testing.assert_close(conservation(parts, torch.full((2,), 58.0)), torch.ones(2, dtype=torch.float64))

    def test_sums_in_double_precision(self) -> None:
        relevance = torch.cat([torch.full((1, 1), 2.0**25), torch.ones(1, 64)], 1)
        assert float(conservation(relevance, torch.tensor([2.0**25 + 64]))) == 1.0

    @pytest.mark.parametrize(
        ("relevance", "output", "message"),
        [
            (torch.ones(2, 3), torch.ones(3), "with the same B"),
            (torch.ones(()), torch.ones(()), "with the same B"),
            (torch.ones(0, 3), torch.ones(0), "at least 1"),
            (torch.tensor([[1.0], [float("nan")]]), torch.ones(2), "^relevance of sample 1 has NaN"),
            (torch.ones(2, 1), torch.tensor([float("inf"), 1.0]), "^output_relevance of sample 0 has NaN"),
            (torch.ones(2, 2), torch.tensor([[1.0, 0.0], [1.0, -1.0]]), "sample 1 sums to 0"),
        ],
    )
    def test_errors(self, relevance: Tensor, output: Tensor, message: str) -> None:
        with pytest.raises(LearnpropError, match=message):
            conservation(relevance, output)

    def test_registered_as_a_metric(self) -> None:
        assert PluginManager.discover().create("metric", "conservation", torch.ones(1, 2), torch.ones(1)) == 2.0


class Doubled(nn.Module):
    """``fc(x + x)``: one linear layer over a skip connection."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2, dtype=torch.float64)
        nn.init.uniform_(self.fc.weight, 0.5, 1.0)
        nn.init.constant_(self.fc.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + x)


TINY = partial(EpsilonPlus, epsilon=1e-12, stabilizer=1e-12)


class TestMeasure:
    inputs = torch.tensor([[1.0, 2.0, 3.0], [2.0, 0.5, 1.0]], dtype=torch.float64)
    targets = torch.tensor([0, 1])

    def test_biases_take_their_part(self) -> None:
        model = Doubled(bias=0.7).eval()
        found = measure_conservation(
            model, TINY, self.inputs, self.targets, canonizers=canonizers_for(model, self.inputs)
        )
        assert isinstance(found, Conservation)
        logits = model(self.inputs)[[0, 1], [0, 1]].detach()
        torch.testing.assert_close(found.with_biases, (logits - 0.7) / logits, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.without_biases, torch.ones_like(logits), rtol=1e-6, atol=0)

    def test_model_is_free_again(self) -> None:
        model = Doubled(bias=0.7).eval()
        before, state = snapshot(model)["modules"], {k: v.clone() for k, v in model.state_dict().items()}
        measure_conservation(model, TINY, self.inputs, self.targets, canonizers=canonizers_for(model, self.inputs))
        assert not differences(before, snapshot(model)["modules"])
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())

    def test_a_skip_without_a_rule_doubles(self) -> None:
        found = measure_conservation(Doubled(bias=0.0).eval(), TINY, self.inputs, self.targets)
        torch.testing.assert_close(found.without_biases, torch.full((2,), 2.0, dtype=torch.float64))

    def test_epsilon_takes_its_part(self) -> None:
        model = Doubled(bias=0.0).eval()
        loose = partial(EpsilonPlus, epsilon=0.5)
        found = measure_conservation(
            model, loose, self.inputs, self.targets, canonizers=canonizers_for(model, self.inputs)
        )
        logits = model(self.inputs)[[0, 1], [0, 1]].detach()
        torch.testing.assert_close(found.with_biases, logits / (logits + 0.5), rtol=1e-5, atol=0)

    def test_composite_by_name_or_with_arguments(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).double().eval()
        x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
        box = partial(EpsilonGammaBox, low=torch.zeros(1, 1, 1, 1), high=torch.ones(1, 1, 1, 1))
        assert measure_conservation(model, box, x, self.targets).with_biases.shape == (2,)
        named = measure_conservation(model, "epsilon_plus", x, self.targets)
        torch.testing.assert_close(vars(named), vars(measure_conservation(model, EpsilonPlus, x, self.targets)))

    def test_learned_rules(self) -> None:
        model = Doubled(bias=0.7).eval()
        rules = RuleSet.build(model, self.inputs, LearnedEpsilonGammaBox.name)
        rules.parameters()[0].data.fill_(1.0)
        logits = model(self.inputs)[[0, 1], [0, 1]].detach()
        for composite in (
            LearnedEpsilonGammaBox.name, LearnedEpsilonGammaBox, rules, partial(LearnedEpsilonGammaBox, rules=rules),
            partial(LearnedEpsilonGammaBox, rule_options={"dense": "gamma"}),
        ):  # fmt: skip
            found = measure_conservation(model, composite, self.inputs, self.targets)
            torch.testing.assert_close(found.with_biases, (logits - 0.7) / logits, rtol=1e-5, atol=0)
            torch.testing.assert_close(found.without_biases, torch.ones_like(logits), rtol=1e-5, atol=0)
        assert rules.gate("fc").bias == "shared"

    def test_a_rule_option_of_biases_is_kept(self) -> None:
        model = Doubled(bias=0.7).eval()
        zero = partial(LearnedEpsilonGammaBox, rule_options={"bias": "zero"})
        found = measure_conservation(model, zero, self.inputs, self.targets)
        torch.testing.assert_close(found.with_biases, found.without_biases)

    def test_rules_that_are_no_relevance_are_refused(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double().eval()
        with pytest.raises(LearnpropError, match="rules of 'learned_gradient' do not propagate relevance"):
            measure_conservation(model, RuleSet.build(model, self.inputs), self.inputs, self.targets)

    def test_errors(self) -> None:
        model = Doubled(bias=0.0).eval()
        before = snapshot(model)
        with pytest.raises(
            LearnpropError, match=r"no composite 'epsilon' of relevance; .*epsilon_plus.*learned_epsilon"
        ) as e:
            measure_conservation(model, "epsilon", self.inputs, self.targets)
        assert "learned_gradient" not in str(e.value)
        with pytest.raises(LearnpropError, match="no composite 'learned_gradient' of relevance"):
            measure_conservation(model, "learned_gradient", self.inputs, self.targets)
        with pytest.raises(LearnpropError, match="LearnedGradient does not propagate relevance"):
            measure_conservation(model, partial(LearnedGradient, gate="channel"), self.inputs, self.targets)
        with pytest.raises(LearnpropError, match=r"missing .*low.*functools\.partial"):
            measure_conservation(model, "epsilon_gamma_box", self.inputs, self.targets)
        with pytest.raises(LearnpropError, match="targets must be an int64 tensor, got list"):
            measure_conservation(model, TINY, self.inputs, [0, 1])  # type: ignore[arg-type]
        with pytest.raises(LearnpropError, match=r"int64 of shape \(2,\), got torch.int64 of \(1,\)"):
            measure_conservation(model, TINY, self.inputs, self.targets[:1])
        with pytest.raises(LearnpropError, match=r"must return \(B, classes\)"):
            measure_conservation(nn.Identity(), TINY, self.inputs[:, :, None], self.targets)
        with pytest.raises(RuntimeError):
            measure_conservation(model, TINY, self.inputs[:, :2], self.targets)
        assert_untouched(before, model)
