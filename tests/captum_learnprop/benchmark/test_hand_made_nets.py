"""Hand-made methods on nets as users have them: layers with forwards of their own, functions, transformers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_zoo import FAMILIES as TRANSFORMERS

import captum_learnprop as cl
from captum_learnprop.benchmark import hand_made_perturbations
from captum_learnprop.benchmark.feature_maps import feature_maps
from captum_learnprop.benchmark.hand_made import HAND_MADE, hand_made, hand_made_for
from captum_learnprop.benchmark.hand_made_lrp import linear_layers
from captum_learnprop.benchmark.hand_made_tokens import TOKEN_METHODS
from captum_learnprop.errors import LearnpropError

MEAN, DEVIATION = 0.45, 0.25


class OnPixels(nn.Module):
    """A net that takes normalised images, on images in [0, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.full((1, 3, 1, 1), MEAN))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net((images - self.mean) / DEVIATION)
        return logits


class SameConv(nn.Conv2d):
    """A convolution that pads in a forward of its own, more on the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns half the resolution where the stride is 2."""
        return F.conv2d(F.pad(x, (0, 1, 0, 1) if self.stride[0] == 2 else (1, 1, 1, 1)), self.weight, self.bias,
                        self.stride, 0, 1, self.groups)  # fmt: skip


class Depthwise(nn.Module):
    """Like EfficientNet-Lite: padding convolutions, batch norms, one ReLU6 for all, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = SameConv(3, 6, 3, 2, bias=False), nn.BatchNorm2d(6)
        self.deep, self.norm1 = SameConv(6, 6, 3, 1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.point, self.norm2 = nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.last, self.norm3 = SameConv(6, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns five logits."""
        x = self.act(self.norm0(self.stem(x)))
        x = x + self.norm2(self.point(self.act(self.norm1(self.deep(x)))))
        logits: Tensor = self.head(self.act(self.norm3(self.last(x))).mean((2, 3)))
        return logits


class Functional(nn.Module):
    """Functions only, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3) / 5)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns five logits."""
        x = F.relu(F.conv2d(x, self.weight, None, 2, 1))
        x = F.max_pool2d(F.relu(self.twice(x)), 2)
        x = torch.relu(x + self.twice(x))
        logits: Tensor = F.linear(x.mean((2, 3)), self.head.weight, self.head.bias)
        return logits


class ChannelsLast(nn.Module):
    """Features ``(B, rows, columns, K)`` after a convolution, as in Swin transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.dense, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns five logits."""
        logits: Tensor = self.head(F.gelu(self.dense(self.embed(x).permute(0, 2, 3, 1))).mean((1, 2)))
        return logits


SIZES: dict[str, tuple[int, int]] = {"depthwise": (48, 72), "functional": (64, 48), "transformer": (32, 48)}


def make(kind: str) -> nn.Module:
    torch.manual_seed(1)
    if kind == "transformer":
        return OnPixels(TRANSFORMERS["timm ViT"].make()).eval()
    net = OnPixels({"depthwise": Depthwise, "functional": Functional, "channels last": ChannelsLast}[kind]())
    with torch.no_grad():
        for _ in range(5):  # running statistics of batch norms
            net(torch.rand(8, 3, 48, 48))
    return net.eval()


def draw(kind: str, count: int = 2) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 3, *SIZES[kind], generator=torch.Generator().manual_seed(2))
    return images, torch.tensor([4, 0, 2])[:count]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in (hand_made_perturbations.EXTREMAL, hand_made_perturbations.EXTREMAL_X_INPUT):
        monkeypatch.setitem(options, "n_steps", 2)
    monkeypatch.setattr(hand_made_perturbations, "RISE_MASKS", 20)


NO_SUCH_MAP = {
    "depthwise": {"LayerCAM, early layer"},
    "functional": {"LayerCAM, early layer"},
    "transformer": {name for name, one in HAND_MADE.items() if one.family in ("cam", "product")},
}


@pytest.mark.parametrize("kind", SIZES)
def test_every_method_explains_every_net_and_leaves_it_alone(kind: str) -> None:
    model = make(kind)
    images, targets = draw(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    methods = hand_made_for(model, images[:1])
    assert set(methods) == set(HAND_MADE) | (set(TOKEN_METHODS) if kind == "transformer" else set())
    for name, method in methods.items():
        if name in NO_SUCH_MAP[kind]:
            with pytest.raises(LearnpropError, match="feature map"):
                method.build(model, images[:1])
            continue
        explain = method.build(model, images[:1])
        together = explain(images, targets)
        assert together.shape in ((2, 3, *SIZES[kind]), (2, 1, *SIZES[kind])), name
        assert together.isfinite().all(), name
        assert not together.requires_grad, name
        assert together.flatten(1).std(1).min() > 0, name
        alone = torch.cat([explain(images[i : i + 1], targets[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(alone, together, atol=2e-5 * float(together.abs().max()), rtol=1e-2, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooks == []
    assert not model.training


def test_feature_maps_are_found_in_modules_and_in_functions() -> None:
    found = {kind: feature_maps(make(kind), draw(kind)[0][:1]) for kind in ("depthwise", "functional")}
    assert [one.size for one in found["depthwise"]] == [(24, 36), (12, 18)]
    assert found["depthwise"][0].function == "add"
    assert [(one.size, one.function) for one in found["functional"]] == [((32, 24), "relu"), ((16, 12), "relu")]
    last = feature_maps(make("channels last"), torch.rand(1, 3, 48, 72))[-1]
    assert (last.size, last.function, last.channels_last) == ((6, 9), "gelu", True)


def test_grad_cam_by_hand() -> None:
    model = make("depthwise")
    images, targets = draw("depthwise")
    net = model.net
    x = net.act(net.norm0(net.stem((images - MEAN) / DEVIATION)))
    x = x + net.norm2(net.point(net.act(net.norm1(net.deep(x)))))
    x = net.act(net.norm3(net.last(x))).detach().requires_grad_()
    gradient = torch.autograd.grad(net.head(x.mean((2, 3))).gather(1, targets[:, None]).sum(), x)[0]
    cam = (gradient.mean((2, 3), keepdim=True) * x).sum(1, keepdim=True).clamp(min=0).detach()
    expected = F.interpolate(cam, size=images.shape[2:], mode="bilinear")
    assert expected.abs().max() > 0
    torch.testing.assert_close(hand_made("Grad-CAM").build(model, images[:1])(images, targets), expected)


def test_grad_cam_with_channels_last_is_that_of_the_axes_moved() -> None:
    model = make("channels last")
    images, targets = torch.rand(2, 3, 48, 72), torch.tensor([1, 3])
    net = model.net
    x = F.gelu(net.dense(net.embed((images - MEAN) / DEVIATION).permute(0, 2, 3, 1))).detach()
    weights = net.head.weight[targets].detach() / (6 * 9)
    cam = (x * weights[:, None, None]).sum(3)[:, None].clamp(min=0)
    expected = F.interpolate(cam, size=images.shape[2:], mode="bilinear")
    torch.testing.assert_close(hand_made("Grad-CAM").build(model, images[:1])(images, targets), expected)


@pytest.mark.parametrize("kind", ["depthwise", "functional"])
def test_lrp_reaches_every_layer(kind: str) -> None:
    """The same rules by this package, which go by what is computed and need no canonizer."""
    model = make(kind).double()
    images, targets = draw(kind)
    images = images.double()
    layers = linear_layers(model, images[:1])
    assert len(layers.convolutions) == {"depthwise": 4, "functional": 3}[kind]
    options = {"first": "conv"}
    method = cl.LearnedPropagation(model, "learned_epsilon_gamma_box", gate="none", rule_options=options)
    expected = method.attribute(images, targets, n_steps=0).detach()
    got = hand_made("LRP epsilon plus").build(model, images[:1])(images, targets)
    scale = expected.abs().max()
    torch.testing.assert_close(got / scale, expected / scale, atol=1e-3, rtol=1e-2)


class Opaque(torch.autograd.Function):
    """A function that no rule knows."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g


def test_what_lrp_cannot_reach_raises_at_once() -> None:
    class Hidden(Functional):
        def forward(self, x: Tensor) -> Tensor:
            x = Opaque.apply(self.twice(F.conv2d(x, self.weight)))
            logits: Tensor = self.head(x.mean((2, 3)))
            return logits

    example = torch.rand(1, 3, 24, 24)
    with pytest.raises(LearnpropError, match="Opaque"):
        hand_made("LRP epsilon plus").build(Hidden().eval(), example)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
    with pytest.raises(LearnpropError, match="the first linear layer, '1', is no convolution"):
        hand_made("LRP gamma").build(dense, example)
    with pytest.raises(LearnpropError, match="calls no linear layer"):
        linear_layers(nn.Sequential(nn.Flatten(), nn.ReLU()).eval(), example)


@pytest.mark.parametrize(
    ("product", "fine"),
    [
        ("LRP z+, box x Grad-CAM", "LRP z+, box"), ("LRP gamma x Grad-CAM", "LRP gamma"),
        ("SmoothGrad x Grad-CAM", "SmoothGrad"), ("DeepLift x Grad-CAM", "DeepLift"),
        ("guided Grad-CAM", "guided backprop"),
    ],
)  # fmt: skip
def test_products_are_products(product: str, fine: str) -> None:
    model = make("functional")
    images, targets = draw("functional")
    built: list[Callable[[Tensor, Tensor], Tensor]] = [
        hand_made(name).build(model, images[:1]) for name in (product, fine, "Grad-CAM")
    ]
    got, detail, place = (explain(images, targets) for explain in built)
    torch.testing.assert_close(got, detail * place)
    assert place.amax() > 0
    assert hand_made(product).passes == hand_made(fine).passes + hand_made("Grad-CAM").passes


class RegionMean(nn.Module):
    """The mean of a part of the image, and a constant."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns two outputs."""
        mean = x[..., 10:30, 40:60].mean((1, 2, 3))
        return torch.stack([mean, torch.full_like(mean, 7.0)], 1)


def test_rise_finds_the_part_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_made_perturbations, "RISE_MASKS", 400)
    images = torch.full((2, 3, 56, 84), 0.9)
    explain = hand_made("RISE").build(RegionMean().eval(), images[:1])
    found, constant = explain(images, torch.tensor([0, 1]))[:, 0]
    assert found[10:30, 40:60].mean() > 4 * found.abs().mean()
    row, column = divmod(int(found.argmax()), 84)
    assert 10 <= row < 30
    assert 40 <= column < 60
    assert constant.abs().max() < 1e-6


def test_occlusion_windows_are_an_eighth_of_each_side() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 80, 2)).eval()
    images, targets = torch.rand(2, 3, 48, 80), torch.tensor([0, 1])
    weights = model[1].weight.reshape(2, 3, 48, 80)[targets]
    window = torch.ones(1, 1, 6, 10)
    drops = F.conv2d(((images - 0.5) * weights).sum(1, keepdim=True), window, stride=(3, 5))
    counts = F.conv_transpose2d(torch.ones_like(drops), window, stride=(3, 5))
    expected = F.conv_transpose2d(drops, window, stride=(3, 5)) / counts
    got = hand_made("occlusion").build(model, images[:1])(images, targets)
    torch.testing.assert_close(got, expected.expand(-1, 3, -1, -1).detach(), atol=1e-4, rtol=1e-3)


def test_methods_over_tokens_see_through_a_module_around_the_net() -> None:
    model = make("transformer")
    images, targets = draw("transformer")
    normalised = (images - MEAN) / DEVIATION
    expected = cl.CDAM(model.net).attribute(normalised, targets, output="input", mode="bilinear")
    methods = hand_made_for(model, images[:1])
    torch.testing.assert_close(methods["CDAM"].build(model, images[:1])(images, targets), expected)
    assert methods["TokenAblation"].passes == 4 * 6 + 1
    with pytest.raises(LearnpropError, match="calls no attention"):
        methods["CDAM"].build(make("depthwise"), images[:1])
