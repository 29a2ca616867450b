"""Coverage: every layer is named, with its rule or the reason why it has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_nets import NETS, images, prepare
from torch import Tensor, nn

import zennit_rules as zr


def rows(rules: zr.RuleSet) -> dict[str, tuple[str, str, str]]:
    """Function, rule and reason by name."""
    return {r.name: (r.function, r.rule, r.reason) for r in rules.coverage().rows}


@pytest.mark.parametrize("pooling", ["exact", "soft"])
@pytest.mark.parametrize("net", NETS)
def test_every_site_is_listed(net: str, pooling: str) -> None:
    rules = zr.RuleSet.build(NETS[net](), images(), pooling=pooling)
    table = rows(rules)
    for site in rules.sites:
        assert table[site.name][0] == site.function
        assert table[site.name][1] == type(rules.gate(site.name)).__name__
    others = [name for name in table if name not in {s.name for s in rules.sites}]
    assert bool(others) == (pooling == "exact")
    assert all("max-pools are exact" in table[name][2] for name in others)
    assert rules.coverage().complete
    assert not rules.coverage().missed


class Attention(nn.Module):
    """Attention, softmax, and an activation that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.softmax = nn.MultiheadAttention(4, 2, batch_first=True), nn.Softmax(-1)
        self.idle, self.relu = nn.GELU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Token scores."""
        return self.softmax(self.relu(self.attention(x, x, x)[0]))


def test_layers_that_are_no_activations_are_named_with_the_reason() -> None:
    rules = zr.RuleSet.build(prepare(Attention()), torch.randn(2, 3, 4).double())
    table = rows(rules)
    assert table["attention"] == ("MultiheadAttention", "", "not element-wise: keeps its own gradient")
    assert table["softmax"] == ("Softmax", "", "not element-wise: keeps its own gradient")
    assert table["idle"] == ("GELU", "", "not called")
    assert table["relu"][1] == "ChannelGate"
    assert rules.coverage().complete
    text = str(rules.coverage())
    assert all(name in text for name in table)
    assert "- (not called)" in text


class Doubled(torch.autograd.Function):
    """A custom Function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """A ReLU."""
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """Its gradient."""
        return g * (ctx.saved_tensors[0] > 0)


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.relu(x) * 2


class Hidden(nn.Module):
    """One site, and an activation that no rule sees."""

    def __init__(self, hidden: Any) -> None:
        super().__init__()
        self.fc, self.hidden = nn.Linear(4, 4), hidden

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        return F.relu(self.fc(self.hidden(self.fc(x))))


@pytest.mark.parametrize(("hidden", "function"), [(Doubled.apply, "Doubled"), (scripted, "Relu")])
def test_layers_out_of_reach_are_reported(hidden: Any, function: str) -> None:
    model = prepare(Hidden(hidden))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    rules = zr.RuleSet.build(model, x)
    (missed,) = rules.coverage().missed
    assert missed.function == function
    assert missed.reason.startswith("out of reach")
    assert not rules.coverage().complete
    assert len(rules.sites) == 1


def test_scripted_code_that_was_fused_is_reported() -> None:
    model = prepare(Hidden(scripted))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    for _ in range(4):  # the profiling executor of TorchScript builds its own backward pass after a few calls
        model(x).sum().backward()
    assert not zr.RuleSet.build(model, x).coverage().complete


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)),
        Hidden(Doubled.apply).fc,
    ],
)
def test_a_model_without_sites_is_named(model: nn.Module) -> None:
    with pytest.raises(zr.RuleError, match=f"{type(model).__name__} has no site"):
        zr.RuleSet.build(model, torch.randn(2, 4))


def test_a_model_whose_only_activation_is_out_of_reach_says_so() -> None:
    class Lost(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            return self.hidden(self.fc(x))

    with pytest.raises(zr.RuleError, match=r"(?s)Lost has no site.*Doubled.*out of reach"):
        zr.RuleSet.build(Lost(Doubled.apply), torch.randn(2, 4))


def test_outputs_in_containers_are_searched() -> None:
    class Several(Hidden):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return {"scores": out, "more": [(self.hidden(out), 3)]}

    assert not zr.RuleSet.build(Several(Doubled.apply), torch.randn(2, 4)).coverage().complete


def test_an_open_rule_set_has_no_coverage_yet() -> None:
    with pytest.raises(zr.RuleError, match="coverage is known once"):
        zr.LearnedGradient().rules.coverage()
