"""LearnedGuidedBackprop: captum's numbers at the start, where captum cannot go too; trained rules inside captum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr as ca
import pytest
import torch
import torch.nn.functional as F
from difference_quotient import difference_quotient
from torch import Tensor, nn
from untouched import assert_untouched, snapshot
from zennit.composites import COMPOSITES

import captum_learnprop as cl
from captum_learnprop import LearnedGuidedBackprop, LearnpropError
from captum_learnprop.errors import TargetError
from zennit_rules import LearnedComposite, RuleError, RuleSet

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", r"ignore:\s*Setting backward hooks")
exactly = {"rtol": 0, "atol": 1e-10}


class Modules(nn.Module):
    """What captum's class can do: every ReLU is a module, called once, not in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool, self.fc1, self.fc2 = nn.MaxPool2d(2), nn.Linear(36, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.conv2(x) + x)
        return self.fc2(self.relu3(self.fc1(self.pool(x).flatten(1))))


class Functional(Modules):
    """The same function with calls that captum does not see."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = (self.conv2(x) + x).clamp(min=0)
        return self.fc2(torch.relu(self.fc1(self.pool(x).flatten(1))))


class InPlace(Modules):
    """The same function, in place, by module and by function."""

    def __init__(self) -> None:
        super().__init__()
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.conv2(x) + x)
        return self.fc2(self.fc1(self.pool(x).flatten(1)).relu_())


class Reused(Modules):
    """The same function with one ReLU for all three calls."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu1(self.conv2(x) + x)
        return self.fc2(self.relu1(self.fc1(self.pool(x).flatten(1))))


def net(kind: type[nn.Module] = Modules) -> Any:
    torch.manual_seed(1)
    return kind().double().eval()


def batch(samples: int = 3) -> Tensor:
    return torch.randn(samples, 1, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def trained(model: nn.Module, x: Any, std: float = 0.6, **options: Any) -> RuleSet:
    rules = RuleSet.build(model, x, "learned_guided_backprop", **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in rules.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return rules


# -- at the start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Modules, Functional, InPlace, Reused])
@pytest.mark.parametrize("target", [2, [0, 4, 1], torch.tensor([3, 3, 0])], ids=["one", "list", "tensor"])
def test_equals_captum_on_the_same_function_made_of_modules(kind: type[nn.Module], target: Any) -> None:
    expected = ca.GuidedBackprop(net()).attribute(batch(), target=target)
    found = LearnedGuidedBackprop(net(kind)).attribute(batch(), target=target)
    torch.testing.assert_close(found, expected, **exactly)


def test_captum_itself_is_wrong_on_functional_calls() -> None:
    """What the test above is worth: captum's class gives the plain gradient here, without a word."""
    model, x = net(Functional), batch()
    silent = ca.GuidedBackprop(model).attribute(x, target=2)
    torch.testing.assert_close(silent, ca.Saliency(model).attribute(x, target=2, abs=False))
    assert not torch.allclose(LearnedGuidedBackprop(model).attribute(x, target=2), silent, atol=1e-3)


def test_other_activations_pass_positive_signals_only() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
    model, x = nn.Sequential(first, nn.GELU(), second), torch.randn(5, 4, dtype=torch.float64)
    z = first(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.gelu(z).sum(), z)
    expected = (second.weight[1].clamp(min=0) * slope) @ first.weight
    torch.testing.assert_close(LearnedGuidedBackprop(model).attribute(x, target=1), expected.detach(), **exactly)


@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
@pytest.mark.parametrize("composite", ["learned_guided_backprop", "learned_gradient"])
def test_untrained_rules_are_guided_backprop(gate: str, composite: str, tmp_path: Path) -> None:
    model, x = net(), batch()
    rules = RuleSet.build(model, x, composite, gate, "guided_backprop")
    path = rules.save(tmp_path / "rules.safetensors", model)
    expected = ca.GuidedBackprop(model).attribute(x, target=2)
    for given in (rules, path, str(path)):
        torch.testing.assert_close(LearnedGuidedBackprop(model, given).attribute(x, target=2), expected, **exactly)


# -- trained rules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Modules, Functional, InPlace, Reused])
def test_trained_rules_equal_the_rule_written_out(kind: type[nn.Module]) -> None:
    """The backward pass by hand, layer by layer: each ReLU scales what guided backprop passes, per channel."""
    model, x = net(kind), batch()
    rules = trained(model, x)
    w1, w2, w3 = (1 + torch.tanh(p.detach()) for p in rules.parameters())
    modules, signal = net(), torch.zeros(3, 5, dtype=torch.float64)
    signal[:, 2] = 1
    x_leaf = x.clone().requires_grad_()
    z1 = modules.conv1(x_leaf)
    h1 = F.relu(z1)
    z2 = modules.conv2(h1) + h1
    h2 = F.relu(z2)
    z3 = modules.fc1(modules.pool(h2).flatten(1))
    g3 = signal @ modules.fc2.weight.detach()
    g3 = w3 * g3.clamp(min=0) * (z3 > 0)
    (g2,) = torch.autograd.grad(z3, h2, g3, retain_graph=True)
    g2 = w2 * g2.clamp(min=0) * (z2 > 0)
    (g1,) = torch.autograd.grad(z2, h1, g2, retain_graph=True)
    g1 = w1 * g1.clamp(min=0) * (z1 > 0)
    (expected,) = torch.autograd.grad(z1, x_leaf, g1)
    torch.testing.assert_close(LearnedGuidedBackprop(model, rules).attribute(x, target=2), expected, **exactly)


@pytest.mark.parametrize("with_rules", [False, True])
def test_batch_equals_singles(with_rules: bool) -> None:
    model, x, target = net(Reused), batch(4), [0, 3, 1, 2]
    method = LearnedGuidedBackprop(model, trained(model, x) if with_rules else None)
    singles = [method.attribute(x[i : i + 1], target=[t]) for i, t in enumerate(target)]
    torch.testing.assert_close(method.attribute(x, target=target), torch.cat(singles), **exactly)


@pytest.mark.parametrize("way", ["grad", "backward"])
@pytest.mark.parametrize("kind", [Functional, InPlace, Reused])
def test_create_graph_differentiates_to_the_rules(kind: type[nn.Module], way: str) -> None:
    model, x = net(kind), batch(2)
    rules = trained(model, x, gate="quadrant")
    method, weights = LearnedGuidedBackprop(model, rules), torch.randn(2, 1, 6, 6, dtype=torch.float64)

    def value(**options: Any) -> Tensor:
        maps = method.attribute(x, target=[0, 1], **options)
        return (weights * maps).sum() + maps.square().sum()

    live = value(create_graph=True)
    torch.testing.assert_close(live.detach(), value())
    if way == "grad":
        found = torch.autograd.grad(live, rules.parameters())
    else:
        live.backward()
        found = tuple(p.grad for p in rules.parameters())
    for entry, gradient in zip(rules.parameters(), found, strict=True):
        for index in {0, entry.numel() // 3, entry.numel() - 1}:
            expected = difference_quotient(value, entry, index)
            assert float(gradient.reshape(-1)[index]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


# -- inside captum's classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Modules, Functional, InPlace, Reused])
def test_guided_grad_cam(kind: type[nn.Module]) -> None:
    model, x = net(kind), batch()
    expected = ca.GuidedGradCam(reference := net(), reference.conv2).attribute(x, target=2).detach()
    guided = ca.GuidedGradCam(model, model.conv2)
    before = snapshot(model, x)

    guided.guided_backprop = LearnedGuidedBackprop(model)
    torch.testing.assert_close(guided.attribute(x, target=2), expected, **exactly)

    rules = trained(model, x)
    guided.guided_backprop = LearnedGuidedBackprop(model, rules)
    cam = ca.LayerAttribution.interpolate(
        ca.LayerGradCam(model, model.conv2).attribute(x, target=2, relu_attributions=True), (6, 6)
    )
    by_hand = LearnedGuidedBackprop(model, rules).attribute(x, target=2) * cam
    found = guided.attribute(x, target=2).detach()
    torch.testing.assert_close(found, by_hand.detach(), **exactly)
    assert not torch.allclose(found, expected, atol=1e-2 * float(expected.abs().max()))
    assert_untouched(before, model, x)


@pytest.mark.parametrize("kind", [Modules, Functional, InPlace, Reused])
@pytest.mark.parametrize(("layer", "neuron"), [("conv2", (1, 2, 3)), ("fc1", 4)])
@pytest.mark.parametrize("to_input", [False, True])
def test_neuron_guided_backprop(kind: type[nn.Module], layer: str, neuron: Any, to_input: bool) -> None:
    model, x, reference = net(kind), batch(), net()
    options: dict[str, Any] = {"neuron_selector": neuron, "attribute_to_neuron_input": to_input}
    expected = ca.NeuronGuidedBackprop(reference, getattr(reference, layer)).attribute(x, **options)
    method = ca.NeuronGuidedBackprop(model, getattr(model, layer))
    before = snapshot(model, x)

    method.guided_backprop = LearnedGuidedBackprop(model)
    torch.testing.assert_close(method.attribute(x, **options), expected, **exactly)

    method.guided_backprop = LearnedGuidedBackprop(model, trained(model, x))
    found = method.attribute(x, **options)
    assert not torch.allclose(found, expected, atol=1e-2 * float(expected.abs().max()))
    assert_untouched(before, model, x)


def test_noise_tunnel() -> None:
    model, x = net(), batch()
    options: dict[str, Any] = {"target": [0, 1, 2], "nt_samples": 4, "stdevs": 0.1}
    maps = []
    for method in (ca.GuidedBackprop(model), LearnedGuidedBackprop(model)):
        torch.manual_seed(4)
        maps.append(ca.NoiseTunnel(method).attribute(x, **options))
    torch.testing.assert_close(maps[1], maps[0], **exactly)


# -- what it leaves, and what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("with_rules", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_inputs_are_untouched(with_rules: bool, fails: bool) -> None:
    model, x = net(InPlace), batch().requires_grad_()
    x.grad = torch.full_like(x, 3.0)
    method = LearnedGuidedBackprop(model, trained(model, x) if with_rules else None)
    if fails:
        model.fc2.register_forward_pre_hook(stop)
    before = snapshot(model, x)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            method.attribute(x, target=0)
    else:
        method.attribute(x, target=0)
    assert_untouched(before, model, x)


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


class Elsewhere(LearnedComposite):
    """A composite with rules that are not those of guided backprop."""

    name = "elsewhere_for_a_test"


def test_rules_of_another_composite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPOSITES, Elsewhere.name, Elsewhere)
    model = net()
    with pytest.raises(RuleError, match=r"'learned_gradient', got 'elsewhere_for_a_test'; use LearnedPropagation"):
        LearnedGuidedBackprop(model, RuleSet.build(model, batch(), Elsewhere.name))


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (
        lambda: LearnedGuidedBackprop(torch.relu),  # type: ignore[arg-type]
        LearnpropError,
        r"LearnedGuidedBackprop needs an nn\.Module",
    ),
    "no activation": (
        lambda: LearnedGuidedBackprop(nn.Linear(4, 2)).attribute(torch.ones(1, 4), 0),
        RuleError,
        r"Linear has no site",
    ),
    "no activation, a neuron": (lambda: neuron_of_a_linear_net(), RuleError, r"Sequential has no site"),
    "rules of another model": (
        lambda: LearnedGuidedBackprop(nn.Linear(4, 2), trained(net(), batch())),
        RuleError,
        r"belongs to another model",
    ),
    "target": (lambda: LearnedGuidedBackprop(net()).attribute(batch(), 7), TargetError, r"target 7 does not fit"),
    "graph of a neuron": (
        lambda: neuron_with_graph(),
        LearnpropError,
        r"create_graph=True cannot pass through a replaced gradient_func",
    ),
}


def neuron_of_a_linear_net() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    neuron = ca.NeuronGuidedBackprop(model, model[0])
    neuron.guided_backprop = LearnedGuidedBackprop(model)
    neuron.attribute(torch.ones(1, 4), 0)


def neuron_with_graph() -> None:
    model = net()
    method = LearnedGuidedBackprop(model)
    neuron = ca.NeuronGuidedBackprop(model, model.fc1)
    neuron.guided_backprop = method
    neuron.attribute(batch(), 0)
    method.attribute(batch(), 0, create_graph=True)


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_error(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_attribute_future_names_the_class() -> None:
    with pytest.raises(NotImplementedError, match="LearnedGuidedBackprop"):
        LearnedGuidedBackprop(net()).attribute_future()


def test_public_names() -> None:
    assert cl.LearnedGuidedBackprop is LearnedGuidedBackprop
    assert "LearnedGuidedBackprop" in dir(cl)
    assert not LearnedGuidedBackprop(net()).multiplies_by_inputs
