"""Extremal channels: planted ones are found; only what follows the layer is run again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from shallow_nets import light_head
from torch import Tensor, nn
from torchvision.models import get_model
from untouched import assert_untouched, snapshot

import captum_learnprop as cl
from captum_learnprop.attribution.extremal.channel_figure import channel_figure
from captum_learnprop.attribution.suffix import Suffix
from zennit_rules.core.interpose import interpose

PLANTED = [[3, 7, 11, 20], [0, 5, 9, 23]]


class Planted(nn.Module):
    """Each output depends on four known channels of ``conv``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 24, 3, padding=1), nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        active = self.act(self.conv(x))
        return torch.stack([active[:, own].mean((1, 2, 3)) for own in PLANTED], 1)


@pytest.mark.parametrize("areas", [4, 4 / 24])
@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_planted_channels_are_found_exactly(areas: float, variant: str) -> None:
    model, x = Planted(), torch.rand(3, 3, 8, 8)
    before = snapshot(model.conv, x)
    method = cl.LayerExtremalPerturbation(model, model.act)
    masks = method.attribute(x, [0, 1, 0], areas=areas, variant=variant)
    assert masks.shape == (3, 24)
    for mask, target in zip(masks, (0, 1, 0), strict=True):
        assert (mask > 0.5).nonzero()[:, 0].tolist() == PLANTED[target]
    assert_untouched(before, model.conv, x)
    alone = method.attribute(x[1:2], 1, areas=areas, variant=variant)
    torch.testing.assert_close(alone, masks[1:2], atol=1e-5, rtol=0)


def test_summary_and_saliency_of_channels() -> None:
    model = Planted()
    method = cl.LayerExtremalPerturbation(model, model.act)
    batches = [torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8)]
    summary = method.summary(batches, 1, areas=[4, 8])
    assert summary.samples == 3
    assert summary.mean.shape == (2, 24)
    assert sorted(summary.top(4)[0].tolist()) == PLANTED[1]
    masks = method.attribute(batches[0], 1, areas=4)
    maps = method.channel_saliency(batches[0], masks)
    with torch.no_grad():
        expected = (masks[:, :, None, None] * model.act(model.conv(batches[0]))).sum(1, keepdim=True)
    torch.testing.assert_close(maps, expected)
    with pytest.raises(ValueError, match="are none of the channels"):
        method.channel_saliency(batches[0], masks[:, :5])
    with pytest.raises(ValueError, match="at least one batch"):
        method.summary([], 1)


class Half(nn.Module):
    """Depends on the upper left of a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, :, :8, :8].mean((1, 2, 3))


def test_spatial_masks_at_a_layer() -> None:
    model = Half()
    mask = cl.LayerExtremalPerturbation(model, model.layer).attribute(
        torch.ones(1, 2, 16, 16), masks="spatial", areas=0.25
    )
    assert mask.shape == (1, 1, 16, 16)
    assert float(mask[..., :8, :8].mean()) > 0.9
    assert float((mask > 0.5).float().mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer2"), ("resnet18", "layer3.0.bn1"), ("resnet18", "layer2.0.downsample"),
        ("densenet121", "features.denseblock2"), ("googlenet", "inception4a.branch2"), ("vgg11_bn", "features.5"),
        ("mobilenet_v3_small", "features.4.block.1"), ("vit_b_32", "encoder.layers.encoder_layer_10"),
    ],
)  # fmt: skip
def test_the_suffix_alone_gives_what_the_whole_model_gives(name: str, layer: str) -> None:
    torch.manual_seed(0)
    size = 224 if name.startswith("vit") else 64
    kwargs = {"init_weights": False} if name == "googlenet" else {}
    build = partial(get_model, name, weights=None, **kwargs)
    model = (light_head(build) if name.startswith("vgg") else build()).eval()
    x = torch.randn(2, 3, size, size)
    module = model.get_submodule(layer)
    before = snapshot(model, x)
    suffix = Suffix(model, module, (x,))
    ran: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        def around(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            ran.append(name)
            return call_next(*args, **kwargs)

        return around

    handles = [interpose(m, counted(n)) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    samples, scale = torch.tensor([1, 0, 1]), torch.rand(3)

    def change(a: Tensor) -> Tensor:
        return a * scale.reshape(-1, *[1] * (a.dim() - 1))

    ours = suffix.run(change, samples)
    for handle in handles:
        handle.remove()
    hook = module.register_forward_hook(lambda m, args, output: change(output))
    with torch.no_grad():
        expected = model(x[samples])
    hook.remove()
    torch.testing.assert_close(ours.detach(), expected, atol=1e-4, rtol=1e-3)
    convolutions = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    assert 0 < len(ran) < convolutions
    assert_untouched(before, model, x)


class InPlace(nn.Module):
    """Changes what a module gave, in place, between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y += 1
        y.mul_(2)
        return self.last(self.second(y) + y)


def test_changes_in_place_between_modules_are_made_once() -> None:
    model, x = InPlace(), torch.randn(3, 4)
    suffix = Suffix(model, model.second, (x,))
    for _ in range(2):
        torch.testing.assert_close(suffix.run(lambda a: a, torch.arange(3)), model(x))


class Table(nn.Module):
    """A module gives a table that is not of the samples, with as many rows as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(2, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.table(torch.arange(2))
        return self.layer(x) @ keys.T


def test_a_table_with_as_many_rows_as_the_batch_is_noticed() -> None:
    model = Table()
    with pytest.raises(ValueError, match="depends on more than each sample"):
        Suffix(model, model.layer, (torch.randn(2, 4),))
    x = torch.randn(3, 4)
    torch.testing.assert_close(Suffix(model, model.layer, (x,)).output, model(x))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(x))


def test_layers_that_cannot_be_cut_at_are_named() -> None:
    model, x = Twice(), torch.randn(2, 3)
    with pytest.raises(ValueError, match="'a' is called 2 times"):
        cl.LayerExtremalPerturbation(model, model.a).attribute(x, 0)
    with pytest.raises(ValueError, match="is no module inside the model"):
        cl.LayerExtremalPerturbation(model, nn.ReLU()).attribute(x, 0)
    random = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    with (
        pytest.raises(ValueError, match=r"call model.eval\(\), or choose another layer"),
        pytest.warns(UserWarning, match="training mode"),
    ):
        cl.LayerExtremalPerturbation(random, random[0]).attribute(x, 0)
    planted = Planted()
    method = cl.LayerExtremalPerturbation(planted, planted.conv)
    for options, message in (
        ({"areas": 24}, "between 1 and 23"),
        ({"areas": 0.0}, r"in \(0, 1\)"),
        ({"masks": "rows"}, "choose 'channels' or 'spatial'"),
    ):
        with pytest.raises(ValueError, match=message):
            method.attribute(torch.rand(1, 3, 8, 8), 0, **options)


class Detail(nn.Module):
    """Channel 0 of a layer responds to what a blur leaves (the mean), channel 1 to what it takes away (an edge)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, (1, 2), bias=False)
        self.layer.weight.data = torch.tensor([[[[0.5, 0.5]]], [[[-1.0, 1.0]]]])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).abs().mean((2, 3)).sum(1)


def test_a_blur_puts_the_blurred_inputs_activation_in_place_of_a_masked_one() -> None:
    model, x = Detail(), (torch.arange(16) % 2).float().expand(2, 1, 16, 16).contiguous()
    method = cl.LayerExtremalPerturbation(model, model.layer)
    masks, found = method.attribute(x, areas=1, perturbation="blur", return_masks=True)
    assert masks.tolist() == [[0.0, 1.0], [0.0, 1.0]]  # faded, either channel would be lost; blurred, the mean stays
    with torch.no_grad():
        torch.testing.assert_close(found.rewards[:, 0], model(x), atol=0.02, rtol=0)
    own = torch.tensor([0.1, 0.2]).reshape(2, 1, 1, 1)
    _, faded = method.attribute(x, areas=1, baselines=own, return_masks=True)
    torch.testing.assert_close(faded.empty, torch.tensor([0.2, 0.4]))  # each sample ends at its own baseline
    spatial = method.attribute(x, masks="spatial", areas=0.25, perturbation="blur", n_steps=10)
    assert spatial.shape == (2, 1, 16, 15)
    for options, message in (
        ({"perturbation": "noise"}, "choose 'fade' or 'blur'"),
        ({"perturbation": "blur", "baselines": 0.0}, "leave them out"),
        ({"baselines": torch.zeros(5)}, "do not broadcast to the layer's output"),
    ):
        with pytest.raises(ValueError, match=message):
            method.attribute(x, **options)


class Corners(nn.Module):
    """Channel 0 of a layer is the red of a pixel, channel 1 the green."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1, bias=False)
        self.layer.weight.data = torch.eye(3)[:2, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


def test_crops_are_cut_around_the_most_active_places() -> None:
    images = torch.zeros(3, 3, 20, 30)
    for sample, (red, green) in enumerate((((5, 7), (12, 20)), ((0, 29), (3, 3)), ((10, 10), (19, 0)))):
        images[sample, 0, red[0], red[1]] = 1.0 + sample
        images[sample, 1, green[0], green[1]] = 5.0 - sample
    model = Corners()
    method = cl.LayerExtremalPerturbation(model, model.layer)
    crops = method.crops([images[:2], images[2:]], torch.tensor([1, 0]), count=2, crop=0.3)
    assert crops.crops.shape == (2, 2, 3, 6, 9)
    assert crops.samples.tolist() == [[0, 1], [2, 1]]
    assert crops.values.tolist() == [[5.0, 4.0], [3.0, 2.0]]
    for row, channel in enumerate((1, 0)):
        for part, value in zip(crops.crops[row], crops.values[row], strict=True):
            assert float(part[channel].max()) == float(value)
    assert (crops.crops[1, 0, 0] == 3.0).nonzero().tolist() == [[2, 4]]  # the middle
    assert method.crops([images], [0], count=9).crops.shape[1] == 3  # one of an image at most
    figure = channel_figure(torch.tensor([0.25, 1.0]), crops, title="class", scale=0.2)
    assert len(figure.axes) == 2 * 3
    assert "channel 1: 1.00" in figure.axes[0].get_title(loc="left")
    for call, message in (
        (lambda: method.crops([], [0]), "at least one batch"),
        (lambda: method.crops([images], [2]), "the layer has 2"),
        (lambda: method.crops([images], [0], crop=0.0), "crop is a fraction"),
        (lambda: method.crops([images], [], count=1), "need a channel"),
        (lambda: method.crops([(images,)], [0]), "batches of images"),  # type: ignore[list-item]
        (lambda: channel_figure(torch.zeros(1), crops), "mean must be"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_inversion_shows_what_masks_leave() -> None:
    torch.manual_seed(0)
    model, x = Corners().eval(), torch.rand(2, 3, 8, 8)
    method = cl.LayerExtremalPerturbation(model, model.layer)
    before = snapshot(model, x)
    whole = method.invert(x, smoothness=0.0)
    torch.testing.assert_close(whole[:, :2], x[:, :2], atol=0.05, rtol=0)
    assert float((whole[:, 2] - x[:, 2]).abs().mean()) > 0.1  # the layer does not see blue
    red = method.invert(x, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), smoothness=0.0)
    torch.testing.assert_close(red[:, 0], x[:, 0], atol=0.05, rtol=0)
    assert float(red[:, 1].mean()) < 0.1
    assert_untouched(before, model, x)
    alone = method.invert(x[1:], n_steps=5)
    torch.testing.assert_close(method.invert(x, n_steps=5)[1:], alone, atol=0.05, rtol=0)
    for options, message in (
        ({"masks": torch.ones(2, 3)}, "none of the channels"),
        ({"n_steps": 0}, "n_steps must be"),
        ({"smoothness": -1.0}, "smoothness must be"),
    ):
        with pytest.raises(ValueError, match=message):
            method.invert(x, **options)
