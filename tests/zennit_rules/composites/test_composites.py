"""Composites: zennit's habits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from rule_nets import NETS, images, one_hot, randomise, resnet, vgg
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import COMPOSITES, EpsilonPlus, LayerMapComposite, MixedComposite, NameMapComposite
from zennit.core import Composite, Hook
from zennit.rules import Epsilon, ReLUGuidedBackprop

import zennit_rules as zr

NAMES = {"learned_gradient": zr.LearnedGradient, "learned_guided_backprop": zr.LearnedGuidedBackprop}


def gradient(model: nn.Module, x: Tensor, composite: Composite | None) -> Tensor:
    """Zennit's attribution of the second score."""
    with Gradient(model, composite) as attributor:
        return attributor(x.detach(), one_hot(torch.zeros(len(x), 5, dtype=torch.float64)))[1]


def hooks_of(model: nn.Module) -> list[tuple[str, Hook]]:
    """Module path and zennit hook, for every hook registered on a model."""
    owners = [
        (name, getattr(hook, "__self__", None))
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
    ]
    return [(name, owner) for name, owner in owners if isinstance(owner, Hook)]


@pytest.mark.parametrize("name", NAMES)
class TestRegistered:
    def test_known_to_zennit(self, name: str) -> None:
        assert COMPOSITES[name] is NAMES[name]
        assert issubclass(COMPOSITES[name], LayerMapComposite)
        assert zr.composite_class(name) is NAMES[name]
        assert NAMES[name].name == name

    def test_constructible_without_arguments(self, name: str) -> None:
        composite = COMPOSITES[name]()
        assert composite.parameters() == []
        gradient(vgg(), images(), composite)
        assert len(composite.parameters()) == 3

    def test_layer_map_takes_precedence(self, name: str) -> None:
        model, x = vgg(), images()
        composite = COMPOSITES[name](layer_map=[(nn.ReLU, ReLUGuidedBackprop()), (nn.Linear, Epsilon())])
        with composite.context(model):
            kinds = {type(hook) for name, hook in hooks_of(model) if name}
        assert kinds == {ReLUGuidedBackprop, Epsilon}
        gradient(model, x, composite)
        assert not composite.rules.sites

    def test_canonizers(self, name: str) -> None:
        model, x = vgg(), images()
        plain = gradient(model, x, COMPOSITES[name]())
        merged = gradient(model, x, COMPOSITES[name](canonizers=[SequentialMergeBatchNorm()]))
        torch.testing.assert_close(merged, plain, rtol=0, atol=2e-5 * float(plain.abs().max()))

    def test_hooks_are_registered_and_removed(self, name: str) -> None:
        model, composite = vgg(), COMPOSITES[name]()
        with composite.context(model):
            owners = hooks_of(model)
            assert {hook for _, hook in owners} == set(composite.hook_refs)
            # three activations, and on the model the switch of functional calls
            assert [name for name, _ in owners].count("") == 1
            assert len(composite.hook_refs) == 4
        assert not any(m._forward_pre_hooks for m in model.modules())
        assert len(composite.hook_refs) == 0


class TestInsideOthers:
    """Parameters stay with their layers when zennit combines composites by their ``module_map``."""

    @pytest.mark.parametrize("net", NETS)
    @pytest.mark.parametrize("pooling", ["exact", "soft"])
    def test_mixed(self, net: str, pooling: str) -> None:
        model, x = NETS[net](), images()
        own = zr.LearnedGradient(pooling=pooling)
        gradient(model, x, own)
        randomise(own.parameters())
        expected = gradient(model, x, own)
        mixed = MixedComposite([zr.LearnedGradient(rules=own.rules), NameMapComposite([])])
        for _ in range(2):
            assert torch.equal(gradient(model, x, mixed), expected)
        assert not any("forward" in m.__dict__ or m._forward_pre_hooks for m in model.modules())

    def test_mixed_with_lrp(self) -> None:
        model, x = vgg(), images()
        composite = zr.LearnedGradient()
        mixed = gradient(model, x, MixedComposite([composite, EpsilonPlus()]))
        torch.testing.assert_close(mixed, gradient(model, x, EpsilonPlus()), rtol=1e-9, atol=1e-12)
        assert [s.name for s in composite.rules.sites] == ["2", "5", "9"]

    @pytest.mark.parametrize("net", NETS)
    def test_mixed_removed(self, net: str) -> None:
        model, x = NETS[net](), images()
        (plain,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
        with MixedComposite([zr.LearnedGradient(start="deconvnet")]).context(model):
            out = model(x)
        assert torch.equal(torch.autograd.grad(out[:, 1].sum(), x)[0], plain)

    @pytest.mark.parametrize(
        "net",
        NETS,
    )
    def test_mixed_inactive(self, net: str) -> None:
        model, x = NETS[net](), images()
        plain = torch.autograd.grad(model(x)[:, 1].sum(), x)[0]
        mixed = MixedComposite([zr.LearnedGradient(start="deconvnet")])
        with mixed.context(model):
            out = model(x)
            with mixed.inactive():
                (inactive,) = torch.autograd.grad(out[:, 1].sum(), x)
        assert torch.equal(inactive, plain)

    def test_name_map(self) -> None:
        model, x = resnet(), images()
        rule = zr.LearnedActivation(zr.ChannelGate((1, 4, 1, 1), start="guided_backprop").double())
        named = NameMapComposite([(["layers.0.relu", "layers.1.relu"], rule)])
        reference = LayerMapComposite([(nn.ReLU, ReLUGuidedBackprop())])
        ours = gradient(model, x, named)
        assert not torch.allclose(ours, gradient(model, x, None))
        assert not torch.allclose(ours, gradient(model, x, reference))
        with named.context(model):
            assert sum(bool(m._forward_pre_hooks) for m in model.modules()) == 2


@pytest.mark.parametrize("net", NETS)
def test_inactive(net: str) -> None:
    model, x = NETS[net](), images()
    (plain,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    composite = zr.LearnedGradient(start="deconvnet", pooling="soft")
    with composite.context(model):
        out = model(x)
        (active,) = torch.autograd.grad(out[:, 1].sum(), x, retain_graph=True)
        with composite.inactive():
            assert torch.equal(torch.autograd.grad(out[:, 1].sum(), x, retain_graph=True)[0], plain)
        assert torch.equal(torch.autograd.grad(out[:, 1].sum(), x)[0], active)
    assert not torch.allclose(active, plain)


def test_a_subclass_with_other_defaults() -> None:
    class Mine(zr.LearnedGradient):
        default_gate = "feature"
        default_start = "deconvnet"

    composite = Mine()
    gradient(vgg(), images(), composite)
    assert all(isinstance(composite.rules.gate(s.name), zr.FeatureGate) for s in composite.rules.sites)
    assert composite.rules.config["start"] == "deconvnet"


def test_instances_do_not_share_parameters() -> None:
    model, x, first, second = vgg(), images(), zr.LearnedGradient(), zr.LearnedGradient()
    for composite in (first, second):
        gradient(model, x, composite)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda: zr.register_composite("epsilon_plus", zr.LearnedGradient), "'epsilon_plus' belongs to zennit"),
        (lambda: zr.register_composite("x", zr.LearnedGradient()), "must be a zennit Composite class"),  # type: ignore
        (lambda: zr.register_composite("x", nn.ReLU), "must be a zennit Composite class"),  # type: ignore
        (lambda: zr.composite_class("nope"), "'nope' is unknown; trainable ones: .*learned_gradient"),
    ],
)
def test_refused(register: Callable[[], Any], message: str) -> None:
    before = dict(COMPOSITES)
    with pytest.raises(zr.RuleError, match=message):
        register()
    assert before == COMPOSITES


def test_registering_again_does_nothing() -> None:
    zr.register_composite("learned_gradient", zr.LearnedGradient)
    assert COMPOSITES["learned_gradient"] is zr.LearnedGradient


COMPOSITE_NAMES = (
    "learned_gradient",
    "learned_epsilon_gamma_box",
    "learned_deeplift",
    "rect_grad",
    "learned_transformer",
)


@pytest.mark.parametrize("name", COMPOSITE_NAMES)
def test_transforms_of_functions_are_refused(name: str) -> None:
    model, x = vgg(), images().detach()
    rules = zr.RuleSet.build(model, x, composite=name)

    def total(v: Tensor) -> Tensor:
        return model(v).sum()

    plain = torch.func.grad(total)(x)
    calls: list[Callable[[], Any]] = [
        lambda: torch.func.grad(total)(x),
        lambda: torch.func.jacrev(model)(x),
        lambda: torch.func.jvp(model, (x,), (x,)),
        lambda: torch.vmap(lambda v: model(v[None]))(x),
    ]
    with rules.applied(model):
        for call in calls:
            with pytest.raises(zr.RuleError, match=r"do not work under torch\.func \(\w+\): .*torch\.autograd\.grad"):
                call()
        with forward_ad.dual_level(), pytest.raises(zr.RuleError, match="under forward-mode AD"):
            model(forward_ad.make_dual(x, x))
        with torch.no_grad():
            torch.testing.assert_close(torch.vmap(lambda v: model(v[None])[0])(x), model(x))  # no rule is asked for
    torch.testing.assert_close(torch.func.grad(total)(x), plain)


@pytest.mark.parametrize(("name", "options"), [
    ("learned_gradient", {"gate": "feature", "pooling": "soft"}), ("learned_gradient", {"gate": "element"}),
    ("learned_guided_backprop", {"gate": "position"}), ("learned_epsilon_gamma_box", {"pooling": "soft"}),
    ("learned_deeplift", {"gate": "feature", "pooling": "soft"}), ("rect_grad", {}),
    ("rect_grad", {"rule_options": {"percentile": 50.0, "temperature": 0.1}}),
    ("rect_grad", {"rule_options": {"percentile": 30.0, "pool": "proportional"}}),
    ("learned_transformer", {}), ("learned_attnlrp", {}),
])  # fmt: skip
def test_batched_gradients_are_those_of_one_at_a_time(name: str, options: dict[str, Any]) -> None:
    model, x = vgg(), images()
    rules = zr.RuleSet.build(model, x, composite=name, **options)
    randomise(rules.parameters())
    with rules.applied(model):
        out = model(x)
        seeds = torch.randn(3, *out.shape, dtype=out.dtype)
        (found,) = torch.autograd.grad(out, x, seeds, is_grads_batched=True, retain_graph=True)
        expected = torch.stack([torch.autograd.grad(out, x, seed, retain_graph=True)[0] for seed in seeds])
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        vectorized, plain = (
            torch.autograd.functional.jacobian(model, x.detach(), vectorize=vectorize) for vectorize in (True, False)
        )
    torch.testing.assert_close(vectorized, plain, rtol=1e-10, atol=1e-12)


def test_batched_gradients_can_be_differentiated() -> None:
    model, x = vgg(), images()
    rules = zr.RuleSet.build(model, x, gate="feature", pooling="soft")
    randomise(rules.parameters())
    with rules.applied(model):
        out = model(x)
        seeds = torch.randn(2, *out.shape, dtype=out.dtype)
        (batched,) = torch.autograd.grad(out, x, seeds, is_grads_batched=True, create_graph=True)
        single = torch.stack([torch.autograd.grad(out, x, seed, create_graph=True)[0] for seed in seeds])
        found, expected = (torch.autograd.grad(maps.square().sum(), rules.parameters()) for maps in (batched, single))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
