"""Canonizers: conservation on torchvision's networks, zennit's own results, and models given back as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as models
from rule_nets import NETS, images, one_hot, prepare, score
from shallow_nets import AS_SHIPPED, SHALLOW, shallow_by_default
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization
from untouched import assert_untouched, snapshot
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer
from zennit.composites import (
    Composite,
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    LayerMapComposite,
    layer_map_base,
)
from zennit.core import Hook
from zennit.rules import Epsilon, Gamma, ReLUGuidedBackprop
from zennit.torchvision import ResNetCanonizer
from zennit.types import Linear

import zennit_rules as zr
from zennit_rules import RuleWarning
from zennit_rules.canonizers import MergeBatchNormPairs, SkipCanonizer, batch_norm_pairs, canonizers_for

TINY = 1e-14
TORCHVISION = ("resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny")


def make(name: str, size: int = 64) -> tuple[nn.Module, Tensor]:
    """A network without biases whose batch norms have seen data, and an input.

    Biases take relevance, and so do outputs for which nothing but a bias speaks; without them all of it must arrive.
    """
    torch.manual_seed(0)
    build = SHALLOW.get(name) or partial(models.get_model, name.removesuffix(AS_SHIPPED), weights=None)
    model = build(num_classes=4).double()
    for path, parameter in model.named_parameters():
        if path.endswith("bias"):
            nn.init.zeros_(parameter)
        elif path.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
    with torch.no_grad():
        model(torch.randn(4, 3, size, size, dtype=torch.float64))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.running_mean)
    return model.eval(), torch.randn(1, 3, size, size, dtype=torch.float64)


def gamma(canonizers: list[Canonizer] | None = None) -> Composite:
    """LRP-gamma of every linear layer: conserves wherever anything at all contributes."""
    rule = Gamma(0.25, stabilizer=TINY, zero_params=["bias"])
    return LayerMapComposite([*layer_map_base(TINY), (Linear, rule)], canonizers=canonizers)


def epsilon(canonizers: list[Canonizer] | None = None) -> Composite:
    rule = Epsilon(epsilon=TINY, zero_params=["bias"])
    return LayerMapComposite([*layer_map_base(TINY), (Linear, rule)], canonizers=canonizers)


def plus(canonizers: list[Canonizer] | None = None) -> Composite:
    return EpsilonPlus(TINY, TINY, zero_params=["bias"], canonizers=canonizers)


def attribute(model: nn.Module, composite: Composite, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logit, which LRP starts with, and the relevance of the input."""
    with Gradient(model, composite) as attributor:
        output, relevance = attributor(x, lambda out: out * one_hot(out))
    return output[:, 1].detach(), relevance


def share(model: nn.Module, composite: Composite, x: Tensor) -> float:
    logit, relevance = attribute(model, composite, x)
    return float(relevance.sum() / logit.sum())


def tiny_canonizers(model: nn.Module, x: Tensor) -> list[Canonizer]:
    return [SkipCanonizer(TINY), *canonizers_for(model, x)[1:]]


class TestConservation:
    @pytest.mark.parametrize("name", shallow_by_default(TORCHVISION))
    def test_torchvision(self, name: str) -> None:
        model, x = make(name, 32 if name == f"convnext_tiny{AS_SHIPPED}" else 64)
        canonizers = tiny_canonizers(model, x)
        assert abs(share(model, gamma(canonizers), x) - 1) < 1e-6
        assert abs(share(model, epsilon(), x) - 1) > 0.05

    @pytest.mark.parametrize(("name", "lost"), [("resnet18", 1e-6), ("densenet121", 1e-6), ("mobilenet_v2", 5e-3)])
    def test_epsilon_plus(self, name: str, lost: float) -> None:
        """Relevance of outputs that nothing contributes to is lost; depthwise convolutions have some."""
        model, x = make(name)
        assert abs(share(model, plus(tiny_canonizers(model, x)), x) - 1) < lost

    @pytest.mark.parametrize("name", shallow_by_default(["mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"]))
    def test_epsilon(self, name: str) -> None:
        """Relevance of both signs, a million times the logit's in ConvNeXt: what arrives is their difference."""
        model, x = make(name, 32 if name == f"convnext_tiny{AS_SHIPPED}" else 64)
        assert abs(share(model, epsilon(tiny_canonizers(model, x)), x) - 1) < 1e-3

    @pytest.mark.parametrize("name", NETS)
    def test_functional_calls_and_reused_modules(self, name: str) -> None:
        model, x = NETS[name](), images().detach()
        for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if path.endswith(("bias", "running_mean")):
                nn.init.zeros_(tensor)
        assert abs(share(model, gamma(tiny_canonizers(model, x)), x) - 1) < 1e-9


class TestZennitsResNet:
    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    def test_same_relevance(self, name: str) -> None:
        """With biases: what zennit's own canonizer of that model gives."""
        torch.manual_seed(1)
        model = prepare(models.get_model(name, weights=None, num_classes=4))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0  # zennit 0.5.1 leaves eps in a merged norm, so that values change
        x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        expected = attribute(model, EpsilonPlus(canonizers=[ResNetCanonizer()]), x)
        found = attribute(model, EpsilonPlus(canonizers=canonizers_for(model, x)), x)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=0)
        scale = float(expected[1].abs().max())
        torch.testing.assert_close(found[1] / scale, expected[1] / scale, rtol=0, atol=1e-10)


class Pairs(nn.Module):
    """Linear layers and norms that belong together, out of order, and some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_b, self.norm_a = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv_a, self.conv_b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, bias=False)
        self.shared, self.norm_shared = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.norm_twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.up, self.norm_up = nn.ConvTranspose2d(3, 3, 2, stride=2), nn.BatchNorm2d(3)
        self.grouped, self.norm_grouped = nn.ConvTranspose2d(3, 3, 1, groups=3), nn.BatchNorm2d(3)
        self.plain, self.norm_plain = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.untracked, self.norm_untracked = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.made, self.norm_made = parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)
        self.shifted, self.norm_shifted = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        register_parametrization(self.shifted, "bias", nn.ReLU())
        self.relu, self.norm_relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.tied_a, self.norm_tied = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.tied_b = nn.Conv2d(3, 3, 1)
        self.tied_b.weight = self.tied_a.weight
        self.fc, self.norm_fc = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.tokens, self.norm_tokens = nn.Linear(4, 4), nn.BatchNorm1d(2)
        self.last, self.norm_last = nn.Linear(8, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm_a(self.conv_a(x))
        x = self.norm_b(self.conv_b(x))
        z = self.shared(x)
        x = self.norm_shared(z) + z
        x = self.norm_twice(self.twice(self.twice(x)))
        x = self.norm_up(self.up(x))
        x = self.norm_grouped(self.grouped(x))
        x = self.norm_plain(self.plain(x))
        x = self.norm_untracked(self.untracked(x))
        x = self.norm_shifted(self.shifted(self.norm_made(self.made(x))))
        x = self.norm_relu(F.relu(self.relu(x)))
        x = self.norm_tied(self.tied_a(x)) + self.tied_b(x)
        x = self.norm_fc(self.fc(x.mean((2, 3))))
        x = self.norm_tokens(self.tokens(torch.stack([x, x], 1))).flatten(1)
        logits = self.last(x)
        return self.norm_last(logits), logits


EXPECTED = [(["conv_a"], "norm_a"), (["conv_b"], "norm_b"), (["up"], "norm_up"), (["fc"], "norm_fc")]


class TestPairs:
    def test_found(self) -> None:
        model, x = prepare(Pairs()), images().detach()
        before = snapshot(model, x)
        assert batch_norm_pairs(model, x) == EXPECTED
        assert_untouched(before, model, x)

    def test_as_defined_in_resnet(self) -> None:
        """There the order of definition is that of the computation."""
        model, x = make("resnet18", 32)
        found = {norm: linears for linears, norm in batch_norm_pairs(model, x)}
        assert len(found) == 20
        assert found["layer2.0.downsample.1"] == ["layer2.0.downsample.0"]

    def test_across_blocks_in_densenet(self) -> None:
        """Norm1 of a layer sees a concatenation, although conv2 of the one before is defined right before it."""
        model, x = make(f"densenet121{AS_SHIPPED}", 32)
        pairs = batch_norm_pairs(model, x)
        assert len(pairs) == 59
        assert all(norm.endswith(("norm0", "norm2")) for _, norm in pairs)
        expected = model(x)
        with Composite(canonizers=canonizers_for(model, x)).context(model):
            torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)

    def test_training_mode_merges_nothing(self) -> None:
        model, x = prepare(Pairs()).train(), images().detach()
        before, state = snapshot(model, x), torch.get_rng_state()
        assert batch_norm_pairs(model, x) == []
        assert_untouched(before, model, x)
        assert torch.equal(state, torch.get_rng_state())

    def test_layers_with_a_forward_of_their_own(self) -> None:
        class Standardised(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return F.conv2d(x, self.weight / self.weight.std(), self.bias)

        model = prepare(nn.Sequential(Standardised(3, 3, 1), nn.BatchNorm2d(3)))
        assert batch_norm_pairs(model, images().detach()) == []

    def test_several_inputs(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

            def forward(self, x: Tensor, shift: Tensor) -> Tensor:
                return self.norm(self.conv(x + shift))

        assert batch_norm_pairs(prepare(Two()), (images().detach(), torch.ones(()))) == [(["conv"], "norm")]

    def test_a_failing_pass_leaves_no_hooks(self) -> None:
        model = prepare(Pairs())
        before = snapshot(model)
        with pytest.raises(RuntimeError, match="channels"):
            batch_norm_pairs(model, torch.randn(1, 5, 4, 4, dtype=torch.float64))
        assert_untouched(before, model)


def merged_net() -> nn.Module:
    """All linear layers have a norm, and one of them no bias."""
    return prepare(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2),
            nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
    )  # fmt: skip


class TestMerging:
    def test_values_and_model_stay(self) -> None:
        model, x = merged_net(), images().detach()
        expected, before, state = model(x), snapshot(model, x), copy.deepcopy(model.state_dict())
        with plus(canonizers_for(model, x)).context(model):
            torch.testing.assert_close(model(x), expected, rtol=1e-13, atol=1e-13)
        attribute(model, plus(canonizers_for(model, x)), x)  # zennit 1.0.0 replaces parameters in the backward pass
        assert_untouched(before, model, x)
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        assert [type(p) for p in model[0]._parameters.values()] == [nn.Parameter, type(None)]

    def test_model_stays_after_an_exception(self) -> None:
        model, x = merged_net(), images().detach()
        before = snapshot(model, x)
        with pytest.raises(KeyboardInterrupt), plus(canonizers_for(model, x)).context(model):
            interrupted(attribute_inside(model, x))
        assert_untouched(before, model, x)

    def test_unknown_name(self) -> None:
        model = merged_net()
        before = snapshot(model)
        with pytest.raises(zr.RuleError, match="no module 'head'"):
            MergeBatchNormPairs([(["0"], "1"), (["head"], "4")]).apply(model)
        assert_untouched(before, model)

    def test_all_or_none(self) -> None:
        model = merged_net()
        before = snapshot(model)
        with pytest.raises(AttributeError):
            MergeBatchNormPairs([(["0"], "1"), (["2"], "4")]).apply(model)  # a ReLU has no weight
        assert_untouched(before, model)

    def test_no_norms_no_merge(self) -> None:
        model = prepare(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
        assert [type(c) for c in canonizers_for(model, images().detach())] == [SkipCanonizer]


def attribute_inside(model: nn.Module, x: Tensor) -> Tensor:
    """The relevance of the input, for a composite that is registered."""
    x = x.clone().requires_grad_()
    out = model(x)
    return torch.autograd.grad(out, x, one_hot(out) * out.detach())[0]


def interrupted(_: Tensor) -> None:
    raise KeyboardInterrupt


class Skip(nn.Module):
    """Sum of two branches, a mean and a norm that zennit has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x) + self.right(x)
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


def skip_net() -> tuple[nn.Module, Tensor]:
    return prepare(Skip()), images().detach()


class TestSkipCanonizer:
    def test_by_hand(self) -> None:
        """Sum, LayerNorm, ReLU and mean between layers that pass everything on: relevance is that of the sum."""
        model, x = skip_net()
        inputs = x.clone().requires_grad_()
        start = one_hot(model(x))
        with Composite(canonizers=[SkipCanonizer(TINY)]).context(model):
            found = torch.autograd.grad(model(inputs), inputs, start)[0]
        left, right = model.left(x), model.right(x)
        act = F.relu(model.norm(left + right))
        mean = act.mean((2, 3))
        r = start @ model.fc.weight  # linear layers have no rule here
        r = act / 64 * (r / (mean + torch.where(mean < 0, -TINY, TINY)))[:, :, None, None]
        shared = r / (left + right)
        expected = F.conv_transpose2d(left * shared, model.left.weight, padding=1)
        expected = expected + F.conv_transpose2d(right * shared, model.right.weight)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)

    def test_values_stay(self) -> None:
        model, x = skip_net()
        before, expected = snapshot(model, x), model(x)
        with Composite(canonizers=[SkipCanonizer()]).context(model):
            assert torch.equal(model(x.requires_grad_()), expected)
        x.requires_grad_(False)
        assert_untouched(before, model, x)

    def test_removed_means_the_gradient(self) -> None:
        model, x = skip_net()
        inputs = x.clone().requires_grad_()
        with Composite(canonizers=[SkipCanonizer()]).context(model):
            out = model(inputs)
        found = torch.autograd.grad(out, inputs, one_hot(out))[0]
        out = model(inputs)
        torch.testing.assert_close(found, torch.autograd.grad(out, inputs, one_hot(out))[0])

    def test_model_stays_after_an_exception(self) -> None:
        model, x = skip_net()
        before = snapshot(model, x)
        with pytest.raises(RuntimeError, match="channels"), Composite(canonizers=[SkipCanonizer()]).context(model):
            model(x[:, :1])
        assert_untouched(before, model, x)
        assert attribute(model, epsilon([SkipCanonizer(TINY)]), x)[1].isfinite().all()

    def test_inactive_hooks_switch_it_off(self) -> None:
        """The gradient of the relevance to the input, as zennit documents it, by finite differences."""
        model, x = skip_net()
        weights = torch.randn(2, 5, dtype=torch.float64)

        def relevance(x: Tensor, create_graph: bool = False) -> Tensor:
            out = model(x)
            return torch.autograd.grad(out, x, out * weights, create_graph=create_graph)[0]

        composite = Composite(
            lambda ctx, name, module: Epsilon(0.05) if isinstance(module, Linear) else None,
            canonizers=[SkipCanonizer(0.05)],
        )
        with composite.context(model):
            inputs = x.clone().requires_grad_()
            live = relevance(inputs, create_graph=True)
            with composite.inactive():
                plain = relevance(inputs)
                (found,) = torch.autograd.grad(score(live), inputs)
            direction, ends = torch.randn_like(x), []
            for step in (1e-6, -1e-6):
                moved = (x + step * direction).requires_grad_()
                ends.append(float(score(relevance(moved))))
        numerical = (ends[0] - ends[1]) / 2e-6
        assert abs(numerical - float((found * direction).sum())) < 1e-5 * float((found * direction).abs().sum())
        inputs = x.clone().requires_grad_()
        torch.testing.assert_close(plain, relevance(inputs))

    def test_one_template_for_two_models(self) -> None:
        template = SkipCanonizer(TINY)
        (first, x), (second, _) = skip_net(), skip_net()
        alone = [attribute(m, epsilon([template]), x)[1] for m in (first, second)]
        one, other = epsilon([template]), epsilon([template])
        with one.context(first), other.context(second):
            together = [attribute_inside(m, x) for m in (first, second)]
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b)

    def test_copy(self) -> None:
        canonizer = SkipCanonizer(0.25)
        other = canonizer.copy()
        assert other is not canonizer
        assert other.stabilizer == 0.25
        other.remove()  # nothing to undo

    def test_a_part_of_the_model(self) -> None:
        """Zennit's rules act in a part that is called on its own, and so do functions."""
        block, x = skip_net()
        model = nn.Sequential(block, nn.Identity())
        expected = attribute(model, epsilon([SkipCanonizer(TINY)]), x)[1]
        with epsilon([SkipCanonizer(TINY)]).context(model):
            torch.testing.assert_close(attribute_inside(model[0], x), expected)

    def test_threads(self) -> None:
        template = SkipCanonizer(TINY)
        nets = [skip_net() for _ in range(4)]
        expected = [attribute(m, epsilon([template]), x)[1] for m, x in nets]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda net: attribute(net[0], epsilon([template]), net[1])[1], nets))
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b)

    def test_layers_with_a_rule_are_left_to_it(self) -> None:
        """Guided backprop needs the true gradient inside its layer."""
        model = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))
        x, layers = images().detach(), [(nn.ReLU, ReLUGuidedBackprop())]
        expected = attribute(model, LayerMapComposite(layers), x)[1]
        found = attribute(model, LayerMapComposite(layers, canonizers=[SkipCanonizer()]), x)[1]
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(attribute(model, Composite(canonizers=[SkipCanonizer()]), x)[1], expected)

    def test_a_rule_of_the_model_hides_no_functions(self) -> None:
        model, x = skip_net()
        expected = attribute(model, Composite(canonizers=[SkipCanonizer()]), x)[1]
        observer = Composite(lambda ctx, name, module: None if name else Hook(), [SkipCanonizer()])
        torch.testing.assert_close(attribute(model, observer, x)[1], expected)

    def test_gate_branch_with_zennits_rules(self) -> None:
        """A gate gets no relevance, and rules on the way to it must not mind."""

        class Excited(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1)
                self.gate, self.head = nn.Sigmoid(), nn.Linear(4, 5, bias=False)
                nn.init.zeros_(self.conv.bias)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(x)
                x = x * self.gate(self.fc(self.pool(x)))
                return self.head(x.mean((2, 3)))

        model = prepare(Excited())
        assert abs(share(model, gamma([SkipCanonizer(TINY)]), images().detach()) - 1) < 1e-9

    def test_copied_model_is_free(self) -> None:
        model, x = skip_net()
        plain = attribute(model, Composite(), x)[1]
        with Composite(canonizers=[SkipCanonizer()]).context(model):
            twin = copy.deepcopy(model)
        torch.testing.assert_close(attribute(twin, Composite(), x)[1], plain)

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    @pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.compile(m, backend="eager")])
    def test_models_that_hooks_cannot_reach(self, make: Callable[[nn.Module], Any]) -> None:
        model = make(nn.Sequential(nn.Linear(2, 2)))
        for call in (SkipCanonizer().apply, lambda m: canonizers_for(m, torch.ones(1, 2))):
            with pytest.raises(zr.RuleError, match=r"cannot be applied"):
                call(model)

    @pytest.mark.parametrize("stabilizer", [-1.0, float("nan")])
    def test_stabilizer(self, stabilizer: float) -> None:
        with pytest.raises(zr.RuleError, match="at least 0"):
            SkipCanonizer(stabilizer)


# -- linear functions ------------------------------------------------------------------------------------------------


class Modules(nn.Module):
    """A net by modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ConvTranspose2d(4, 4, 3, groups=2)
        self.norm, self.c, self.d = nn.BatchNorm2d(4), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(F.relu(self.a(x)))))
        return self.d(F.relu(self.c(x.mean((2, 3)))))


class Functions(nn.Module):
    """The same net by functions."""

    def __init__(self, net: Modules) -> None:
        super().__init__()
        self.norm = net.norm
        self.weights = nn.ParameterDict(
            {name.replace(".", "_"): p for name, p in net.named_parameters() if not name.startswith("norm")}
        )

    def forward(self, x: Tensor) -> Tensor:
        w = self.weights
        x = F.relu(F.conv2d(x, w.a_weight, padding="same"))
        x = F.relu(self.norm(F.conv_transpose2d(x, w.b_weight, w.b_bias, groups=2))).mean((2, 3))
        return F.linear(F.relu(torch.addmm(w.c_bias, x, w.c_weight.t())), w.d_weight, w.d_bias)


class TestLinearFunctions:
    @pytest.mark.parametrize(
        "composite", [EpsilonPlus, EpsilonAlpha2Beta1, partial(EpsilonGammaBox, low=-4.0, high=4.0)]
    )
    def test_have_the_rules_of_modules(self, composite: Any) -> None:
        modules = prepare(Modules())
        functions, x = Functions(modules).eval(), images().detach()  # type: ignore[arg-type]
        before = snapshot(functions, x)
        found = canonizers_for(functions, x)
        expected = attribute(modules, composite(canonizers=[SkipCanonizer()]), x)[1]
        assert_untouched(before, functions, x)
        for _ in range(2):
            relevance = attribute(functions, composite(canonizers=found), x)[1]
            torch.testing.assert_close(relevance, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
        with composite(canonizers=found).context(functions):
            torch.testing.assert_close(functions(x.clone().requires_grad_()), modules(x), rtol=0, atol=1e-12)
        assert_untouched(before, functions, x)

    def test_attention_in_one_call_has_the_rules_of_its_steps(self) -> None:
        class Attention(nn.Module):
            def __init__(self, steps: bool) -> None:
                super().__init__()
                self.qkv, self.head, self.steps = nn.Linear(6, 18), nn.Linear(6, 5), steps

            def forward(self, x: Tensor) -> Tensor:
                q, k, v = self.qkv(x).chunk(3, -1)
                if self.steps:
                    return self.head((((q * 6**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v).mean(1))
                return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))

        whole, steps = (prepare(Attention(flag)) for flag in (False, True))
        steps.load_state_dict(whole.state_dict())
        x = torch.randn(2, 4, 6, dtype=torch.float64)
        expected = attribute(steps, EpsilonPlus(canonizers=canonizers_for(steps, x)), x)[1]
        found = attribute(whole, EpsilonPlus(canonizers=canonizers_for(whole, x)), x)[1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))

    def test_names_layers_that_make_their_weights_of_others(self) -> None:
        class Standardised(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

        model = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Standardised(4, 4, 3), nn.Flatten()))
        with pytest.warns(RuleWarning, match=r"do not reach everything.*'2': Standardised makes its weights of others"):
            canonizers_for(model, images().detach())

    def test_names_functions_without_a_rule(self) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(4, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(torch.cumprod(x, 1))

        with pytest.warns(RuleWarning, match="1 x CumprodBackward0: relevance passes by the plain gradient"):
            canonizers_for(prepare(Odd()), torch.rand(2, 4, dtype=torch.float64) + 0.5)

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: torch.addcmul(x[:, :2], x[:, 2:4], x[:, 4:], value=2.0),
            lambda x: torch.addcdiv(x[:, :2], x[:, 2:4], 1 + x[:, 4:]),
            lambda x: F.lp_pool1d(x[:, None], 2.0, 3).flatten(1),
            lambda x: torch.addmm(x[:, :2], x[:, 2:], torch.ones(4, 2, dtype=x.dtype)),
        ],
    )
    def test_sums_in_one_call_conserve(self, function: Any) -> None:
        class Called(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return function(x)

        model, x = Called(), torch.rand(3, 6, dtype=torch.float64)
        leaf = x.clone().requires_grad_()
        with Composite(canonizers=canonizers_for(model, x)).context(model):
            out = model(leaf)
            (relevance,) = torch.autograd.grad(out, leaf, out.detach())
        torch.testing.assert_close(out.detach(), function(x), rtol=1e-12, atol=0)
        torch.testing.assert_close(relevance.sum(1), out.detach().sum(1), rtol=1e-5, atol=0)
