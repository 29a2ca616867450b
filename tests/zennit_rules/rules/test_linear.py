"""Rules of linear layers against zennit, dense matrices and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairwise import crossed
from rule_nets import assert_gradient, one_hot, prepare, randomise, score
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import AlphaBeta, Epsilon, Gamma, Pass, ZBox, ZPlus
from zennit.types import Linear as LinearLike

import zennit_rules as zr
from zennit_rules._compat import DisableTorchFunction
from zennit_rules.core.dependence import Dependence
from zennit_rules.core.linear_calls import is_linear_function, linear_operands
from zennit_rules.core.linear_map import LinearOperands
from zennit_rules.rules.contributions import (
    AlphaBetaGate,
    BoxGate,
    ContributionGate,
    EpsilonGate,
    GammaGate,
    stabilized,
)
from zennit_rules.rules.linear import GatedLinear


def tail(size: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(size, 5)]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5)), (3, 6)),
    "strides and groups": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
            nn.ReLU(), *tail(128),
        ),
        (2, 3, 8, 8),
    ),
    "uneven and reflected padding": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 4, padding="same"), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(), nn.Conv2d(4, 4, (3, 2), padding="valid", dilation=2), *tail(48),
        ),
        (2, 3, 7, 6),
    ),
    "1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 3, stride=2), nn.ReLU(),
            nn.ConvTranspose1d(8, 6, 3, stride=2, groups=2, output_padding=1), nn.ReLU(), *tail(60),
        ),
        (2, 3, 9),
    ),
    "2d transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, dilation=2), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2),
            *tail(100),
        ),
        (2, 3, 5, 5),
    ),
    "3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.ReLU(), nn.ConvTranspose3d(4, 3, 3, stride=2), *tail(1029)),
        (2, 2, 4, 4, 4),
    ),
}  # fmt: skip

RULES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "epsilon": (lambda: Epsilon(1e-3), lambda: zr.LearnedEpsilon(1e-3)),
    "epsilon, no bias": (lambda: Epsilon(zero_params="bias"), lambda: zr.LearnedEpsilon(bias="zero")),
    "gamma": (lambda: Gamma(0.25), lambda: zr.LearnedGamma(0.25)),
    "gamma 0": (lambda: Gamma(0.0, stabilizer=1e-4), lambda: zr.LearnedGamma(0.0, stabilizer=1e-4)),
    "gamma 50": (lambda: Gamma(50.0), lambda: zr.LearnedGamma(50.0)),
    "z+": (lambda: ZPlus(), lambda: zr.LearnedGamma(math.inf, negative="z+")),
    "z+, no bias": (lambda: ZPlus(zero_params="bias"), lambda: zr.LearnedGamma(math.inf, negative="z+", bias="zero")),
    "alpha 1": (lambda: AlphaBeta(1, 0), lambda: zr.LearnedAlphaBeta(1.0)),
    "alpha 2": (lambda: AlphaBeta(2, 1, stabilizer=1e-4), lambda: zr.LearnedAlphaBeta(2.0, 1.0, stabilizer=1e-4)),
    "box": (lambda: ZBox(-3.0, 2.0), lambda: zr.LearnedBox(-3.0, 2.0)),
}  # fmt: skip


def net(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = NETS[name]
    return prepare(make()), torch.randn(shape, dtype=torch.float64)


def composite(rule: Any) -> LayerMapComposite:
    return LayerMapComposite([(LinearLike, rule), (nn.ReLU, Pass())])


def relevance(model: nn.Module, x: Tensor, rule: Any, **options: Any) -> Tensor:
    with Gradient(model, composite(rule), **options) as attributor:
        return attributor(x.clone(), lambda output: output * one_hot(output))[1]


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(expected.detach().abs().max()))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETS)
def test_starts_at_zennits_rule(name: str, rule: str) -> None:
    model, x = net(name)
    theirs, ours = (make() for make in RULES[rule])
    expected = relevance(model, x, theirs)
    assert float(expected.detach().abs().max()) > 0
    assert_close(relevance(model, x, ours), expected)


# -- dense oracles ---------------------------------------------------------------------------------------------------


def matrix(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``(inputs, outputs)`` and bias ``(outputs,)`` of a layer for one sample ``x``, through its Jacobian."""

    def flat(v: Tensor) -> Tensor:
        return layer(v.reshape(1, *x.shape)).flatten()

    return torch.autograd.functional.jacobian(flat, x.flatten()).T, flat(torch.zeros_like(x).flatten())


def dense(gate: Any, layer: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    """Relevance of one sample's inputs, contribution by contribution, by the formulas of `contributions`."""
    w, bias = matrix(layer, x)
    if isinstance(gate, BoxGate):
        t = gate.strength.reshape(())
        low, high = (v.reshape(-1, *(1,) * (x.ndim - 1)).expand_as(x).flatten() for v in (gate.low, gate.high))
        v = x.flatten()
        low, high = t * low + (1 - t) * v.clamp(max=0), t * high + (1 - t) * v.clamp(min=0)
        c = (v - low)[:, None] * w.clamp(min=0) + (v - high)[:, None] * w.clamp(max=0)
        return (c * (r.flatten() / stabilized(c.sum(0), gate.stabilizer))).sum(1).reshape(x.shape)
    c = x.flatten()[:, None] * w
    sign = w if gate.split == "weights" else c
    up, down = c * (sign > 0), c * (sign < 0)
    shared = gate.bias == "shared"
    positive = up.sum(0) + (bias.clamp(min=0) if shared else 0)
    negative = down.sum(0) + (bias.clamp(max=0) if shared else 0)
    z = c.sum(0) + (0 if gate.bias == "zero" else bias)
    r = r.flatten()

    def each(value: Tensor) -> Tensor:
        return value.reshape(-1, 1).expand(-1, len(r) // value.numel()).flatten()

    if isinstance(gate, EpsilonGate):
        a = b = r / stabilized(z, each(gate.epsilon))
    elif isinstance(gate, AlphaBetaGate):
        a = each(gate.alpha) * r / stabilized(positive, gate.stabilizer)
        b = -each(gate.beta) * r / stabilized(negative, gate.stabilizer)
    else:
        gamma = each(gate.gamma)
        a = r * (1 + gamma) / stabilized(z + gamma * positive, gate.stabilizer)
        b = r / stabilized(z + gamma * positive, gate.stabilizer)
        if gate.negative == "z+":
            mix = torch.where(z > 0, each(gate.mix), 1.0)
            a = r / stabilized((1 - mix) * z + mix * positive, gate.stabilizer)
            b = (1 - mix) * a
        if gate.negative == "mirrored":
            below_b = r * (1 + gamma) / stabilized(z + gamma * (z - positive), gate.stabilizer)
            below_a = r / stabilized(z + gamma * (z - positive), gate.stabilizer)
            a, b = torch.where(z > 0, a, below_a), torch.where(z > 0, b, below_b)
    return (up * a + down * b).sum(1).reshape(x.shape)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Linear(6, 4), (2, 6)),
    "convolution": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 2, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 4, 3, stride=2, groups=2), (2, 4, 4)),
}
GATES: dict[str, tuple[type[ContributionGate], dict[str, Any]]] = {
    "epsilon": (EpsilonGate, {"epsilon": 0.1}),
    "gamma": (GammaGate, {"gamma": 0.7}),
    "gamma, z+": (GammaGate, {"gamma": 0.7, "negative": "z+"}),
    "gamma, alike": (GammaGate, {"gamma": 0.7, "negative": "alike"}),
    "gamma by weight": (GammaGate, {"gamma": 0.7, "negative": "alike", "split": "weights", "bias": "whole"}),
    "gamma, no bias": (GammaGate, {"gamma": 2.0, "bias": "zero"}),
    "alpha beta": (AlphaBetaGate, {"beta": 0.4}),
    "alpha beta, whole bias": (AlphaBetaGate, {"beta": 0.0, "bias": "whole"}),
}


@crossed(name=list(LAYERS), gate=list(GATES), sign=[None, "positive"])
def test_equals_its_formula(name: str, gate: str, sign: str | None) -> None:
    make, shape = LAYERS[name]
    layer, x = prepare(make()), torch.randn(shape, dtype=torch.float64)
    x = x if sign is None else x.abs()
    kind, options = GATES[gate]
    own = kind((1, 4), **options).double()
    randomise(own.parameters(), 0.2)
    rule = {EpsilonGate: zr.LearnedEpsilon, GammaGate: zr.LearnedGamma, AlphaBetaGate: zr.LearnedAlphaBeta}[kind]
    r = torch.randn_like(layer(x))
    leaf = x.clone().requires_grad_()
    with LayerMapComposite([(LinearLike, rule(gate=own))]).context(layer) as hooked:
        (got,) = torch.autograd.grad(hooked(leaf), leaf, r)
    expected = torch.stack([dense(own, layer, one, share) for one, share in zip(x, r, strict=True)])
    assert_close(got, expected)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "dense"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_box_lies_between_z_plus_and_the_box(name: str, strength: float) -> None:
    make, shape = LAYERS[name]
    layer, x = prepare(make()), torch.randn(shape, dtype=torch.float64)
    gate = BoxGate(shape, low=-3.0, high=2.5, strength=strength, learn_bounds=True).double()
    with torch.no_grad():
        gate.low.add_(0.1 * torch.randn_like(gate.low))
    r = torch.randn_like(layer(x))
    leaf = x.clone().requires_grad_()
    with LayerMapComposite([(LinearLike, zr.LearnedBox(gate=gate))]).context(layer) as hooked:
        (got,) = torch.autograd.grad(hooked(leaf), leaf, r)
    expected = torch.stack([dense(gate, layer, one, share) for one, share in zip(x, r, strict=True)])
    assert_close(got, expected)
    if strength == 0:
        layer.bias = None  # the box rule knows no bias
        with LayerMapComposite([(LinearLike, ZPlus())]).context(layer) as hooked:
            (plus,) = torch.autograd.grad(hooked(leaf), leaf, r)
        assert_close(got, plus)


class Reading(TorchFunctionMode):
    """Reads the linear functions that are called."""

    def __init__(self, depends: Dependence) -> None:
        super().__init__()
        self.depends, self.read = depends, []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if is_linear_function(func):
            with DisableTorchFunction():
                self.read.append((linear_operands(func, args, kwargs or {}, self.depends), out))
        return out


def assert_linear(function: Callable[[Tensor], Tensor], x: Tensor) -> LinearOperands:
    """What is read of a call computes its value, and its transpose is the call's gradient."""
    leaf = x.detach().clone().requires_grad_()
    with Reading(Dependence([leaf])) as reading:
        out = function(leaf)
    ((operands, value),) = reading.read
    linear, inner, weight = operands.map, operands.x, operands.weight.detach()
    torch.testing.assert_close(linear(inner, weight, operands.bias), value, rtol=0, atol=1e-12)
    r = torch.randn_like(value)
    (expected,) = torch.autograd.grad(value, leaf, r, retain_graph=True)
    for signal in (r, r.clone().requires_grad_()):  # the second is differentiable
        back = linear.transpose(inner.shape, weight, signal)
        (got,) = torch.autograd.grad(inner, leaf, back, retain_graph=True) if inner is not leaf else (back,)
        torch.testing.assert_close(got.detach(), expected, rtol=0, atol=1e-12)
    tangent = torch.randn_like(inner)
    (turned,) = torch.autograd.grad(back, signal, tangent)
    torch.testing.assert_close(turned, linear(tangent, weight), rtol=0, atol=1e-12)
    channels = linear.channel_dim(value)
    assert 0 < channels < out.ndim or out.ndim < 2
    return operands


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_transposes_are_those_of_autograd() -> None:
    for make, shape in NETS.values():
        x = torch.randn(shape, dtype=torch.float64)
        for layer in prepare(make()):  # type: ignore[attr-defined]
            if next(layer.parameters(), None) is not None:
                assert_linear(layer, x)
            x = layer(x)


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


A, B, M, N = (
    tensor(4, 6),
    tensor(
        5,
    ),
    tensor(3, 4, 5),
    tensor(2, 6),
)
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], str]] = {
    "linear": (lambda x: F.linear(x, A.T, N[0]), (2, 3, 4), "Linear"),
    "linear in its weights": (lambda w: F.linear(A, w), (3, 6), "Linear"),
    "a weight of rank one": (lambda x: F.linear(x, A[:, 0]), (2, 3, 4), "Linear"),
    "@": (lambda x: x @ A, (2, 3, 4), "Linear"),
    "@ of a vector": (lambda x: x @ A[:, 0], (2, 3, 4), "Matmul"),
    "@ from the left": (lambda x: A @ x, (2, 6, 3), "Matmul"),
    "matmul": (lambda x: torch.matmul(x, other=A), (3, 4), "Linear"),
    "matmul of batches": (lambda x: x.matmul(M), (3, 2, 4), "Matmul"),
    "mm": (lambda x: torch.mm(x, mat2=A), (3, 4), "Linear"),
    "mv": (lambda x: torch.mv(x, B), (3, 5), "Mv"),
    "bmm": (lambda x: torch.bmm(input=x, mat2=M), (3, 2, 4), "Bmm"),
    "addmm": (lambda x: torch.addmm(N[1], x, A), (2, 4), "Linear"),
    "addmm, scaled": (lambda x: N[1].addmm(x, A, beta=0.5, alpha=-2.0), (2, 4), "Linear"),
    "addmv": (lambda x: torch.addmv(N[:, 0], x, B), (2, 5), "Addmv"),
    "baddbmm": (lambda x: torch.baddbmm(input=B, batch1=x, batch2=M, beta=2), (3, 2, 4), "Baddbmm"),
    "addbmm": (lambda x: torch.addbmm(B, x, M), (3, 2, 4), "Addbmm"),
    "einsum": (lambda x: torch.einsum("bij,jk->bik", x, A), (2, 3, 4), "Einsum"),
    "einsum with dots": (lambda x: torch.einsum("...j,jk->...k", x, A), (2, 3, 4), "Einsum"),
    "einsum without an arrow": (lambda x: torch.einsum("kj,ij", A, x), (3, 6), "Einsum"),
    "einsum of a list": (lambda x: torch.einsum("ij,jk->ik", [x, A]), (3, 4), "Einsum"),
    "einsum of three": (lambda x: torch.einsum("bi,ij,kj->bk", x, A, N), (3, 4), "Einsum"),
    "einsum that sums weights": (lambda x: torch.einsum("bi,ij->b", x, A), (3, 4), "Einsum"),
    "tensordot": (lambda x: torch.tensordot(x, A, dims=([1], [0])), (2, 4, 3), "Tensordot"),
    "inner": (lambda x: torch.inner(x, N), (3, 6), "Inner"),
    "outer": (lambda x: torch.outer(x, B), (3,), "Outer"),
    "dot": (lambda x: torch.dot(x, B), (5,), "Dot"),
    "bilinear": (lambda x: F.bilinear(x, N, M.new_ones(3, 4, 6) * A, B[:3]), (2, 4), "Bilinear"),
    "bilinear, second": (lambda x: F.bilinear(N, x, M.new_ones(3, 6, 4) * A.T), (2, 4), "Bilinear"),
    "conv2d in its weights": (lambda w: F.conv2d(M[None], w, padding=1), (2, 3, 2, 2), "Conv2d"),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_functions_are_read_as_linear_maps(call: str) -> None:
    function, shape, name = CALLS[call]
    operands = assert_linear(function, tensor(*shape))
    assert operands.map.name == name
    assert is_linear_function(torch.mm)
    assert not is_linear_function(torch.relu)


@pytest.mark.parametrize("call", CALLS)
def test_relevance_of_functions_is_that_of_the_dense_matrix(call: str) -> None:
    """Positive contributions alone, for one sample after the other, by the Jacobian."""

    class Called(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    function, shape, _ = CALLS[call]
    x = tensor(*shape).requires_grad_()
    rule = zr.LearnedAlphaBeta(1.0, bias="zero", stabilizer=1e-12)
    with LayerMapComposite([(Called, rule)]).context(Called()) as hooked:
        out = hooked(x)
        r = torch.randn_like(out)
        (got,) = torch.autograd.grad(out, x, r)
    assert torch.equal(out, function(x))
    jacobian = torch.autograd.functional.jacobian(function, x.detach()).reshape(out.numel(), x.numel())
    positive = (jacobian * x.detach().flatten()).clamp(min=0)
    share = r.flatten() / (positive.sum(1) + 1e-12)
    assert_close(got.flatten(), positive.T @ share)


def test_transposed_convolution_with_an_output_size() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=(10, 9))

    model, x = prepare(Up()), torch.randn(2, 2, 4, 4, dtype=torch.float64).abs().requires_grad_()
    r = torch.randn_like(model(x))
    with LayerMapComposite([(LinearLike, zr.LearnedGamma(math.inf, negative="z+", bias="zero"))]).context(model):
        out = model(x)
        (got,) = torch.autograd.grad(out, x, r)
    torch.testing.assert_close(out, model(x), rtol=0, atol=0)
    up = model.up.weight.clamp(min=0)
    plus = nn.functional.conv_transpose2d(x, up, stride=2, output_padding=(1, 0))
    (expected,) = torch.autograd.grad(plus, x, r / stabilized(plus, 1e-6).detach())
    assert_close(got, x.detach() * expected)


# -- derivatives -----------------------------------------------------------------------------------------------------

CONSTANT = "constant"
TARGETS: dict[str, Any] = {CONSTANT: one_hot, "function": lambda output: output * one_hot(output)}


@crossed(
    name=["dense", "uneven and reflected padding", "1d"],
    rule=["epsilon", "gamma", "z+", "alpha 2", "box"],
    target=list(TARGETS),
    backward={"grad": False, "backward": True},
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_finite_differences(name: str, rule: str, target: str, backward: bool) -> None:
    model, x = net(name)
    hook = RULES[rule][1]()
    if isinstance(hook, zr.LearnedBox):
        hook = zr.LearnedBox(-3.0, 2.0, learn_bounds=True, strength=0.5)
    parameters = list(hook.gate.double().parameters())
    for parameter in parameters[:1]:
        randomise([parameter], 0.1)
        with torch.no_grad():
            parameter.sub_(0.3)  # off the reflection of the mix

    def value(create_graph: bool = False) -> Tensor:
        attributor = Gradient(model, composite(hook), create_graph=create_graph)
        with attributor:
            seed = one_hot(model(x)) if target == CONSTANT else TARGETS[target]
            return score(attributor(x.clone(), seed)[1])

    loss = value(create_graph=True)
    torch.testing.assert_close(loss.detach(), value().detach(), rtol=1e-12, atol=0)
    if backward:
        loss.backward()
        gradients = [p.grad for p in parameters]
    else:
        gradients = list(torch.autograd.grad(loss, parameters))
    assert_gradient(value, parameters, gradients)


def test_relevance_is_differentiable_in_the_input() -> None:
    model, x = net("strides and groups")
    rules = composite(zr.LearnedGamma(0.5))
    leaf = x.clone().requires_grad_()
    with Gradient(model, rules, create_graph=True) as attributor:
        loss = score(attributor(leaf, lambda output: output * one_hot(output))[1])
        with rules.inactive():
            (gradient,) = torch.autograd.grad(loss, leaf)

    def value() -> Tensor:
        with Gradient(model, rules) as attributor:
            return score(attributor(leaf, lambda output: output * one_hot(output))[1])

    assert_gradient(value, [leaf], [gradient])


# -- gates -----------------------------------------------------------------------------------------------------------


def test_mix_stays_between_0_and_1_and_never_sticks() -> None:
    for gamma in (0.0, 0.25, math.inf):
        gate = GammaGate((1, 201), gamma=gamma)
        with torch.no_grad():
            gate.raw.copy_(torch.linspace(-3, 3, 201))
        mix = gate.mix
        assert float(mix.detach().min()) >= 0
        assert float(mix.detach().max()) <= 1
        (slope,) = torch.autograd.grad(mix.sum(), gate.raw)
        assert torch.equal(slope.abs(), torch.ones_like(slope))
        assert GammaGate(gamma=gamma).gamma.item() == pytest.approx(gamma)


def test_epsilon_stays_positive() -> None:
    gate = EpsilonGate((1, 3), epsilon=0.5)
    with torch.no_grad():
        gate.raw.copy_(torch.tensor([[-30.0, 0.0, 3.0]]))
    assert bool((gate.epsilon > 0).all())


def test_alpha_minus_beta_is_one() -> None:
    gate = AlphaBetaGate((1, 6), alpha=2.0)
    randomise(gate.parameters())
    torch.testing.assert_close(gate.alpha - gate.beta, torch.ones(1, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zr.LearnedGamma(-0.1), "gamma must be a number of at least 0, got -0.1"),
        (lambda: zr.LearnedGamma(math.nan), "gamma must be a number"),
        (lambda: zr.LearnedEpsilon(0.0), "epsilon must be a number above 0, got 0.0"),
        (lambda: zr.LearnedAlphaBeta(2.0, 0.5), "alpha - beta must be 1.*alpha=2.0, beta=0.5"),
        (lambda: zr.LearnedAlphaBeta(0.5), "beta must be a number of at least 0, got -0.5"),
        (lambda: zr.LearnedGamma(0.5, bias="no"), "bias='no'.*shared, whole, zero"),
        (lambda: zr.LearnedGamma(0.5, negative="no"), r"negative='no'.*mirrored, z\+, alike"),
        (lambda: zr.LearnedGamma(0.5, split="signs"), "split='signs'.*contributions, weights"),
        (lambda: zr.LearnedGamma(0.5, stabilizer=-1.0), "stabilizer=-1.0"),
        (lambda: zr.LearnedBox(1.0, 1.0), "low must be below high, got low=1.0, high=1.0"),
        (lambda: zr.LearnedBox(torch.zeros(2), torch.ones(3)), "low must be a finite number, or one for each of 3"),
        (lambda: zr.LearnedBox(0.0, 1.0, strength=2.0), "strength must be in"),
    ],
)
def test_errors_name_the_value(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(zr.RuleError, match=message):
        make()


# -- batch norms behind a layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "gamma 50", "z+", "alpha 2", "epsilon, no bias"])
def test_merged_norm_equals_merged_weights(rule: str) -> None:
    layer = prepare(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)))
    conv, norm = layer[0], layer[1]  # type: ignore[index]
    nn.init.normal_(norm.weight)  # some factors are negative
    x, hook = torch.randn(2, 3, 5, 5, dtype=torch.float64), RULES[rule][1]()
    leaf = x.clone().requires_grad_()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert bool((scale < 0).any())
    with LayerMapComposite([(LinearLike, hook)]).context(conv):
        call = conv(leaf).grad_fn.call
        out = GatedLinear.apply(leaf, call.behind(scale, norm.bias - norm.running_mean * scale, layer(x)))
        r = torch.randn_like(out)
        (got,) = torch.autograd.grad(out, leaf, r)
    fused = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
    with LayerMapComposite([(LinearLike, hook)]).context(fused):
        (expected,) = torch.autograd.grad(fused(leaf), leaf, r)
    assert_close(got, expected)


def test_box_of_a_merged_norm() -> None:
    layer = prepare(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)))
    conv, norm = layer[0], layer[1]  # type: ignore[index]
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64).requires_grad_()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    hook = zr.LearnedBox(-3.0, 3.0, strength=0.7)
    fused = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
    r = torch.randn_like(conv(x))
    maps = []
    for module in (conv, fused):
        with LayerMapComposite([(LinearLike, hook)]).context(module):
            out = module(x)
            if module is conv:
                out = GatedLinear.apply(x, out.grad_fn.call.behind(scale, norm.bias, out))
            maps.append(torch.autograd.grad(out, x, r)[0])
    assert_close(*maps)


# -- zennit's habits -------------------------------------------------------------------------------------------------


def test_copies_share_parameters_and_configuration() -> None:
    for hook in (zr.LearnedGamma(0.5), zr.LearnedEpsilon(), zr.LearnedAlphaBeta(), zr.LearnedBox()):
        copy = hook.copy()
        assert type(copy) is type(hook)
        assert copy.gate is hook.gate


def test_per_channel_parameters_are_of_their_channel() -> None:
    model, x = net("dense")
    hook = zr.LearnedGamma(0.5, shape=(1, 9))
    with torch.no_grad():
        hook.gate.raw[0, 4] = 0.2
    with LayerMapComposite([(LinearLike, hook)]).context(model[0]) as layer:  # type: ignore[index]
        leaf = x.clone().requires_grad_()
        r = torch.zeros(3, 9, dtype=torch.float64)
        r[:, 4] = 1
        (got,) = torch.autograd.grad(layer(leaf), leaf, r)
    gamma = float(hook.gate.gamma[0, 4])
    assert gamma > 0.5
    with LayerMapComposite([(LinearLike, zr.LearnedGamma(gamma))]).context(model[0]) as layer:  # type: ignore[index]
        (expected,) = torch.autograd.grad(layer(leaf), leaf, r)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_channels_that_do_not_fit_are_refused() -> None:
    tokens = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    layer = prepare(nn.Linear(4, 3))
    with (
        LayerMapComposite([(LinearLike, zr.LearnedGamma(0.5, shape=(1, 3)))]).context(layer),
        pytest.raises(zr.RuleError, match=r"3 channels in dimension 1, but Linear gave \(2, 3, 3\).*dimension 2"),
    ):
        layer(tokens)
    conv = prepare(nn.Conv2d(3, 4, 3))
    with (
        LayerMapComposite([(LinearLike, zr.LearnedGamma(0.5))]).context(conv),
        pytest.raises(zr.RuleError, match=r"conv2d got an input \(3, 5, 5\): rules need a batch"),
    ):
        conv(torch.randn(3, 5, 5, dtype=torch.float64).requires_grad_())


class Standardised(nn.Conv2d):
    """A convolution that makes its weights in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight - self.weight.mean(), self.bias)


def test_layers_with_a_forward_of_their_own_have_the_rule_of_what_they_compute() -> None:
    own = prepare(Standardised(3, 4, 3))
    plain = nn.Conv2d(3, 4, 3).double()
    plain.load_state_dict({"weight": own.weight - own.weight.mean(), "bias": own.bias})
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for rule in (zr.LearnedEpsilon(1e-3), zr.LearnedGamma(0.5), zr.LearnedAlphaBeta(2.0)):
        expected = relevance(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), plain, nn.Flatten()), x, rule)
        assert_close(relevance(nn.Sequential(own, nn.Flatten()), x, rule), expected)


def test_a_module_that_calls_no_linear_function_is_refused() -> None:
    model, x = nn.Sequential(nn.ReLU(), nn.Flatten()), torch.randn(2, 3)
    rules = LayerMapComposite([(nn.ReLU, zr.LearnedGamma(0.5))])
    with rules.context(model), pytest.raises(zr.RuleError, match="LearnedGamma cannot be used on ReLU: it calls no"):
        model(x.requires_grad_())


def test_output_padding_beyond_the_stride() -> None:
    layer = prepare(nn.ConvTranspose2d(2, 3, 3, stride=2, dilation=4, output_padding=3))
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    expected = relevance(layer, x.detach(), Gamma(0.5))
    assert_close(relevance(layer, x.detach(), zr.LearnedGamma(0.5)), expected)


def test_value_and_weights_are_untouched_and_inactive_is_the_gradient() -> None:
    model, x = net("strides and groups")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    leaf = x.clone().requires_grad_()
    rules = composite(zr.LearnedGamma(0.5))
    with rules.context(model):
        out = model(leaf)
        with rules.inactive():
            (off,) = torch.autograd.grad(out, leaf, one_hot(out), retain_graph=True)
    (after,) = torch.autograd.grad(out, leaf, one_hot(out))
    plain = model(leaf)
    (gradient,) = torch.autograd.grad(plain, leaf, one_hot(plain))
    assert torch.equal(out, plain)
    torch.testing.assert_close(after, gradient)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert off.shape == gradient.shape


def test_output_overwritten_in_place() -> None:
    model = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = relevance(model, x, zr.LearnedGamma(0.5))
    with LayerMapComposite([(LinearLike, zr.LearnedGamma(0.5))]).context(model):
        leaf = x.clone().requires_grad_()
        hidden = model[0](leaf)  # type: ignore[index]
        value = hidden.detach().clone()
        hidden.detach().relu_()  # shares its memory
        active = (value > 0).to(value.dtype)
        out = model[3]((hidden * 1.0).flatten(1))  # type: ignore[index]
        (r,) = torch.autograd.grad(out, hidden, out.detach() * one_hot(out), retain_graph=True)
        (got,) = torch.autograd.grad(hidden, leaf, r)
    assert float(active.mean()) < 1
    assert_close(got, expected)
