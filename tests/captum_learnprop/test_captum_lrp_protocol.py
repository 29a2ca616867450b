"""What the LRP adapters rely on in captum beyond its public names; a test that fails names what has moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LRP
from torch import Tensor, nn

from captum_learnprop import _compat

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor")


class Spy(_compat.PropagationRule):
    """A rule that notes what captum asks of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        self.asked.append("forward_hook")

    def forward_hook_weights(self, module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        self.asked.append("forward_hook_weights")

    def forward_pre_hook_activations(self, module: nn.Module, inputs: Any) -> None:
        self.asked.append("forward_pre_hook_activations")

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        self.asked.append("_manipulate_weights")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def test_what_captum_asks_of_a_rule_and_in_which_order() -> None:
    net, spy = model(), Spy()
    net[0].rule = spy  # type: ignore[assignment]
    LRP(net).attribute(torch.randn(2, 3, dtype=torch.float64), target=0)
    assert spy.asked == ["forward_hook_weights", "forward_pre_hook_activations", "forward_hook"]


def test_a_rule_that_hooks_nothing_leaves_the_gradient_as_relevance() -> None:
    net, x = model()[:1], torch.randn(2, 3, dtype=torch.float64)
    net[0].rule = Spy()
    found = LRP(net).attribute(x, target=1)
    torch.testing.assert_close(found.detach(), (net[0].weight[1] * net(x)[:, 1:2]).detach())


def test_captums_table_of_activations() -> None:
    assert set(_compat.SUPPORTED_NON_LINEAR_LAYERS) == {nn.ReLU, nn.Dropout, nn.Tanh}


def test_captums_table_of_default_rules_is_all_epsilon() -> None:
    table = _compat.SUPPORTED_LAYERS_WITH_RULES
    assert {nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d} <= table.keys()
    assert set(table.values()) == {_compat.EpsilonRule}


@pytest.mark.parametrize("module", ["model", "container"])
def test_captum_looks_at_modules_without_children_only(module: str) -> None:
    net = model() if module == "model" else nn.Sequential(nn.Sequential(*model()))
    (net if module == "model" else net[0]).rule = spy = Spy()  # type: ignore[assignment]
    LRP(net).attribute(torch.randn(2, 3, dtype=torch.float64), target=0)
    assert spy.asked == []


def test_options_of_captums_rules() -> None:
    assert _compat.EpsilonRule().STABILITY_FACTOR == 1e-9
    assert _compat.EpsilonRule(0.5).STABILITY_FACTOR == 0.5
    gamma, positive = _compat.GammaRule(0.7, set_bias_to_zero=True), _compat.Alpha1_Beta0_Rule()
    assert (gamma.gamma, gamma.set_bias_to_zero, gamma.STABILITY_FACTOR) == (0.7, True, 1e-9)
    assert (positive.set_bias_to_zero, positive.STABILITY_FACTOR) == (False, 1e-9)
    assert issubclass(_compat.IdentityRule, _compat.EpsilonRule)
