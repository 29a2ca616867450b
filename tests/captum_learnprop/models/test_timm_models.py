"""``timm:NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.models import class_names_of, imagenet_names, load_model, preprocessing_of, timm_model

NAME = "test_resnet"
"""A net of half a million parameters that timm has for tests."""


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Parameters of a small model with 7 classes."""
    return timm.create_model(NAME, num_classes=7).state_dict()


def test_random_weights_are_those_of_the_seed() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(load_model(f"timm:{NAME}"))
    assert not models[0].training
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_it_says_of_its_input() -> None:
    model = load_model("timm:test_vit")
    preprocessing = preprocessing_of("timm:test_vit", model)
    assert (preprocessing.crop, preprocessing.mean) == (160, (0.5, 0.5, 0.5))
    assert preprocessing.resize == 168  # a crop of 95 %
    assert preprocessing.interpolation == "bicubic"
    assert class_names_of("timm:test_vit", model) is None, "random weights know no class"
    assert class_names_of("timm:test_vit", model, "DEFAULT") == imagenet_names()


def test_checkpoint(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"state_dict": state}, tmp_path / "net.pt")
    model = timm_model(NAME, checkpoint=tmp_path / "net.pt")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.save({key: value for key, value in state.items() if key != "conv1.0.weight"}, tmp_path / "cut.pt")
    with pytest.raises(LearnpropError, match=r"cut.pt' does not fit test_resnet: missing: conv1.0.weight"):
        timm_model(NAME, checkpoint=tmp_path / "cut.pt")


def test_unusable_requests() -> None:
    with pytest.raises(LearnpropError, match="timm:resnet18"):
        timm_model(None)
    with pytest.raises(LearnpropError, match="no model 'resnet_18'; did you mean 'resnet18'"):
        timm_model("resnet_18")
    with pytest.raises(LearnpropError, match="no model 'hf-hub:timm/resnet18"):
        timm_model("hf-hub:timm/resnet18.a1_in1k")
    with pytest.raises(LearnpropError, match=r"no weights 'a1_ink1'; timm publishes: .*did you mean 'a1_in1k'"):
        timm_model("resnet18", "a1_ink1")
    with pytest.raises(LearnpropError, match="exclude each other"):
        timm_model("resnet18", "DEFAULT", "x.pt")


def test_weights_are_asked_for_by_their_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    small = timm.create_model(NAME)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.append((name, options)) or small)
    timm_model("resnet18", "a1_in1k")
    timm_model("resnet18.a2_in1k", "DEFAULT")
    assert asked == [("resnet18.a1_in1k", {"pretrained": True}), ("resnet18.a2_in1k", {"pretrained": True})]


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(LearnpropError, match="cannot get the weights 'DEFAULT' of resnet18: no route"):
        timm_model("resnet18", "DEFAULT")
