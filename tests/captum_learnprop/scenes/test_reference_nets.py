"""Reference nets: what their architectures are made of, what the shipped ones know, and loud refusals."""

from __future__ import annotations

import json
import runpy
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes import digits_net, scenes
from captum_learnprop.scenes.reference_nets import (
    ARCHITECTURES,
    OUTPUT_OF_TASK,
    TASK_OF_FAMILY,
    TRANSFORMER_TASK,
    TRANSFORMERS,
    InceptionLike,
    ResNetLike,
    VggLike,
    ViTLike,
    load,
    weights_file,
    weights_metadata,
)
from captum_learnprop.scenes.scenes import FAMILIES, Scenes, make_scenes

NETS = [(architecture, task) for architecture in ARCHITECTURES for task in OUTPUT_OF_TASK]
NETS += [(architecture, TRANSFORMER_TASK) for architecture in TRANSFORMERS]

FLOORS = {"digits": 0.94, "pairs": 0.91, "grid": 0.84, "patch": 0.97, "parts": 0.93}
"""Lowest share of right scenes among a few hundred: what training reached, less the noise of the sample."""


@cache
def test_scenes_of(family: str) -> Scenes:
    """Scenes of digits that no net has seen, drawn once."""
    return make_scenes(family, 200, split="test", seed=17)


test_scenes_of.__test__ = False  # type: ignore[attr-defined]


@torch.no_grad()
def right(net: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Share of images whose classes have the highest logits."""
    named = net(images).topk(targets.shape[1], 1).indices.sort(1).values
    return (named == targets.sort(1).values).all(1).float().mean().item()


class TestArchitectures:
    @staticmethod
    def relu_calls(net: nn.Module) -> list[int]:
        """How often each ReLU module runs in one pass."""
        calls: Counter[nn.Module] = Counter()
        modules = [module for module in net.modules() if isinstance(module, nn.ReLU)]
        for module in modules:
            module.register_forward_hook(lambda module, inputs, output: calls.update([module]))
        assert net.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
        return [calls[module] for module in modules]

    def test_vgg_uses_every_relu_once(self) -> None:
        assert self.relu_calls(VggLike()) == [1] * 7

    def test_resnet_uses_the_relu_of_each_block_twice(self) -> None:
        assert self.relu_calls(ResNetLike(0.5)) == [1] + [2] * 6

    def test_inception_has_functions_for_relu(self) -> None:
        net = InceptionLike(0.5)
        assert self.relu_calls(net) == []
        assert not any(isinstance(module, nn.MaxPool2d) for module in net.modules())

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_parameters_are_few(self, architecture: str) -> None:
        sizes = [sum(value.numel() for value in ARCHITECTURES[architecture](width).parameters()) for width in (1, 0.5)]
        assert sizes[0] < 300_000
        assert sizes[1] < 80_000

    def test_the_transformer_has_a_class_token_and_eight_by_eight_patches(self) -> None:
        net = ViTLike()
        assert sum(value.numel() for value in net.parameters()) < 650_000
        assert net.transformer.encoder.pos_embedding.shape == (1, 65, 96)
        assert net.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


class TestShipped:
    @pytest.mark.parametrize(("architecture", "task"), NETS)
    def test_knows_scenes_it_has_never_seen(self, architecture: str, task: str) -> None:
        net = load(architecture, task)
        assert not net.training
        for family in (family for family, known in TASK_OF_FAMILY.items() if known == task):
            drawn = test_scenes_of(family)
            share = right(net, drawn.images, drawn.targets)
            assert share >= FLOORS[family] - (0.04 if architecture in TRANSFORMERS else 0.0), family

    @pytest.mark.parametrize(("architecture", "task"), NETS)
    def test_says_how_it_was_made(self, architecture: str, task: str) -> None:
        metadata = weights_metadata(architecture, task)
        accuracies = {f"test_{family}" for family, known in TASK_OF_FAMILY.items() if known == task}
        assert {"format_version", "seed", "epochs", "made_by", *accuracies} <= set(metadata)
        assert (metadata["architecture"], metadata["task"]) == (architecture, task)

    def test_is_small_and_float32_once_loaded(self) -> None:
        assert sum(weights_file(*net).stat().st_size for net in NETS) < 5_000_000
        net = load("resnet", "patch")
        assert {value.dtype for value in net.parameters()} == {torch.float32}

    def test_tables_name_every_family_and_task(self) -> None:
        assert set(TASK_OF_FAMILY) == set(FAMILIES)
        assert set(TASK_OF_FAMILY.values()) == set(OUTPUT_OF_TASK)

    def test_digits_net_is_the_vgg_of_digits(self) -> None:
        net = digits_net.load()
        assert isinstance(net, digits_net.DigitsNet)
        state, expected = net.state_dict(), load("vgg", "digits").state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        assert digits_net.weights_metadata() == weights_metadata("vgg", "digits")


class TestGroundTruth:
    """The nets decide by what the scenes say decides."""

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_the_patch_decides_and_the_digit_does_not(self, architecture: str) -> None:
        net = load(architecture, "patch")
        drawing = scenes._patch(150, "test", torch.Generator().manual_seed(1))
        targets, (digit, patch) = drawing.targets, drawing.layers
        swapped = torch.arange(150).roll(1)
        beside = (digit.coverage[swapped] * (patch.coverage + patch.coverage[swapped])).flatten(1).amax(1) == 0
        other_digits = render(drawing.base, drawing.noise, digit, patch, swapped, torch.arange(150))
        other_patches = render(drawing.base, drawing.noise, digit, patch, torch.arange(150), swapped)
        assert beside.sum() > 60
        assert right(net, other_digits[beside], targets[beside]) >= 0.96
        assert right(net, other_patches, targets[swapped]) >= 0.96
        assert right(net, drawing.render({1}), targets) < 0.35

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_without_its_parts_a_figure_has_no_class(self, architecture: str) -> None:
        net = load(architecture, "parts")
        drawing = scenes._parts(150, "test", torch.Generator().manual_seed(1))
        assert right(net, drawing.render(), drawing.targets) >= FLOORS["parts"]
        assert right(net, drawing.render(range(5)), drawing.targets) < 0.35

    def test_without_a_digit_its_class_is_gone(self) -> None:
        drawn = make_scenes("grid", 60, split="test", counterfactuals=True)
        assert drawn.without is not None
        net = load("resnet", "digits")
        with torch.no_grad():
            before = net(drawn.images).sigmoid().gather(1, drawn.targets)
            after = net(drawn.without.flatten(0, 1)).sigmoid().reshape(60, 4, 10)
        after = after.gather(2, drawn.targets[..., None])[..., 0]
        assert before.mean() > 0.85
        assert after.mean() < 0.2


def render(base: Tensor, noise: Tensor, digit, patch, digits: Tensor, patches: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """Scenes with the digits and patches of other scenes."""
    images = base + digit.coverage[digits] * (digit.colour[digits] - base)
    images = images + patch.coverage[patches] * (patch.colour[patches] - images)
    return (images + noise).clamp(0, 1)


class TestTraining:
    def test_the_script_writes_a_net_that_loads_and_goes_on_from_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = Path(__file__).parents[3] / "examples" / "train_reference_nets.py"
        threads = str(torch.get_num_threads())
        command = ["--task", "patch", "--architecture", "inception", "--scenes", "32", "--epochs", "1"]
        command += ["--batch-size", "4", "--test-scenes", "8", "--threads", threads, "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [str(script), *command])
        runpy.run_path(str(script), run_name="__main__")
        path = tmp_path / "inception_patch.safetensors"
        first = weights_metadata("inception", "patch", path)
        monkeypatch.setattr(sys, "argv", [str(script), *command, "--start", str(path)])
        runpy.run_path(str(script), run_name="__main__")
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.stat().st_mode & 0o044 == 0o044
        assert json.loads(weights_metadata("inception", "patch", path)["start"]) == first
        with torch.no_grad():
            assert load("inception", "patch", path=path)(torch.zeros(1, 3, 64, 64)).isfinite().all()


class TestRefusals:
    def test_unknown_names(self) -> None:
        with pytest.raises(LearnpropError, match=r"unknown architecture 'bert' .* one of vgg, resnet, inception, vit"):
            load("bert", "digits")
        with pytest.raises(LearnpropError, match=r"unknown task 'patch' .* choose one of digits"):
            load("vit", "patch")
        with pytest.raises(LearnpropError, match=r"unknown task 'cats' .* choose one of digits, patch, parts"):
            weights_metadata("vgg", "cats")

    def test_missing_and_damaged_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            digits_net.load(tmp_path / "nowhere.safetensors")
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(weights_file("vgg", "digits").read_bytes()[:5000])
        with pytest.raises(LearnpropError, match="cannot be read"):
            digits_net.load(cut)

    def test_files_of_other_nets(self, tmp_path: Path) -> None:
        with pytest.raises(LearnpropError, match="does not hold a net vgg-digits but vgg-patch"):
            digits_net.load(weights_file("vgg", "patch"))
        metadata = weights_metadata("vgg", "patch")
        save_file({"weight": torch.zeros(1)}, tmp_path / "a", metadata=metadata)
        with pytest.raises(LearnpropError, match="does not hold a net vgg-patch: "):
            load("vgg", "patch", path=tmp_path / "a")
        tensors = load_file(weights_file("vgg", "patch"))
        for change, message in (
            ({"format_version": "99"}, "'99'"),
            ({"width": "1.0"}, "does not hold a net vgg-patch: "),
            ({"width": "wide"}, "does not hold a net vgg-patch: "),
        ):
            save_file(tensors, tmp_path / "b", metadata=metadata | change)
            with pytest.raises(LearnpropError, match=message):
                load("vgg", "patch", path=tmp_path / "b")
