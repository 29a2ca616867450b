"""Maps that are differentiable by one linearised pass, against double backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_learnprop.training import linearised
from captum_learnprop.training.rule_maps import RuleMaps
from zennit_rules import RuleSet
from zennit_rules.core import hook
from zennit_rules.core.tangent import Tape
from zennit_rules.rules import attention, function_call, relevance


class Net(nn.Module):
    """A small net with everything that sites and their surroundings have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.norm.running_mean, self.norm.running_var = torch.randn(6), torch.rand(6) + 0.5
        self.act, self.pool, self.last = nn.ReLU6(), nn.MaxPool2d(2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.first(x))))
        return self.last((self.act(self.second(x)) + 0.3 * x[..., 1:-1, 1:-1]).mean((2, 3)))


def maps_of(composite: str, kind: type[nn.Module] = Net, **options: Any) -> tuple[RuleMaps, Tensor, list[nn.Parameter]]:
    net = kind().double().eval()
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    rules = RuleSet.build(net, x, composite=composite, gate="feature", **options)
    for parameter in rules.parameters():
        nn.init.normal_(parameter, std=0.2)
    return RuleMaps(net, rules, "absolute", 0.05), x, rules.parameters()


def gradients(maps: RuleMaps, x: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The maps of two targets of each image, and the gradient of a number that both decide."""
    recorded = maps.record(x, create_graph=True)
    one, two = (recorded.explain(torch.tensor(targets)) for targets in ([0, 1, 2, 3], [4, 4, 0, 1]))
    torch.manual_seed(1)
    value = (one * torch.randn_like(one)).sum() + (one * two).sum()
    return torch.stack([one, two]).detach(), torch.autograd.grad(value, parameters, materialize_grads=True)


@pytest.mark.parametrize("options", [{}, {"gate_options": {"position": True}, "pooling": "soft"}], ids=str)
def test_the_gradient_is_that_of_double_backward(options: dict[str, Any]) -> None:
    maps, x, parameters = maps_of("learned_gradient", **options)
    assert maps.linearised
    found = gradients(maps, x, parameters)
    maps.linearised = False
    torch.testing.assert_close(found, gradients(maps, x, parameters), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"gate_options": {"contrast": True}}, {"fusion": True}], ids=["contrast", "fusion"]
)
def test_further_streams_are_differentiated_twice(options: dict[str, Any]) -> None:
    maps, _, _ = maps_of("learned_gradient", **options)
    assert not maps.linearised


class Attending(nn.Module):
    """Attention, a norm, a gate that multiplies, and a curve: what rules of functions are made for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.act = nn.Conv2d(3, 8, 3, stride=3), nn.LayerNorm(8), nn.GELU()
        self.attention, self.gate, self.last = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 8),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.first(x).flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = self.act(tokens) * torch.sigmoid(self.gate(tokens.mean(1, keepdim=True)))
        return self.last(tokens.mean(1))


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("learned_gradient", {"pooling": "soft", "fusion": True}),
    ("learned_gradient", {"gate_options": {"contrast": True}}),
    ("learned_epsilon_gamma_box", {"pooling": "soft"}),
    ("learned_epsilon_gamma_box", {"rule_options": {"gamma": 0.25, "negative": "mirrored", "dense": "alpha_beta"}}),
    ("learned_epsilon_gamma_box", {"gate_options": {"contrast": True}}),
    ("learned_deeplift", {"pooling": "soft"}),
    ("learned_transformer", {}),
    ("learned_attnlrp", {}),
]


@pytest.mark.parametrize(
    ("net", "composite", "options"),
    [(net, *other) for net in (Net, Attending) for other in OTHERS if net is Net or "fusion" not in other[1]],
    ids=str,
)
def test_signals_that_are_computed_again_give_the_gradient_of_those_that_are_kept(
    net: type[nn.Module], composite: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, x, parameters = maps_of(composite, net, **options)
    assert not maps.linearised
    found = gradients(maps, x, parameters)
    for module in (hook, relevance, function_call, attention):
        monkeypatch.setattr(module, "are_alone", lambda: False)
    torch.testing.assert_close(found, gradients(maps, x, parameters), rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("fault", ["other numbers", "an error"])
def test_double_backward_stands_in(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, x, parameters = maps_of("learned_gradient")
    expected = gradients(maps, x, parameters)
    right = Tape.push_forward

    def wrong(tape: Tape, v: Any, on_site: Any) -> Tensor:
        if fault == "an error":
            raise RuntimeError("no linear form")
        return 2 * right(tape, v, on_site)

    monkeypatch.setattr(Tape, "push_forward", wrong)
    torch.testing.assert_close(gradients(maps, x, parameters), expected, rtol=1e-8, atol=1e-12)


def test_rules_that_change_before_the_gradient_are_told() -> None:
    maps, x, parameters = maps_of("learned_gradient")
    found = maps.record(x, create_graph=True).explain(torch.zeros(4, dtype=torch.long))
    with torch.no_grad():
        parameters[0].add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(found.sum(), parameters)


def test_mismatch_is_about_the_adjoint_identity() -> None:
    maps, v = (torch.ones(2, 3),), (torch.full((2, 3), 2.0),)
    assert linearised.mismatch(maps, v, torch.tensor([6.0, 6.0]), torch.ones(2)) is None
    said = linearised.mismatch(maps, v, torch.tensor([6.0, 7.0]), torch.ones(2))
    assert "12 against 13" in str(said)
