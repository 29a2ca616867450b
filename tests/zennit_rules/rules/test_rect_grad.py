"""RectGrad: against a manual dense backward pass, guided backprop and the published gotchas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import captum.attr as ca
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pairwise import crossed
from rule_nets import assert_gradient, images, inception, one_hot, randomise, resnet, score, vgg
from torch import Tensor, nn
from untouched import assert_untouched, snapshot
from zennit.attribution import Gradient
from zennit.composites import NameLayerMapComposite

import captum_learnprop as cl
import zennit_rules as zr
from zennit_rules.rules.rect_grad import percentile

NETS = {"vgg": vgg, "resnet": resnet, "inception": inception}


def net() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 2 * 2, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    return model.double().eval()


def matrix(layer: nn.Module, x: Tensor) -> Tensor:
    """Jacobian ``(outputs, inputs)`` of a layer for one sample, dense."""
    out = layer(x[None])
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0], x)
    return jacobian.reshape(out[0].numel(), x.numel())


def by_hand(model: Any, x: Tensor, q: float | None, *, derivative: bool = False, pool: str = "gradient") -> Tensor:
    """Backward pass of each sample by Jacobians and numpy's percentile."""
    maps = []
    for sample in x:
        values = [sample]
        for layer in model:
            values.append(layer(values[-1][None])[0].detach())
        signal = torch.zeros_like(values[-1])
        signal[1] = 1.0
        for layer, before, after in zip(reversed(model), reversed(values[:-1]), reversed(values[1:]), strict=True):
            flat = signal.flatten()
            if isinstance(layer, nn.ReLU):
                product = (after.flatten() * flat).numpy()
                tau = 0.0 if q is None else np.percentile(product, q)
                flat = flat * torch.from_numpy(product > tau)
                if derivative:
                    flat = flat * (before.flatten() > 0)
                signal = flat.reshape(before.shape)
            elif isinstance(layer, nn.MaxPool2d) and pool == "proportional":
                leaf = torch.zeros_like(before, requires_grad=True)
                pooled = F.avg_pool2d(leaf[None], 2)
                ratio = signal / (F.avg_pool2d(before[None], 2)[0] + 1e-10)
                signal = before * torch.autograd.grad(pooled, leaf, ratio[None])[0]
            else:
                signal = (flat @ matrix(layer, before)).reshape(before.shape)
        maps.append(signal)
    return torch.stack(maps)


def rect_grad(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    plain = {"multiply_by_inputs": False, **options}
    return cl.RectGrad(model, **plain).attribute(x, target=1)


class TestValues:
    """What passes."""

    @crossed(q=[0.0, 20.0, 50.0, 80.0, 98.0], derivative=[False, True], pool=["gradient", "proportional"])
    def test_dense_backward(self, q: float, derivative: bool, pool: str) -> None:
        model, x = net(), images(3).detach()
        found = rect_grad(model, x, percentile=q, derivative=derivative, pool=pool)
        expected = by_hand(model, x, q, derivative=derivative, pool=pool)
        assert (found - expected).abs().max() < 1e-12
        if q < 98:
            assert expected.abs().max() > 1e-4

    @pytest.mark.parametrize("name", NETS)
    def test_threshold_zero_is_guided_backprop(self, name: str) -> None:
        model, x = NETS[name](), images()
        found = rect_grad(model, x, threshold=0.0)
        expected = cl.LearnedGuidedBackprop(model).attribute(x, target=1)
        assert (found - expected).abs().max() < 1e-12
        assert expected.abs().max() > 0
        if name == "vgg":
            torch.testing.assert_close(found, ca.GuidedBackprop(model).attribute(x, target=1))

    def test_times_the_input(self) -> None:
        model, x = net(), images(2).detach()
        times = rect_grad(model, x, percentile=50.0, multiply_by_inputs=True)
        torch.testing.assert_close(times, x * rect_grad(model, x, percentile=50.0))
        assert cl.RectGrad(model).multiplies_by_inputs
        assert not cl.RectGrad(model, multiply_by_inputs=False).multiplies_by_inputs

    def test_as_a_rule_of_zennit(self) -> None:
        model, x = net(), images(2).detach()
        composite = NameLayerMapComposite(name_map=[], layer_map=[(nn.ReLU, zr.RectGrad(80.0))])
        with Gradient(model, composite) as attributor:
            _, found = attributor(x.clone(), one_hot)
        assert (found - by_hand(model, x, 80.0)).abs().max() < 1e-12

    def test_batch_is_singles(self) -> None:
        model, x = net(), images(3).detach()
        singles = torch.cat([rect_grad(model, x[i : i + 1], percentile=70.0) for i in range(3)])
        torch.testing.assert_close(rect_grad(model, x, percentile=70.0), singles, rtol=0, atol=0)

    @pytest.mark.parametrize("q", [0.0, 13.0, 50.0, 99.9, 100.0])
    def test_percentile_is_numpys(self, q: float) -> None:
        values = torch.randn(3, 4, 7)
        expected = np.percentile(values.flatten(1).numpy(), q, axis=1)
        torch.testing.assert_close(percentile(values, q), torch.from_numpy(expected).float())


class TestGotchas:
    """Published behaviour that surprises, as documented."""

    @staticmethod
    def passed(q: float, *, derivative: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        z, g = torch.randn(1, 4000).double(), torch.randn(1, 4000).double()
        rule = zr.RectGrad(q, derivative=derivative)
        relu = nn.ReLU()
        handle = rule.register(relu)
        leaf = z.clone().requires_grad_()
        (found,) = torch.autograd.grad(relu(leaf), leaf, g)
        handle.remove()
        return z, g, found

    @pytest.mark.parametrize("q", [30.0, 50.0, 70.0])
    def test_percentile_among_the_ties_is_guided_backprop(self, q: float) -> None:
        z, g, found = self.passed(q)
        assert torch.equal(found, g * (z > 0) * (g > 0))

    def test_negative_threshold_lets_inactive_units_pass(self) -> None:
        z, g, found = self.passed(10.0)
        inactive = z <= 0
        assert torch.equal(found[inactive], g[inactive])
        z, _, stopped = self.passed(10.0, derivative=True)
        assert bool((stopped[z <= 0] == 0).all())

    def test_zero_percentile_drops_the_lowest_alone(self) -> None:
        _, g, found = self.passed(0.0)
        assert int((found != g).sum()) == 1


class TestSoft:
    """A trainable threshold."""

    @pytest.mark.parametrize("derivative", [False, True])
    def test_finite_differences(self, derivative: bool) -> None:
        model, x = net(), images(2).detach()
        options = {"percentile": 60.0, "temperature": 0.5, "derivative": derivative}
        rules = zr.RuleSet.build(model, x, composite="rect_grad", rule_options=options)
        randomise(rules.parameters())

        def maps(**more: Any) -> Tensor:
            leaf = x.clone().requires_grad_()
            with rules.applied(model) as composite:
                output = model(leaf)
                return zr.attribute(composite, output, (leaf,), one_hot(output), **more)[0]

        gradients = torch.autograd.grad(score(maps(create_graph=True)), rules.parameters())
        assert_gradient(lambda: score(maps()), rules.parameters(), gradients)
        assert torch.equal(maps(), maps(create_graph=True).detach())
        assert len(gradients) == 3

    def test_limit_is_the_hard_threshold(self) -> None:
        model, x = net(), images(2).detach()

        def soft(temperature: float) -> Tensor:
            options = {"percentile": 71.3, "temperature": temperature}
            rules = zr.RuleSet.build(model, x, composite="rect_grad", rule_options=options)
            return cl.RectGrad(model, rules=rules).attribute(x, target=1)

        hard = cl.RectGrad(model, 71.3).attribute(x, target=1)
        distances = [float((soft(t) - hard).abs().max()) for t in (1e-1, 1e-3, 1e-7)]
        assert distances[0] > distances[1] >= distances[2]
        assert distances[2] < 1e-12

    def test_hard_has_nothing_to_train(self) -> None:
        assert not list(zr.RectGate().parameters())

    def test_trained_rules_are_saved(self, tmp_path: Path) -> None:
        model, x = net(), images(2).detach()
        rules = zr.RuleSet.build(model, x, composite="rect_grad", rule_options={"temperature": 0.3, "threshold": 0.1})
        randomise(rules.parameters())
        rules.save(tmp_path / "rules.safetensors")
        found = cl.RectGrad(model, rules=tmp_path / "rules.safetensors").attribute(x, target=1)
        assert torch.equal(found, cl.RectGrad(model, rules=rules).attribute(x, target=1))


class TestErrors:
    """Options out of range."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"percentile": 101.0}, "from 0 to 100"),
            ({"threshold": float("nan")}, "finite number"),
            ({"pool": "average"}, "choose one of gradient, proportional"),
            ({"multiply_by_inputs": 1}, "must be True or False"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(zr.RuleError, match=message):
            cl.RectGrad(net(), **options)

    def test_temperature(self) -> None:
        with pytest.raises(zr.RuleError, match="temperature=-1"):
            zr.RectGate(temperature=-1.0)

    def test_untouched(self) -> None:
        model, x = net(), images(2).detach()
        before = snapshot(model, x)
        rect_grad(model, x)
        assert_untouched(before, model, x)
