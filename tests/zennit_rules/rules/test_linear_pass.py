"""Relevance of linear layers in few passes, against the general form that is differentiated."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pairwise import crossed
from torch import Tensor, nn

import zennit_rules as zr
from zennit_rules.core.dependence import depends_on_input
from zennit_rules.core.linear_calls import linear_operands
from zennit_rules.core.linear_map import ConvolutionMap
from zennit_rules.rules import linear_pass
from zennit_rules.rules.contributions import AlphaBetaGate, BoxGate, EpsilonGate, GammaGate
from zennit_rules.rules.linear import LearnedGamma, LinearCall

LAYERS = {
    "convolution": (F.conv2d, (3, 6, 8, 8), (5, 6, 3, 3), {"padding": 1}),
    "strided": (F.conv2d, (3, 6, 9, 8), (5, 6, 3, 3), {"stride": 2}),
    "pointwise": (F.conv2d, (3, 70, 4, 4), (5, 70, 1, 1), {}),
    "depthwise": (F.conv2d, (3, 6, 8, 8), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "grouped": (F.conv2d, (3, 6, 8, 8), (8, 3, 3, 3), {"padding": 1, "groups": 2}),
    "sequence": (F.conv1d, (3, 6, 9), (5, 6, 3), {"padding": 1}),
    "dense": (F.linear, (3, 90), (5, 90), {}),
}  # fmt: skip


class Case:
    """A layer with random weights, an input and relevance of its output."""

    def __init__(self, layer: str, signs: bool, closed: bool, norm: bool, gate: nn.Module, bias: bool = True) -> None:
        torch.manual_seed(0)
        function, size, weight_size, options = LAYERS[layer]
        x = torch.randn(size, dtype=torch.float64)
        x = (x if signs else x.relu()).requires_grad_()
        weight = torch.randn(weight_size, dtype=torch.float64)
        add = torch.randn(weight_size[0], dtype=torch.float64) if bias else None
        value = function(x, weight, add, **options)
        operands = linear_operands(function, (x, weight, add), options, depends_on_input)
        assert operands is not None
        self.x, self.call = x.detach(), LinearCall(LearnedGamma(), operands, value)
        self.call.gate = gate
        self.call.keep_output(value.detach())
        if norm:
            scale, shift = torch.randn(2, weight_size[0], dtype=torch.float64)
            shape = (1, -1, *(1,) * (value.ndim - 2))
            value = value * scale.reshape(shape) + shift.reshape(shape)
            self.call = self.call.behind(scale, shift, value)
        self.g = torch.randn_like(value)
        self.g = (self.g * (value > 0) if closed else self.g).detach()

    def found(self) -> Tensor:
        with torch.no_grad():
            return self.call.signal((self.x,), self.g)

    def expected(self) -> Tensor:
        with torch.enable_grad():
            return self.call.signal((self.x,), self.g).detach()


def gamma(layer: str, start: float, **options: object) -> GammaGate:
    gate = GammaGate((3, LAYERS[layer][2][0]), gamma=start, negative="z+", **options).double()  # type: ignore[arg-type]
    if start == 3.0:
        torch.manual_seed(1)
        gate.raw.data.add_(0.2 * torch.randn_like(gate.raw))
    return gate


CASES = {
    "layer": sorted(LAYERS), "signs": [True, False], "closed": [True, False], "norm": [True, False],
    "samples": [None, 3], "bias": ["shared", "whole", "zero"], "start": [float("inf"), 3.0, 0.0],
}  # fmt: skip


@crossed(**CASES)
def test_the_transpose_is_that_of_the_general_form(
    layer: str, signs: bool, closed: bool, norm: bool, samples: int | None, bias: str, start: float
) -> None:
    case = Case(layer, signs, closed, norm, gamma(layer, start, bias=bias, samples=samples))
    g, towards = case.g.requires_grad_(), torch.randn_like(case.x)
    expected = torch.autograd.grad(case.call.signal((case.x,), g), (g, case.call.gate.raw), towards)
    with torch.no_grad():
        onwards, parameters = case.call.transpose((case.x,), g, towards)
    torch.testing.assert_close((onwards, parameters["raw"]), expected, rtol=1e-8, atol=1e-10)


OTHER_GATES = {
    "epsilon": partial(EpsilonGate, epsilon=0.1), "alpha-beta": partial(AlphaBetaGate, beta=0.5),
    "mirrored": partial(GammaGate, gamma=0.25), "alike": partial(GammaGate, gamma=0.25, negative="alike"),
    "weights": partial(GammaGate, gamma=0.25, negative="z+", split="weights"),
    "box": lambda shape: BoxGate((3, 6, 8, 8), low=-4.0, high=4.0, strength=0.6, learn_bounds=True),
}  # fmt: skip


@crossed(gate=sorted(OTHER_GATES), signs=[True, False], norm=[True, False])
def test_the_transpose_of_other_rules(gate: str, signs: bool, norm: bool) -> None:
    case = Case("convolution", signs, False, norm, OTHER_GATES[gate]((3, 5)).double())
    g, towards = case.g.requires_grad_(), torch.randn_like(case.x)
    parameters = dict(case.call.gate.named_parameters())
    passed = case.call.signal((case.x,), g)
    expected = torch.autograd.grad(passed, (g, *parameters.values()), towards)
    with torch.no_grad():
        onwards, found = case.call.transpose((case.x,), g, towards)
    torch.testing.assert_close((onwards, *found.values()), expected, rtol=1e-8, atol=1e-10)
    assert list(found) == list(parameters)


@crossed(**CASES)
def test_few_passes_are_the_general_form(
    layer: str, signs: bool, closed: bool, norm: bool, samples: int | None, bias: str, start: float
) -> None:
    case = Case(layer, signs, closed, norm, gamma(layer, start, bias=bias, samples=samples))
    torch.testing.assert_close(case.found(), case.expected(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_layers_without_a_bias(layer: str) -> None:
    case = Case(layer, True, True, False, gamma(layer, 3.0), bias=False)
    torch.testing.assert_close(case.found(), case.expected(), rtol=1e-9, atol=1e-11)


def test_outputs_without_positive_contributions_keep_their_digits() -> None:
    """Half the difference of sums would be noise there, divided by nearly nothing."""
    case = Case("pointwise", True, False, False, gamma("pointwise", float("inf")), bias=False)
    call, x = case.call, case.x.float()
    x[0] = -call.weight[0].reshape(-1, 1, 1).float().sign() * x[0].abs()  # the first output has negative ones alone
    call.weight = call.weight.float()
    call.keep_output(call.map(x, call.weight))
    case.x, case.g, call.gate = x, case.g.float(), call.gate.float()
    found, expected = case.found(), case.expected()
    assert found.abs().max() < 1e3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_silent_layers_pass_nothing() -> None:
    case = Case("convolution", True, False, True, gamma("convolution", 3.0))
    case.g = torch.zeros_like(case.g)
    assert not case.found().any()


def test_weights_are_never_those_of_an_earlier_call() -> None:
    """A change by ``weight.data`` leaves no trace that could be looked at."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    rules = zr.RuleSet.build(
        model, x, composite="learned_epsilon_gamma_box", gate="none", rule_options={"low": -1.0, "high": 2.0}
    )

    def map_of(rules: zr.RuleSet) -> Tensor:
        with rules.applied(model):
            return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]

    for _ in range(2):
        again = zr.RuleSet.build(
            model, x, composite="learned_epsilon_gamma_box", gate="none", rule_options={"low": -1.0, "high": 2.0}
        )
        torch.testing.assert_close(map_of(rules), map_of(again), rtol=0, atol=0)
        model[2].weight.data.mul_(-1)


def test_what_it_serves() -> None:
    linear = ConvolutionMap(2)
    assert linear_pass.serves(linear, GammaGate(negative="z+"))
    for gate in (GammaGate(), GammaGate(negative="z+", split="weights"), EpsilonGate(), BoxGate()):
        assert not linear_pass.serves(linear, gate)


@crossed(norm=[True, False], strength=[0.0, 0.4, 1.0])
def test_the_box_rule_in_one_convolution(norm: bool, strength: float) -> None:
    gate = BoxGate((1, 6), low=-3.0, high=2.5, strength=strength).double()
    case = Case("convolution", True, False, norm, gate)
    whole = case.found()
    case.call.map = _Other(2, {"padding": 1})  # takes the general way
    torch.testing.assert_close(whole, case.found(), rtol=1e-9, atol=1e-11)


class _Other(ConvolutionMap):
    """A convolution of another class."""


@crossed(padding=[0, 1, 2], dilation=[1, 2], stride=[1, 2], dims=[1, 2, 3])
def test_the_transposed_map_of_a_kernel_for_each_channel(padding: int, dilation: int, stride: int, dims: int) -> None:
    torch.manual_seed(0)
    options = {"padding": padding, "dilation": dilation, "stride": stride, "groups": 4}
    linear = ConvolutionMap(dims, options)
    x = torch.randn(2, 4, *(9,) * dims, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, *(3,) * dims, dtype=torch.float64)
    out = linear.apply(x, weight)
    signal = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, signal)
    torch.testing.assert_close(linear.apply_transposed(x.shape, weight, signal), expected, rtol=1e-12, atol=1e-12)
