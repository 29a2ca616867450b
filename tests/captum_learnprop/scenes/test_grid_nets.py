"""Six small architectures in every form, and the files that keep them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.conv_next import ChannelNorm
from captum_learnprop.scenes.grid_nets import ARCHITECTURES, IMAGES_ONLY, build, net_file, read_net, write_net
from captum_learnprop.scenes.net_form import IMAGES, Form
from zennit_rules import RuleSet

SERIES = Form(classes=6, channels=2, size=32, dims=1)
FORMS = [(name, form) for name in ARCHITECTURES for form in (IMAGES, Form(classes=4), SERIES)
         if form.dims == 2 or name not in IMAGES_ONLY]  # fmt: skip


@pytest.mark.parametrize(("architecture", "form"), FORMS)
def test_takes_and_gives_what_its_form_says(architecture: str, form: Form) -> None:
    net = build(architecture, form).eval()
    assert sum(value.numel() for value in net.parameters()) < 650_000
    assert net(torch.rand(2, *form.shape)).shape == (2, form.classes)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in IMAGES_ONLY])
@pytest.mark.parametrize("composite", ["learned_gradient", "learned_deeplift", "learned_epsilon_gamma_box"])
def test_rules_reach_everything_in_a_net_of_series(architecture: str, composite: str) -> None:
    net = build(architecture, SERIES).eval()
    rules = RuleSet.build(net, torch.rand(2, *SERIES.shape), composite, gate="none")
    assert rules.coverage().share == 1.0


def test_refuses_forms_that_there_are_not() -> None:
    with pytest.raises(LearnpropError, match="takes colour images"):
        build("vit", SERIES)
    with pytest.raises(LearnpropError, match="did you mean 'vgg'"):
        build("vgq", IMAGES)
    with pytest.raises(LearnpropError, match="1 or 2 axes"):
        Form(dims=3)
    with pytest.raises(LearnpropError, match="multiple of 16"):
        Form(size=40)


def test_mobile_net_has_depthwise_convolutions_and_ends_blocks_without_an_activation() -> None:
    net = build("mobilenet", IMAGES)
    depthwise = [one for one in net.modules() if isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 3]
    assert len(depthwise) == 5
    assert sum(isinstance(one, nn.ReLU6) for one in net.modules()) == 2 * 5 + 2


def test_channel_norm_is_layer_norm_of_each_position() -> None:
    norm, x = ChannelNorm(5), torch.randn(2, 5, 3, 4)
    nn.init.normal_(norm.weight)
    wanted = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (5,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x), wanted.permute(0, 3, 1, 2))


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        net = build("convnext", SERIES)
        return write_net(net, net_file("convnext", "series", tmp_path), {
            "architecture": "convnext", "data": "series", "seed": 3,
        })  # fmt: skip

    def test_come_back(self, path: Path) -> None:
        net, facts = read_net(path, "convnext", "series", SERIES)
        assert not net.training
        assert facts["seed"] == "3"
        assert path.stat().st_size < 2.2 * sum(value.numel() for value in net.state_dict().values()) + 20_000

    @pytest.mark.parametrize(("net", "data", "form"), [
        ("vgg", "series", SERIES), ("convnext", "faces", SERIES), ("convnext", "series", Form(7, 2, 32, 1)),
    ])  # fmt: skip
    def test_of_another_net_are_refused(self, path: Path, net: str, data: str, form: Form) -> None:
        with pytest.raises(LearnpropError, match="does not"):
            read_net(path, net, data, form)

    def test_that_are_damaged_or_missing_are_refused(self, path: Path) -> None:
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(LearnpropError, match="delete it"):
            read_net(path, "convnext", "series", SERIES)
        path.unlink()
        with pytest.raises(FileNotFoundError, match="train_grid_nets"):
            read_net(path, "convnext", "series", SERIES)
