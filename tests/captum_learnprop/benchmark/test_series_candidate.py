"""The benchmark on a net of series: every quick method explains it, and rules are those of the bare net."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_packages import fake_aeon
from torch import nn

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.feature_maps import feature_maps
from captum_learnprop.benchmark.grid_suites import rivals, suite_of
from captum_learnprop.benchmark.series_candidate import OnImagesOfHeightOne, SeriesCandidate
from captum_learnprop.benchmark.suite import run
from captum_learnprop.images import Preprocessing
from captum_learnprop.scenes.grid_nets import build
from captum_learnprop.scenes.net_form import Form
from captum_learnprop.scenes.shapelets import CLASSES, LENGTH, ShapeletSource
from zennit_rules import RuleSet

FORM = Form(len(CLASSES), 1, LENGTH, dims=1)


def candidate(architecture: str = "resnet") -> SeriesCandidate:
    torch.manual_seed(0)
    net = build(architecture, FORM).eval()
    return SeriesCandidate(
        architecture, net, Preprocessing(LENGTH, LENGTH).without_normalization(), output="sigmoid"
    )  # fmt: skip


def test_a_series_is_an_image_of_height_one() -> None:
    own = candidate()
    assert own.shape == (1, 1, LENGTH)
    assert own.classes == len(CLASSES)
    images = torch.rand(3, *own.shape)
    assert own.inputs(images).shape == (3, 1, LENGTH)
    torch.testing.assert_close(own.on_pixels()(images), own.net(own.inputs(images)))


@pytest.mark.parametrize("architecture", ["vgg", "resnet", "inception", "mobilenet", "convnext"])
def test_feature_maps_of_series_are_found_and_have_a_gradient(architecture: str) -> None:
    model = candidate(architecture).on_pixels()
    images = torch.rand(2, 1, 1, LENGTH)
    found = feature_maps(model, images[:1])
    assert len(found) >= 2
    lengths = [one.size[1] for one in found]
    assert lengths == sorted(lengths, reverse=True)
    assert all(one.size[0] == 1 for one in found)
    assert lengths[-1] in (8, 16, 32)
    activation, gradient = found[-1].gradient(model, images, torch.tensor([0, 1]))
    assert activation.shape == gradient.shape == (2, activation.shape[1], 1, lengths[-1])
    assert gradient.abs().sum() > 0


def test_the_gradient_in_a_feature_map_of_a_series_is_that_of_torch() -> None:
    net = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    series = torch.rand(2, 1, 16)
    (found,) = feature_maps(OnImagesOfHeightOne(net), series[:1, :, None])
    activation, gradient = found.gradient(OnImagesOfHeightOne(net), series[:, :, None], torch.tensor([1, 0]))
    torch.testing.assert_close(activation[:, :, 0], net[:2](series))
    weight = net[3].weight.reshape(2, 4, 16)  # type: ignore[operator]
    torch.testing.assert_close(gradient[:, :, 0], weight[[1, 0]])


def test_every_quick_method_and_trained_rules_have_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = candidate("vgg")
    with fake_aeon(tmp_path, monkeypatch):
        suite = suite_of(
            own, ShapeletSource(), questions=4, tuning_questions=4, training_scenes=4, training_steps=2,
            training_seeds=(0,), seen_among=0,
        )  # fmt: skip
        cells = run(suite, tmp_path / "out")
        images = ShapeletSource().draw(2, split="test").images
    assert [cell["method"] for cell in cells if cell["error"]] == []
    quick = {name for name in rivals() if name not in ("AttentionMap", "AttentionRollout", "CDAM", "GenericAttention")}
    assert {cell["method"] for cell in cells} == quick | {
        f"{name}, {state}" for name in ("gates", "DeepLift", "LRP, z+ start") for state in ("untrained", "learned")
    }
    for cell in cells:
        assert list(cell["scores"]) == ["average precision", "class AUC", "deletion, blur", "deletion, mean"]
        assert all(len(values) == 4 and None not in values for values in cell["scores"].values())
    # Rules are those of the net itself, which takes series.
    (path,) = (tmp_path / "out" / "rules").glob("*_gates_*.safetensors")
    rules = RuleSet.load(path, own.net)
    attribution = LearnedPropagation(own.net, rules=rules).attribute(images[:, :, 0], torch.tensor([0, 1]))
    assert attribution.shape == (2, 1, LENGTH)
