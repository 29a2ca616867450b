"""DiFull: methods that follow the gradient score exactly 1, wrong maps do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captum.attr import DeepLift, InputXGradient, IntegratedGradients, Saliency
from pairwise import crossed
from torch import nn
from torch.nn import functional as F

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.difull import DiFull, difull_score, mosaic, split
from captum_learnprop.scenes import digits_net
from zennit_rules import RuleSet

METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "saliency": lambda net, x, y: Saliency(net).attribute(x, target=y),
    "gradient": lambda net, x, y: Saliency(net).attribute(x, target=y, abs=False),
    "input x gradient": lambda net, x, y: InputXGradient(net).attribute(x, target=y),
    "integrated gradients": lambda net, x, y: IntegratedGradients(net).attribute(x, target=y, n_steps=4),
    "deeplift": lambda net, x, y: DeepLift(net).attribute(x, target=y),
}


def small_net() -> nn.Module:
    """With a batch norm whose statistics are not those of any batch here."""
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()  # type: ignore[union-attr]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)
    ).eval()


def case(cells: int = 2, mosaics: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 8 x 8 pixels and classes."""
    count = mosaics * cells**2
    return torch.rand(count, 3, 8, 8), torch.arange(count) % 5


def test_mosaics_are_those_of_loops_and_split_undoes_them() -> None:
    images = torch.rand(18, 3, 4, 5)
    whole = mosaic(images, 3)
    assert whole.shape == (2, 3, 12, 15)
    for index, image in enumerate(images):
        row, column = divmod(index % 9, 3)
        part = whole[index // 9, :, row * 4 : row * 4 + 4, column * 5 : column * 5 + 5]
        assert torch.equal(part, image)
    assert torch.equal(split(whole, 3), images)


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_the_outputs_of_a_cell_are_those_of_its_image_and_depend_on_nothing_else(cells: int) -> None:
    net = small_net()
    images, _ = case(cells)
    whole = mosaic(images, cells).requires_grad_()
    outputs = DiFull(net, cells)(whole)
    assert outputs.shape == (2, cells**2 * 5)
    torch.testing.assert_close(outputs.reshape(-1, 5), net(images))
    for cell in range(cells**2):
        (gradient,) = torch.autograd.grad(outputs[0, cell * 5 + 2], whole, retain_graph=True)
        norms = split(gradient, cells).abs().flatten(1).sum(1)
        assert norms[cell] > 0
        assert norms.count_nonzero() == 1


@crossed(method=list(METHODS), cells=[2, 3], dtype=[torch.float32, torch.float64])
def test_gradient_methods_score_exactly_one(method: str, cells: int, dtype: torch.dtype) -> None:
    images, targets = case(cells)
    scores = difull_score(small_net().to(dtype), METHODS[method], images.to(dtype), targets, cells=cells)
    assert scores.eq(1.0).all()


@pytest.mark.parametrize("method", ["saliency", "integrated gradients"])
def test_gradient_methods_score_exactly_one_on_the_digits_net(method: str) -> None:
    images, targets = torch.rand(4, 3, 64, 64), torch.tensor([1, 4, 7, 9])
    assert difull_score(digits_net.load(), METHODS[method], images, targets).eq(1.0).all()


@pytest.mark.parametrize("options", [{}, {"position": True}], ids=["plain", "position"])
def test_rules_score_exactly_one(options: dict[str, bool]) -> None:
    """Whatever they have learned: the cells go through the model as images of their own."""
    images, targets = case()
    found: list[torch.Tensor] = []

    def by_random_rules(model: nn.Module, mosaics: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rules = RuleSet.build(model, mosaics[:1], gate="feature", pooling="soft", gate_options=options)
        with torch.no_grad():
            for parameter in rules.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
        found.append(LearnedPropagation(model, rules=rules).attribute(mosaics, target=targets))
        return found[-1]

    net = small_net()
    scores = difull_score(net, by_random_rules, images, targets, sign="absolute")
    assert scores.eq(1.0).all()
    plain = METHODS["gradient"](DiFull(net), mosaic(images)[:1], targets[:1])
    assert not torch.allclose(found[0][:1], plain)  # random rules are not the gradient


def test_wrong_maps_score_less() -> None:
    net = small_net()
    images, targets = case()

    def brightness(model: nn.Module, mosaics: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return mosaics

    def upsampled(model: nn.Module, mosaics: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        gradient = METHODS["saliency"](model, mosaics, targets)
        return F.interpolate(F.avg_pool2d(gradient, 4), scale_factor=4, mode="bilinear")

    def another_class_everywhere(model: nn.Module, mosaics: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return METHODS["saliency"](model, mosaics, (targets + 5) % 20)

    parts = images.sum((1, 2, 3)).double()
    shares = parts / parts.reshape(2, 4).sum(1).repeat_interleave(4)
    torch.testing.assert_close(difull_score(net, brightness, images, targets), shares, rtol=1e-6, atol=1e-6)
    blurred = difull_score(net, upsampled, images, targets)
    assert ((blurred > 0.3) & (blurred < 1)).all()
    assert difull_score(net, another_class_everywhere, images, targets).eq(0.0).all()


def test_constant_negative_and_channelless_maps() -> None:
    net = small_net()
    images, targets = case()
    assert difull_score(net, lambda m, x, y: torch.ones_like(x), images, targets).eq(0.25).all()
    assert difull_score(net, lambda m, x, y: -torch.ones_like(x), images, targets).eq(0.0).all()
    assert difull_score(net, lambda m, x, y: -torch.ones_like(x), images, targets, sign="absolute").eq(0.25).all()
    assert difull_score(net, lambda m, x, y: torch.ones_like(x)[:, 0], images, targets).eq(0.25).all()


def test_batches_layout_and_the_callers_tensors() -> None:
    net = small_net()
    images, targets = case()

    def spread(model: nn.Module, mosaics: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return METHODS["saliency"](model, mosaics, targets) + 0.01 * mosaics

    before = images.clone()
    whole = difull_score(net, spread, images, targets)
    torch.testing.assert_close(difull_score(net, spread, images, targets, internal_batch_size=3), whole)
    singles = [difull_score(net, spread, images[i : i + 4], targets[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(torch.cat(singles), whole)
    strided = images.transpose(1, 3).contiguous().transpose(1, 3)
    torch.testing.assert_close(difull_score(net, spread, strided, targets), whole)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_cannot_be_scored_is_refused() -> None:
    net, saliency = small_net(), METHODS["saliency"]
    images, targets = case()
    with pytest.raises(LearnpropError, match=r"multiple of 2\^2"):
        difull_score(net, saliency, images[:5], targets[:5])
    with pytest.raises(LearnpropError, match="evaluation mode"):
        difull_score(small_net().train(), saliency, images, targets)
    with pytest.raises(LearnpropError, match="targets must be int64"):
        difull_score(net, saliency, images, targets.float())
    with pytest.raises(LearnpropError, match="classes 0 to 4"):
        difull_score(net, saliency, images, targets + 1)
    with pytest.raises(LearnpropError, match="internal_batch_size"):
        difull_score(net, saliency, images, targets, internal_batch_size=0)
    with pytest.raises(LearnpropError, match="attribute gave maps"):
        difull_score(net, lambda m, x, y: x[..., :8], images, targets)
    with pytest.raises(LearnpropError, match="NaN"):
        difull_score(net, lambda m, x, y: x / 0, images, targets)
    with pytest.raises(LearnpropError, match="at least one cell"):
        DiFull(net, 0)
    with pytest.raises(LearnpropError, match=r"mosaics must be \(B, C, 3"):
        DiFull(net, 3)(torch.rand(1, 3, 16, 16))
