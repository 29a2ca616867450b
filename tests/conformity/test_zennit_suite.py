"""What zennit expects of every composite and attributor, asked of ours."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from untouched import assert_untouched, differences, snapshot
from zennit import attribution
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import (
    COMPOSITES,
    DeconvNet,
    EpsilonPlus,
    GuidedBackprop,
    MixedComposite,
    NameMapComposite,
    SpecialFirstLayerMapComposite,
    layer_map_base,
)
from zennit.core import Composite
from zennit.rules import Epsilon, Pass, ZBox, ZPlus
from zennit.types import Convolution, Linear

from zennit_rules import LearnedActivation, LearnedComposite, LearnedMaxPool, QuadrantGate, RuleSet, register_trained

OURS = [name for name, cls in COMPOSITES.items() if issubclass(cls, LearnedComposite)]
each_composite = pytest.mark.parametrize("name", OURS)

TRAINABLE: dict[str, dict[str, Any]] = {"rect_grad": {"rule_options": {"temperature": 0.5}}}
"""Options with which a composite has something to train, where it has not by default."""

NOT_IN_ZENNIT = ("learned_deeplift", "rect_grad")
"""Starts that zennit does not know; they are compared elsewhere."""


class Net(nn.Module):
    """Batch norms to merge, an in-place and a reused ReLU, max-pools, a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.body(self.relu(self.pool(self.stem(x)))))
        return self.head(x)


class Relus(nn.Sequential):
    """What zennit's own GuidedBackprop and DeconvNet cover: every ReLU a module of its own, called once."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 5),
        )  # fmt: skip


def net(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(1)
    model = kind().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def batch() -> Tensor:
    return torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def seed_of(output: Tensor) -> Tensor:
    return torch.eye(5, dtype=output.dtype)[[3] * len(output)]


def moved(rules: RuleSet) -> RuleSet:
    generator = torch.Generator().manual_seed(3)
    for parameter in rules.parameters():
        parameter.data.normal_(std=0.7, generator=generator)
    return rules


def gradient(model: nn.Module, composite: Composite | None = None) -> Tensor:
    return attribution.Gradient(model, composite)(batch(), seed_of)[1]


# -- composites ------------------------------------------------------------------------------------------------------


def test_ours_are_registered() -> None:
    assert {
        "learned_gradient", "learned_guided_backprop", "learned_epsilon_gamma_box", "learned_deeplift",
    } <= set(OURS)  # fmt: skip
    assert all(COMPOSITES[name].name == name for name in OURS)


@each_composite
def test_composite_takes_what_zennits_take(name: str) -> None:
    COMPOSITES[name]()
    taken = inspect.signature(COMPOSITES[name]).parameters
    assert {"layer_map", "canonizers"} <= set(taken)
    assert all(p.default is not inspect.Parameter.empty for p in taken.values())


def hooked(composite: LearnedComposite, model: nn.Module) -> set[str]:
    """Modules on which the composite's hooks sit."""
    ids = {id(hook) for hook in composite.hook_refs}
    return {
        path
        for path, module in model.named_modules()
        for function in module._forward_pre_hooks.values()
        if id(getattr(function, "__self__", None)) in ids
    }


@each_composite
@pytest.mark.parametrize("pooling", ["exact", "soft"])
@pytest.mark.parametrize("kind", [Net, Relus])
def test_hooks_sit_on_every_module_of_the_layer_map_and_go_again(
    name: str, pooling: str, kind: type[nn.Module]
) -> None:
    model, composite = net(kind), COMPOSITES[name](pooling=pooling)
    types = tuple(t for entry, _ in composite.layer_map for t in entry)
    layers = {path for path, module in model.named_modules() if isinstance(module, types)}
    assert any(isinstance(m, nn.MaxPool2d) for m in model.modules())
    pooled = any(isinstance(model.get_submodule(p), nn.MaxPool2d) for p in layers)
    assert pooled == (pooling == "soft" or name == "learned_deeplift")  # DeepLIFT has a rule for every max-pool
    expected = layers | {""}  # on the model itself: the switch of functional calls
    before = snapshot(model)
    with composite.context(model):
        assert hooked(composite, model) == expected
    assert_untouched(before, model)
    assert not composite.handles
    assert not composite.hook_refs
    composite.register(model)
    composite.register(model)  # zennit: registering again reverts the first
    assert hooked(composite, model) == expected
    composite.remove()
    composite.remove()
    assert_untouched(before, model)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@each_composite
def test_hooks_go_after_an_exception(name: str) -> None:
    model, composite = net(), COMPOSITES[name]()
    model.head[1].register_forward_pre_hook(interrupt)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt), composite.context(model):
        model(batch())
    assert_untouched(before, model)


@each_composite
def test_one_composite_serves_several_models_in_turn(name: str) -> None:
    model = net()
    rules = RuleSet.build(model, batch(), composite=name)
    composite = rules.composite()
    first = gradient(model, composite)
    torch.testing.assert_close(gradient(net(), composite), first)


@each_composite
def test_forward_values_are_the_models_own(name: str) -> None:
    model, x = net(), batch()
    expected = model(x)
    with moved(RuleSet.build(model, x, composite=name)).composite().context(model):
        torch.testing.assert_close(model(x.clone().requires_grad_()), expected)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected)


@each_composite
def test_inactive_gives_the_plain_gradient(name: str) -> None:
    model, x = net(), batch().requires_grad_()
    expected = gradient(model)
    composite = moved(RuleSet.build(model, x, composite=name)).composite()
    with composite.context(model):
        output = model(x)
        with composite.inactive():
            (inactive,) = torch.autograd.grad(output, x, seed_of(output), retain_graph=True)
        (active,) = torch.autograd.grad(output, x, seed_of(output))
    torch.testing.assert_close(inactive, expected)
    assert not torch.allclose(active, expected)


@each_composite
def test_layer_map_takes_precedence(name: str) -> None:
    model, x = net(Relus), batch()
    composite = COMPOSITES[name](layer_map=[((nn.ReLU,), Pass())])
    with composite.context(model):
        kinds = {type(f.__self__) for m in model for f in m._forward_pre_hooks.values() if isinstance(m, nn.ReLU)}
        assert kinds == {Pass}
        model(x.requires_grad_())
    assert not any(site.kind == "activation" for site in composite.rules.sites)


@pytest.mark.parametrize(("ours", "theirs"), [("learned_gradient", None), ("learned_guided_backprop", GuidedBackprop)])
def test_a_fresh_composite_equals_its_textbook_rule(ours: str, theirs: type[Composite] | None) -> None:
    model = net(Relus)
    expected = gradient(model, None if theirs is None else theirs())
    torch.testing.assert_close(gradient(model, COMPOSITES[ours]()), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("start", "theirs"), [("gradient", None), ("guided_backprop", GuidedBackprop), ("deconvnet", DeconvNet)]
)
@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
def test_starts_equal_zennits_composites(start: str, theirs: type[Composite] | None, gate: str) -> None:
    model = net(Relus)
    expected = gradient(model, None if theirs is None else theirs())
    rules = RuleSet.build(model, batch(), gate=gate, start=start)
    torch.testing.assert_close(gradient(model, rules.composite()), expected, rtol=1e-12, atol=1e-14)


# -- inside other composites -----------------------------------------------------------------------------------------


def assert_as_zennit_leaves_it(before: dict[str, Any], model: nn.Module) -> None:
    """Like `assert_untouched`; but zennit 1.0's own LRP rules put new, equal Parameter objects in place of the old."""
    found = differences(before, snapshot(model))
    assert not [d for d in found if ".id: " not in d and ".pointer: " not in d]


@each_composite
def test_mixed_composite(name: str) -> None:
    model, x = net(), batch()
    rules = moved(RuleSet.build(model, x, composite=name))
    alone = gradient(model, rules.composite())
    before = snapshot(model)
    mixed = MixedComposite([rules.composite(), NameMapComposite([(("none of them",), Epsilon())])])
    torch.testing.assert_close(gradient(model, mixed), alone)
    # Another composite's rule on top wins where it is named, and the rest stays ours.
    named = MixedComposite([NameMapComposite([(("head.3",), Epsilon(epsilon=1.0))]), rules.composite()])
    assert not torch.allclose(gradient(model, named), alone)
    assert_as_zennit_leaves_it(before, model)


@each_composite
def test_mixed_with_lrp_on_the_linear_layers(name: str) -> None:
    model, x = net(Relus), batch()
    rules = moved(RuleSet.build(model, x, composite=name, **TRAINABLE.get(name, {})))
    lrp = MixedComposite([rules.composite(), EpsilonPlus()])
    plain = MixedComposite([COMPOSITES[name](), EpsilonPlus()])
    before = snapshot(model)
    assert not torch.allclose(gradient(model, lrp), gradient(model, plain))
    assert gradient(model, lrp).isfinite().all()
    assert_as_zennit_leaves_it(before, model)


def test_name_map_composite_with_a_rule_of_ours() -> None:
    model = net(Relus)
    gate = QuadrantGate((1, 1, 1, 1), per="layer", start="gradient").double()
    hook = LearnedActivation(gate)
    composite = NameMapComposite([(("1", "4"), hook)])
    torch.testing.assert_close(gradient(model, composite), gradient(model))
    gate.raw.data.normal_()
    before = snapshot(model)
    changed = gradient(model, composite)
    assert_untouched(before, model)
    assert not torch.allclose(changed, gradient(model))
    torch.testing.assert_close(gradient(model, NameMapComposite([(("none",), hook)])), gradient(model))


def test_name_map_composite_with_a_pool_of_ours() -> None:
    model = net(Relus)
    hook = LearnedMaxPool()
    hook.gate.double()
    composite = NameMapComposite([(("2",), hook)])
    torch.testing.assert_close(gradient(model, composite), gradient(model))
    hook.gate.raw_strength.data.fill_(1.0)
    assert not torch.allclose(gradient(model, composite), gradient(model))


@each_composite
def test_canonizers_are_applied_and_undone(name: str) -> None:
    model = net()
    before = snapshot(model)
    merged = COMPOSITES[name](canonizers=[SequentialMergeBatchNorm()])
    with merged.context(model):
        assert not torch.equal(model.stem[0].weight, before["parameters"]["stem.0.weight"]["values"])
    assert {k: v["values"] for k, v in before["parameters"].items()}.keys() == dict(model.named_parameters()).keys()
    for path, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before["parameters"][path]["values"])
    # z+ ignores a bias that merging changes but for rounding: epsilon of the denominators shows.
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if name == "deep_taylor" else {}
    torch.testing.assert_close(gradient(model, merged), gradient(model, COMPOSITES[name]()), **tolerance)


# -- attributors -----------------------------------------------------------------------------------------------------

ATTRIBUTORS: dict[str, Callable[[nn.Module, Composite | None], Any]] = {
    "Gradient": attribution.Gradient,
    "SmoothGrad": lambda m, c: attribution.SmoothGrad(m, c, noise_level=0.1, n_iter=3),
    "IntegratedGradients": lambda m, c: attribution.IntegratedGradients(m, c, n_iter=4),
}


def textbook(name: str) -> Composite | None:
    """Zennit's composite that ours starts at, on images of `batch`; None for the gradient."""
    if name == "learned_guided_backprop":
        return GuidedBackprop()
    if name == "learned_epsilon_gamma_box":
        x = batch()
        box = ZBox(low=x.amin((0, 2, 3), keepdim=True), high=x.amax((0, 2, 3), keepdim=True))
        return SpecialFirstLayerMapComposite(EpsilonPlus().layer_map, [(Convolution, box)])
    if name == "deep_taylor":
        x = batch()
        box = ZBox(low=x.amin((0, 2, 3), keepdim=True), high=x.amax((0, 2, 3), keepdim=True), zero_params="bias")
        z_plus = [*layer_map_base(), (Linear, ZPlus(zero_params="bias"))]
        return SpecialFirstLayerMapComposite(z_plus, [(Convolution, box)])
    return None


def attributed(make: Any, model: nn.Module, composite: Composite | None) -> Tensor:
    torch.manual_seed(4)
    return make(model, composite)(batch(), seed_of)[1]


@each_composite
@pytest.mark.parametrize("make", ATTRIBUTORS.values(), ids=ATTRIBUTORS)
def test_attributors(name: str, make: Any) -> None:
    model, x = net(Relus), batch()
    before = snapshot(model)
    rules = RuleSet.build(model, x, composite=name, **TRAINABLE.get(name, {}))
    plain = attributed(make, model, rules.composite())
    if name not in NOT_IN_ZENNIT:
        twin = copy.deepcopy(model)  # rules of zennit 1.0.0 exchange its parameters
        torch.testing.assert_close(plain, attributed(make, twin, textbook(name)))
    changed = attributed(make, model, moved(rules).composite())
    assert changed.shape == x.shape
    assert changed.isfinite().all()
    assert not torch.allclose(changed, plain)
    with rules.applied(model):  # the composite is already there: the attributor needs none of its own
        torch.testing.assert_close(attributed(make, model, None), changed)
    assert_untouched(before, model)


@each_composite
def test_an_attributor_as_context_serves_many_calls(name: str) -> None:
    model = net()
    composite = moved(RuleSet.build(model, batch(), composite=name)).composite()
    once = gradient(model, composite)
    with attribution.Gradient(model, composite) as attributor:
        for _ in range(3):
            torch.testing.assert_close(attributor(batch(), seed_of)[1], once)


@each_composite
@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
def test_second_order_through_an_attributor(name: str, gate: str) -> None:
    model, x = net(), batch()
    rules = moved(RuleSet.build(model, x, composite=name, gate=gate, **TRAINABLE.get(name, {})))
    composite = rules.composite()
    with attribution.Gradient(model, composite, create_graph=True) as attributor:
        relevance = attributor(x, seed_of)[1]
    torch.testing.assert_close(relevance.detach(), gradient(model, composite))
    found = torch.autograd.grad(relevance.square().sum(), rules.parameters())
    parameter, step = rules.parameters()[0], 1e-6
    flat = parameter.data.flatten()
    values = []
    for sign in (1, -1):
        flat[0] += sign * step
        values.append(float(gradient(model, composite).square().sum()))
        flat[0] -= sign * step
    assert float(found[0].flatten()[0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-9)


@each_composite
def test_a_trained_rule_set_is_a_composite_by_name(name: str, tmp_path: Path) -> None:
    model, x = net(), batch()
    rules = moved(RuleSet.build(model, x, composite=name))
    path = rules.save(tmp_path / "rules.safetensors", model)
    register_trained("trained_for_this_test", path)
    try:
        composite = COMPOSITES["trained_for_this_test"](canonizers=[])
    finally:
        del COMPOSITES["trained_for_this_test"]
    torch.testing.assert_close(gradient(model, composite), gradient(model, rules.composite()))
