"""Relevance through functions: dense oracles, values, derivatives, and what is left to the plain gradient."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_nets import score
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import zennit_rules as zr
from zennit_rules.rules.relevance import depends_on_input, relevance_call, stabilized
from zennit_rules.rules.relevance_nodes import RELEVANCE_KEEPING, unkept_nodes

EPSILON = 0.03  # large enough to matter
Function = Callable[[Tensor], Tensor]


class Rules(TorchFunctionMode):
    """What a composite does: every call that has a rule gets it."""

    def __init__(self) -> None:
        super().__init__()
        self.on = True
        self.handled: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = relevance_call(func, args, kwargs, lambda: self.on, EPSILON)
        if out is NotImplemented:
            return func(*args, **(kwargs or {}))
        self.handled.append(getattr(func, "__name__", str(func)))
        return out

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


def tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def stab(z: float) -> float:
    return z + EPSILON if z >= 0 else z - EPSILON


def shared(function: Function, x: Tensor, relevance: Tensor) -> Tensor:
    """``R_i = sum_j x_i J_ji R_j / stab(z_j)``, entry by entry."""
    jacobian = torch.autograd.functional.jacobian(function, x).reshape(relevance.numel(), -1)
    z, out = function(x).flatten(), torch.zeros(x.numel(), dtype=x.dtype)
    for j, r in enumerate(relevance.flatten()):
        for i, value in enumerate(x.flatten()):
            out[i] += value * jacobian[j, i] * r / stab(float(z[j]))
    return out.view_as(x)


CONSTANT = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

# Linear in x without an offset: (function, name it is handled under).
SHARED: dict[str, Function] = {
    "sum": lambda x: x.sum((2, 3)),
    "torch.sum": lambda x: torch.sum(x),
    "mean": lambda x: x.mean(1, keepdim=True),
    "mean of the input": lambda x: torch.mean(input=x, dim=(2, 3)),
    "cumsum": lambda x: x.cumsum(2),
    "stack and sum": lambda x: torch.stack([x, 2 * x.flip(3)]).sum(0),
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 3, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 1, padding=1),
    "avg_pool3d": lambda x: F.avg_pool3d(x, 2),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 3),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x, 2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "nearest": lambda x: F.interpolate(x, size=(3, 5)),
    "fold": lambda x: F.fold(x.flatten(2).repeat(1, 4, 1)[..., :9], (4, 4), 2),
    "matmul with a constant": lambda x: x @ CONSTANT,
    "einsum with a constant": lambda x: torch.einsum("bcij,cjk->bik", x, CONSTANT),
    "add": lambda x: x[:1] + x[1:],
    "add in place": lambda x: x[:1].clone().add_(x[1:]),
    "augmented": lambda x: augmented(x[:1].clone(), x[1:]),
    "add with alpha": lambda x: torch.add(x[:1], x[1:], alpha=-0.7),
    "add, broadcast": lambda x: x[:1, :1] + x[1:],
    "add to itself": lambda x: x + x,
    "sub": lambda x: x[:1] - x[1:],
    "sub in place": lambda x: x[:1].clone().sub_(x[1:]),
    "rsub": lambda x: torch.rsub(x[:1], x[1:], alpha=2),
}


def augmented(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


# Functions that hand all relevance of an element to the one it was computed from.
PASSED: dict[str, Function] = {
    "1 - x": lambda x: 1 - x,
    "c - x": lambda x: CONSTANT - x,
    "torch.rsub": lambda x: torch.rsub(x, CONSTANT),
    "c + alpha x": lambda x: torch.add(CONSTANT, x, alpha=3),
    "2x": lambda x: 2 * x,
    "x times constant": lambda x: x * CONSTANT,
    "in place": lambda x: x.clone().mul_(CONSTANT),
    "x / 3": lambda x: x / 3,
    "x / itself, summed": lambda x: x / x.abs().sum(1, keepdim=True),
    "1 / x": lambda x: 1 / x,
    "x * x": lambda x: x * x,
    "x ** 2": lambda x: x**2,
    "swish": lambda x: x * torch.sigmoid(x),
    "gated": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "gate first": lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True)) * x,
    "rms": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "batch_norm": lambda x: F.batch_norm(x, CONSTANT[0, 0, :3], CONSTANT[0, 0, :3].abs(), CONSTANT[1, 1, :3]),
    "batch_norm of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "layer_norm": lambda x: F.layer_norm(x, (4, 4), CONSTANT[0], CONSTANT[1]),
    "layer_norm module": lambda x: nn.LayerNorm((4, 4), dtype=torch.float64)(x),
    "group_norm": lambda x: F.group_norm(x, 3),
    "instance_norm": lambda x: F.instance_norm(x),
    "normalize": lambda x: F.normalize(x, dim=1),
    "relu": F.relu,
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "relu in place": lambda x: F.relu(x.clone(), inplace=True),
    "relu in place by position": lambda x: F.relu(x.clone(), True),
    "relu_": lambda x: x.clone().relu_(),
    "elu_": lambda x: F.elu_(x.clone(), 0.5),
    "leaky_relu": lambda x: F.leaky_relu(input=x, negative_slope=0.2),
    "prelu": lambda x: F.prelu(x, CONSTANT[0, 0, :1]),
    "silu": F.silu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": lambda x: F.hardswish(x, inplace=False),
    "hardtanh": lambda x: F.hardtanh(x.clone(), -0.5, 0.5, True),
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: F.softplus(x, beta=2),
    "clamp": lambda x: x.clamp(0, 6),
    "exp": torch.exp,
    "negative": lambda x: -x,
    "abs": abs,
}
# One rule each.
SINGLE: dict[str, Function] = {**SHARED, **PASSED, "softmax": lambda x: x.softmax(1), "matmul": lambda x: x @ x.mT}
MIXING = {n for n in SINGLE if n.startswith(("add", "sub", "rsub", "aug")) and n != "add to itself"} | {
    "torch.sum", "batch_norm of the batch",
}  # fmt: skip


def run(function: Function, x: Tensor) -> tuple[Tensor, Rules]:
    rules = Rules()
    with rules:
        return function(x), rules


class TestOracles:
    @pytest.mark.parametrize("name", SHARED)
    def test_shared(self, name: str) -> None:
        x = tensor(2, 3, 4, 4).requires_grad_()
        out, rules = run(SHARED[name], x)
        relevance = torch.randn_like(out)
        assert rules.handled
        if name == "stack and sum":  # 2x has the rule of a product
            expected = x * relevance / stabilized(out, EPSILON)
            expected = expected + (2 * x.flip(3) * relevance / stabilized(out, EPSILON)).flip(3)
        else:
            expected = shared(SHARED[name], x.detach(), relevance)
        torch.testing.assert_close(torch.autograd.grad(out, x, relevance)[0], expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", PASSED)
    def test_passed(self, name: str) -> None:
        x = tensor(2, 3, 4, 4).requires_grad_()
        out, rules = run(PASSED[name], x)
        relevance = torch.randn_like(out)
        assert rules.handled
        torch.testing.assert_close(torch.autograd.grad(out, x, relevance)[0], relevance, rtol=1e-13, atol=1e-13)

    def test_product_of_two(self) -> None:
        a, b = tensor(2, 3).requires_grad_(), tensor(2, 3).requires_grad_()
        out, _ = run(lambda x: x * b, a)
        relevance = tensor(2, 3)
        for found in torch.autograd.grad(out, (a, b), relevance):
            torch.testing.assert_close(found, relevance / 2)

    def test_outer_product(self) -> None:
        a, b = tensor(2, 3, 1).requires_grad_(), tensor(2, 1, 4).requires_grad_()
        out, _ = run(lambda x: x * b, a)
        relevance = tensor(2, 3, 4)
        first, second = torch.autograd.grad(out, (a, b), relevance)
        torch.testing.assert_close(first, relevance.sum(2, keepdim=True) / 2)
        torch.testing.assert_close(second, relevance.sum(1, keepdim=True) / 2)

    def test_gate_and_divisor_get_none(self) -> None:
        x, gate = tensor(2, 3, 4).requires_grad_(), tensor(2, 3, 1).requires_grad_()
        for function in (lambda x: x * gate, lambda x: gate * x, lambda x: x / gate, lambda x: torch.div(x, gate)):
            out, _ = run(function, x)
            relevance = tensor(2, 3, 4)
            first, second = torch.autograd.grad(out, (x, gate), relevance)
            assert torch.equal(first, relevance)
            assert torch.equal(second, torch.zeros_like(gate))

    def test_dividend_that_was_broadcast(self) -> None:
        x, over = tensor(2, 3, 1).requires_grad_(), tensor(2, 3, 4)
        out, _ = run(lambda x: x / over, x)
        relevance = tensor(2, 3, 4)
        torch.testing.assert_close(torch.autograd.grad(out, x, relevance)[0], relevance.sum(2, keepdim=True))

    def test_matrix_product_of_two(self) -> None:
        """Half to each matrix, in proportion to ``a_ik b_kj``."""
        a, b, relevance = tensor(2, 3), tensor(3, 4), tensor(2, 4)
        first, second = torch.zeros_like(a), torch.zeros_like(b)
        for i in range(2):
            for j in range(4):
                z = sum(float(a[i, k] * b[k, j]) for k in range(3))
                for k in range(3):
                    part = 0.5 * a[i, k] * b[k, j] * relevance[i, j] / stab(z)
                    first[i, k] += part
                    second[k, j] += part
        a.requires_grad_(), b.requires_grad_()
        for function in (lambda x: x @ b, lambda x: torch.einsum("ik,kj->ij", x, b), lambda x: torch.mm(x, b)):
            found = torch.autograd.grad(run(function, a)[0], (a, b), relevance)
            torch.testing.assert_close(found[0], first)
            torch.testing.assert_close(found[1], second)

    @pytest.mark.parametrize(
        "function", [lambda x: F.softmax(x, dim=1), lambda x: x.softmax(1), lambda x: nn.Softmax(1)(x)]
    )
    def test_softmax(self, function: Function) -> None:
        x, relevance = tensor(2, 4).requires_grad_(), tensor(2, 4)
        y, expected = x.softmax(1), torch.zeros(2, 4, dtype=torch.float64)
        for b in range(2):
            for i in range(4):
                expected[b, i] = x[b, i] * (relevance[b, i] - y[b, i] * sum(relevance[b, j] for j in range(4)))
        torch.testing.assert_close(torch.autograd.grad(run(function, x)[0], x, relevance)[0], expected.detach())

    def test_masked_softmax(self) -> None:
        x = tensor(2, 4).requires_grad_()
        mask = torch.tensor([0.0, 0.0, -math.inf, 0.0], dtype=torch.float64)
        out, _ = run(lambda x: (x + mask).softmax(1), x)
        found = torch.autograd.grad(out, x, tensor(2, 4))[0]
        assert found.isfinite().all()
        assert (found[:, 2] == 0).all()

    def test_zero_is_stabilised_upwards(self) -> None:
        z = torch.tensor([0.0, -0.0, 1.0, -1.0])
        torch.testing.assert_close(stabilized(z, 0.5), torch.tensor([0.5, 0.5, 1.5, -1.5]))

    @pytest.mark.parametrize("name", [n for n in SINGLE if n not in MIXING])
    def test_a_batch_is_its_samples(self, name: str) -> None:
        x = tensor(2, 3, 4, 4).requires_grad_()
        out, _ = run(SINGLE[name], x)
        relevance = torch.randn_like(out)
        (together,) = torch.autograd.grad(out, x, relevance)
        for i in range(2):
            one = x[i : i + 1].detach().requires_grad_()
            (alone,) = torch.autograd.grad(run(SINGLE[name], one)[0], one, relevance[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-13)


class TestValues:
    @pytest.mark.parametrize("name", SINGLE)
    def test_equal_to_the_bit(self, name: str) -> None:
        x = tensor(2, 3, 4, 4).requires_grad_()
        out, _ = run(SINGLE[name], x)
        assert torch.equal(out, SINGLE[name](x))
        assert out.requires_grad

    @pytest.mark.parametrize(
        "write",
        [lambda a, b: a.add_(b), lambda a, b: a.sub_(b), lambda a, b: a.mul_(b), lambda a, b: a.div_(b),
         lambda a, b: a.__iadd__(b), lambda a, b: torch.relu_(a), lambda a, b: F.relu(a, inplace=True)],
    )  # fmt: skip
    def test_written_into_the_operand(self, write: Callable[[Tensor, Tensor], Tensor]) -> None:
        base, b = tensor(2, 3).requires_grad_(), tensor(2, 3).requires_grad_()
        a = base * 1
        view, rules = a[0], Rules()
        with rules:
            out = write(a, b)
        expected = write(base.detach() * 1, b.detach())
        assert out is a
        assert rules.handled
        assert torch.equal(a, expected)
        assert torch.equal(view, expected[0])

    def test_running_statistics_move_once(self) -> None:
        x, norm = tensor(4, 3, 2, 2).requires_grad_(), nn.BatchNorm2d(3).double().train()
        twin = nn.BatchNorm2d(3).double().train()
        out, rules = run(norm, x)
        twin(x)
        with rules.off():
            torch.autograd.grad(out, x, torch.randn_like(out))
        assert torch.equal(norm.running_mean, twin.running_mean)
        assert torch.equal(norm.running_var, twin.running_var)

    def test_operands_are_freed_with_the_graph(self) -> None:
        x = tensor(2, 3).requires_grad_()
        inner = x * 1
        out, _ = run(lambda y: y + y.flip(1), inner)
        torch.autograd.grad(out, x, tensor(2, 3))
        watched = weakref.ref(inner)
        del inner
        assert watched() is None


class TestDerivatives:
    @pytest.mark.parametrize("name", SINGLE)
    def test_inactive_is_the_true_gradient(self, name: str) -> None:
        """To first and second order."""
        x, seed = tensor(2, 3, 4, 4).requires_grad_(), None
        found = []
        for with_rules in (True, False):
            out, rules = run(SINGLE[name], x) if with_rules else (SINGLE[name](x), Rules())
            seed = torch.randn_like(out).requires_grad_() if seed is None else seed
            with rules.off():
                (first,) = torch.autograd.grad(out, x, seed, create_graph=True)
                second = torch.autograd.grad(score(first), (x, seed), allow_unused=True)
                (plain,) = torch.autograd.grad(SINGLE[name](x), x, seed.detach())
            found.append([first, plain, *(torch.zeros(1) if s is None else s for s in second)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one.to(other.dtype).expand_as(other), other, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("name", SINGLE)
    def test_second_order_by_finite_differences(self, name: str) -> None:
        """To a parameter of the signal, and to the input where the second pass runs without rules."""
        x, weight = tensor(2, 3, 4, 4).requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        pattern = torch.randn_like(SINGLE[name](x))

        def loss(create_graph: bool = False) -> tuple[Tensor, Rules]:
            out, rules = run(SINGLE[name], x)
            (relevance,) = torch.autograd.grad(out, x, torch.sin(weight * pattern), create_graph=create_graph)
            return score(relevance), rules

        value, rules = loss(create_graph=True)
        torch.testing.assert_close(value.detach(), loss()[0], rtol=1e-13, atol=1e-13)
        with rules.off():
            towards_weight, towards_x = torch.autograd.grad(value, (weight, x), materialize_grads=True)
        for variable, analytical in ((weight, towards_weight), (x, towards_x)):
            kept, direction, ends = variable.detach().clone(), torch.randn_like(variable), []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    variable.copy_(kept + step * direction)
                ends.append(float(loss()[0]))
            with torch.no_grad():
                variable.copy_(kept)
            numerical = (ends[0] - ends[1]) / 2e-6
            size = max(abs(numerical), float((analytical * direction).abs().sum()), 1e-3)
            assert abs(numerical - float((analytical * direction).sum())) <= 1e-5 * size

    def test_parameters_get_their_gradient_when_inactive_and_none_else(self) -> None:
        x, weight = tensor(2, 3).requires_grad_(), nn.Parameter(tensor(3))
        out, rules = run(lambda x: F.layer_norm(x, (3,), weight), x)
        assert torch.autograd.grad(out.sum(), weight, retain_graph=True, allow_unused=True)[0] is None
        with rules.off():
            found = torch.autograd.grad(out.sum(), weight)[0]
        torch.testing.assert_close(found, F.layer_norm(x, (3,)).sum(0))

    def test_sums_in_a_checkpointed_part(self) -> None:
        x = tensor(2, 3).requires_grad_()

        def part(x: Tensor) -> Tensor:
            with rules:
                return x + x.flip(1)

        rules = Rules()
        out = checkpoint(part, x, use_reentrant=False)
        relevance = tensor(2, 3)
        expected = torch.autograd.grad(part(x), x, relevance)[0]
        torch.testing.assert_close(torch.autograd.grad(out, x, relevance)[0], expected)


class TestLeftAlone:
    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        return relevance_call(func, args, kwargs, lambda: True)

    def test_without_a_rule(self) -> None:
        x = tensor(2, 3).requires_grad_()
        assert self.call(torch.cat, [x, x]) is NotImplemented
        assert self.call(F.linear, x, tensor(4, 3)) is NotImplemented
        assert self.call(F.dropout, x, 0.5, False) is NotImplemented

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x + 1,
            lambda x: 1 + x,
            lambda x: CONSTANT + x,
            lambda x: x - CONSTANT,
            lambda x: x[:, :1] + CONSTANT,
        ],
    )
    def test_sum_with_a_constant(self, function: Function) -> None:
        """Its own gradient gives all relevance to the one operand."""
        x = tensor(2, 3, 4, 4).requires_grad_()
        out, rules = run(function, x)
        assert not rules.handled
        relevance = torch.randn_like(out)
        found = torch.autograd.grad(out, x, relevance)[0]
        torch.testing.assert_close(found.sum(), relevance.sum())
        assert unkept_nodes(out) == {}

    def test_nothing_depends_on_the_input(self) -> None:
        weight = nn.Parameter(tensor(3))
        assert self.call(torch.add, weight, weight) is NotImplemented
        assert self.call(torch.add, weight * 2, weight) is NotImplemented
        assert self.call(torch.add, tensor(3), tensor(3)) is NotImplemented
        x = tensor(3).requires_grad_()
        with torch.no_grad():
            assert self.call(torch.add, x, x) is NotImplemented
        assert self.call(torch.add, x, x, out=tensor(3)) is NotImplemented

    def test_weights_are_constants(self) -> None:
        x, weight = tensor(2, 3).requires_grad_(), nn.Parameter(tensor(3))
        assert depends_on_input(x)
        assert depends_on_input((x * 2) @ tensor(3, 3))
        assert not depends_on_input(weight)
        assert not depends_on_input((weight * 2).expand(2, 3))
        out, _ = run(lambda x: x * (weight * 2).expand(2, 3), x)
        relevance = tensor(2, 3)
        assert torch.equal(torch.autograd.grad(out, x, relevance)[0], relevance)


class TestCoverage:
    @pytest.mark.parametrize("name", [n for n in SINGLE if n != "fold"])
    def test_handled_functions_are_kept(self, name: str) -> None:
        out, _ = run(SINGLE[name], tensor(2, 3, 4, 4).requires_grad_())
        assert unkept_nodes(out) == {}

    @pytest.mark.parametrize(
        "move",
        [lambda x: x.view(2, -1), lambda x: x.permute(0, 2, 3, 1).reshape(8, -1), lambda x: torch.cat([x, x]),
         lambda x: x[:, 1:, ::2], lambda x: F.max_pool2d(x, 2), lambda x: F.adaptive_max_pool2d(x, 2),
         lambda x: x.amax(1), lambda x: x.max(1).values, lambda x: x.repeat(2, 1, 1, 1), lambda x: x.unfold(3, 2, 2),
         lambda x: F.pad(x, (1, 1)), lambda x: torch.stack(x.chunk(3, 1)), lambda x: x.flip(2).roll(1, 3).clone(),
         lambda x: x.index_select(1, torch.tensor([2, 0])), lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
         lambda x: torch.maximum(x, -x.detach()), lambda x: x.unbind(1)[0], lambda x: x.float()],
    )  # fmt: skip
    def test_moves_are_kept_and_conserve(self, move: Function) -> None:
        x = tensor(2, 3, 4, 4).requires_grad_()
        out, rules = run(move, x)
        assert not rules.handled
        assert unkept_nodes(out) == {}
        picked = torch.maximum(x, -x.detach()) if out.shape == x.shape and out.dtype == x.dtype else None
        relevance = torch.rand_like(out)
        if picked is not None and torch.equal(out, picked):
            relevance = relevance * (x > 0)  # the constant won elsewhere
        if out.shape == (2, 3, 6, 4) or out.shape == (2, 3, 4, 6):
            relevance = relevance * (out != 0)  # not on the padding
        torch.testing.assert_close(
            torch.autograd.grad(out, x, relevance)[0].sum(), relevance.sum().double(), rtol=1e-6, atol=0
        )

    def test_others_are_named(self) -> None:
        x, conv = tensor(2, 3, 4, 4).requires_grad_(), nn.Conv2d(3, 2, 3).double()
        out = conv(x)
        assert unkept_nodes(out) == {"ConvolutionBackward0": 1}
        assert unkept_nodes({"a": [out.log_softmax(1), x.prod()]}) == {
            "ConvolutionBackward0": 1, "LogSoftmaxBackward0": 1, "ProdBackward0": 1,
        }  # fmt: skip
        assert unkept_nodes(x - x.flip(1)) == {"SubBackward0": 1}
        assert unkept_nodes(x + x.flip(1)) == {"AddBackward0": 1}
        assert unkept_nodes(torch.add(CONSTANT, x, alpha=2)) == {"AddBackward0": 1}
        assert unkept_nodes("nothing") == {}

    def test_ways_without_relevance_do_not_count(self) -> None:
        """Neither what is made of parameters alone nor what leads to a gate."""
        x, weight = tensor(2, 3, 4, 4).requires_grad_(), nn.Parameter(tensor(3, 4, 4))
        out, _ = run(lambda x: x * x.norm(dim=(2, 3), keepdim=True), x)
        assert unkept_nodes(out) == {}
        assert unkept_nodes(x + weight.prod()) == {}

    def test_rules_of_the_package_are_kept(self) -> None:
        model, x = nn.Sequential(nn.ReLU(), nn.Flatten()), tensor(2, 3).requires_grad_()
        with zr.LearnedGradient().context(model):
            assert unkept_nodes(model(x)) == {}
        assert unkept_nodes(model(x)) == {"ReluBackward0": 1}

    def test_a_function_of_someone_else_counts(self) -> None:
        class Foreign(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x * 2

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Tensor:
                return g * 2

        out = Foreign.apply(tensor(3).requires_grad_())
        assert unkept_nodes(out) == {"ForeignBackward": 1}

    def test_names_are_names_of_nodes(self) -> None:
        x = tensor(2, 3).requires_grad_()
        assert {x.view(6).grad_fn.name(), x.permute(1, 0).grad_fn.name(), x.clone().grad_fn.name()} <= RELEVANCE_KEEPING
        assert "MulBackward0" not in RELEVANCE_KEEPING
