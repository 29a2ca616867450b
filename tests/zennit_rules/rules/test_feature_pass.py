"""The closed forms of feature gates, against the formula itself differentiated by autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pairwise import crossed
from rule_nets import STARTS, randomise
from torch import Tensor, nn

import zennit_rules as zr
from zennit_rules.composites.lrp import PassCall
from zennit_rules.rules import feature_pass
from zennit_rules.rules.activation import ActivationCall
from zennit_rules.rules.attention import MixedCall, SoftmaxCall
from zennit_rules.rules.feature_pass import Index, feature_signal, feature_transpose
from zennit_rules.rules.rect_grad import RectGradCall
from zennit_rules.rules.rescale import RescaleCall

SHAPES = {
    "images": ((3, 5, 6, 7), 1), "sequences": ((3, 5, 9), 1), "volumes": ((2, 3, 4, 3, 5), 1), "features": ((4, 6), 1),
    "tokens": ((3, 7, 5), 2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few elements: most samples are cut, and some pieces hold several."""
    monkeypatch.setattr(feature_pass, "PIECE", 50)


class Case:
    """A gate with random parameters, a pre-activation, a signal and a gradient."""

    def __init__(self, shape: str, start: str, position: bool, samples: bool = False) -> None:
        torch.manual_seed(0)
        size, dim = SHAPES[shape]
        count = size[0] if samples else None
        self.gate = zr.FeatureGate(size, start=start, position=position, samples=count, channel_dim=dim).double()
        randomise(self.gate.parameters())
        self.z, self.g, self.v = (torch.randn(size, dtype=torch.float64) for _ in range(3))

    def slope(self, index: Index) -> Tensor:
        return torch.sigmoid(self.z[index])

    def formula(self, g: Tensor) -> Tensor:
        a, b = self.gate(self.z, g)
        return a * g * torch.sigmoid(self.z) + b * g

    def expected(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        g = self.g.clone().requires_grad_()
        passed = self.formula(g)
        return passed.detach(), torch.autograd.grad(passed, (g, *self.gate.parameters()), self.v)


def assert_all_close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@crossed(shape=sorted(SHAPES), start=STARTS, position=[True, False], samples=[True, False])
def test_closed_forms_are_the_formula(shape: str, start: str, position: bool, samples: bool) -> None:
    case = Case(shape, start, position, samples)
    passed, gradients = case.expected()
    with torch.no_grad():
        found = feature_signal(case.gate, case.z, case.g, case.slope)
    assert found is not None
    assert_all_close(found, passed)
    transposed = feature_transpose(case.gate, case.z, case.g, case.slope, case.v)
    assert transposed is not None
    assert_all_close((transposed[0], *transposed[1].values()), gradients)
    assert list(transposed[1]) == [name for name, _ in case.gate.named_parameters()]


def test_without_a_factor_relevance_passes() -> None:
    case = Case("images", "gradient", True)
    a, b = case.gate(case.z, case.g)
    with torch.no_grad():
        found = feature_signal(case.gate, case.z, case.g, lambda index: None)
    torch.testing.assert_close(found, ((a + b) * case.g).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_of_tiny_and_huge_signals(scale: float) -> None:
    case = Case("images", "gradient", True)
    gate, z, g = case.gate.float(), case.z.float(), case.g.float() * scale
    a, b = gate(z, g)
    with torch.no_grad():
        found = feature_signal(gate, z, g, lambda index: None)
    torch.testing.assert_close(found, ((a + b) * g).detach(), rtol=1e-5, atol=1e-6 * scale)


def test_silent_samples() -> None:
    case = Case("images", "gradient", True)
    case.g[0], case.z[1] = 0, 0
    _, gradients = case.expected()
    transposed = feature_transpose(case.gate, case.z, case.g, case.slope, case.v)
    assert transposed is not None
    assert_all_close((transposed[0], *transposed[1].values()), gradients)


def test_the_formula_serves_whatever_is_differentiated_in_more_than_rules() -> None:
    case = Case("images", "gradient", True)
    assert feature_signal(case.gate, case.z, case.g, case.slope) is None  # parameters that are recorded
    contrast = zr.FeatureGate((3, 5, 6, 7), contrast=True).double()
    with torch.no_grad():
        assert feature_signal(contrast, case.z, case.g, case.slope) is None
        assert feature_signal(zr.ChannelGate((3, 5, 6, 7)).double(), case.z, case.g, case.slope) is None
        assert feature_signal(case.gate, case.z.bfloat16(), case.g.bfloat16(), case.slope) is None


def test_a_rule_of_its_own_is_not_run_as_another() -> None:
    class Doubled(ActivationCall):
        def through(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
            return 2 * super().through(saved, g)

    class Halved(Doubled):
        def factor(self, saved: tuple[Tensor, ...], index: Index) -> Tensor | None:
            return None

    class Same(ActivationCall):
        pass

    assert [call.has_factor for call in (ActivationCall, Doubled, Halved, Same)] == [True, False, True, True]
    assert [call.has_factor for call in (PassCall, RescaleCall)] == [True, True]
    assert [call.has_factor for call in (MixedCall, SoftmaxCall, RectGradCall)] == [False, False, False]


ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.PReLU(4), nn.Hardswish(), nn.Sigmoid(), nn.ELU(inplace=True)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
@pytest.mark.parametrize("composite", ["learned_gradient", "learned_deeplift", "learned_epsilon_gamma_box"])
def test_maps_do_not_depend_on_what_is_recorded(
    activation: nn.Module, composite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), activation, nn.Conv2d(4, 4, 3), activation, nn.Flatten(), nn.Linear(64, 3))
    net = net.double().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    rules = zr.RuleSet.build(net, x, composite=composite, gate="feature", gate_options={"position": True})
    randomise(rules.parameters())

    def attributed(create_graph: bool) -> Tensor:
        leaf, used = x.clone().requires_grad_(), rules.composite()
        with used.context(net):
            output = net(leaf)
            seed = F.one_hot(torch.tensor([0, 1]), 3).double()
            (found,) = used.attribute(output, (leaf,), seed, create_graph=create_graph)
        return found

    fused = attributed(False)
    monkeypatch.setattr(feature_pass, "_serves", lambda *given: False)
    torch.testing.assert_close(fused.detach(), attributed(False).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fused.detach(), attributed(True).detach(), rtol=1e-9, atol=1e-12)
