"""LearnedLRP: captum's numbers by captum's rules, the same rules on models that captum refuses, and trained rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr as ca
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule, PropagationRule
from difference_quotient import difference_quotient
from lrp_nets import Net, batch, net, trained
from torch import Tensor, nn
from untouched import assert_untouched, snapshot
from zennit.attribution import Gradient

import captum_learnprop as cl
from captum_learnprop import LearnedLRP, LearnpropError
from captum_learnprop.errors import TargetError
from zennit_rules import LearnedEpsilonGammaBox, RuleError, RuleSet, RuleWarning

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor")
exactly = {"rtol": 0, "atol": 1e-10}


class Functional(Net):
    """The same function with calls and layers that captum's LRP does not see or refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)) + x, 2)
        return self.fc2(self.drop(self.fc1(self.flatten(x.mean((2, 3), keepdim=True))).clamp(min=0)))


def put(model: nn.Module, rules: dict[str, Callable[[], PropagationRule]]) -> None:
    for path, make in rules.items():
        model.get_submodule(path).rule = make()  # type: ignore[assignment]


# -- captum's rules --------------------------------------------------------------------------------------------------

RULES: dict[str, dict[str, Callable[[], PropagationRule]]] = {
    "default": {},
    "identity at the norm": {"norm": IdentityRule},
    "epsilon": {"conv1": lambda: EpsilonRule(0.1), "fc2": lambda: EpsilonRule(1e-4)},
    "epsilon elsewhere": {
        "pool": lambda: EpsilonRule(0.05), "norm": lambda: EpsilonRule(0.1), "add": lambda: EpsilonRule(0.2),
        "mean": lambda: EpsilonRule(0.01),
    },
    "gamma": {"conv1": GammaRule, "conv2": lambda: GammaRule(0.7), "fc1": GammaRule, "norm": IdentityRule},
    "gamma without bias": {"conv2": lambda: GammaRule(set_bias_to_zero=True), "fc2": lambda: GammaRule(2.0, True)},
    "gamma without weights": {"pool": GammaRule, "average": lambda: GammaRule(0.5)},
    "z+": {"conv1": Alpha1_Beta0_Rule, "conv2": Alpha1_Beta0_Rule, "fc1": Alpha1_Beta0_Rule, "norm": IdentityRule},
    "z+ without bias": {"conv2": lambda: Alpha1_Beta0_Rule(True), "fc2": lambda: Alpha1_Beta0_Rule(True)},
}  # fmt: skip
each_rules = pytest.mark.parametrize("rules", RULES.values(), ids=RULES)


@each_rules
@pytest.mark.parametrize("target", [2, [0, 3, 1]], ids=["one", "list"])
def test_equals_captum(rules: Any, target: Any) -> None:
    model, x = net(), batch()
    put(model, rules)
    expected, delta = ca.LRP(model).attribute(x, target=target, return_convergence_delta=True)
    put(model, rules)  # captum took them away
    found, ours = LearnedLRP(model).attribute(x, target=target, return_convergence_delta=True)
    torch.testing.assert_close(found, expected.detach(), **exactly)
    torch.testing.assert_close(ours, delta.detach(), **exactly)
    assert float(found.abs().max()) > 1e-3


@each_rules
def test_functional_calls_have_the_rules_of_the_modules(rules: Any) -> None:
    kept = {path: rule for path, rule in rules.items() if path in ("conv1", "conv2", "norm", "fc1", "fc2")}
    models = net(), net(Functional)
    for model in models:
        put(model, kept)
    expected = LearnedLRP(models[0]).attribute(batch(), target=2)
    torch.testing.assert_close(LearnedLRP(models[1]).attribute(batch(), target=2), expected, **exactly)


def test_rules_stay_where_they_were_set() -> None:
    model, x = net(), batch()
    rules = {"conv1": GammaRule, "norm": IdentityRule}
    put(model, rules)
    method = LearnedLRP(model)
    first = method.attribute(x, target=0)
    assert torch.equal(method.attribute(x, target=0), first)
    del model.conv1.rule
    assert not torch.allclose(method.attribute(x, target=0), first)


def test_tuples_and_further_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.add, self.out = nn.Linear(3, 6), nn.Linear(5, 6), Addition_Module(), nn.Linear(6, 3)
            self.relu = nn.ReLU()

        def forward(self, a: Tensor, b: Tensor, offset: float) -> Tensor:
            return self.out(self.relu(self.add(self.a(a), self.b(b)))) + offset

    model, inputs = net(Two), (batch().flatten(1)[:, :3], batch().flatten(1)[:, 3:8])
    expected, delta = ca.LRP(model).attribute(inputs, [0, 1, 2], 2.0, return_convergence_delta=True)
    found, ours = LearnedLRP(model).attribute(inputs, [0, 1, 2], 2.0, True)
    assert isinstance(found, tuple)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), **exactly)
    torch.testing.assert_close(ours, delta.detach(), **exactly)
    output = model(*inputs, 2.0)[:, 0]
    for given in (expected, expected[0]):
        by_captum = ca.LRP(model).compute_convergence_delta(given, output)
        torch.testing.assert_close(LearnedLRP(model).compute_convergence_delta(given, output), by_captum, **exactly)


def test_noise_tunnel_equals_captum() -> None:
    model, x = net(), batch()
    maps = []
    for method in (ca.LRP(model), LearnedLRP(model)):
        torch.manual_seed(4)
        tunnel = ca.NoiseTunnel(method)
        maps.append(tunnel.attribute(x, target=1, nt_samples=3, stdevs=0.1, return_convergence_delta=True))
    torch.testing.assert_close(maps[1][0], maps[0][0].detach(), **exactly)
    torch.testing.assert_close(maps[1][1], maps[0][1].detach(), **exactly)


def test_dropout_and_running_statistics_of_a_model_in_training_mode() -> None:
    model, x = net().train(), batch()
    before = snapshot(model, x)
    first = LearnedLRP(model).attribute(x, target=0)
    assert torch.equal(LearnedLRP(model).attribute(x, target=0), first)
    assert first.isfinite().all()
    assert_untouched(before, model, x)


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), nn.Dropout1d(0.5), nn.AlphaDropout(0.3)])
def test_relevance_passes_dropout(drop: nn.Module) -> None:
    """As captum has it: what was scaled up is a share of the output already."""
    torch.manual_seed(1)
    linear = [nn.Linear(m, n, bias=False) for m, n in ((5, 40), (40, 40), (40, 3))]
    model = nn.Sequential(linear[0], nn.ReLU(), linear[1], drop, linear[2]).double().train()
    x = torch.randn(4, 5, dtype=torch.float64)
    maps, delta = LearnedLRP(model).attribute(x, target=1, return_convergence_delta=True)
    if not isinstance(drop, nn.AlphaDropout):  # which puts a constant in the place of what it drops
        torch.testing.assert_close(delta, torch.zeros(4).double(), rtol=0, atol=1e-6)
    if isinstance(drop, nn.Dropout):  # captum's LRP takes another mask in each of its passes, unless it is held
        handle = drop.register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)
        with torch.random.fork_rng():
            expected = ca.LRP(model).attribute(x, target=1)
        handle.remove()
        torch.testing.assert_close(maps, expected.detach(), **exactly)


def test_dropout_keeps_its_mask_where_the_rules_are_inactive() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 40)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.fc(x), 0.5)

    model, x = Dropped().double(), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    composite = LearnedEpsilonGammaBox()
    with torch.random.fork_rng(), composite.context(model):
        torch.manual_seed(3)
        out = model(x)
        with composite.inactive():
            (found,) = torch.autograd.grad(out.sum(), x)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(found, expected)


# -- layers that captum refuses --------------------------------------------------------------------------------------


def by_jacobians(layers: list[Any], passing: tuple[type, ...], x: Tensor, target: int, epsilon: float = 1e-9) -> Tensor:
    """LRP of one sample, slowly: at each layer ``R_i = x_i sum_j J_ji R_j / (z_j + epsilon sign z_j)``."""
    values = [x]
    for layer in layers:
        values.append(layer(values[-1]).detach())
    relevance = torch.zeros_like(values[-1])
    relevance[0, target] = values[-1][0, target]
    for layer, a, z in zip(reversed(layers), values[-2::-1], values[:0:-1], strict=True):
        if isinstance(layer, passing):
            relevance = relevance.reshape(a.shape)
            continue
        slope = torch.autograd.functional.jacobian(layer, a).reshape(z.numel(), a.numel())
        share = relevance.flatten() / (z + torch.where(z >= 0, epsilon, -epsilon)).flatten()
        relevance = (a.flatten() * (share @ slope)).reshape(a.shape)
    return relevance


PASSING = (nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.ReLU, nn.Tanh, nn.Flatten, nn.Identity, nn.Dropout2d)
REFUSED: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "GELU": (lambda: [nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)], (4,)),
    "SiLU": (lambda: [nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3)], (4,)),
    "LeakyReLU": (lambda: [nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 3)], (4,)),
    "ELU": (lambda: [nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 3)], (4,)),
    "Sigmoid": (lambda: [nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)], (4,)),
    "Identity": (lambda: [nn.Linear(4, 6), nn.ReLU(), nn.Identity(), nn.Linear(6, 3)], (4,)),
    "Dropout2d": (lambda: [nn.Conv2d(2, 3, 2), nn.Dropout2d(), nn.Flatten(), nn.Linear(12, 3)], (2, 3, 3)),
    "BatchNorm1d": (lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)], (4,)),
    "Conv1d": (lambda: [nn.Conv1d(2, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 3)], (2, 6)),
    "Conv3d": (lambda: [nn.Conv3d(1, 2, 2), nn.Tanh(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(2, 3)], (1, 3, 3, 3)),
    "ConvTranspose2d": (lambda: [nn.ConvTranspose2d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)], (2, 2, 2)),
    "Flatten": (lambda: [nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)], (2, 3, 3)),
}


@pytest.mark.parametrize(("make", "shape"), REFUSED.values(), ids=REFUSED)
def test_layers_that_captum_refuses(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layers = [layer.double().eval() for layer in make()]
    model, x = nn.Sequential(*layers), torch.randn(3, *shape, dtype=torch.float64)
    with pytest.raises(TypeError, match="no rule"):
        ca.LRP(model).attribute(x, target=1)
    expected = torch.cat([by_jacobians(layers, PASSING, sample[None], 1) for sample in x])
    torch.testing.assert_close(LearnedLRP(model).attribute(x, target=1), expected, **exactly)


def test_the_oracle_agrees_with_captum_where_captum_can() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1)]
    model, x = nn.Sequential(*layers).double(), torch.randn(1, 2, 3, 3, dtype=torch.float64)
    expected = ca.LRP(model).attribute(x, target=(1, 0, 0)).detach()
    found = by_jacobians([*layers, nn.Flatten()], PASSING, x, 1)
    torch.testing.assert_close(found, expected, **exactly)


class Reused(nn.Module):
    """A linear layer and an activation that are called twice."""

    def __init__(self, once: bool = False) -> None:
        super().__init__()
        self.layer, self.act, self.out = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
        self.again = nn.Linear(4, 4) if once else self.layer
        self.act_again = nn.ReLU() if once else self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act_again(self.again(self.act(self.layer(x)))))


def test_modules_that_are_called_again() -> None:
    model, apart = net(Reused), Reused(once=True).double()
    for name in ("layer", "again", "out"):
        getattr(apart, name).load_state_dict(getattr(model, name).state_dict())
    x = batch().flatten(1)[:, :4]
    with pytest.raises((RuntimeError, AttributeError)):
        ca.LRP(model).attribute(x, target=0)
    expected = ca.LRP(apart).attribute(x, target=0).detach()
    torch.testing.assert_close(LearnedLRP(model).attribute(x, target=0), expected, **exactly)


class Skip(nn.Module):
    """A skip connection; without biases, so that nothing takes relevance away."""

    def __init__(self, add: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.mean, self.out = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3, bias=False)
        self.add = Addition_Module() if add else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        y = self.conv2(x)
        y = self.relu2(y + x if self.add is None else self.add(y, x))
        return self.out(self.mean(y).flatten(1))


def test_skip_connections_conserve_relevance() -> None:
    model, x = net(Skip), batch()
    _, theirs = ca.LRP(model).attribute(x, target=0, return_convergence_delta=True)
    maps, ours = LearnedLRP(model).attribute(x, target=0, return_convergence_delta=True)
    assert float(ours.abs().max()) < 1e-6
    assert float(theirs.detach().abs().min()) > 1e-2
    with_module = net(lambda: Skip(add=True))
    torch.testing.assert_close(maps, ca.LRP(with_module).attribute(x, target=0).detach(), **exactly)


# -- trained rules ---------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "gamma": {"rule_options": {"dense": "gamma", "first": "conv", "gamma": 0.25}},
    "alpha beta": {"rule_options": {"conv": "alpha_beta", "first": "conv", "beta": 1.0}},
    "gates at activations": {"gate": "channel"},
}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


@each_kind
@pytest.mark.parametrize("kind", [Net, Functional])
def test_trained_rules_equal_zennits_gradient_seeded_with_the_output(options: Any, kind: type[nn.Module]) -> None:
    model, x = net(kind), batch()
    rules = trained(model, x, **options)
    with Gradient(model, rules.composite()) as attributor:
        output, expected = attributor(x, lambda out: out * torch.eye(4, dtype=out.dtype)[[2, 0, 1]])
    found, delta = LearnedLRP(model, rules).attribute(x, [2, 0, 1], return_convergence_delta=True)
    torch.testing.assert_close(found, expected.detach(), **exactly)
    explained = output.detach()[torch.arange(3), [2, 0, 1]]
    torch.testing.assert_close(delta, explained - found.flatten(1).sum(1), **exactly)
    start = LearnedLRP(model, RuleSet.build(model, x, "learned_epsilon_gamma_box", **options)).attribute(x, [2, 0, 1])
    assert not torch.allclose(found, start, atol=1e-3 * float(start.abs().max()))


@pytest.mark.parametrize("zero", [False, True])
def test_training_can_start_at_captums_gamma_rule(zero: bool) -> None:
    """With the options that the class docstring names."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1)]
    model, x = nn.Sequential(*layers).double(), batch()
    options = {
        "conv": "gamma", "dense": "gamma", "first": "conv", "gamma": 0.25, "negative": "alike", "split": "weights",
        "bias": "zero" if zero else "whole", "stabilizer": 1e-9,
    }  # fmt: skip
    rules = RuleSet.build(model, x, "learned_epsilon_gamma_box", rule_options=options)
    put(model, {"0": lambda: GammaRule(set_bias_to_zero=zero), "2": lambda: GammaRule(set_bias_to_zero=zero)})
    expected = ca.LRP(model).attribute(x, target=(1, 0, 0)).detach()
    torch.testing.assert_close(LearnedLRP(model, rules).attribute(x, target=(1, 0, 0)), expected, **exactly)


def test_rules_from_a_file_and_rules_on_modules(tmp_path: Path) -> None:
    model, x = net(), batch()
    rules = trained(model, x)
    path = rules.save(tmp_path / "rules.safetensors", model)
    expected = LearnedLRP(model, rules).attribute(x, target=0)
    put(model, RULES["gamma"])
    for given in (path, str(path)):
        torch.testing.assert_close(LearnedLRP(model, given).attribute(x, target=0), expected, **exactly)


@pytest.mark.parametrize("with_rules", [False, True])
def test_batch_equals_singles(with_rules: bool) -> None:
    model, x, target = net(), batch(4), [0, 3, 1, 2]
    method = LearnedLRP(model, trained(model, x) if with_rules else None)
    singles = [method.attribute(x[i : i + 1], [t], None, True) for i, t in enumerate(target)]
    maps, deltas = method.attribute(x, target, None, True)
    torch.testing.assert_close(maps, torch.cat([one for one, _ in singles]), **exactly)
    torch.testing.assert_close(deltas, torch.cat([one for _, one in singles]), **exactly)


@pytest.mark.parametrize("way", ["grad", "backward"])
@each_kind
def test_create_graph_differentiates_to_the_rules(options: Any, way: str) -> None:
    model, x = net().requires_grad_(False), batch(2)
    if options == KINDS["default"]:
        options = {"rule_options": {"epsilon": 0.1, "learn_bounds": True, "strength": 0.6, "gamma": 2.0}}
    rules = trained(model, x, std=0.1, **options)
    method, weights = LearnedLRP(model, rules), torch.randn(x.shape, dtype=torch.float64)

    def value(**how: Any) -> Tensor:
        maps, delta = method.attribute(x, [0, 1], return_convergence_delta=True, **how)
        return (weights * maps).sum() + maps.square().sum() + delta.square().sum()

    live = value(create_graph=True)
    torch.testing.assert_close(live.detach(), value())
    if way == "grad":
        found: Any = torch.autograd.grad(live, rules.parameters())
    else:
        live.backward()
        found = [p.grad for p in rules.parameters()]
    checked = 0
    for entry, gradient in zip(rules.parameters(), found, strict=True):
        for index in {0, entry.numel() // 2, entry.numel() - 1}:
            expected = difference_quotient(value, entry, index)
            assert float(gradient.reshape(-1)[index]) == pytest.approx(expected, rel=1e-5, abs=1e-7)
            checked += expected != 0
    assert checked >= 6


# -- what it says, leaves and refuses --------------------------------------------------------------------------------


def test_verbose_says_which_rule_is_where(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = net(Functional), batch()
    put(model, {"conv2": lambda: GammaRule(0.7)})
    LearnedLRP(model).attribute(x, target=0, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Applied EpsilonRule(STABILITY_FACTOR=1e-09) at conv1: Conv2d(2, 6,")
    assert any(
        line.startswith("Applied GammaRule(gamma=0.7, set_bias_to_zero=False) at conv2: Conv2d") for line in lines
    )
    assert [line.split(" at ")[1].split(":")[0] for line in lines] == [
        "conv1", "norm", "functional_maxpool2d(ceil_mode=False,dilation=1,kernel_size=2,padding=0)",
        "conv2", "fc1", "fc2",
    ]  # fmt: skip
    LearnedLRP(model, trained(model, x)).attribute(x, target=0, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("(")[0] for line in lines] == [
        "Applied BoxGate", "Applied GammaGate", "Applied EpsilonGate", "Applied EpsilonGate",
    ]  # fmt: skip
    assert [line.split(" at ")[1] for line in lines] == ["conv1: Conv2d", "conv2: Conv2d", "fc1: Linear", "fc2: Linear"]
    LearnedLRP(model).attribute(x, target=0)
    assert not capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_functions_that_nobody_has_a_rule_for_are_named() -> None:
    class Odd(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.erfcx(super().forward(x))

    model, x = net(Odd), batch()
    with pytest.warns(RuleWarning, match=r"functions of Odd have no rule.*1 x SpecialErfcx.*by the plain gradient"):
        LearnedLRP(model).attribute(x, target=0)
    LearnedLRP(net(Functional)).attribute(x, target=0)


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("with_rules", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_inputs_are_untouched(with_rules: bool, fails: bool) -> None:
    model, x = net(), batch().requires_grad_()
    x.grad = torch.full_like(x, 3.0)
    put(model, RULES["gamma"])
    method = LearnedLRP(model, trained(model, x) if with_rules else None)
    if fails:
        model.fc2.register_forward_pre_hook(stop)
    before = snapshot(model, x)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            method.attribute(x, target=0)
    else:
        found = method.attribute(x, target=0)
        assert not found.requires_grad
    assert_untouched(before, model, x)


class MyRule(PropagationRule):
    def _manipulate_weights(self, *_: Any) -> None:
        pass


def explain(model: nn.Module, rules: Any = None, **options: Any) -> Any:
    return LearnedLRP(model, rules).attribute(batch(), **{"target": 0, **options})


def with_rule(path: str, rule: Any) -> nn.Module:
    model = net()
    model.get_submodule(path).rule = rule
    return model


def with_gradient_func() -> None:
    method = LearnedLRP(net())
    method.gradient_func = lambda *_: ()
    method.attribute(batch(), 0)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: LearnedLRP(torch.relu), LearnpropError, r"LearnedLRP needs an nn\.Module"),  # type: ignore
    "rules of another composite": (
        lambda: explain(m := net(), RuleSet.build(m, batch())),
        RuleError,
        r"'learned_epsilon_gamma_box', got 'learned_gradient'; use LearnedPropagation",
    ),
    "rules of another model": (
        lambda: LearnedLRP(nn.Linear(4, 2), trained(net(), batch())),
        RuleError,
        r"belongs to another model",
    ),
    "a rule of one's own": (
        lambda: explain(with_rule("conv2", MyRule())),
        LearnpropError,
        r"module 'conv2' has the rule MyRule; .*EpsilonRule, GammaRule",
    ),
    "no rule at all": (lambda: LearnedLRP(with_rule("conv2", 1)), TypeError, r"module 'conv2' has the rule 1; .*own"),
    "a rule that changes a norm": (
        lambda: explain(with_rule("norm", GammaRule())),
        LearnpropError,
        r"module 'norm' has the rule GammaRule, .*BatchNorm2d; give it an EpsilonRule",
    ),
    "target": (lambda: explain(net(), target=9), TargetError, r"target 9 does not fit"),
    "NaN": (lambda: LearnedLRP(net()).attribute(batch() * float("nan"), 0), LearnpropError, r"NaN or infinite"),
    "gradient_func": (with_gradient_func, LearnpropError, r"gradient_func was replaced.*create_graph=True"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_error(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_refused_rule_leaves_the_model_as_it_was() -> None:
    model = with_rule("norm", GammaRule())
    before = snapshot(model)
    with pytest.raises(LearnpropError):
        explain(model)
    assert_untouched(before, model)


def test_what_captum_asks_of_a_method() -> None:
    method = LearnedLRP(net())
    assert cl.LearnedLRP is LearnedLRP
    assert method.multiplies_by_inputs
    assert method.has_convergence_delta()
    with pytest.raises(NotImplementedError, match="LearnedLRP"):
        method.attribute_future()
