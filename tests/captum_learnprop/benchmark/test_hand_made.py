"""Hand-made methods are those of their papers, also where ReLUs are functions or used twice: checked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop import ExtremalPerturbation
from captum_learnprop.benchmark.hand_made import FAMILIES, HAND_MADE, hand_made
from captum_learnprop.benchmark.hand_made_perturbations import (
    EXTREMAL,
    EXTREMAL_AREA,
    EXTREMAL_X_INPUT,
    extremal_area_passes,
)
from captum_learnprop.errors import LearnpropError

SIZE = 64


class Net(nn.Module):
    """Normalisation, batch norms, a residual sum, overlapping pools, branches, and one activation for all."""

    def __init__(self, act: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True) if act is None else act
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.third = nn.Conv2d(6, 4, 1)
        self.fourth = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first((x - 0.5) / 0.25)))
        x = self.act(x + self.second(x))
        x = F.max_pool2d(self.pool(x), 2)
        x = torch.cat([self.act(self.third(x)), self.act(self.fourth(x))], 1)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def make(act: Callable[[Tensor], Tensor] | None = None) -> Net:
    torch.manual_seed(3)
    net = Net(act)
    with torch.no_grad():
        for _ in range(5):
            net(torch.rand(8, 3, SIZE, SIZE))
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([4, 0, 2])


class Guided(torch.autograd.Function):
    """ReLU with the backward pass of guided backprop, written anew."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return g.clamp(min=0) * (x > 0)


class Deconv(Guided):
    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g.clamp(min=0)


ACTIVATIONS = {"one module": None, "F.relu": F.relu, "torch.relu": torch.relu, "method": lambda x: x.relu()}


@pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize(("name", "by_hand"), [("guided backprop", Guided), ("Deconvnet", Deconv)])
def test_modified_gradients_reach_every_relu(name, by_hand, act, images, targets) -> None:  # type: ignore[no-untyped-def]
    leaf = images.clone().requires_grad_()
    expected = torch.autograd.grad(make(by_hand.apply)(leaf).gather(1, targets[:, None]).sum(), leaf)[0]
    assert expected.abs().sum() > 0
    torch.testing.assert_close(
        hand_made(name).build(make(act), images[:1])(images, targets), expected, atol=1e-6, rtol=1e-4
    )


def test_deep_lift_and_integrated_gradients_add_up(images: Tensor, targets: Tensor) -> None:
    model = make()
    with torch.no_grad():
        change = (model(images) - model(torch.full_like(images, 0.5))).gather(1, targets[:, None])[:, 0]
    sums = hand_made("DeepLift").build(model, images[:1])(images, targets).sum((1, 2, 3))
    torch.testing.assert_close(sums, change, atol=1e-5, rtol=1e-4)
    sums = hand_made("integrated gradients").build(model, images[:1])(images, targets).sum((1, 2, 3))
    torch.testing.assert_close(sums, change, atol=5e-3, rtol=5e-2)


def test_deep_lift_adds_up_where_a_relu_meets_a_pool(images: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(), nn.Linear(784, 2),
    ).eval()  # fmt: skip
    targets = torch.tensor([0, 1, 1])
    sums = hand_made("DeepLift").build(model, images[:1])(images, targets).sum((1, 2, 3))
    with torch.no_grad():
        change = (model(images) - model(torch.full_like(images, 0.5))).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(sums, change, atol=1e-5, rtol=1e-4)


def features(model: Net, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The concatenated branches and the target's gradient there, by hand."""
    x = model.act(model.norm(model.first((images - 0.5) / 0.25)))
    x = model.act(x + model.second(x))
    x = F.max_pool2d(model.pool(x), 2)
    x = torch.cat([model.act(model.third(x)), model.act(model.fourth(x))], 1).detach().requires_grad_()
    output = model.head(x.mean((2, 3))).gather(1, targets[:, None]).sum()
    return x, torch.autograd.grad(output, x)[0]


def resized(maps: Tensor) -> Tensor:
    return F.interpolate(maps, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def test_class_activation_maps_by_hand(images: Tensor, targets: Tensor) -> None:
    model = make(F.relu)
    activation, gradient = features(model, images, targets)
    weights = gradient.mean((2, 3), keepdim=True)
    grad_cam = resized((weights * activation).sum(1, keepdim=True).clamp(min=0)).detach()
    got = hand_made("Grad-CAM").build(model, images[:1])(images, targets)
    torch.testing.assert_close(got, grad_cam, atol=1e-6, rtol=1e-4)
    guided = hand_made("guided backprop").build(model, images[:1])(images, targets)
    product = hand_made("guided Grad-CAM").build(model, images[:1])(images, targets)
    torch.testing.assert_close(product, guided * grad_cam, atol=1e-6, rtol=1e-4)


def test_layer_cam_by_hand(images: Tensor, targets: Tensor) -> None:
    model = make(F.relu)
    x = model.act(model.norm(model.first((images - 0.5) / 0.25)))
    x = model.act(x + model.second(x)).detach().requires_grad_()
    y = F.max_pool2d(model.pool(x), 2)
    y = torch.cat([model.act(model.third(y)), model.act(model.fourth(y))], 1)
    output = model.head(y.mean((2, 3))).gather(1, targets[:, None]).sum()
    gradient = torch.autograd.grad(output, x)[0]
    expected = resized((gradient.clamp(min=0) * x).sum(1, keepdim=True)).detach()
    got = hand_made("LayerCAM, mid layer").build(model, images[:1])(images, targets)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
    with pytest.raises(LearnpropError, match="has 2 feature maps"):
        hand_made("LayerCAM, early layer").build(model, images[:1])


class Plain(nn.Module):
    """Normalisation, two convolutions, a linear layer; with biases or not."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=4, bias=bias)
        self.second = nn.Conv2d(4, 4, 3, stride=4, bias=bias)
        self.head = nn.Linear(64, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first((x - 0.5) / 0.25))
        logits: Tensor = self.head(F.relu(self.second(x)).flatten(1))
        return logits


def back(layer: Callable[[Tensor], Tensor], a: Tensor, s: Tensor) -> Tensor:
    """``W^T s`` of a linear map, by autograd of the map."""
    a = a.detach().requires_grad_()
    return torch.autograd.grad(layer(a), a, s)[0]


def positive_share(layer: nn.Conv2d, a: Tensor, relevance: Tensor) -> Tensor:
    """The z+ rule for activations of at least 0; the bias takes its positive part."""
    weight, bias = layer.weight.clamp(min=0), layer.bias.clamp(min=0) if layer.bias is not None else None

    def forward(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, layer.stride)

    z = forward(a)
    return a * back(forward, a, relevance / (z + 1e-6))


def box_share(layer: nn.Conv2d, x: Tensor, relevance: Tensor, low: float, high: float) -> Tensor:
    """The z^B rule: ``x w - low w+ - high w-``."""
    parts = [(x, layer.weight, 1.0), (torch.full_like(x, low), layer.weight.clamp(min=0), -1.0),
             (torch.full_like(x, high), layer.weight.clamp(max=0), -1.0)]  # fmt: skip
    biases = [None] * 3 if layer.bias is None else [layer.bias, layer.bias.clamp(min=0), layer.bias.clamp(max=0)]
    z = sum(sign * F.conv2d(a, w, b, layer.stride) for (a, w, sign), b in zip(parts, biases, strict=True))
    z = z + torch.where(z < 0, -1e-6, 1e-6)
    return sum(  # type: ignore[return-value]
        sign * a * back(lambda y, w=w: F.conv2d(y, w, None, layer.stride), a, relevance / z) for a, w, sign in parts
    )


@pytest.mark.parametrize("bias", [False, True])
def test_lrp_by_hand_and_its_sign_where_the_output_is_negative(bias: bool, images: Tensor) -> None:
    torch.manual_seed(0)
    model = Plain(bias).double().eval()
    images = images.double()
    outputs = model(images).detach()
    assert (outputs < 0).any()
    x = (images - 0.5) / 0.25
    first = F.relu(model.first(x)).detach()
    second = F.relu(model.second(first)).detach()
    for target in range(3):
        targets = torch.full((3,), target)
        contribution = (second.flatten(1) * model.head.weight[target]).detach().reshape(second.shape)
        at_first = positive_share(model.second, first, contribution)
        expected = box_share(model.first, x, at_first, -2.0, 2.0).detach()
        got = hand_made("LRP z+, box").build(model, images[:1])(images, targets)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


def test_relevance_is_conserved_without_biases(images: Tensor) -> None:
    torch.manual_seed(0)
    model = Plain(False).double().eval()
    images, targets = images.double(), torch.tensor([0, 1, 2])
    outputs = model(images).gather(1, targets[:, None])[:, 0].detach()
    for name in ("LRP epsilon plus", "LRP z+, box", "LRP epsilon gamma, box"):
        total = hand_made(name).build(model, images[:1])(images, targets).sum((1, 2, 3))
        torch.testing.assert_close(total, outputs, atol=1e-3, rtol=1e-2)
    for name in ("LRP z+ throughout, box", "excitation backprop"):
        relevance = hand_made(name).build(model, images[:1])(images, targets)
        torch.testing.assert_close(relevance.sum((1, 2, 3)), torch.ones(3).double(), atol=1e-3, rtol=1e-3)


def test_occlusion_of_a_linear_model_by_hand(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2)).eval()
    targets = torch.tensor([0, 1, 0])
    weights = model[1].weight.reshape(2, 3, SIZE, SIZE)[targets]
    drops = F.conv2d(((images - 0.5) * weights).sum(1, keepdim=True), torch.ones(1, 1, 8, 8), stride=4)
    spread = F.conv_transpose2d(drops, torch.ones(1, 1, 8, 8), stride=4)
    counts = F.conv_transpose2d(torch.ones_like(drops), torch.ones(1, 1, 8, 8), stride=4)
    got = hand_made("occlusion").build(model, images[:1])(images, targets)
    torch.testing.assert_close(got, (spread / counts).expand(-1, 3, -1, -1).detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in HAND_MADE if name != "LayerCAM, early layer"])
def test_the_map_of_an_image_does_not_depend_on_its_batch(
    name: str, images: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (EXTREMAL, EXTREMAL_X_INPUT):
        monkeypatch.setitem(options, "n_steps", 3)
    model = make()
    explain = hand_made(name).build(model, images[:1])
    together = explain(images, targets)
    assert together.shape in ((3, 3, SIZE, SIZE), (3, 1, SIZE, SIZE))
    assert together.isfinite().all()
    assert not together.requires_grad
    alone = torch.cat([explain(images[i : i + 1], targets[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, atol=1e-5 * float(together.abs().max()), rtol=1e-3)


def test_extremal_masks_are_multiplied_by_the_distance_from_the_median(
    images: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTREMAL_X_INPUT, "n_steps", 3)
    model = make()
    masks = ExtremalPerturbation(model).attribute(images, target=targets, **EXTREMAL_X_INPUT)
    median = images.flatten(2).median(2).values[..., None, None]
    got = hand_made("extremal perturbation x input").build(model, images[:1])(images, targets)
    torch.testing.assert_close(got, masks.mean(1, keepdim=True) * (images - median))


def test_passes_are_those_of_the_net(images: Tensor, targets: Tensor) -> None:
    passes: list[int] = []
    model = make()
    model.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    for name, factor in {"saliency": 2, "integrated gradients": 2, "SmoothGrad": 2, "occlusion": 1, "RISE": 1}.items():
        passes.clear()
        hand_made(name).build(model, images[:1])(images, targets)
        assert factor * sum(passes) / len(images) == pytest.approx(hand_made(name).passes, abs=1.01), name


@pytest.mark.parametrize(
    ("name", "options"), [("extremal perturbation", EXTREMAL), ("extremal perturbation x input", EXTREMAL_X_INPUT)]
)
def test_passes_of_extremal_perturbations(
    name: str, options: dict[str, object], images: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = hand_made(name).passes / int(options["n_steps"])  # type: ignore[call-overload]
    model, passes = make(), [0]
    model.register_forward_hook(lambda module, args, output: passes.append(passes[-1] + len(output)))
    totals = []
    for steps in (2, 4):
        monkeypatch.setitem(options, "n_steps", steps)
        passes[:] = [0]
        hand_made(name).build(model, images[:1])(images, targets)
        totals.append(passes[-1])
    assert 2 * (totals[1] - totals[0]) / len(images) == 2 * wanted  # forward and backward passes of two steps


def test_an_extremal_area_takes_its_passes_and_gives_the_mask_of_that_area(
    images: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("n_steps", 4), ("areas", (0.1, 0.3))):
        monkeypatch.setitem(EXTREMAL_AREA, name, value)
    model, passes = make(), [0]
    model.register_forward_hook(lambda module, args, output: passes.append(passes[-1] + len(output)))
    found = hand_made("extremal area").build(model, images[:1])(images, targets)
    expected = ExtremalPerturbation(model).extremal_area(images, target=targets, **EXTREMAL_AREA)
    torch.testing.assert_close(found, expected.mask[0])
    assert found.shape == (3, 1, SIZE, SIZE)
    assert extremal_area_passes() == 2 * (2 * 4 + 2)
    assert passes[-1] > 0


def test_controls_and_names(images: Tensor, targets: Tensor) -> None:
    model = make()
    noise = hand_made("random").build(model, images[:1])
    assert torch.equal(noise(images, targets), noise(images, targets))
    assert not torch.equal(noise(images, targets)[0], noise(images, targets)[1])
    centre = hand_made("centre prior").build(model, images[:1])(images, targets)
    assert divmod(int(centre[0].argmax()), SIZE) in [(r, c) for r in (31, 32) for c in (31, 32)]
    grey = torch.full((1, 3, SIZE, SIZE), 0.25)
    grey[..., 5, 6] = 1.0
    assert int(hand_made("intensity").build(model, images[:1])(grey, targets[:1]).argmax()) == 5 * SIZE + 6
    assert {method.family for method in HAND_MADE.values()} == set(FAMILIES) - {"token"}
    with pytest.raises(LearnpropError, match="unknown hand-made method 'salience'; choose one of saliency"):
        hand_made("salience")
