from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import make_layers
from zennit.attribution import Gradient
from zennit.composites import Convolution, Linear, SpecialFirstLayerMapComposite, layer_map_base
from zennit.rules import ZBox, ZPlus

import zennit_rules as zr
from captum_learnprop.benchmark.hand_made import hand_made
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.active_span import retained_energy
from captum_learnprop.evaluation.alignment import (
    class_alignment,
    cosine,
    direction_convergence,
    input_alignment,
    negative_filtering,
    proportion_sweep,
)
from captum_learnprop.evaluation.alignment_theory import (
    alignment,
    alignment_of_fraction,
    band,
    best_fraction,
    orthogonal_alignment,
    simulated,
    simulated_orthogonal,
)
from captum_learnprop.evaluation.backward_rules import RULES, backward_rule
from captum_learnprop.evaluation.randomization import full_randomization
from captum_learnprop.scenes import make_scenes, reference_nets


def net(inplace: bool = False) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU(inplace),
        nn.Flatten(), nn.Linear(6 * 2 * 2, 10), nn.ReLU(inplace), nn.Linear(10, 4),
    )  # fmt: skip
    return model.double().eval()


def inputs(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


TARGETS = torch.tensor([0, 1, 2, 3, 0])
OTHERS = torch.tensor([1, 2, 3, 0, 2])


def gradients(model: Any, x: Tensor, targets: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Inputs of the four linear layers and their gradients, those of activations before and after."""
    values = [x.clone().requires_grad_()]
    for layer in model:
        values.append(layer(values[-1]))
    seed = F.one_hot(targets, 4).double()
    found = torch.autograd.grad(values[-1], values[:-1], seed)
    linear = [0, 3, 6, 8]
    relu = [1, 4, 7]
    after = [*found, seed]
    return [values[i] for i in linear], [found[i] for i in linear], [found[i] for i in relu], [
        after[i + 1] for i in relu
    ]  # fmt: skip


class TestAgainstAutograd:
    """The plain gradient, by hand."""

    @pytest.mark.parametrize("centred", [False, True])
    @pytest.mark.parametrize("rows", [2, 16])
    def test_input_alignment(self, centred: bool, rows: int) -> None:
        model, x = net(), inputs()
        found = input_alignment(
            model, backward_rule("gradient", model, x), x, TARGETS, centred=centred, internal_batch_size=rows
        )
        layers, signals, _, _ = gradients(model, x, TARGETS)
        expected = []
        for a, b in zip(signals, layers, strict=True):
            a, b = a.flatten(1), b.flatten(1)
            if centred:
                a, b = a - a.mean(1, True), b - b.mean(1, True)
            expected.append((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))
        assert found.names == ("0", "3", "6", "8")
        torch.testing.assert_close(found.values, torch.stack(expected).detach())

    def test_class_alignment(self) -> None:
        model, x = net(), inputs()
        found = class_alignment(model, backward_rule("gradient", model, x), x, TARGETS, OTHERS)
        first, second = gradients(model, x, TARGETS)[1], gradients(model, x, OTHERS)[1]
        expected = torch.stack(
            [F.cosine_similarity(a.flatten(1), b.flatten(1)) for a, b in zip(first, second, strict=True)]
        )
        torch.testing.assert_close(found.values, expected)

    @pytest.mark.parametrize("inplace", [False, True])
    def test_negative_filtering(self, inplace: bool) -> None:
        model, x = net(inplace), inputs()
        torch.manual_seed(0)
        found = negative_filtering(model, backward_rule("gradient", model, x), x, TARGETS)
        plain = net()
        plain.load_state_dict(model.state_dict())
        _, _, before, after = gradients(plain, x, TARGETS)
        for profile, sign in ((found.positive, 1), (found.negative, -1)):
            for row, (s, g) in enumerate(zip(before, after, strict=True)):
                part = (g * sign > 0).flatten(1)
                expected = (s.abs().flatten(1) * part).sum(1) / (g.abs().flatten(1) * part).sum(1)
                torch.testing.assert_close(profile.values[row], expected, equal_nan=True)
        assert all(module.inplace == inplace for module in model if isinstance(module, nn.ReLU))

    def test_guided_backprop_lets_nothing_negative_pass(self) -> None:
        model, x = net(), inputs()
        found = negative_filtering(model, backward_rule("guided_backprop", model, x), x, TARGETS)
        assert float(found.negative.values.nan_to_num().abs().max()) == 0
        assert float(found.positive.values.nanmean()) > 0.2

    def test_convergence(self) -> None:
        model, x = net(), inputs(2)
        found = direction_convergence(model, backward_rule("gradient", model, x), x, start="6", vectors=3, seed=4)
        generator = torch.Generator().manual_seed(4)
        vectors = [torch.randn(24, generator=generator).double() for _ in range(3)]
        leaf = x.clone().requires_grad_()
        middle = model[:3](leaf)
        top = model[3:6](middle)
        expected = []
        for tensor in (leaf, middle):
            signals = [torch.autograd.grad(top, tensor, v.expand(2, -1), retain_graph=True)[0] for v in vectors]
            pairs = [F.cosine_similarity(signals[i], signals[j]).abs().flatten(1) for i in range(3) for j in range(i)]
            some = [
                (signals[i].norm(dim=1) * signals[j].norm(dim=1)).flatten(1) > 0 for i in range(3) for j in range(i)
            ]
            masked = torch.cat(pairs, 1).masked_fill(~torch.cat(some, 1), torch.nan)
            expected.append(masked.nanmean(1))
        assert found.names == ("0", "3")
        torch.testing.assert_close(found.values, torch.stack(expected))

    def test_convergence_over_channels_that_come_last(self) -> None:
        """A linear layer has its channels last, whatever is before them: here on ``(B, H, W, C)``."""
        model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)).double().eval()
        x = torch.randn(2, 3, 4, 6).double()
        found = direction_convergence(model, backward_rule("gradient", model, x), x, vectors=2, seed=1)
        generator = torch.Generator().manual_seed(1)
        vectors = [torch.randn(3, 4, 7, generator=generator).double() for _ in range(2)]
        leaf = x.clone().requires_grad_()
        top = model[:2](leaf)
        a, b = (torch.autograd.grad(top, leaf, v.expand(2, -1, -1, -1), retain_graph=True)[0] for v in vectors)
        torch.testing.assert_close(found.values[0], F.cosine_similarity(a, b, dim=-1).abs().mean((1, 2)))

    def test_retained_energy(self) -> None:
        model, x = net(), inputs(2)
        found = retained_energy(model, x, iterations=400)
        values = [x]
        for layer in model:
            values.append(layer(values[-1]).detach())
        for row, index in enumerate((0, 3, 6, 8)):
            layer, before, after = model[index], values[index], values[index + 1]
            for sample in range(2):
                one = before[sample]
                jacobian = torch.autograd.functional.jacobian(lambda v, f=layer: f(v[None])[0], one)
                rows = jacobian.reshape(-1, one.numel())[after[sample].flatten() > 0]
                projected = torch.linalg.pinv(rows) @ rows @ one.flatten()
                expected = projected.norm() / one.norm()
                assert abs(float(found.values[row, sample]) - float(expected)) < 1e-4


class TestRules:
    """By name, and trained."""

    @pytest.mark.parametrize("name", [name for name in RULES if name != "attnlrp"])
    def test_all_measures_run(self, name: str) -> None:
        model, x = net(), inputs()
        rule = backward_rule(name, model, x)
        for profile in (
            input_alignment(model, rule, x, TARGETS),
            class_alignment(model, rule, x, TARGETS, OTHERS),
            direction_convergence(model, rule, x),
        ):
            assert bool((profile.values.nan_to_num().abs() <= 1 + 1e-9).all())
            assert float(profile.values.nan_to_num().abs().max()) > 0
        assert rule.attribution(model, x, TARGETS).shape == x.shape

    def test_deep_taylor_is_zennits_z_plus_with_a_box(self) -> None:
        model, x = net(), inputs().clamp(-1, 1)
        for module in model:
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        rules = zr.RuleSet.build(model, x, composite="deep_taylor", rule_options={"low": -1.0, "high": 1.0})
        theirs = SpecialFirstLayerMapComposite(
            layer_map=[*layer_map_base(), (Linear, ZPlus())], first_map=[(Convolution, ZBox(low=-1.0, high=1.0))]
        )
        with Gradient(model, theirs) as attributor:
            _, expected = attributor(x.clone(), lambda out: out * F.one_hot(TARGETS, 4))
        found = backward_rule(rules, model, x).attribution(model, x, TARGETS)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)

    def test_trained_rules(self) -> None:
        model, x = net(), inputs()
        rules = zr.RuleSet.build(model, x, gate="channel")
        with torch.no_grad():
            for parameter in rules.parameters():
                parameter.fill_(-20.0)  # nothing passes
        rule = backward_rule(rules, model, x, "closed")
        assert rule.name == "closed"
        assert float(rule.attribution(model, x, TARGETS).abs().max()) < 1e-12

    def test_what_does_not_fit(self) -> None:
        model, x = net(), inputs()
        rule = backward_rule("gradient", model, x)
        with pytest.raises(LearnpropError, match="unknown rule 'lime'"):
            backward_rule("lime", model, x)
        with pytest.raises(LearnpropError, match="differ from the targets"):
            class_alignment(model, rule, x, TARGETS, TARGETS)
        with pytest.raises(LearnpropError, match="targets must be int64"):
            input_alignment(model, rule, x, TARGETS[:2])
        with pytest.raises(LearnpropError, match="layer '9' is not called"):
            direction_convergence(model, rule, x, start="9")
        with pytest.raises(LearnpropError, match="at least 2"):
            direction_convergence(model, rule, x, vectors=1)


class TestKnownResults:
    """What the literature found, without downloads."""

    def test_guided_backprop_aligns_and_forgets_the_class(self) -> None:
        model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(256, 256, bias=False), nn.ReLU())))
        model.append(nn.Linear(256, 8, bias=False))
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=(2 / 256) ** 0.5)
        x, targets = torch.randn(4, 256), torch.tensor([0, 1, 2, 3])
        gradient, guided = (backward_rule(name, model, x) for name in ("gradient", "guided_backprop"))
        assert input_alignment(model, guided, x, targets).values[0].mean() > 0.3
        assert input_alignment(model, gradient, x, targets).values[0].abs().mean() < 0.15
        assert class_alignment(model, guided, x, targets, targets + 4).values[0].mean() > 0.8
        assert class_alignment(model, gradient, x, targets, targets + 4).values[0].abs().mean() < 0.4

    def test_z_plus_converges_and_deep_lift_does_not(self) -> None:
        model = reference_nets.load("vgg", "digits")
        x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        z_plus = direction_convergence(model, backward_rule("deep_taylor", model, x), x)
        deep_lift = direction_convergence(model, backward_rule("deeplift", model, x), x)
        assert z_plus.values[0].mean() > 0.99
        assert deep_lift.values[0].mean() < 0.9

    @pytest.mark.parametrize(
        ("name", "width", "low", "high"),
        [
            ("guided backprop", 64, 0.6, 1.0), ("excitation backprop", 32, 0.6, 1.0),
            ("saliency", 16, 0.0, 0.15), ("integrated gradients", 16, 0.0, 0.15),
        ],
    )  # fmt: skip
    def test_randomisation_of_a_random_vgg(self, name: str, width: int, low: float, high: float) -> None:
        """Rank correlation of signed maps when all parameters are drawn anew; that of guided backprop grows with width.

        Layers are those of VGG-11, which is 64 wide.
        """
        features = make_layers([width * k if k else "M" for k in (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0)])
        model = nn.Sequential(*features, nn.Flatten(), nn.Linear(32 * width, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
        x = make_scenes("pairs", 2, seed=5).images

        def explain(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            return hand_made(name).build(model, inputs[:1])(inputs, targets).sum(1)

        found = full_randomization(model, explain, x, torch.tensor([3, 5]), absolute=False, seeds=(0,))
        assert low <= float(found.mean()) <= high


class TestTheory:
    """Closed forms against simulations."""

    @pytest.mark.parametrize("m", [256, 1024])
    @pytest.mark.parametrize("coefficients", ["ones", "uniform", "exponential", "rectified", "activation"])
    def test_isotropic_layer(self, m: int, coefficients: str) -> None:
        mean, half = band(simulated(m, 512, coefficients, trials=64))
        assert abs(mean / alignment(m, 512, coefficients) - 1) < 0.02 + half / mean

    def test_published_numbers(self) -> None:
        for coefficients, value in (("ones", 0.746), ("rectified", 0.536), ("activation", 0.815), ("signed", 0.04)):
            assert abs(alignment(2048, 512, coefficients) - value) < 0.015

    @pytest.mark.parametrize("p", [0.5, 0.27, 0.1])
    def test_fraction(self, p: float) -> None:
        mean, half = band(simulated(1024, 512, fraction=p, trials=48))
        assert abs(mean / alignment_of_fraction(p, 1024, 512) - 1) < 0.02 + half / mean

    def test_best_fraction(self) -> None:
        best = best_fraction()
        assert abs(best - 0.27) < 0.005
        assert alignment_of_fraction(best, 512, 512) > max(
            alignment_of_fraction(best + d, 512, 512) for d in (-0.05, 0.05)
        )

    def test_orthogonal_rows_are_exact(self) -> None:
        rows = torch.linalg.qr(torch.randn(64, 64).double()).Q[:40] * 3.0
        x = torch.randn(5, 64).double()
        a = (x @ rows.T).clamp(min=0)
        r = torch.randn(5, 40).double() * (a > 0)
        expected = cosine(r @ rows, x)
        torch.testing.assert_close(orthogonal_alignment(r, a, x, 3.0), expected)

    @pytest.mark.parametrize("coefficients", ["ones", "signed", "activation"])
    def test_simulated_orthogonal_rows(self, coefficients: str) -> None:
        measured, closed = simulated_orthogonal(20, 32, coefficients, trials=6)
        torch.testing.assert_close(measured, closed, rtol=1e-9, atol=1e-12)
        assert measured.std() > 0

    def test_out_of_range(self) -> None:
        with pytest.raises(LearnpropError, match="cannot be orthogonal"):
            simulated_orthogonal(5, 4)
        with pytest.raises(LearnpropError, match="unknown coefficients"):
            alignment(4, 4, "twos")
        with pytest.raises(LearnpropError, match="share of the units"):
            alignment_of_fraction(1.0, 4, 4)
        with pytest.raises(LearnpropError, match="at least one unit"):
            simulated(0, 4)


class TestSweepAndExample:
    """What passes, and the theory's figure."""

    def test_sweep(self) -> None:
        model, x = net(), inputs()
        found = proportion_sweep(model, x, TARGETS, (0.0, 60.0))
        rules = zr.RuleSet.build(model, x, composite="rect_grad", rule_options={"percentile": 60.0, "derivative": True})
        expected = input_alignment(model, backward_rule(rules, model, x), x, TARGETS, centred=True)
        assert found.names == ("0", "60")
        torch.testing.assert_close(found.values[1], expected.values[0])

    def test_example(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        script = Path(__file__).parents[3] / "examples" / "alignment_theory.py"
        arguments = ["--inputs", "32", "--widths", "32", "64", "--trials", "4", "--out", str(tmp_path / "theory.png")]
        monkeypatch.setattr(sys, "argv", [script.name, *arguments])
        runpy.run_path(str(script), run_name="__main__")
        assert (tmp_path / "theory.png").stat().st_size > 5_000
        assert "aligns best: 0.270" in capsys.readouterr().out
