"""Gates: exact starts, bounds, invariances, errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import captum.attr
import pytest
import torch
from pairwise import crossed
from rule_nets import GATE_NAMES, NETS, STARTS, images, one_hot, randomise, twin
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import COMPOSITES

import zennit_rules as zr
from captum_learnprop import LearnedPropagation
from zennit_rules.gates import GATES, gate_class

SHAPES = {
    "image": ((2, 3, 4, 5), 1), "vector": ((2, 6), 1), "tokens": ((2, 4, 6), 2), "volume": ((2, 3, 2, 3, 4), 1),
    "values": ((5,), 0), "values, channels in 1": ((5,), 1),
}  # fmt: skip
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda z: (z > 0).double(),
    "sigmoid": lambda z: torch.exp(-z) / (1 + torch.exp(-z)) ** 2,
    "leaky_relu": lambda z: 0.1 + 0.9 * (z > 0).double(),
}
TEXTBOOK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradient": lambda slope, g: g * slope,
    "deconvnet": lambda slope, g: g.clamp(min=0),
    "guided_backprop": lambda slope, g: g.clamp(min=0) * slope,
}
CAPTUM = {
    "gradient": lambda model: captum.attr.Saliency(model),
    "deconvnet": lambda model: captum.attr.Deconvolution(model),
    "guided_backprop": lambda model: captum.attr.GuidedBackprop(model),
}


def signal(gate: torch.nn.Module, z: Tensor, g: Tensor, slope: Tensor) -> Tensor:
    """What a site passes on."""
    a, b = gate(z, g)
    return a * g * slope + b * g


@pytest.fixture(params=SHAPES)
def site(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, int]:
    """Pre-activation, incoming signal and channel dimension."""
    shape, channel_dim = SHAPES[request.param]
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64), channel_dim


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", GATE_NAMES)
class TestStart:
    @pytest.mark.parametrize("activation", SLOPES)
    def test_textbook(self, name: str, start: str, activation: str, site: tuple[Tensor, Tensor, int]) -> None:
        z, g, channel_dim = site
        gate = GATES[name](z.shape, start=start, channel_dim=channel_dim).double()
        slope = SLOPES[activation](z)
        with torch.no_grad():
            assert torch.equal(signal(gate, z, g, slope), TEXTBOOK[start](slope, g))

    @pytest.mark.parametrize("net", NETS)
    def test_captum_and_zennit(self, name: str, start: str, net: str) -> None:
        model, x = NETS[net](), images()
        visible = twin(model)
        target = torch.tensor([1, 3])
        options = {"abs": False} if start == "gradient" else {}
        expected = CAPTUM[start](visible).attribute(x, target=target, **options)
        with zr.LearnedGradient(gate=name, start=start).context(model):
            ours = captum.attr.Saliency(model).attribute(x, target=target, abs=False)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        assert ours.abs().sum() > 0
        if start == "gradient":
            return
        seed = torch.nn.functional.one_hot(target, 5).double()
        with Gradient(visible, COMPOSITES["deconvnet" if start == "deconvnet" else "guided_backprop"]()) as attributor:
            _, reference = attributor(x.detach(), seed)
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", GATE_NAMES)
def test_weights_stay_within_one_of_their_start(name: str, start: str, site: tuple[Tensor, Tensor, int]) -> None:
    z, g, channel_dim = site
    gate = GATES[name](z.shape, start=start, channel_dim=channel_dim).double()
    slope = SLOPES["relu"](z)
    with torch.no_grad():
        before = [torch.as_tensor(w, dtype=z.dtype).expand_as(g) for w in gate(z, g)]
        for parameter in gate.parameters():
            parameter.copy_(3 * torch.randn_like(parameter))
        after = [torch.as_tensor(w, dtype=z.dtype).expand_as(g) for w in gate(z, g)]
        moved = [(w - w0).abs() for w, w0 in zip(after, before, strict=True)]
        assert all(bool((m < 1).all()) for m in moved)
        assert sum(float(m.sum()) for m in moved) > 0
        assert torch.isfinite(signal(gate, z, g, slope)).all()


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("element", {}, (2, 3, 4, 5)),
        ("position", {}, (2, 1, 4, 5)),
        ("channel", {}, (1, 3, 1, 1)),
        ("channel", {"samples": 2}, (2, 3, 1, 1)),
        ("quadrant", {}, (4, 1, 3, 1, 1)),
        ("quadrant", {"per": "layer"}, (4, 1, 1, 1, 1)),
        ("quadrant", {"per": "layer", "samples": 2}, (4, 2, 1, 1, 1)),
        ("feature", {}, (2, 4, 1, 3, 1, 1)),
        ("feature", {"samples": 2}, (2, 4, 2, 3, 1, 1)),
    ],
)
def test_parameters(name: str, options: dict[str, object], shape: tuple[int, ...]) -> None:
    gate = GATES[name]((2, 3, 4, 5), **options)
    assert [n for n, _ in gate.named_parameters()] == ["raw"]
    assert tuple(gate.raw.shape) == shape
    assert not gate.raw.any()
    if gate.samples is not None:
        assert gate.raw.shape[gate.sample_dim] == 2


def test_quadrants_are_what_acts_on_a_relu() -> None:
    z, g = torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    for start in STARTS:
        gate = zr.QuadrantGate((1, 4), start=start, per="layer")
        randomise(gate.parameters())
        passed = signal(gate, z, g, (z > 0).float())
        torch.testing.assert_close(passed, gate.quadrants.detach().flatten() * g, rtol=1e-6, atol=1e-6)


class TestFeatureGate:
    def gate(self, start: str = "gradient", samples: int | None = None) -> zr.FeatureGate:
        gate = zr.FeatureGate((3, 4, 5, 5), start=start, samples=samples).double()
        randomise(gate.parameters())
        return gate

    @pytest.mark.parametrize("start", STARTS)
    def test_blind_to_scale(self, start: str) -> None:
        gate, z, g = self.gate(start), torch.randn(3, 4, 5, 5).double(), torch.randn(3, 4, 5, 5).double()
        for scale in (1e-6, 1e6):
            for ours, reference in zip(gate(z * scale, g / scale), gate(z, g), strict=True):
                torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)

    def test_a_sample_does_not_see_the_others(self) -> None:
        gate, z, g = self.gate(), torch.randn(3, 4, 5, 5).double(), torch.randn(3, 4, 5, 5).double()
        whole = gate(z, g)
        for i in range(3):
            for w, alone in zip(whole, gate(z[i : i + 1], g[i : i + 1]), strict=True):
                torch.testing.assert_close(w[i : i + 1], alone, rtol=0, atol=1e-14)

    def test_adapts_to_each_element(self) -> None:
        a, _ = self.gate()(torch.randn(3, 4, 5, 5).double(), torch.randn(3, 4, 5, 5).double())
        assert a[0, 0].std() > 0.01


@crossed(name=GATE_NAMES, start=STARTS, silent=["z", "g", "both"])
def test_silence_is_finite(name: str, start: str, silent: str) -> None:
    z, g = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    z = torch.zeros_like(z) if silent in ("z", "both") else z
    g = torch.zeros_like(g) if silent in ("g", "both") else g
    z[0], g[0] = 0, 0  # one sample silent in any case
    z.requires_grad_()
    g.requires_grad_()
    gate = GATES[name](z.shape, start=start)
    randomise(gate.parameters())
    passed = signal(gate, z, g, (z > 0).float())
    found = torch.autograd.grad(passed.square().sum() + passed.sum(), (g, *gate.parameters()), materialize_grads=True)
    assert torch.isfinite(passed).all()
    assert all(torch.isfinite(f).all() for f in found)


@pytest.mark.parametrize("gate", GATE_NAMES)
def test_batch_equals_singles(gate: str) -> None:
    model, x = NETS["resnet"](), images(3).detach()
    composite = zr.LearnedGradient(gate=gate, pooling="soft", per_sample=True)

    def maps(c: zr.LearnedComposite, inputs: Tensor) -> Tensor:
        with c.context(model):
            leaf = inputs.clone().requires_grad_()
            return torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]

    maps(composite, x)
    randomise(composite.parameters())
    whole = maps(composite, x)
    for i in range(3):
        single = zr.LearnedGradient(gate=gate, pooling="soft", per_sample=True)
        maps(single, x[i : i + 1])
        for site in single.rules.sites:
            theirs = composite.rules.gate(site.name)
            for name, parameter in single.rules.gate(site.name).named_parameters():
                parameter.data.copy_(theirs.get_parameter(name).data.narrow(theirs.sample_dim, i, 1))
        torch.testing.assert_close(maps(single, x[i : i + 1]), whole[i : i + 1], rtol=1e-10, atol=1e-13)


def test_scale_follows_its_parameter() -> None:
    gate = zr.ChannelGate((1, 2)).double()
    with torch.no_grad():
        first = gate.scale()
        assert torch.equal(first, torch.ones(1, 2).double())
        gate.raw.add_(0.5)
        torch.testing.assert_close(gate.scale(), 1 + torch.full((1, 2), 0.5).double().tanh())
        gate.raw.data = torch.full((1, 2), -0.25).double()
        torch.testing.assert_close(gate.scale(), 1 + torch.full((1, 2), -0.25).double().tanh())
    gate.float()
    with torch.no_grad():
        assert gate.scale().dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zr.ChannelGate((1, 3), start="saliency"), "cannot start at 'saliency'.*gradient, deconvnet, guided"),
        (lambda: zr.QuadrantGate((1, 3), per="pixel"), "per='pixel'.*'channel' or 'layer'"),
        (lambda: zr.ElementGate((1, 3), channel_dim=2), "channel_dim 2 is outside"),
        (lambda: zr.ElementGate((1, 3), channel_dim=0), "channel_dim 0 is outside"),
        (lambda: gate_class("chanel"), "unknown gate 'chanel'; known: .*channel"),
        (lambda: gate_class(torch.nn.ReLU), "unknown gate"),
        (lambda: gate_class(3), "unknown gate 3"),
        (lambda: zr.LearnedGradient(gate="chanel"), "unknown gate 'chanel'"),
        (lambda: zr.LearnedGradient(start="nowhere"), "unknown start 'nowhere'"),
        (lambda: zr.LearnedGradient(pooling="max"), "unknown pooling 'max'"),
        (lambda: zr.PoolGate(temperature=0.0), "temperature must be positive, got 0"),
        (lambda: zr.PoolGate(temperature=float("nan")), "temperature must be positive"),
        (lambda: zr.register_gate("channel", zr.ElementGate), "'channel' belongs to .*ChannelGate"),
    ],
)
def test_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(zr.RuleError, match=message):
        make()


ONE_DIMENSIONAL = {"element": (5,), "position": (5,), "channel": (1,), "quadrant": (4, 1), "feature": (2, 4, 1)}
"""Shapes of parameters at a site ``(5,)``, whose samples have one channel each."""


class Flat(nn.Module):
    """Inputs, activations and outputs ``(B,)``, and an activation of a number that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.scale = nn.ReLU(), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(2 * x - 1) + torch.tanh(x) * torch.sigmoid(self.scale)


class TestOneDimension:
    @pytest.mark.parametrize("name", GATE_NAMES)
    def test_parameters(self, name: str) -> None:
        for channel_dim in (0, 1):
            gate = gate_class(name)((5,), channel_dim=channel_dim)
            assert gate.raw.shape == ONE_DIMENSIONAL[name]
        each = gate_class(name)((5,), samples=5)
        assert each.raw.shape[each.sample_dim] == 5

    @pytest.mark.parametrize("name", GATE_NAMES)
    @pytest.mark.parametrize("composite", ["gates", "guided_backprop", "lrp", "deeplift", "attnlrp", "rect_grad"])
    def test_rules(self, composite: str, name: str, tmp_path: Path) -> None:
        model, x = Flat().double().eval(), torch.randn(5, dtype=torch.float64)
        gate = None if composite == "rect_grad" else name
        rules = zr.RuleSet.build(model, x, composite, gate=gate)
        with torch.no_grad():
            for parameter in rules.parameters():
                parameter.uniform_(0, 0.5)
        found = LearnedPropagation(model, rules=rules).attribute(x)
        assert found.shape == (5,)
        read = zr.RuleSet.load(rules.save(tmp_path / "r.safetensors", model), model)
        assert torch.equal(LearnedPropagation(model, rules=read).attribute(x), found)
        if name not in ("element", "position"):  # each sample for itself, whatever the batch
            singles = [LearnedPropagation(model, rules=rules).attribute(row) for row in x.split(1)]
            torch.testing.assert_close(torch.cat(singles), found)

    @pytest.mark.parametrize("name", GATE_NAMES)
    def test_learning(self, name: str) -> None:
        model, x = Flat().double().eval(), torch.randn(5, dtype=torch.float64)
        method = LearnedPropagation(model, gate=name)
        leaf = x.clone().requires_grad_()
        (plain,) = torch.autograd.grad(model(leaf).sum(), leaf)
        torch.testing.assert_close(method.attribute(x, n_steps=0), plain)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = method.attribute(x, n_steps=2)
        singles = [method.attribute(row, n_steps=2) for row in x.split(1)]
        torch.testing.assert_close(torch.cat(singles), found)

    def test_position_and_contrast(self) -> None:
        gate = zr.FeatureGate((5,), position=True, contrast=True)
        with torch.no_grad():
            for parameter in gate.parameters():
                parameter.normal_()
        z, g, h = torch.randn(3, 5)
        together = torch.stack(gate(z, g, h))
        alone = [torch.stack(gate(*row)) for row in zip(z.split(1), g.split(1), h.split(1), strict=True)]
        torch.testing.assert_close(torch.cat(alone, 1), together)


def test_registering_a_gate_again_does_nothing() -> None:
    zr.register_gate("channel", zr.ChannelGate)
    assert gate_class("channel") is zr.ChannelGate
    assert gate_class(zr.ElementGate) is zr.ElementGate


def test_repr_names_the_configuration() -> None:
    assert "start='deconvnet'" in repr(zr.ChannelGate((1, 2), start="deconvnet"))
    assert "samples=3" in repr(zr.ChannelGate((1, 2), samples=3))
    assert "temperature=0.5" in repr(zr.PoolGate())


def test_one_hot_is_constant() -> None:
    assert not one_hot(torch.zeros(2, 3, requires_grad=True)).requires_grad


@pytest.mark.parametrize("size", [(2, 3, 4), (1, 1, 1), (6, 2, 7)])
def test_positions_of_volumes_smaller_than_their_neighbourhood(size: tuple[int, ...]) -> None:
    gate = zr.FeatureGate((2, 3, *size), position=True).double()
    randomise(gate.parameters())
    relevance = torch.randn(2, 1, *size).double()
    around = gate.around(relevance)
    for at in torch.ones(size).nonzero().tolist():
        window = relevance[(0, 0, *(slice(max(0, i - 2), i + 3) for i in at))]
        torch.testing.assert_close(around[(0, 0, *at)], window.mean())
