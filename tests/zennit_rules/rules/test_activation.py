"""LearnedActivation: derivatives by finite differences, for every gate and every way of calling an activation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairwise import crossed
from rule_nets import GATE_NAMES, STARTS, assert_gradient, one_hot, prepare, randomise, score
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import NameMapComposite

import zennit_rules as zr

# name: (module, function, function in place)
ACTIVATIONS: dict[str, tuple[Callable[..., nn.Module], Callable[..., Tensor], Callable[[Tensor], Tensor] | None]] = {
    "ReLU": (nn.ReLU, F.relu, lambda z: z.relu_()),
    "ReLU6": (nn.ReLU6, F.relu6, lambda z: F.relu6(z, inplace=True)),
    "LeakyReLU": (nn.LeakyReLU, F.leaky_relu, lambda z: F.leaky_relu_(z)),
    "ELU": (nn.ELU, F.elu, lambda z: F.elu_(z)),
    "GELU": (nn.GELU, F.gelu, None),
    "SiLU": (nn.SiLU, F.silu, lambda z: F.silu(z, inplace=True)),
    "Hardswish": (nn.Hardswish, F.hardswish, lambda z: F.hardswish(z, inplace=True)),
    "Hardsigmoid": (nn.Hardsigmoid, F.hardsigmoid, lambda z: F.hardsigmoid(z, inplace=True)),
    "Softplus": (nn.Softplus, F.softplus, None),
    "Tanh": (nn.Tanh, torch.tanh, lambda z: z.tanh_()),
    "Sigmoid": (nn.Sigmoid, torch.sigmoid, lambda z: torch.sigmoid_(z)),
    "Mish": (nn.Mish, F.mish, lambda z: F.mish(z, inplace=True)),
    "SELU": (nn.SELU, F.selu, lambda z: torch.selu_(z)),
    "CELU": (nn.CELU, F.celu, lambda z: F.celu(z, inplace=True)),
    "Hardtanh": (nn.Hardtanh, F.hardtanh, lambda z: F.hardtanh_(z)),
    "LogSigmoid": (nn.LogSigmoid, F.logsigmoid, None),
    "Softsign": (nn.Softsign, F.softsign, None),
    "Tanhshrink": (nn.Tanhshrink, F.tanhshrink, None),
    "Softshrink": (nn.Softshrink, F.softshrink, None),
    "Hardshrink": (nn.Hardshrink, F.hardshrink, None),
    "PReLU": (nn.PReLU, F.prelu, None),
    "Threshold": (lambda **options: nn.Threshold(0.1, -0.2, **options), lambda z: F.threshold(z, 0.1, -0.2), None),
}
SMOOTH = ("GELU", "SiLU", "Softplus", "Tanh", "Sigmoid", "Mish", "ELU")
ADAPTERS = ("module", "inplace", "reused", "reused_inplace", "functional", "functional_inplace")


def supports(activation: str, adapter: str) -> bool:
    """Whether torch has the activation in that form."""
    module, _, inplace = ACTIVATIONS[activation]
    if adapter == "functional_inplace":
        return inplace is not None
    if "inplace" in adapter:
        return hasattr(module(), "inplace")
    return not (activation == "PReLU" and adapter == "functional")


class Net(nn.Module):
    """Two activations, called by the adapter."""

    def __init__(self, activation: str, adapter: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3)
        self.fc = nn.Linear(8, 3)
        module, function, inplace = ACTIVATIONS[activation]
        self.adapter, self.function, self.ignored = adapter, function, inplace
        if "functional" not in adapter:
            options = {"inplace": True} if "inplace" in adapter else {}
            self.a = module(**options)
            self.b = self.a if "reused" in adapter else module(**options)

    def act(self, z: Tensor, k: int) -> Tensor:
        """Call number k."""
        if self.adapter == "functional":
            return self.function(z)
        if self.adapter == "functional_inplace":
            self.ignored(z)
            return z
        return (self.a, self.b)[k](z)

    def forward(self, x: Tensor) -> Tensor:
        """Three scores."""
        x = self.act(self.first(x), 0)
        return self.fc(self.act(self.second(x), 1).flatten(1))


def build(activation: str, adapter: str) -> tuple[nn.Module, Tensor]:
    """Model and input."""
    return prepare(Net(activation, adapter)), (2 * torch.randn(2, 2, 4, 4, dtype=torch.float64)).requires_grad_()


def relevance(model: nn.Module, x: Tensor, target: str, method: str, create_graph: bool) -> Tensor:
    """Attribution, inside the context of a composite."""

    def seed(out: Tensor) -> Tensor:
        return out * one_hot(out)

    if method == "grad":
        chosen: Any = seed if target == "function" else one_hot(torch.zeros(2, 3, dtype=torch.float64))
        return Gradient(model, create_graph=create_graph)(x, chosen)[1]
    x.grad = None
    out = model(x)
    out.backward(seed(out) if target == "function" else one_hot(out), create_graph=create_graph)
    found, x.grad = x.grad, None
    return found


def check_rule_gradient(
    model: nn.Module, x: Tensor, composite: zr.LearnedComposite, target: str, method: str, sites: int
) -> None:
    """Finite differences of a loss on the attribution, in all parameters; and create_graph changes no value."""
    with composite.context(model):
        model(x)
        assert len(composite.rules.sites) == sites
        parameters = composite.parameters()
        randomise(parameters)
        live = relevance(model, x, target, method, create_graph=True)
        value = relevance(model, x, target, method, create_graph=False).detach()
        torch.testing.assert_close(live.detach(), value, rtol=1e-13, atol=1e-16)  # torch's own silu' differs in an ulp
        assert live.abs().sum() > 0
        with composite.inactive():
            if method == "grad":
                gradients: list[Any] = list(torch.autograd.grad(score(live), parameters))
            else:
                score(live).backward()
                gradients = [p.grad for p in parameters]
        assert all(g is not None and g.abs().sum() > 0 for g in gradients)
        assert_gradient(lambda: score(relevance(model, x, target, "grad", False)), parameters, gradients)


@crossed(gate=GATE_NAMES, adapter=ADAPTERS, target=["function", "constant"], method=["grad", "backward"])
def test_rule_gradient(gate: str, adapter: str, target: str, method: str) -> None:
    model, x = build("ReLU", adapter)
    check_rule_gradient(model, x, zr.LearnedGradient(gate=gate), target, method, sites=2)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("gate", GATE_NAMES)
def test_rule_gradient_from_every_start(gate: str, start: str) -> None:
    model, x = build("SiLU", "reused_inplace")
    check_rule_gradient(model, x, zr.LearnedGradient(gate=gate, start=start), "constant", "grad", sites=2)


@pytest.mark.parametrize(
    ("activation", "adapter"), [(n, a) for n in ACTIVATIONS if n != "ReLU" for a in ADAPTERS if supports(n, a)]
)
def test_rule_gradient_of_every_activation(activation: str, adapter: str) -> None:
    for gate in ("channel", "quadrant", "feature"):
        torch.manual_seed(0)
        model, x = build(activation, adapter)
        check_rule_gradient(model, x, zr.LearnedGradient(gate=gate), "constant", "grad", sites=2)


@pytest.mark.parametrize(("activation", "adapter"), [(n, a) for n in ACTIVATIONS for a in ADAPTERS if supports(n, a)])
@pytest.mark.parametrize("gate", ["channel", "feature"])
def test_start_is_the_gradient(gate: str, activation: str, adapter: str) -> None:
    model, x = build(activation, adapter)
    value = model(x)
    (expected,) = torch.autograd.grad(value[:, 1].sum(), x)
    with zr.LearnedGradient(gate=gate).context(model):
        out = model(x)
        assert torch.equal(out, value)
        (ours,) = torch.autograd.grad(out[:, 1].sum(), x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)


@crossed(
    gate=["channel", "quadrant", "feature"],
    activation=[*SMOOTH, "ReLU", "LeakyReLU"],
    when=["inactive", "after the context"],
)
def test_input_gradient_of_an_attribution(gate: str, activation: str, when: str) -> None:
    for adapter in ("reused", "functional"):
        model, x = build(activation, adapter)
        composite = zr.LearnedGradient(gate=gate)
        with composite.context(model):
            model(x)
            randomise(composite.parameters())
            live = relevance(model, x, "function", "grad", create_graph=True)
            if when == "inactive":
                with composite.inactive():
                    (gradient,) = torch.autograd.grad(score(live), x)
        if when != "inactive":
            (gradient,) = torch.autograd.grad(score(live), x)

        def value(composite: zr.LearnedComposite = composite, model: nn.Module = model, x: Tensor = x) -> Tensor:
            with composite.context(model):
                return score(relevance(model, x, "function", "grad", create_graph=False))

        assert_gradient(value, [x], [gradient])


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("gate", GATE_NAMES)
def test_inactive_and_removed_hooks_leave_the_gradient(gate: str, adapter: str) -> None:
    model, x = build("ReLU", adapter)
    (expected,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    composite = zr.LearnedGradient(gate=gate, start="deconvnet")
    with composite.context(model):
        out = model(x)
        randomise(composite.parameters())
        with composite.inactive():
            (inactive,) = torch.autograd.grad(out[:, 1].sum(), x, retain_graph=True)
        (active,) = torch.autograd.grad(out[:, 1].sum(), x, retain_graph=True)
    (removed,) = torch.autograd.grad(out[:, 1].sum(), x)
    assert torch.equal(inactive, expected)
    assert torch.equal(removed, expected)
    assert not torch.allclose(active, expected)


class TestBareRule:
    """The rule as a plain zennit hook, without a composite of this package."""

    def test_in_zennit_composite(self) -> None:
        model, x = build("ReLU", "module")
        gate = zr.ChannelGate((1, 3, 1, 1), start="guided_backprop").double()
        with NameMapComposite([(["a"], zr.LearnedActivation(gate))]).context(model):
            relevance(model, x, "constant", "grad", create_graph=True).sum().backward()
        assert gate.raw.grad is not None
        assert gate.raw.grad.any()

    def test_copies_share_the_gate(self) -> None:
        rule = zr.LearnedActivation(zr.ChannelGate((1, 3)))
        assert isinstance(rule.copy(), zr.LearnedActivation)
        assert rule.copy().gate is rule.gate
        pool = zr.LearnedMaxPool()
        assert pool.copy().gate is pool.gate
        assert "ChannelGate" in repr(rule)
        assert "PoolGate" in repr(pool)

    def test_gate_is_trained_by_all_its_modules(self) -> None:
        model = prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        gate = zr.QuadrantGate((1, 4)).double()
        randomise(gate.parameters())
        rule = zr.LearnedActivation(gate)
        with NameMapComposite([(["1", "3"], rule)]).context(model):
            live = relevance_of(model, x, True)
            (gradient,) = torch.autograd.grad(score(live), gate.raw)
            assert_gradient(lambda: score(relevance_of(model, x, False)), [gate.raw], [gradient])


def relevance_of(model: nn.Module, x: Tensor, create_graph: bool) -> Tensor:
    """Gradient of the second score."""
    return torch.autograd.grad(model(x)[:, 1].sum(), x, create_graph=create_graph)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gate", GATE_NAMES)
def test_dtype_follows_the_model(gate: str, dtype: torch.dtype) -> None:
    model = build("ReLU", "module")[0].to(dtype)
    x = torch.randn(2, 2, 4, 4, dtype=dtype, requires_grad=True)
    composite = zr.LearnedGradient(gate=gate)
    with composite.context(model):
        model(x)
        randomise(composite.parameters())
        live = relevance_of(model, x, True)
        gradients = torch.autograd.grad(live.square().sum(), composite.parameters())
    assert live.dtype == dtype
    assert all(g.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype) for g in gradients)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("gate", GATE_NAMES)
def test_autocast(gate: str) -> None:
    model = build("ReLU", "reused_inplace")[0].float()
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    composite = zr.LearnedGradient(gate=gate)
    with composite.context(model), torch.autocast("cpu", dtype=torch.bfloat16):
        (plain,) = torch.autograd.grad(model(x)[:, 1].float().sum(), x)
        randomise(composite.parameters())
        live = relevance_of(model, x, True)
    assert live.dtype == torch.float32
    gradients = torch.autograd.grad(live.square().sum(), composite.parameters())
    assert all(torch.isfinite(g).all() for g in (plain, *gradients))


@pytest.mark.parametrize("grad", [nullcontext, torch.no_grad, torch.inference_mode])
def test_plain_passes_run_untouched(grad: Callable[[], Any]) -> None:
    model, x = build("ReLU", "functional_inplace")
    expected = model(x)
    with zr.LearnedGradient().context(model), grad():
        assert torch.equal(model(x.detach()), expected)
