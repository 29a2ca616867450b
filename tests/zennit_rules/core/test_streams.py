"""Attributions made of several backward signals: the contrast stream and the fusion of depths."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Saliency
from rule_nets import assert_gradient, images, inception, randomise, resnet, score, vgg
from torch import Tensor, nn

import zennit_rules as zr

BOTH = {"position": True, "contrast": True}
NETS: dict[str, Callable[[], nn.Module]] = {"vgg": vgg, "resnet": resnet, "inception": inception}


def built(model: nn.Module, x: Tensor, scale: float = 0.4, **options: Any) -> zr.RuleSet:
    """Feature gates away from their start."""
    rules = zr.RuleSet.build(model, x, gate="feature", **options)
    randomise(rules.parameters(), scale)
    return rules


def explain(model: nn.Module, x: Tensor, rules: zr.RuleSet, target: int = 1, *, create_graph: bool = False) -> Tensor:
    """The attribution of one class."""
    composite = rules.composite()
    leaf = x.detach().clone().requires_grad_()
    with composite.recorded(model):
        output = model(leaf)
    seed = torch.zeros_like(output)
    seed[:, target] = 1
    return zr.attribute(composite, output, (leaf,), seed, create_graph=create_graph)[0]


def squash(v: Tensor) -> Tensor:
    """``v / (|v| + rms(v))``, as its definition says."""
    rms = v.square().flatten(1).mean(1).sqrt().reshape(-1, *(1,) * (v.ndim - 1))
    return v / (v.abs() + rms)


def by_hand(weights: list[Tensor], x: Tensor, gates: list[nn.Module], target: int) -> Tensor:
    """Two hidden layers of ReLUs, guided start, both streams, written out in matrices."""
    z1 = x @ weights[0].T
    z2 = z1.relu() @ weights[1].T
    output = z2.relu() @ weights[2].T
    seed = F.one_hot(torch.tensor(target), output.shape[1]).double().expand_as(output)
    rest = output.clone()
    rest[:, target] = -torch.inf

    def passed(gate: nn.Module, z: Tensor, g: Tensor, h: Tensor | None) -> Tensor:
        raw, zs, gs = gate.get_parameter("raw"), squash(z), squash(g)
        place = gate.get_parameter("raw_position")[0]
        hs = torch.zeros_like(g) if h is None else squash(h)
        a, b = (torch.tanh(c[0] + c[1] * zs + c[2] * gs + c[3] * zs * gs + c[4] * hs + c[5] * zs * hs) for c in raw)
        total = place[0]
        for index, signal in ((1, g), (3, h)):
            if signal is not None:
                p = squash((z.relu() * signal).sum(1, keepdim=True))
                total = total + place[index] * p + place[index + 1] * p  # no neighbours: the mean is the value
        return (1 + torch.tanh(total)) * (((g > 0).double() + a) * g * (z > 0) + b * g)

    h2 = rest.softmax(1) @ weights[2]
    h1 = passed(gates[1], z2, h2, None) @ weights[1]
    g2 = seed @ weights[2]
    g1 = passed(gates[1], z2, g2, h2) @ weights[1]
    return passed(gates[0], z1, g1, h1) @ weights[0]


class TestContrast:
    def test_equals_matrices(self) -> None:
        layers = [nn.Linear(7, 6, bias=False), nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False)]
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double().eval()
        x = torch.randn(3, 7, dtype=torch.float64)
        rules = built(model, x, start="guided_backprop", gate_options=BOTH)
        gates = [rules.gate("1"), rules.gate("3")]
        expected = by_hand([layer.weight.detach() for layer in layers], x, gates, target=2)
        torch.testing.assert_close(explain(model, x, rules, 2), expected, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("start", ["gradient", "deconvnet", "guided_backprop"])
    @pytest.mark.parametrize("net", NETS)
    def test_untrained_is_the_start(self, net: str, start: str) -> None:
        model, x = NETS[net](), images()
        plain = zr.RuleSet.build(model, x, gate="channel", start=start)
        both = zr.RuleSet.build(model, x, gate="feature", start=start, gate_options=BOTH, fusion=True)
        assert both.contrast
        assert not plain.contrast
        torch.testing.assert_close(explain(model, x, both), explain(model, x, plain), rtol=0, atol=0)

    def test_other_classes_change_the_map(self) -> None:
        model, x = vgg(), images()
        rules = built(model, x, gate_options=BOTH)
        before = explain(model, x, rules)
        with torch.no_grad():
            model[-1].weight[2] *= -3.0  # not the asked class: a plain backward pass does not see it
        assert not torch.allclose(explain(model, x, rules), before)

    @pytest.mark.parametrize("net", NETS)
    def test_finite_differences(self, net: str) -> None:
        model, x = NETS[net](), images()
        rules = built(model, x, gate_options=BOTH, fusion=True, pooling="soft")
        gradients = torch.autograd.grad(score(explain(model, x, rules, create_graph=True)), rules.parameters())
        assert_gradient(lambda: score(explain(model, x, rules)), rules.parameters(), gradients)

    def test_batch_equals_singles(self) -> None:
        model, x = vgg(), images(3)
        rules = built(model, x, gate_options=BOTH, fusion=True)
        singles = torch.cat([explain(model, sample[None], rules) for sample in x])
        torch.testing.assert_close(explain(model, x, rules), singles, rtol=1e-10, atol=1e-12)

    def test_value_does_not_depend_on_create_graph(self) -> None:
        model, x = resnet(), images()
        rules = built(model, x, gate_options=BOTH, fusion=True)
        assert torch.equal(explain(model, x, rules, create_graph=True).detach(), explain(model, x, rules))

    def test_tokens_have_positions_too(self) -> None:
        model = (
            nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4), nn.Flatten(), nn.Linear(12, 3)).double().eval()
        )
        x = torch.randn(2, 3, 4, dtype=torch.float64)
        rules = built(model, x, gate_options=BOTH)
        assert explain(model, x, rules).isfinite().all()


class TestFusion:
    def test_multiplies_relevance_of_each_resolution(self) -> None:
        model, x = vgg(), images()
        rules = built(model, x, scale=0.0, fusion=True)
        fusion = rules.fusion
        assert fusion is not None
        assert fusion.names == ("2", "5")
        plain = explain(model, x, rules)
        with torch.no_grad():
            fusion.raw.copy_(torch.tensor([0.3, -0.2]))
        expected = plain.clone()
        for weight, at in zip(2 * torch.tanh(fusion.raw.detach()), (3, 6), strict=True):
            inner = model[:at](x).detach().requires_grad_()
            (g,) = torch.autograd.grad(model[at:](inner)[:, 1].sum(), inner)
            relevance = (inner.detach() * g).sum(1).clamp(min=0)
            relevance = relevance / relevance.amax((1, 2), keepdim=True)
            sized = F.interpolate(relevance[:, None], size=x.shape[2:], mode="bilinear", align_corners=False)
            expected = expected * (0.02 + sized) ** weight
        torch.testing.assert_close(explain(model, x, rules), expected, rtol=1e-10, atol=1e-12)

    def test_silent_depths_say_nothing(self) -> None:
        model, x = vgg(), images()
        rules = built(model, x, scale=0.0, fusion=True)
        assert rules.fusion is not None
        with torch.no_grad():
            model[-1].weight.zero_()
            rules.fusion.raw.fill_(0.5)
        assert explain(model, x, rules).abs().max() == 0

    def test_needs_one_image(self) -> None:
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        with pytest.raises(zr.RuleError, match="one input"):
            zr.RuleSet.build(model, torch.randn(2, 4), fusion=True)
        flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.ReLU(), nn.Linear(3, 2))
        with pytest.raises(zr.RuleError, match="more than one position"):
            zr.RuleSet.build(flat, torch.randn(2, 3, 4, 4), fusion=True)


class TestUse:
    @pytest.mark.parametrize("options", [{"gate_options": {"contrast": True}}, {"fusion": True}])
    def test_a_plain_gradient_is_refused(self, options: dict[str, Any]) -> None:
        model, x = vgg(), images()
        rules = built(model, x, **options)
        with rules.applied(model), pytest.raises(zr.RuleError, match=r"LearnedPropagation\(model, rules=rules\)"):
            Saliency(model).attribute(x.requires_grad_(), target=1, abs=False)
        assert explain(model, x, rules).isfinite().all()  # and nothing is left of the attempt

    def test_an_output_without_other_classes_is_refused(self) -> None:
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)).double()
        x = torch.randn(2, 4, dtype=torch.float64)
        rules = built(model, x, gate_options=BOTH)
        with pytest.raises(zr.RuleError, match="other classes"):
            explain(model, x, rules, 0)

    def test_refinement_is_refused(self) -> None:
        model, x = vgg(), images()
        with pytest.raises(zr.RuleError, match="cannot be refined"):
            built(model, x, fusion=True).for_samples(2)

    def test_save_and_load(self, tmp_path: Any) -> None:
        model, x = vgg(), images()
        rules = built(model, x, gate_options=BOTH, fusion=True)
        loaded = zr.RuleSet.load(rules.save(tmp_path / "rules.safetensors", model), model)
        assert torch.equal(explain(model, x, loaded), explain(model, x, rules))
        assert loaded.contrast
        assert loaded.fusion is not None
        assert loaded.fusion.names == ("2", "5")

    @pytest.mark.parametrize("create_graph", [False, True])
    def test_nothing_is_left(self, create_graph: bool) -> None:
        model, x = vgg(), images()
        rules = built(model, x, gate_options=BOTH, fusion=True)
        gone = weakref.ref(explain(model, x, rules, create_graph=create_graph))
        gc.collect()
        assert gone() is None
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_refined_positions_start_at_the_shared_ones(self) -> None:
        model, x = vgg(), images()
        rules = built(model, x, gate_options={"position": True})
        torch.testing.assert_close(explain(model, x, rules.for_samples(2)), explain(model, x, rules))
