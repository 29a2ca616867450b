"""LearnedDeepLift: captum's numbers where captum is right, complete where it is not, and captum's habits."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr as ca
import pytest
import torch
import torch.nn.functional as F
from captum._utils.gradient import construct_neuron_grad_fn
from captum.metrics import infidelity, sensitivity_max
from captum.testing.attr.helpers.test_config import config as CONFIG
from torch import Tensor, nn
from untouched import assert_untouched, snapshot

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop import _compat
from captum_learnprop.errors import LearnpropError, TargetError

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", r"ignore:\s*Setting forward, backward hooks")


def built(*layers: nn.Module) -> nn.Module:
    """In float64, always the same weights."""
    model = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
    return model.double().eval().requires_grad_(False)


def conv(activation: Callable[[], nn.Module]) -> nn.Module:
    """No two non-linear layers follow each other: there, captum is right."""
    return built(
        nn.Conv2d(2, 4, 3, padding=1), activation(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2),
        activation(), nn.Flatten(), nn.Linear(3, 4),
    )  # fmt: skip


def x_of(samples: int = 3) -> Tensor:
    return torch.randn(samples, 2, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


RIGHT = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
BASELINES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "number": lambda: 0.4,
    "integer": lambda: 1,
    "row": lambda: torch.randn(1, 2, 6, 6).double(),
    "tensor": lambda: torch.randn(3, 2, 6, 6).double(),
    "tuple": lambda: (0.4,),
}


# -- captum's numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baselines", BASELINES)
@pytest.mark.parametrize("activation", RIGHT)
def test_equal_to_captum(activation: type[nn.Module], baselines: str) -> None:
    model, x, baseline = conv(activation), x_of(), BASELINES[baselines]()
    expected, delta = ca.DeepLift(model).attribute(x, baseline, [0, 1, 2], return_convergence_delta=True)
    assert delta.abs().max() < 1e-12  # captum is complete here
    found, own_delta = cl.LearnedDeepLift(model).attribute(x, baseline, [0, 1, 2], return_convergence_delta=True)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own_delta, delta, rtol=0, atol=1e-12)
    multipliers = cl.LearnedDeepLift(model, multiply_by_inputs=False).attribute(x, baseline, [0, 1, 2])
    expected = ca.DeepLift(model, multiply_by_inputs=False).attribute(x, baseline, [0, 1, 2])
    torch.testing.assert_close(multipliers, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", RIGHT)
def test_equal_to_captum_where_input_and_baseline_partly_agree(activation: type[nn.Module]) -> None:
    """One sample: captum's max-pool takes the gradient of the first one for all."""
    model, x = conv(activation), x_of(1)
    baseline = torch.where(torch.arange(6) < 4, x, torch.zeros_like(x))
    expected = ca.DeepLift(model).attribute(x, baseline, 1).detach()
    torch.testing.assert_close(cl.LearnedDeepLift(model).attribute(x, baseline, 1), expected, rtol=1e-10, atol=1e-12)


def test_equal_to_captum_with_a_custom_function() -> None:
    model, x, baseline = conv(nn.ELU), x_of(), torch.randn(1, 2, 6, 6).double()
    functions: tuple[Callable[..., Any], ...] = (
        lambda m: tuple(a.abs() for a in m),
        lambda m, x: tuple(a * b for a, b in zip(m, x, strict=True)),
        lambda m, x, x0: tuple(a * (b - c) ** 2 for a, b, c in zip(m, x, x0, strict=True)),
    )
    for function in functions:
        expected = ca.DeepLift(model).attribute(x, baseline, 1, custom_attribution_func=function).detach()
        found = cl.LearnedDeepLift(model).attribute(x, baseline, 1, custom_attribution_func=function)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Two(nn.Module):
    """Two inputs and an argument that scales."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.act = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 3), nn.Tanh()
        self.double().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor, scale: Any = 1.0) -> Tensor:
        return self.fc(self.act((self.a(x) + self.b(y)) * scale))


@pytest.mark.parametrize("baselines", [None, (0.1, -0.3), (torch.full((1, 4), 0.3).double(), 0.0)])
def test_equal_to_captum_with_several_inputs(baselines: Any) -> None:
    model, inputs = Two(), (torch.randn(2, 4).double(), torch.randn(2, 3).double())
    expected = ca.DeepLift(model).attribute(inputs, baselines, 1, (0.7,))
    found = cl.LearnedDeepLift(model).attribute(inputs, baselines, 1, (0.7,))
    assert isinstance(found, tuple)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-12)


DEEP_LIFT = [c for c in CONFIG if ca.DeepLift in c["algorithms"]]


@pytest.mark.parametrize("config", DEEP_LIFT, ids=[c["name"] for c in DEEP_LIFT])
def test_captums_own_table(config: dict[str, Any]) -> None:
    """In the place of captum's class; its numbers, where those are complete."""
    model, args = config["model"], dict(config["attribute_args"])
    methods = [ca.DeepLift(model), cl.LearnedDeepLift(model)]
    if config.get("noise_tunnel"):
        args["stdevs"] = 0.0  # the noise of two runs differs
        methods = [ca.NoiseTunnel(method) for method in methods]
    (theirs, delta), (ours, own_delta) = (m.attribute(**{**args, "return_convergence_delta": True}) for m in methods)
    theirs, ours = (maps if isinstance(maps, tuple) else (maps,) for maps in (theirs, ours))
    assert own_delta.shape == delta.shape
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        if delta.abs().max() < 1e-5:
            torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)


def test_the_table_has_what_we_replace() -> None:
    assert len(DEEP_LIFT) >= 9
    assert any(c.get("noise_tunnel") for c in DEEP_LIFT)


# -- complete where captum is not ------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Activations called as functions, on the way to one captum knows."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 4)
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


class PlainReLU(nn.ReLU):
    """A subclass."""


SILENT: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: lambda kind=kind: built(nn.Linear(8, 6), kind(), nn.Linear(6, 4))
        for kind in (
            nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.ReLU6, nn.PReLU, nn.SELU, nn.CELU, nn.Hardtanh,
            nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.LogSoftmax, PlainReLU,
        )
    },
    "F.relu": lambda: Functional(F.relu),
    "relu_": lambda: Functional(torch.relu_),
    "F.gelu": lambda: Functional(F.gelu),
    "torch.softmax": lambda: Functional(lambda z: torch.softmax(z, -1)),
    "softmax": lambda: built(nn.Linear(8, 6), nn.Softmax(1), nn.Linear(6, 4)),
    "one after the other": lambda: built(
        nn.Linear(8, 6), nn.ELU(), nn.Unflatten(1, (2, 3)), nn.MaxPool1d(2, 1), nn.Flatten(), nn.Linear(4, 4)
    ),
    "overlapping windows": lambda: built(
        nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 1), nn.MaxPool1d(3, 1, 1), nn.Flatten(), nn.Linear(12, 4)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("net", SILENT)
def test_complete_where_captum_silently_is_not(net: str) -> None:
    torch.manual_seed(3)
    model, x, baseline = SILENT[net](), 2 * torch.randn(4, 8).double(), torch.randn(1, 8).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    _, wrong = ca.DeepLift(model).attribute(x, baseline, 1, return_convergence_delta=True)
    found, delta = cl.LearnedDeepLift(model).attribute(x, baseline, 1, return_convergence_delta=True)
    change = (model(x) - model(baseline))[:, 1]
    assert wrong.abs().max() > 0.02
    assert delta.abs().max() < 1e-12
    torch.testing.assert_close(found.sum(1), change, rtol=1e-11, atol=1e-12)


def test_reused_modules_where_captum_refuses() -> None:
    relu = nn.ReLU(inplace=True)
    model, x = built(nn.Linear(8, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 4)), torch.randn(4, 8).double()
    with pytest.raises(RuntimeError, match="used more than once"):
        ca.DeepLift(model).attribute(x, target=1)
    _, delta = cl.LearnedDeepLift(model).attribute(x, target=1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12


def test_a_sample_does_not_depend_on_its_batch_as_it_does_in_captum() -> None:
    model, x = conv(nn.ELU), x_of()
    baseline = x.clone()  # multipliers are gradients, which captum takes from the first sample for all

    def differs(method: Any) -> float:
        whole = method.attribute(x, baseline, 1)
        alone = [method.attribute(x[i : i + 1], baseline[i : i + 1], 1) for i in range(3)]
        return float((whole - torch.cat(alone)).detach().abs().max())

    assert differs(ca.DeepLift(model, multiply_by_inputs=False)) > 1e-3
    assert differs(cl.LearnedDeepLift(model, multiply_by_inputs=False)) < 1e-14


def test_a_linear_model_needs_no_rule() -> None:
    model, x = built(nn.Linear(8, 4)), torch.randn(2, 8).double()
    expected = model[0].weight[1] * (x - 0.5)
    torch.testing.assert_close(cl.LearnedDeepLift(model).attribute(x, 0.5, 1), expected)


# -- what it adds ----------------------------------------------------------------------------------------------------


def moved(model: nn.Module, x: Any, **options: Any) -> zr.RuleSet:
    rules = zr.RuleSet.build(model, x, composite="learned_deeplift", **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in rules.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return rules


def test_trained_rules_from_memory_and_from_a_file(tmp_path: Path) -> None:
    model, x = conv(nn.GELU), x_of()
    rules = moved(model, x, gate="feature", rule_options={"baseline": 0.5})
    found = cl.LearnedDeepLift(model, rules=rules).attribute(x, target=1)
    assert (found - cl.LearnedDeepLift(model).attribute(x, 0.5, 1)).abs().max() > 1e-2
    path = rules.save(tmp_path / "rules.safetensors", model)
    assert torch.equal(cl.LearnedDeepLift(model, rules=path).attribute(x, target=1), found)
    assert torch.equal(cl.LearnedDeepLift(model, rules=str(path)).attribute(x, 0.5, 1), found)
    assert torch.equal(cl.LearnedPropagation(model, rules=rules).attribute(x, target=1), found)


@pytest.mark.parametrize("gate", [None, "feature", "quadrant"])
def test_normalized_attributions_are_complete(gate: str | None) -> None:
    model = Two()
    inputs = torch.randn(3, 4).double(), torch.randn(3, 3).double()
    rules = None if gate is None else moved(model, inputs, gate=gate)
    method = cl.LearnedDeepLift(model, rules=rules)
    plain, delta = method.attribute(inputs, None, 1, return_convergence_delta=True)
    found, normalized = method.attribute(inputs, None, 1, return_convergence_delta=True, normalize=True)
    assert (delta.abs().max() > 0.01) == (gate is not None)
    assert normalized.abs().max() < 1e-12
    added = torch.cat([a - b for a, b in zip(found, plain, strict=True)], 1)
    size = torch.cat(plain, 1).abs()
    torch.testing.assert_close(added, -delta[:, None] * size / size.sum(1, keepdim=True), rtol=1e-9, atol=1e-13)


def test_normalizing_a_map_of_zeros_leaves_it() -> None:
    model, x = conv(nn.ReLU), x_of()
    found, delta = cl.LearnedDeepLift(model).attribute(x, x, 1, return_convergence_delta=True, normalize=True)
    assert torch.equal(found, torch.zeros_like(x))
    assert torch.equal(delta, torch.zeros(3).double())


def test_the_delta_is_captums() -> None:
    model, x = conv(nn.GELU), x_of()
    method = cl.LearnedDeepLift(model, rules=moved(model, x))
    found, delta = method.attribute(x, 0.5, [0, 1, 2], return_convergence_delta=True)
    expected = method.compute_convergence_delta(found, 0.5, x, target=[0, 1, 2])
    torch.testing.assert_close(delta, expected, rtol=1e-12, atol=1e-14)
    assert delta.abs().min() > 1e-4


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("way", ["grad", "backward"])
def test_trainable_by_finite_differences(way: str, normalize: bool) -> None:
    model, x = conv(nn.GELU), x_of(2)
    rules = moved(model, x, gate="feature", pooling="soft")
    method, weights = cl.LearnedDeepLift(model, rules=rules), torch.randn(2, 2, 6, 6).double()

    def loss(create_graph: bool) -> Tensor:
        maps = method.attribute(x, 0.3, 1, normalize=normalize, create_graph=create_graph)
        return (maps * weights).sum() + maps.square().sum()

    live = loss(True)
    assert float(live.detach()) == pytest.approx(float(loss(False)), rel=1e-12)
    if way == "grad":
        found: list[Any] = list(torch.autograd.grad(live, rules.parameters()))
    else:
        live.backward()
        found = [p.grad for p in rules.parameters()]
    for parameter, gradient in zip(rules.parameters(), found, strict=True):
        direction = torch.randn_like(parameter)
        kept = parameter.detach().clone()
        ends = []
        for step in (1e-5, -1e-5):
            parameter.data = kept + step * direction
            ends.append(float(loss(False)))
        parameter.data = kept
        numerical = (ends[0] - ends[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(numerical, rel=1e-5, abs=1e-8)


def test_differentiable_in_inputs_that_require_grad() -> None:
    model, x = conv(nn.Tanh), x_of(1).requires_grad_()
    method = cl.LearnedDeepLift(model, rules=moved(model, x, gate="feature"))

    def loss(create_graph: bool) -> Tensor:
        return method.attribute(x, 0.3, 1, normalize=True, create_graph=create_graph).square().sum()

    (found,) = torch.autograd.grad(loss(True), x)
    direction, kept = torch.randn_like(x), x.detach().clone()
    ends = []
    for step in (1e-5, -1e-5):
        x.data = kept + step * direction
        ends.append(float(loss(False)))
    assert float((found * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_the_trainer_takes_the_composite() -> None:
    model = built(
        nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    images = torch.rand(8, 3, 16, 16).double()
    trainer = cl.RuleTrainer(
        model, "learned_deeplift", rule_options={"baseline": 0.5}, steps=6, batch_size=4, deletions=8, validate_every=2
    )
    rules = trainer.fit(images, validation=0)
    assert rules.composite().baseline == 0.5
    assert max(float(p.detach().abs().max()) for p in rules.parameters()) > 0.01
    found = cl.LearnedDeepLift(model, rules=rules).attribute(images, target=1)
    assert torch.equal(found, cl.LearnedDeepLift(model, rules=rules).attribute(images, 0.5, 1))


def test_rules_can_be_learned_per_sample() -> None:
    model, x = conv(nn.GELU), x_of()
    method = cl.LearnedPropagation(model, "learned_deeplift", gate="channel")
    found = method.attribute(x, target=1, n_steps=3)
    assert bool(torch.isfinite(found).all())
    plain = cl.LearnedDeepLift(model).attribute(x, target=1)
    torch.testing.assert_close(method.attribute(x, target=1, n_steps=0), plain, rtol=1e-12, atol=1e-14)


# -- captum's habits -------------------------------------------------------------------------------------------------


def test_the_signature_is_captums() -> None:
    for name in ("__init__", "attribute"):
        theirs = list(inspect.signature(getattr(ca.DeepLift, name)).parameters.values())
        ours = list(inspect.signature(getattr(cl.LearnedDeepLift, name)).parameters.values())
        assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
        assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])
    method = cl.LearnedDeepLift(conv(nn.ReLU))
    assert method.multiplies_by_inputs
    assert not cl.LearnedDeepLift(conv(nn.ReLU), multiply_by_inputs=False).multiplies_by_inputs
    assert method.has_convergence_delta()
    assert hasattr(cl.LearnedDeepLift.attribute, "__wrapped__")
    with pytest.raises(NotImplementedError):
        method.attribute_future()


def test_under_no_grad_and_in_captums_tools() -> None:
    model, x = conv(nn.GELU), x_of()
    method = cl.LearnedDeepLift(model, rules=moved(model, x))
    expected = method.attribute(x, 0.5, 1)
    with torch.no_grad():
        assert torch.equal(method.attribute(x, 0.5, 1), expected)
    tunnel = ca.NoiseTunnel(method)
    smoothed, delta = tunnel.attribute(x, nt_samples=2, stdevs=0.0, baselines=torch.full((1, 2, 6, 6), 0.5).double(),
                                       target=1, return_convergence_delta=True)  # fmt: skip
    torch.testing.assert_close(smoothed, expected, rtol=1e-12, atol=1e-14)
    assert delta.shape == (6,)
    sensitivity = sensitivity_max(method.attribute, x, target=1, baselines=0.5, n_perturb_samples=2)
    assert sensitivity.shape == (3,)
    assert sensitivity.min() > 0

    def noise(inputs: Tensor) -> tuple[Tensor, Tensor]:
        moved_by = 0.01 * torch.randn_like(inputs)
        return moved_by, inputs - moved_by

    assert infidelity(model, noise, x, expected, target=1).shape == (3,)


@pytest.mark.parametrize(("layer", "of_input"), [(4, False), (2, True)])
def test_a_replaced_gradient_func_explains_a_neuron(layer: int, of_input: bool) -> None:
    model, x, neuron = conv(nn.Tanh), x_of(), (1, 0, 0)
    expected = ca.NeuronDeepLift(model, model[layer]).attribute(x, neuron, 0.5, attribute_to_neuron_input=of_input)
    method = cl.LearnedDeepLift(model)
    method.gradient_func = construct_neuron_grad_fn(model[layer], neuron, attribute_to_neuron_input=of_input)
    torch.testing.assert_close(method.attribute(x, 0.5), expected.detach(), rtol=1e-10, atol=1e-12)
    with pytest.raises(LearnpropError, match="gradient_func"):
        method.attribute(x, 0.5, create_graph=True)


def test_eps_is_passed_on() -> None:
    model, x = built(nn.Flatten(), nn.Linear(72, 6), nn.Tanh(), nn.Linear(6, 4)), x_of()
    found = cl.LearnedDeepLift(model, eps=2.0).attribute(x, 0.1, 1)
    expected = ca.DeepLift(model, eps=2.0).attribute(x, 0.1, 1).detach()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert (found - cl.LearnedDeepLift(model).attribute(x, 0.1, 1)).abs().max() > 1e-4


def test_everything_is_as_before() -> None:
    model = built(*conv(nn.GELU)[:3], nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 4))
    model.train()
    x, baseline = x_of().requires_grad_(), torch.randn(1, 2, 6, 6).double()
    before = snapshot(model, x, baseline)
    method = cl.LearnedDeepLift(model)
    method.attribute(x, baseline, 1, return_convergence_delta=True, normalize=True)
    for wrong in ({"target": 9}, {"target": 1, "baselines": torch.zeros(2, 2, 6, 6)}):
        with pytest.raises(ValueError, match=r"9|shape"):
            method.attribute(x, **wrong)
    assert_untouched(before, model, x, baseline)


@pytest.mark.parametrize(("arguments", "said"), [
    ({"inputs": [torch.zeros(1, 8)]}, "tensor or a tuple"),
    ({"inputs": torch.zeros(2, 8, dtype=torch.long)}, "floating-point"),
    ({"inputs": torch.full((2, 8), float("nan")).double()}, "NaN"),
    ({"baselines": float("nan")}, r"baselines\[0\] has values that are NaN"),
    ({"baselines": torch.full((1, 8), float("inf"))}, r"baselines\[0\] has values that are NaN"),
    ({"baselines": (0.0, 0.0)}, "2 baselines were given for 1 inputs"),
    ({"baselines": [0.0]}, "must be a number or a tensor, got list"),
    ({"baselines": torch.zeros(3, 8)}, r"shape \(3, 8\), its input \(2, 8\)"),
    ({"additional_forward_args": (1, 2)}, "does not take"),
    ({"normalize": True, "custom_attribution_func": lambda m: m}, "normalize=True adds up contributions"),
])  # fmt: skip
def test_errors_say_what_is_wrong(arguments: dict[str, Any], said: str) -> None:
    model = built(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4))
    with pytest.raises(ValueError, match=said):
        cl.LearnedDeepLift(model).attribute(**{"inputs": torch.ones(2, 8).double(), "target": 1, **arguments})


@pytest.mark.parametrize("composite", ["learned_epsilon_gamma_box", "learned_gradient", "learned_deeplift"])
def test_other_rules_that_are_applied_are_refused(composite: str) -> None:
    model, x = conv(nn.ReLU), x_of()
    method, rules = cl.LearnedDeepLift(model), zr.RuleSet.build(model, x, composite)
    expected = method.attribute(x, target=1)
    with rules.applied(model), pytest.raises(LearnpropError, match=r"outside of rules\.applied\(model\)"):
        method.attribute(x, target=1)
    assert torch.equal(method.attribute(x, target=1), expected)


def test_errors_of_the_constructor(tmp_path: Path) -> None:
    model, x = conv(nn.ReLU), x_of()
    with pytest.raises(LearnpropError, match=r"needs an nn\.Module"):
        cl.LearnedDeepLift(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(LearnpropError, match="eps"):
        cl.LearnedDeepLift(model, eps=-1.0)
    with pytest.raises(zr.RuleError, match=r"'learned_deeplift', got 'learned_gradient'"):
        cl.LearnedDeepLift(model, rules=zr.RuleSet.build(model, x))
    with pytest.raises(zr.RuleError, match="another model"):
        cl.LearnedDeepLift(built(nn.Linear(2, 2), nn.ReLU()), rules=moved(model, x))
    with pytest.raises(zr.RuleError, match="no rule set"):
        cl.LearnedDeepLift(model, rules=tmp_path / "none.safetensors")
    with pytest.raises(TargetError, match="target"):
        cl.LearnedDeepLift(model).attribute(x, target=7)

    class OwnFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    with pytest.raises(zr.RuleError, match="has no site"):
        cl.LearnedDeepLift(Functional(OwnFunction.apply)).attribute(torch.randn(2, 8).double(), target=1)


def test_private_names_of_captum() -> None:
    calls = (lambda m: m, lambda m, x: x, lambda m, x, x0: x0)
    given = ((1,), (2,), (3,))
    assert [_compat._call_custom_attribution_func(f, *given) for f in calls] == list(given)


def test_rules_in_the_place_of_captums_second_argument_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(LearnpropError, match=r"multiply_by_inputs must be True or False, got str.*rules=rules"):
        cl.LearnedDeepLift(model, "rules.safetensors")  # type: ignore[arg-type]


# -- completeness ----------------------------------------------------------------------------------------------------


class Sorted(nn.Module):
    """A function without a complete rule."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.fc(x)).sort(1)[0])


def test_functions_without_a_complete_rule_are_named_unless_one_looks_at_the_delta() -> None:
    method, x = cl.LearnedDeepLift(Sorted().double().eval()), torch.randn(2, 8).double()
    with pytest.warns(zr.RuleWarning, match=r"functions of Sorted: 1 x Sort\. .*normalize=True") as caught:
        method.attribute(x, target=1)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.attribute(x, target=1, normalize=True)
        _, delta = method.attribute(x, target=1, return_convergence_delta=True)
        cl.LearnedDeepLift(conv(nn.ReLU)).attribute(x_of(), target=1)
    assert delta.abs().max() > 1e-6


class Dropped(nn.Module):
    """Dropout that evaluation mode does not switch off, beside one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.out = nn.Linear(8, 60), nn.Dropout(0.5), nn.Linear(60, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(F.gelu(self.drop(self.fc(x))), 0.5))


@pytest.mark.parametrize("training", [False, True])
def test_dropout_draws_one_mask_for_input_baseline_and_delta(training: bool) -> None:
    method, x = cl.LearnedDeepLift(Dropped().double().train(training)), torch.randn(3, 8).double()
    state = torch.get_rng_state()
    maps, delta = method.attribute(x, 0.3, target=1, return_convergence_delta=True)
    torch.testing.assert_close(delta, torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert not torch.equal(method.attribute(x, 0.3, target=1), maps)  # another mask, as of any forward pass
    torch.set_rng_state(state)
    torch.testing.assert_close(method.attribute(x, 0.3, target=1, normalize=True), maps, rtol=1e-12, atol=1e-14)


def test_single_precision_with_logits_of_a_million() -> None:
    """A shift of all logits leaves a softmax as it is, and so must the layers that make it."""
    ours, captums = [], []
    for seed in range(6):
        torch.manual_seed(seed)
        linear = [nn.Linear(40, 20), nn.Linear(20, 20), nn.Linear(20, 10)]
        for layer in linear:
            nn.init.ones_(layer.weight)
        model = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2], nn.Softmax(1))
        x, x0 = torch.arange(120.0).reshape(3, 40), torch.arange(1.0, 41).reshape(1, 40)
        assert model[:-1](x).abs().max() > 1e6
        for deltas, method in ((ours, cl.LearnedDeepLift(model)), (captums, ca.DeepLift(model))):
            deltas.append(method.attribute(x, x0, target=2, return_convergence_delta=True)[1].abs().max().item())
    assert sum(ours) < sum(captums)
    assert max(ours) < 0.015  # what rounding of the logits leaves of the outputs themselves


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision(dtype: torch.dtype, share: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 4), nn.Softmax(1)).double().eval()
    x = torch.randn(3, 8).double()
    expected = cl.LearnedDeepLift(model).attribute(x, target=1)
    found = cl.LearnedDeepLift(model.to(dtype)).attribute(x.to(dtype), target=1)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < share * expected.abs().max()
