"""Sites: names, in-place semantics, odd models, and nothing left behind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_nets import NETS, ResidualNet, images, prepare, randomise, resnet, vgg
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from zennit.core import Composite

import zennit_rules as zr
from zennit_rules.core.hook import SiteCall


def names(model: nn.Module, *args: Any, **options: Any) -> list[str]:
    """Sites met in one pass."""
    composite = zr.LearnedGradient(**options)
    with composite.context(model):
        model(*args)
    return [site.name for site in composite.rules.sites]


def gradient(model: nn.Module, x: Tensor, composite: Composite | None = None) -> Tensor:
    """Gradient of the sum of the first outputs, under a composite if one is given."""
    if composite is None:
        return torch.autograd.grad(model(x).flatten(1)[:, 0].sum(), x)[0]
    with composite.context(model):
        return torch.autograd.grad(model(x).flatten(1)[:, 0].sum(), x)[0]


class Functional(nn.Module):
    """Wraps a function as the forward pass between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        """Three scores."""
        return self.second(self.function(self.first(x)))


def vectors() -> Tensor:
    """Differentiable input ``(3, 4)``."""
    return torch.randn(3, 4, dtype=torch.float64, requires_grad=True)


class TestNames:
    def test_modules(self) -> None:
        assert names(vgg(), images()) == ["2", "5", "9"]
        assert names(vgg(), images(), pooling="soft") == ["2", "3", "5", "6", "9"]

    def test_calls_of_a_reused_module_are_counted(self) -> None:
        expected = ["relu", "layers.0.relu", "layers.0.relu#1", "layers.1.relu", "layers.1.relu#1"]
        assert names(resnet(), images()) == expected

    def test_counting_starts_anew_with_each_pass(self) -> None:
        model, x, composite = resnet(), images(), zr.LearnedGradient()
        with composite.context(model):
            for _ in range(3):
                model(x)
        assert len(composite.rules.sites) == 5

    def test_functional(self) -> None:
        expected = ["functional_relu", "functional_relu#1", "functional_relu#2"]
        assert names(NETS["inception"](), images()) == expected

    def test_functional_in_a_submodule_with_arguments(self) -> None:
        model = nn.Sequential(Functional(lambda z: F.leaky_relu(z, 0.3)), Functional(F.relu)).double()
        model[1].first = nn.Linear(3, 6).double()
        assert names(model, vectors()) == ["0.functional_leakyrelu(negative_slope=0.3)", "1.functional_relu"]

    def test_shared_module_under_two_paths(self) -> None:
        relu = nn.ReLU()
        model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu).double()
        assert names(model, vectors()) == ["1", "1#1"]

    def test_the_model_itself_is_the_site(self) -> None:
        assert names(nn.ReLU(), vectors()) == ["model"]

    def test_channel_dimension_of_tokens(self) -> None:
        model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
        composite = zr.LearnedGradient()
        with composite.context(model):
            model(torch.randn(2, 5, 4))
        assert [s.channel_dim for s in composite.rules.sites] == [2, 2]
        assert [tuple(composite.rules.gate(s.name).raw.shape) for s in composite.rules.sites] == [(1, 1, 6)] * 2

    def test_a_part_run_on_its_own_is_refused(self) -> None:
        model, composite = resnet(), zr.LearnedGradient()
        with composite.context(model), pytest.raises(zr.RuleError, match=r"'layers.0.relu'.*call the model itself"):
            model.layers(model.conv(images()))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "F.relu": (F.relu, "ReLU"),
    "F.relu keyword": (lambda z: F.relu(input=z), "ReLU"),
    "F.relu in place": (lambda z: F.relu(z, inplace=True), "ReLU"),
    "F.relu positional in place": (lambda z: F.relu(z, True), "ReLU"),
    "torch.relu": (torch.relu, "ReLU"),
    "Tensor.relu": (lambda z: z.relu(), "ReLU"),
    "Tensor.relu_": (lambda z: z.relu_(), "ReLU"),
    "torch.relu_": (lambda z: torch.relu_(z), "ReLU"),
    "F.relu_": (lambda z: F.relu_(z), "ReLU"),
    "clamp": (lambda z: z.clamp(min=0), "ReLU"),
    "clamp positional": (lambda z: torch.clamp(z, 0), "ReLU"),
    "clamp_min": (lambda z: z.clamp_min(0.0), "ReLU"),
    "clip": (lambda z: torch.clip(z, min=0), "ReLU"),
    "clamp to an interval": (lambda z: z.clamp(0, 1), None),
    "clamp above": (lambda z: z.clamp(max=0), None),
    "F.elu": (lambda z: F.elu(z, 0.7), "ELU"),
    "F.elu_": (lambda z: F.elu_(z, 0.7), "ELU"),
    "F.celu": (lambda z: F.celu(z, alpha=0.7, inplace=True), "CELU"),
    "torch.celu": (lambda z: torch.celu(z, 0.7), "CELU"),
    "torch.celu_": (lambda z: torch.celu_(z, 0.7), "CELU"),
    "F.selu": (lambda z: F.selu(z, True), "SELU"),
    "F.gelu tanh": (lambda z: F.gelu(z, approximate="tanh"), "GELU"),
    "F.hardtanh": (lambda z: F.hardtanh(z, -0.3, 0.4), "Hardtanh"),
    "F.softplus": (lambda z: F.softplus(z, 2.0), "Softplus"),
    "F.leaky_relu_": (lambda z: F.leaky_relu_(z, 0.3), "LeakyReLU"),
    "F.threshold": (lambda z: F.threshold(z, 0.1, -0.2), "Threshold"),
    "F.threshold_": (lambda z: F.threshold_(z, 0.1, -0.2), "Threshold"),
    "F.sigmoid": (lambda z: z.sigmoid(), "Sigmoid"),
    "torch.sigmoid_": (lambda z: torch.sigmoid_(z), "Sigmoid"),
    "Tensor.tanh_": (lambda z: z.tanh_(), "Tanh"),
    "F.hardsigmoid": (lambda z: F.hardsigmoid(z, True), "Hardsigmoid"),
    "F.softshrink": (lambda z: F.softshrink(z, 0.1), "Softshrink"),
    "F.hardshrink": (lambda z: F.hardshrink(z, 0.1), "Hardshrink"),
    "Tensor.hardshrink": (lambda z: z.hardshrink(0.1), "Hardshrink"),
    "F.prelu": (lambda z: F.prelu(z, torch.tensor([0.3]).double()), "PReLU"),
    "torch.prelu": (lambda z: torch.prelu(z, torch.linspace(0.1, 0.9, 6).double()), "PReLU"),
    "Tensor.prelu": (lambda z: z.prelu(weight=torch.tensor([0.3]).double()), "PReLU"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
class TestFunctional:
    def test_found_and_exact(self, name: str) -> None:
        # torch computes celu' from celu in single precision where it works in place
        tolerance = 1e-8 if "celu" in name else 1e-14
        function, kind = FUNCTIONS[name]
        model, x = Functional(function).double(), vectors()
        value, expected = model(x), gradient(model, x)
        composite = zr.LearnedGradient(gate="feature")
        with composite.context(model):
            assert torch.equal(model(x), value)
            torch.testing.assert_close(gradient(model, x), expected, rtol=0, atol=tolerance)
        assert [s.function for s in composite.rules.sites] == ([] if kind is None else [kind])

    def test_rule_is_applied(self, name: str) -> None:
        function, kind = FUNCTIONS[name]
        model, x = Functional(function).double(), vectors()
        weighted = gradient(model, x, zr.LearnedGradient(start="deconvnet"))
        assert torch.allclose(weighted, gradient(model, x)) == (kind is None)


def _ignoring(step: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def forward(z: Tensor) -> Tensor:
        step(z)
        return z * 2

    return forward


class TestInPlace:
    """Code that ignores what an in-place call returns."""

    @pytest.mark.parametrize("gate", ["channel", "feature"])
    @pytest.mark.parametrize(
        "step",
        [
            lambda z: z.relu_(),
            lambda z: F.relu(z, inplace=True),
            nn.ReLU(inplace=True),
            nn.SiLU(inplace=True),
            nn.ELU(inplace=True),
            lambda z: F.silu(z, inplace=True),
            lambda z: z.tanh_(),
            lambda z: torch.sigmoid_(z),
        ],
    )
    def test_ignored_return_value(self, step: Callable[[Tensor], Any], gate: str) -> None:
        model, x = Functional(_ignoring(step)).double(), vectors()
        if isinstance(step, nn.Module):
            model.step = step
        value, expected = model(x), gradient(model, x)
        composite = zr.LearnedGradient(gate=gate)
        with composite.context(model):
            out = model(x)
            assert torch.equal(out, value)
            torch.testing.assert_close(gradient(model, x), expected, rtol=0, atol=1e-14)
            assert len(composite.rules.sites) == 1
            randomise(composite.parameters())
            assert not torch.allclose(gradient(model, x), expected)

    def test_returns_the_very_tensor(self) -> None:
        seen = []

        def step(z: Tensor) -> Tensor:
            seen.append((z, F.relu(z, inplace=True), z.relu_(), z.tanh_()))
            return z

        gradient(Functional(step).double(), vectors(), zr.LearnedGradient(gate="feature"))
        assert all(other is seen[0][0] for other in seen[0][1:])


class OwnForward(nn.ReLU):
    """A ReLU in name only."""

    def forward(self, input: Tensor) -> Tensor:
        """Twice a ReLU."""
        return 2 * F.relu(input)


class Looping(nn.Module):
    """Runs whatever children it has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """All children, an activation after each."""
        assert [n for n, _ in self.named_children()] == ["a", "b"]
        for child in self.children():
            x = F.relu(child(x))
        return x


class Activated(nn.Sequential):
    """A functional call around ``super().forward``."""

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the sequence."""
        return F.relu(super().forward(x))


class Recursive(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor, depth: int = 1) -> Tensor:
        """Twice its layers."""
        x = self.relu(self.fc(x))
        return self(x, depth - 1) if depth else x


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), OwnForward()), ["1.functional_relu"]),
        (Looping, ["functional_relu", "functional_relu#1"]),
        (lambda: Activated(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), ["1", "functional_relu"]),
        (Recursive, ["relu", "relu#1"]),
        (lambda: nn.Sequential(nn.ModuleDict({"x": nn.ReLU()})["x"]), ["0"]),
    ],
)
def test_odd_models(make: Callable[[], nn.Module], expected: list[str]) -> None:
    model, x = make().double(), vectors()
    value, plain = model(x), gradient(model, x)
    assert names(model, x) == expected
    with zr.LearnedGradient().context(model):
        assert torch.equal(model(x), value)
        torch.testing.assert_close(gradient(model, x), plain, rtol=0, atol=1e-14)
    assert not torch.allclose(gradient(model, x, zr.LearnedGradient(start="deconvnet")), plain)


@pytest.mark.parametrize("activation", [F.gelu, "gelu", "relu", nn.SiLU()])
def test_transformer_encoder_layer(activation: Any) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=activation, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    expected = gradient(model, x)
    composite = zr.LearnedGradient()
    torch.testing.assert_close(gradient(model, x, composite), expected, rtol=0, atol=1e-13)
    assert len(composite.rules.sites) == 1
    assert composite.rules.sites[0].channel_dim == 2
    randomise(composite.parameters())
    assert not torch.allclose(gradient(model, x, composite), expected)
    with composite.context(model), torch.no_grad():
        torch.testing.assert_close(model(x), model(x.detach()))


# -- nothing left behind ---------------------------------------------------------------------------------------------


class Failing(nn.Module):
    """Raises on the way if asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.error, self.drop = ResidualNet(), None, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, or the error."""
        x = self.net.relu(self.net.bn(F.relu(self.net.conv(x))))
        if self.error is not None:
            raise self.error
        return self.drop(self.net.fc(self.net.layers(x).mean((2, 3))))


def trace(model: nn.Module) -> dict[str, Any]:
    """Everything a rule could leave on a model."""
    return {
        name: (
            type(m), m.training, getattr(m, "inplace", None), set(m.__dict__), sorted(m._modules),
            len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks),
            [(n, id(p), p.requires_grad, p.grad is None, p.detach().clone().tolist()) for n, p in m._parameters.items()
             if p is not None],
            [(n, id(b), b.tolist()) for n, b in m._buffers.items() if b is not None],
        )
        for name, m in model.named_modules()
    }  # fmt: skip


def raising(model: nn.Module, x: Tensor, error: BaseException) -> None:
    """A pass under rules that ends in the error."""
    model.error = error
    with zr.LearnedGradient(gate="feature", pooling="soft").context(model):
        model(x)


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("training", [False, True])
def test_failure_leaves_no_trace(error: BaseException, training: bool) -> None:
    model, x = prepare(Failing()).requires_grad_().train(training), images()
    before = trace(model)
    if not training:
        with zr.LearnedGradient().context(model):
            torch.autograd.grad(model(x).sum(), x)
        assert trace(model) == before
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    with pytest.raises(type(error)):
        raising(model, x, error)
    model.error = None
    with torch.no_grad():
        for n, b in model.named_buffers():  # what the user's own pass in training mode did
            b.copy_(buffers[n])
    assert trace(model) == before
    assert not _get_current_function_mode_stack()
    assert x.grad is None
    assert F.relu(torch.tensor(-1.0)) == 0
    gradient(model, x)


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("training", [False, True])
def test_building_leaves_no_trace(error: BaseException, training: bool) -> None:
    model, x = prepare(Failing()).requires_grad_().train(training), images()
    before = trace(model)
    assert len(zr.RuleSet.build(model, x).sites) > 3
    assert trace(model) == before
    model.error = error
    with pytest.raises(type(error)):
        zr.RuleSet.build(model, x)
    model.error = None
    assert trace(model) == before
    assert x.grad is None
    assert x.requires_grad


def test_a_failed_pass_can_be_repeated() -> None:
    model, x = prepare(Failing()), images()
    expected, composite = gradient(model, x), zr.LearnedGradient()
    with composite.context(model):
        model.error = ValueError("stop")
        with pytest.raises(ValueError, match="stop"):
            model(x)
        model.error = None
        assert torch.equal(torch.autograd.grad(model(x)[:, 0].sum(), x)[0], expected)
    assert [s.name for s in composite.rules.sites][:2] == ["functional_relu", "net.relu"]


def test_a_failing_registration_is_undone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), torch.jit.script(nn.ReLU()))
    before = {n: set(m.__dict__) for n, m in model.named_modules()}
    with pytest.raises(zr.RuleError), zr.LearnedGradient().context(model):
        pass
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == before
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_no_reference_cycle_keeps_a_pass_alive() -> None:
    model, x = resnet(), images()
    gc.collect()
    earlier = {id(o) for o in gc.get_objects() if isinstance(o, SiteCall)}
    gc.disable()
    try:
        with zr.LearnedGradient(gate="feature", pooling="soft").context(model):
            out = model(x)
            torch.autograd.grad(out.sum(), x)
            del out
            assert not [o for o in gc.get_objects() if isinstance(o, SiteCall) and id(o) not in earlier]
    finally:
        gc.enable()


def test_deepcopy_inside_the_context() -> None:
    model, x = resnet(), images()
    plain = gradient(model, x)
    composite = zr.LearnedGradient(start="deconvnet")
    with composite.context(model):
        before = gradient_inside(model, x)
        clone = copy.deepcopy(model)
        assert len(composite.rules.sites) == 5
        assert torch.equal(gradient_inside(model, x), before)
    assert torch.equal(gradient(model, x), plain)
    assert torch.equal(clone(x), model(x))
    assert all(a is not b for a, b in zip(model.parameters(), clone.parameters(), strict=True))
    torch.testing.assert_close(gradient(clone, x), plain, rtol=0, atol=1e-14)


def gradient_inside(model: nn.Module, x: Tensor) -> Tensor:
    """As `gradient`, for use inside a context."""
    return torch.autograd.grad(model(x)[:, 0].sum(), x)[0]


class TestSeveralComposites:
    @pytest.mark.parametrize("net", ["resnet", "inception"])
    def test_the_inner_one_wins(self, net: str) -> None:
        model, x = NETS[net](), images()
        deconvnet = gradient(model, x, zr.LearnedGradient(start="deconvnet"))
        guided = gradient(model, x, zr.LearnedGuidedBackprop())
        plain = gradient(model, x)
        outer, inner = zr.LearnedGuidedBackprop(), zr.LearnedGradient(start="deconvnet")
        with outer.context(model):
            assert torch.equal(gradient_inside(model, x), guided)
            with inner.context(model):
                assert torch.equal(gradient_inside(model, x), deconvnet)
            assert torch.equal(gradient_inside(model, x), guided)
        assert torch.equal(gradient_inside(model, x), plain)

    @pytest.mark.parametrize("net", ["resnet", "inception"])
    def test_removed_in_the_other_order(self, net: str) -> None:
        model, x = NETS[net](), images()
        plain, first, second = gradient(model, x), zr.LearnedGuidedBackprop(), zr.LearnedGradient(start="deconvnet")
        deconvnet = gradient(model, x, zr.LearnedGradient(start="deconvnet"))
        before = trace(model)
        first.register(model)
        second.register(model)
        first.remove()
        assert torch.equal(gradient_inside(model, x), deconvnet)
        second.remove()
        assert trace(model) == before
        assert torch.equal(gradient_inside(model, x), plain)

    def test_applied_twice(self) -> None:
        model, x, composite = resnet(), images(), zr.LearnedGradient(start="deconvnet")
        before = trace(model)
        expected = gradient(model, x, zr.LearnedGradient(start="deconvnet"))
        composite.register(model)
        composite.register(model)
        assert torch.equal(gradient_inside(model, x), expected)
        composite.remove()
        composite.remove()
        assert trace(model) == before
        assert torch.equal(gradient(model, x, composite), expected)
        assert len(composite.rules.sites) == 5

    def test_one_composite_moves_to_another_model(self) -> None:
        first, second, composite = resnet(), resnet(), zr.LearnedGradient()
        before = trace(first)
        composite.register(first)
        composite.register(second)
        assert trace(first) == before
        composite.remove()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), "it is a scripted or traced"),
        (lambda: torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.zeros(1, 4)), "scripted or traced"),
        (lambda: nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.ReLU())), "module '1' is a scripted"),
        (lambda: torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), "torch.compile.*_orig_mod"),
        (lambda: nn.Sequential(torch.compile(nn.Linear(4, 4)), nn.ReLU()), "module '0' was compiled"),
        (lambda: _compiled_in_place(), "compiled"),
    ],
)
def test_models_out_of_reach_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    model = make()
    with pytest.raises(zr.RuleError, match=message):
        zr.RuleSet.build(model, torch.randn(2, 4))
    with pytest.raises(zr.RuleError, match=message), zr.LearnedGradient().context(model):
        pass


def _compiled_in_place() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[1].compile()
    return model


def test_functional_prelu_takes_the_weight_of_its_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slopes = nn.ParameterList([nn.Parameter(torch.tensor([0.3])), nn.Parameter(torch.linspace(0.1, 1, 4))])

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([F.prelu(x, slope) for slope in self.slopes], 1)

    model, x = Twice().double().eval(), torch.randn(3, 4).double().requires_grad_()
    names = set(model.state_dict())
    rules = zr.RuleSet.build(model, x, gate="quadrant")
    assert [site.name for site in rules.sites] == ["functional_prelu", "functional_prelu#1"]
    seed = torch.randn(3, 8).double()
    (expected,) = torch.autograd.grad(model(x), x, seed)
    with rules.applied(model):
        (found,) = torch.autograd.grad(model(x), x, seed)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    assert set(model.state_dict()) == names


class OneByOne(nn.Module):
    """Hugging Face's Conv1D: a linear layer by ``addmm`` of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], 6)


@pytest.mark.parametrize("layer", [OneByOne, lambda: lambda x: x @ torch.ones(4, 6), lambda: nn.Linear(4, 6)])
def test_channels_of_tokens_come_last_whoever_computes_them(layer: Any) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(self.layer(x)).mean(1)

    (site,) = zr.RuleSet.build(Tokens(), torch.randn(2, 3, 4)).sites
    assert (site.shape, site.channel_dim) == ((2, 3, 6), 2)
