"""LRP of whole models with trainable rules: against zennit, with skip connections, reuse and functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from pairwise import crossed
from rule_nets import NETS, assert_gradient, images, one_hot, prepare, randomise, resnet, score, vgg
from shallow_nets import light_head
from torch import Tensor, nn
from untouched import assert_untouched, snapshot
from zennit.attribution import Gradient
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

import zennit_rules as zr
from captum_learnprop import LearnedPropagation

NAME = "learned_epsilon_gamma_box"
FEATURES = {"position": True}


def build(model: nn.Module, x: Tensor, gate: str = "none", **options: Any) -> zr.RuleSet:
    more = {"gate_options": FEATURES} if gate == "feature" else {}
    return zr.RuleSet.build(model, x, composite=NAME, gate=gate, rule_options=options, **more)


def maps(model: nn.Module, x: Tensor, composite: Any, **options: Any) -> Tensor:
    with Gradient(model, composite, **options) as attributor:
        return attributor(x.detach().clone(), lambda output: output * one_hot(output))[1]


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


# -- zennit's composites ---------------------------------------------------------------------------------------------

STARTS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "epsilon gamma box": (
        lambda canonizers: EpsilonGammaBox(low=-3.0, high=3.0, canonizers=canonizers),
        {"gamma": 0.25, "negative": "mirrored", "low": -3.0, "high": 3.0},
    ),
    "epsilon plus": (lambda canonizers: EpsilonPlus(canonizers=canonizers), {"first": "conv"}),
    "epsilon alpha beta": (
        lambda canonizers: EpsilonAlpha2Beta1(canonizers=canonizers),
        {"first": "conv", "conv": "alpha_beta", "beta": 1.0},
    ),
}


def big(name: str) -> nn.Module:
    build = torchvision.models.get_model_builder(name)
    model = prepare(light_head(build) if name.startswith("vgg") else build())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-15  # zennit's canonizer forgets it
            nn.init.normal_(module.weight)  # some factors are negative
    return model


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("name", "canonizer"), [("vgg11_bn", VGGCanonizer), ("resnet18", ResNetCanonizer)])
def test_equals_zennit_without_its_canonizers(name: str, canonizer: Any, start: str) -> None:
    model, x = big(name), images(1, 48).detach()
    theirs, options = STARTS[start]
    expected = maps(model, x, theirs([canonizer()]))
    rules = build(model, x, **options)
    assert rules.coverage().complete
    assert_close(maps(model, x, rules.composite()), expected)
    assert_close(maps(model, x, rules.composite(canonizers=[canonizer()])), expected)


def test_default_start_is_epsilon_plus_with_a_box() -> None:
    from zennit.composites import Convolution, SpecialFirstLayerMapComposite
    from zennit.rules import ZBox

    model, x = vgg(), images().detach()
    rules = build(model, x)
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    model[1].eps = 1e-15  # type: ignore[index]
    theirs = SpecialFirstLayerMapComposite(
        EpsilonPlus().layer_map, [(Convolution, ZBox(low=low, high=high))], canonizers=[VGGCanonizer()]
    )
    assert_close(maps(model, x, rules.composite()), maps(model, x, theirs))


# -- awkward models --------------------------------------------------------------------------------------------------


class Reused(nn.Module):
    """One convolution called twice, a functional one beside, and a gate of squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze, self.fc = nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem((x - 0.1) / 0.5))
        x = x + F.gelu(self.twice(F.relu(self.twice(x))))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3))))[..., None, None]
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def reused() -> nn.Module:
    return prepare(Reused())


def functions() -> nn.Module:
    return prepare(Written("functions"))


ALL: dict[str, Callable[[], nn.Module]] = {**NETS, "reused": reused, "functions": functions}


@pytest.mark.parametrize("name", ALL)
def test_relevance_is_conserved_without_biases(name: str) -> None:
    model, x = ALL[name](), images(3).detach()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
    rules = build(model, x, stabilizer=1e-12, epsilon=1e-12, low=-6.0, high=6.0, negative="mirrored")
    assert rules.coverage().complete, str(rules.coverage())
    leaf = x.clone().requires_grad_()
    composite = rules.composite()
    with composite.context(model):
        output = model(leaf)
        (relevance,) = zr.attribute(composite, output, (leaf,), one_hot(output))
    torch.testing.assert_close(relevance.sum((1, 2, 3)), output.detach()[:, 1], rtol=1e-6, atol=0)


def test_each_call_of_a_reused_layer_is_a_site() -> None:
    model, x = reused(), images().detach()
    sites = {site.name: site for site in build(model, x).sites}
    assert {"stem", "twice", "twice#1", "squeeze", "fc"} <= sites.keys()
    assert (sites["stem"].kind, sites["stem"].shape) == ("first", (2, 3, 8, 8))
    assert (sites["twice#1"].kind, sites["twice#1"].shape) == ("linear", (2, 4, 8, 8))


@torch.jit.script
def scripted(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


class PartlyHidden(nn.Module):
    """Linear layers, the last of which is scripted; all of them if asked."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.whole = nn.Linear(6, 8), nn.Linear(8, 5), whole

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(scripted(x, self.a.weight) if self.whole else self.a(x))
        return scripted(x, self.b.weight)


def test_what_is_out_of_reach_is_named_with_its_share(tmp_path: Path) -> None:
    model, x = prepare(PartlyHidden()), torch.randn(3, 6, dtype=torch.float64)
    model(x), model(x)  # the first runs of a scripted function profile it
    with pytest.warns(
        zr.RuleWarning, match="PartlyHidden have no rule of 'learned_epsilon_gamma_box', 45.5% of"
    ) as said:
        rules = build(model, x)
    assert len(said) == 1
    coverage = rules.coverage()
    assert not coverage.complete
    assert coverage.share == 48 / 88
    assert "54.5% of the multiply-adds have a rule" in str(coverage)
    assert [row.multiply_adds for row in coverage.missed] == [3 * 40]
    rules.save(tmp_path / "rules.safetensors", model)
    assert zr.RuleSet.load(tmp_path / "rules.safetensors", model).coverage() == coverage


def test_a_composite_that_reaches_no_linear_layer_raises() -> None:
    model, x = prepare(PartlyHidden(whole=True)), torch.randn(3, 6, dtype=torch.float64)
    model(x), model(x)
    with pytest.raises(zr.RuleError, match="reaches no linear layer of PartlyHidden"):
        build(model, x)
    with pytest.raises(zr.RuleError, match="reaches no linear layer of PartlyHidden"):
        maps(model, x, zr.LearnedEpsilonGammaBox())
    plain = nn.Sequential(nn.ReLU(), nn.Flatten()).double()
    build(plain, x)  # it has none to reach


def test_what_is_out_of_reach_is_said_once_without_a_rule_set() -> None:
    model, x = prepare(PartlyHidden()), torch.randn(3, 6, dtype=torch.float64)
    model(x), model(x)
    composite = zr.LearnedEpsilonGammaBox()
    with pytest.warns(zr.RuleWarning, match="have no rule") as said:
        maps(model, x, composite)
    assert len(said) == 1
    maps(model, x, composite)


class Written(nn.Module):
    """The same net by modules, by subclasses with a forward of their own, and by functions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c = Padded(3, 4, 2), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 64, 6)
        self.d = nn.Linear(6, 5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "modules":
            return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))).flatten(1))))
        x = F.relu(F.conv2d(F.pad(x, (0, 1, 0, 1)), self.a.weight, self.a.bias))
        x = F.relu(torch.conv2d(x, self.b.weight, self.b.bias, padding=1)).flatten(1)
        x = F.relu(torch.addmm(self.c.bias, x, self.c.weight.t()))
        return torch.einsum("bi,oi->bo", x, self.d.weight) + self.d.bias


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


@pytest.mark.parametrize("options", [{}, {"strength": 0.3}, {"gamma": 0.5, "negative": "mirrored", "bias": "zero"}])
def test_functions_have_the_rules_of_modules(options: dict[str, Any]) -> None:
    modules, functions = (prepare(Written(how)) for how in ("modules", "functions"))
    functions.load_state_dict(modules.state_dict())
    x = images(2).detach() + 0.5
    expected = build(modules, x, **options)
    if options.get("bias") != "zero":
        with torch.no_grad():  # a sum shares relevance with its bias in another way than a layer does
            modules.d.bias.zero_(), functions.d.bias.zero_()
    rules = build(functions, x, **options)
    assert [site.name for site in rules.sites if site.kind != "activation"] == ["conv2d", "conv2d#1", "addmm", "einsum"]
    assert rules.sites[0].kind == "first"
    assert rules.coverage().share == 1.0
    assert_close(maps(functions, x, rules.composite()), maps(modules, x, expected.composite()))


def test_several_linear_functions_of_one_module_are_named_after_the_function() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.w = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(F.linear(x, self.v)), self.w)

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two, self.head = Two(), nn.Parameter(torch.randn(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x) @ self.head + self.two(x)

    rules = build(prepare(Parent()), torch.randn(2, 6, dtype=torch.float64))
    names = [site.name for site in rules.sites if site.kind == "linear"]
    assert names == ["two", "two.linear", "matmul", "two#1", "two.linear#1"]


def test_parametrized_layers_have_the_rule_of_their_weights() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]
    plain = prepare(nn.Sequential(*layers))
    x = images(2).detach()
    expected = maps(plain, x, build(plain, x).composite())
    new = nn.utils.parametrizations.weight_norm
    normed = nn.Sequential(new(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), new(nn.Linear(144, 5))).double()
    for i in (0, 3):
        normed[i].bias.data = plain[i].bias.data.clone()
        normed[i].weight = plain[i].weight.data
    rules = build(normed, x)
    assert [site.name for site in rules.sites if site.kind != "activation"] == ["0", "3"]
    assert_close(maps(normed, x, rules.composite()), expected)


class Mixing(nn.Module):
    """Multi-head attention as a module, or its steps by functions."""

    def __init__(self, steps: bool) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        if not self.steps:
            return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))
        a = self.attention
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (2, 4)).transpose(1, 2)
            for w, b in zip(a.in_proj_weight.chunk(3), a.in_proj_bias.chunk(3), strict=True)
        )
        weights = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        return self.fc(F.linear(y, a.out_proj.weight, a.out_proj.bias).mean(1))


def test_attention_in_one_call_has_the_rules_of_its_steps() -> None:
    whole, steps = (prepare(Mixing(flag)) for flag in (False, True))
    steps.load_state_dict(whole.state_dict())
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    rules = build(whole, x)
    assert rules.coverage().complete, str(rules.coverage())
    assert rules.coverage().share == 1.0
    assert_close(maps(whole, x, rules.composite()), maps(steps, x, build(steps, x).composite()))


def test_a_product_with_an_argument_that_is_no_input_today() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6, bias=False), nn.Parameter(torch.randn(5, 6))

        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return ((self.a(x) @ other) @ other.transpose(1, 2) @ self.b.t()).mean(1)

    model = prepare(Cross())
    x, other = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 6, 6, dtype=torch.float64)
    rules = zr.RuleSet.build(model, (x, other), NAME, gate="none")
    one = LearnedPropagation(model, rules=rules).attribute(x, 1, other)
    two = LearnedPropagation(model, rules=rules).attribute(x, 1, other.clone().requires_grad_())
    assert_close(one, two)
    torch.testing.assert_close(one.sum((1, 2)), model(x, other)[:, 1], rtol=1e-3, atol=0)
    both = LearnedPropagation(model, rules=rules).attribute((x, other), 1)
    torch.testing.assert_close(both[0].sum((1, 2)) + both[1].sum((1, 2)), model(x, other)[:, 1], rtol=1e-3, atol=0)


class Text(nn.Module):
    """Tokens, or their embeddings, to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 6), nn.Embedding(5, 6)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens if tokens.is_floating_point() else self.words(tokens)
        x = x + self.places(torch.arange(x.shape[1]))
        return self.b(F.relu(self.a(x)).mean(1))


def test_a_pass_on_whole_numbers_starts_at_their_embeddings() -> None:
    model = prepare(Text()).requires_grad_()
    tokens, caught = torch.tensor([[1, 3, 2], [0, 8, 4]]), []
    rules = build(model, tokens)
    assert [site.name for site in rules.sites if site.kind == "linear"] == ["a", "b"]
    assert rules.coverage().share == 1.0
    model.words.register_forward_hook(lambda module, args, out: caught.append(out))
    with rules.applied(model):
        out = model(tokens)
        (found,) = torch.autograd.grad(out, caught[0], out.detach() * one_hot(out))
    leaf = model.words(tokens).detach().requires_grad_()
    with rules.applied(model), zr.explaining([leaf]):
        out = model(leaf)
        (alone,) = torch.autograd.grad(out, leaf, out.detach() * one_hot(out))
    whole = leaf.detach() + model.places(torch.arange(3)).detach()  # places are embeddings of numbers, too
    torch.testing.assert_close(found, alone * leaf.detach() / whole, rtol=1e-3, atol=1e-4)
    assert float(found.abs().max()) > 1e-2


def test_weights_that_are_called_functionally_are_no_inputs() -> None:
    model, x = resnet(), images(2).detach()
    rules = build(model, x)
    expected = maps(model, x, rules.composite())
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    leaf = x.clone().requires_grad_()
    with rules.applied(model):
        out = torch.func.functional_call(model, weights, (leaf,))
        (got,) = torch.autograd.grad(out, leaf, out.detach() * one_hot(out))
    assert_close(got, expected)


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18"])
def test_takes_the_arguments_of_zennits_composite(name: str) -> None:
    model, x = big(name), images(1, 48).detach()
    expected = maps(model, x, EpsilonGammaBox(-3.0, 3.0, 1e-4, 0.3, canonizers=zr.canonizers_for(model, x)))
    low = torch.full((1, 3, 48, 48), -3.0)
    ours = zr.LearnedEpsilonGammaBox(gate="none", low=low, high=3.0, epsilon=1e-4, gamma=0.3)
    assert_close(maps(model, x, ours), expected)


def test_takes_zennits_other_arguments() -> None:
    from zennit.rules import Epsilon, Flat

    model, x = vgg(), images(1).detach()
    expected = maps(model, x, build(model, x, bias="zero", stabilizer=1e-5).composite())
    assert_close(maps(model, x, zr.LearnedEpsilonGammaBox(gate="none", zero_params="bias", stabilizer=1e-5)), expected)
    flat = maps(model, x, zr.LearnedEpsilonGammaBox(gate="none", first_map=[((nn.Conv2d,), Flat())]))
    assert float((flat - flat.mean(1, keepdim=True)).abs().max()) < 1e-10  # the flat rule does not look at the input
    epsilon = zr.LearnedEpsilonGammaBox(gate="none", layer_map=[((nn.Conv2d, nn.Linear), Epsilon())])
    assert not [site for site in epsilon.rules.sites if site.kind == "linear"]
    theirs = zr.LearnedEpsilonGammaBox(gate="none", rule_options={"conv": "epsilon", "first": "conv", "merge": False})
    assert_close(maps(model, x, epsilon), maps(model, x, theirs))
    with pytest.raises(zr.RuleError, match="gamma is given twice"):
        zr.LearnedEpsilonGammaBox(gamma=0.5, rule_options={"gamma": 0.25})
    with pytest.raises(zr.RuleError, match="zero_params='weight': only biases"):
        zr.LearnedEpsilonGammaBox(zero_params="weight")
    with pytest.raises(zr.RuleError, match="differs within a channel"):
        zr.LearnedEpsilonGammaBox(low=torch.randn(1, 3, 4, 4), high=9.0)


@pytest.mark.parametrize("gate", ["none", "feature", "channel"])
@pytest.mark.parametrize("name", ALL)
def test_batch_equals_singles(name: str, gate: str) -> None:
    model, x = ALL[name](), images(3).detach()
    rules = build(model, x, gate, low=-5.0, high=5.0)
    randomise(rules.parameters(), 0.2)
    together = maps(model, x, rules.composite())
    alone = torch.cat([maps(model, one, rules.composite()) for one in x.split(1)])
    assert_close(together, alone)


@crossed(
    name=list(ALL),
    rule=["gamma", "alpha_beta"],
    constant={"constant": True, "function": False},
    backward={"grad": False, "backward": True},
)
def test_finite_differences_of_every_parameter(name: str, rule: str, constant: bool, backward: bool) -> None:
    model, x = ALL[name](), images().detach()
    options = {"conv": rule, "dense": "epsilon", "epsilon": 0.1, "low": -5.0, "high": 5.0, "learn_bounds": True}
    rules = build(model, x, "feature", strength=0.5, gamma=0.5, **options)
    with torch.no_grad():
        for parameter in rules.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def value(create_graph: bool = False) -> Tensor:
        composite = rules.composite()
        with Gradient(model, composite, create_graph=create_graph) as attributor:
            seed: Any = one_hot(model(x)) if constant else lambda output: output * one_hot(output)
            return score(attributor(x.clone(), seed)[1])

    loss = value(create_graph=True)
    torch.testing.assert_close(loss.detach(), value().detach(), rtol=1e-12, atol=0)
    if backward:
        loss.backward()
        gradients = [p.grad for p in rules.parameters()]
    else:
        gradients = list(torch.autograd.grad(loss, rules.parameters()))
    assert_gradient(value, rules.parameters(), gradients)


def test_parameters_per_sample() -> None:
    model, x = vgg(), images(2).detach()
    shared = build(model, x, low=-5.0, high=5.0)
    randomise(shared.parameters(), 0.2)
    own = shared.for_samples(2)
    assert_close(maps(model, x, own.composite()), maps(model, x, shared.composite()))
    with torch.no_grad():
        own.gate("4").raw[0] -= 0.3
    changed, before = maps(model, x, own.composite()), maps(model, x, shared.composite())
    assert float((changed - before)[0].abs().max()) > 0
    assert_close(changed[1], before[1])


def test_bounds_per_sample_are_read_from_each_sample() -> None:
    model, x = vgg(), images(3).detach()
    composite = zr.LearnedEpsilonGammaBox(per_sample=True)
    maps(model, x, composite)
    gate = composite.rules.gate("0")
    assert torch.equal(gate.low, x.amin((2, 3)))
    assert torch.equal(gate.high, x.amax((2, 3)))


# -- saving ----------------------------------------------------------------------------------------------------------


def test_saves_and_loads_with_the_bounds_it_read(tmp_path: Path) -> None:
    model, x = resnet(), images().detach()
    rules = build(model, x, "feature")
    randomise(rules.parameters(), 0.2)
    rules.save(tmp_path / "rules.safetensors", model)
    loaded = zr.RuleSet.load(tmp_path / "rules.safetensors", model)
    assert torch.equal(loaded.gate("conv").low, x.amin((0, 2, 3))[None])
    assert loaded.config["rule_options"]["gamma"] == math.inf
    assert_close(maps(model, x, loaded.composite()), maps(model, x, rules.composite()), 1e-12)
    assert_close(
        maps(model, x, zr.LearnedEpsilonGammaBox(rules=tmp_path / "rules.safetensors")),
        maps(model, x, rules.composite()), 1e-12,
    )  # fmt: skip


# -- batch norms -----------------------------------------------------------------------------------------------------


class Norms(nn.Module):
    """A convolution and norms, with something between or beside them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc, self.how = nn.Linear(4, 5), how

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return self.fc(getattr(self, f"_{self.how}")(z, x).mean((2, 3)))

    def _written(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(F.relu(z, inplace=True))

    def _beside(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(F.relu(z))

    def _added_in_place(self, z: Tensor, x: Tensor) -> Tensor:
        z += x.sum(1, keepdim=True)
        return self.norm(z)

    def _added(self, z: Tensor, x: Tensor) -> Tensor:
        z = z + x.sum(1, keepdim=True)
        return self.norm(z)

    def _bypassed(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(z) + z

    def _called_twice(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(z) + self.conv(x)

    def _two_norms(self, z: Tensor, x: Tensor) -> Tensor:
        return F.relu(self.norm(z)) + F.relu(self.other(z))

    def _two_norms_apart(self, z: Tensor, x: Tensor) -> Tensor:
        return F.relu(self.norm(z)) + F.relu(self.other(self.conv(x)))


@pytest.mark.parametrize(
    ("how", "same"),
    [
        ("written", "beside"),
        ("added_in_place", "added"),
        ("bypassed", "called_twice"),
        ("two_norms", "two_norms_apart"),
    ],
)
def test_a_norm_counts_to_a_layer_only_where_nothing_lies_between(how: str, same: str) -> None:
    model, x = prepare(Norms(how)), images().detach()
    nn.init.normal_(model.norm.weight)
    options = {"low": -4.0, "high": 4.0, "gamma": 0.5, "negative": "mirrored"}
    got = maps(model, x, build(model, x, **options).composite())
    model.how = same
    assert_close(got, maps(model, x, build(model, x, **options).composite()))


def test_a_norm_over_tokens_does_not_count_to_their_linear_layer() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm, self.head = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(9, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.fc(x)).flatten(1))

    model, x = prepare(Tokens()), torch.randn(2, 3, 4, dtype=torch.float64)
    apart = maps(model, x, build(model, x, merge=False).composite())
    assert_close(maps(model, x, build(model, x).composite()), apart)


# -- habits ----------------------------------------------------------------------------------------------------------


def test_model_is_untouched_also_after_an_exception() -> None:
    model, x = resnet(), images()
    rules = build(model, x.detach())
    before = snapshot(model, x)
    with rules.applied(model):
        out = model(x)
        torch.autograd.grad(out, x, one_hot(out))
    assert_untouched(before, model, x)
    with pytest.raises(RuntimeError, match="size"), rules.applied(model):
        model(torch.randn(1, 7, 8, 8, dtype=torch.float64, requires_grad=True))
    assert_untouched(before, model, x)


def test_rules_of_functions_end_with_the_composite() -> None:
    model, x = resnet(), images()
    composite = build(model, x.detach()).composite()
    with composite.context(model):
        out = model(x)
        with composite.inactive():
            (inactive,) = torch.autograd.grad(out, x, one_hot(out), retain_graph=True)
        (active,) = torch.autograd.grad(out, x, one_hot(out), retain_graph=True)
    (after,) = torch.autograd.grad(out, x, one_hot(out))
    plain = model(x)
    assert torch.equal(plain, out)
    (gradient,) = torch.autograd.grad(plain, x, one_hot(plain))
    assert_close(inactive, gradient)
    assert_close(after, gradient)
    assert float((active - gradient).abs().max()) > 1e-3


def test_sums_in_place_keep_their_value() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y.add_(self.b(x))
            y *= 2.0
            return self.fc(y.relu_())

    model, x = prepare(InPlace()), torch.randn(3, 4, dtype=torch.float64)
    rules = build(model, x, bias="zero", epsilon=1e-12)
    leaf = x.clone().requires_grad_()
    with rules.applied(model):
        out = model(leaf)
    assert torch.equal(out, model(x))


def test_relevance_is_differentiable_in_the_input() -> None:
    model, x = resnet(), images(1)
    rules = build(model, x.detach(), gamma=0.5, negative="mirrored", low=-5.0, high=5.0)
    composite = rules.composite()

    def value(create_graph: bool = False) -> Tensor:
        with composite.context(model):
            output = model(x)
            (relevance,) = zr.attribute(composite, output, (x,), one_hot(output), create_graph=create_graph)
            return score(relevance)

    with composite.context(model):
        output = model(x)
        (relevance,) = zr.attribute(composite, output, (x,), one_hot(output), create_graph=True)
        with composite.inactive():
            (gradient,) = torch.autograd.grad(score(relevance), x)
    assert_gradient(value, [x], [gradient])


def test_a_layer_behind_one_of_others_is_not_the_first() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * 1.0, self.bias)

    model = prepare(nn.Sequential(Own(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5)))
    rules = build(model, images().detach())
    assert [site.kind for site in rules.sites if site.function == "Conv2d"] == ["first", "linear"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_bounds": "no"}, "learn_bounds must be True or False, got 'no'"),
        ("gamma", "rule_options must be a mapping"),
        ({"strength": 5.0}, r"strength must be in \[0, 1\]"),
        ({"low": 1.0, "high": 0.0}, "low must be below high"),
        ({"conv": "zplus"}, "conv='zplus': choose one of epsilon, gamma, alpha_beta"),
        ({"first": "flat"}, "first='flat': choose one of box, conv"),
        ({"low": 0.0}, "low and high come together"),
        ({"gama": 1.0}, "has no rule option 'gama'; it has: conv, dense"),
        ({"gamma": -1.0}, "gamma must be a number of at least 0, got -1.0"),
        ({"epsilon": 0}, "epsilon must be a number above 0"),
        ({"bias": "none"}, "bias='none'"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(zr.RuleError, match=message):
        zr.LearnedEpsilonGammaBox(rule_options=options)


def test_gates_start_by_passing_relevance_on() -> None:
    with pytest.raises(zr.RuleError, match=r"start='deconvnet'.*which is 'gradient'"):
        zr.LearnedEpsilonGammaBox(gate="channel", start="deconvnet")


def test_contrast_stream() -> None:
    model, x = vgg(), images().detach()
    options = {"gate": "feature", "gate_options": {"position": True, "contrast": True}}
    rules = zr.RuleSet.build(model, x, composite=NAME, **options)
    plain = build(model, x)
    seed = one_hot(model(x))

    def attributions(of: zr.RuleSet, create_graph: bool = False) -> Tensor:
        leaf, composite = x.clone().requires_grad_(), of.composite()
        with composite.context(model):
            return zr.attribute(composite, model(leaf), (leaf,), seed, create_graph=create_graph)[0]

    assert_close(attributions(rules), attributions(plain))
    randomise(rules.parameters(), 0.1)
    loss = score(attributions(rules, create_graph=True))
    gradients = torch.autograd.grad(loss, rules.parameters())
    assert_gradient(lambda: score(attributions(rules)), rules.parameters(), gradients)
