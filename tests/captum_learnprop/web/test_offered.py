"""A browser chooses among the models of the start, and can name no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import hub, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.web.offered import ModelChoice, Offer, shipped_choices
from zennit_rules import RuleError

FILE = """
import pathlib
from torch import nn

pathlib.Path("was_run").touch()


def make():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))


def number():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FILE)
    return tmp_path


def test_a_file_that_is_not_offered_is_not_run(file: Path) -> None:
    offer = Offer(shipped_choices())
    for name in ("net.py:make", "net:make", "os:system", "", "hf:somewhere"):
        with pytest.raises(LearnpropError, match="is not offered here"):
            offer.model(name)
    assert not (file / "was_run").exists()


def test_a_file_of_the_start_is_run_when_it_is_chosen(file: Path) -> None:
    offer = Offer([ModelChoice("net.py:make", {"size": 16, "mean": (0.5,), "std": (0.5,)}), *shipped_choices()])
    assert offer.names[0] == "net.py:make"
    assert not (file / "was_run").exists()
    model = offer.model("net.py:make")
    assert (model.classes, model.anatomy, model.ready) == (3, None, ())
    assert model.names == ["0", "1", "2"]
    assert offer.model("net.py:make") is model


def test_random_weights_are_those_of_the_seed(file: Path) -> None:
    first, again, other = (
        Offer([ModelChoice("net.py:make", {"size": 16, "mean": (0.5,), "std": (0.5,)}, seed)]).model("net.py:make")
        for seed in (3, 3, 4)
    )
    weights = [dict(one.known.net.state_dict())["0.weight"] for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_is_no_classifier_is_refused(file: Path) -> None:
    with pytest.raises(LearnpropError, match="is no classifier, and the page explains classes"):
        Offer([ModelChoice("net.py:number", {"size": 16, "mean": (0.5,), "std": (0.5,)})]).model("net.py:number")


def test_rules_of_another_model_are_refused(file: Path) -> None:
    choice = ModelChoice("reference:vgg-digits", {"size": 64}, rules=("efficientnet_lite0/gates",))
    with pytest.raises(RuleError, match="another model"):
        Offer([choice]).model("reference:vgg-digits")


def test_no_model_at_all() -> None:
    with pytest.raises(LearnpropError, match="no model to offer"):
        Offer([])


def test_a_transformer_is_known_by_its_tokens(offer: Offer) -> None:
    anatomy = offer.model("reference:vit-digits").anatomy
    assert anatomy is not None
    assert anatomy.grid == (8, 8)
    assert offer.model("reference:resnet-digits").anatomy is None


def test_names_that_classes_share_have_their_number(offer: Offer, file: Path) -> None:
    assert offer.model("reference:resnet-digits").names == [str(number) for number in range(10)]
    (file / "names.txt").write_text("crane\ncat\ncrane\n")
    options = {"size": 16, "mean": (0.5,), "std": (0.5,), "classes": file / "names.txt"}
    assert Offer([ModelChoice("net.py:make", options)]).model("net.py:make").names == ["crane (0)", "cat", "crane (2)"]


def test_models_of_torchvision_whose_weights_are_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_dir", lambda: str(tmp_path))
    before = [one.spec for one in shipped_choices()]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").touch()
    found = [one for one in shipped_choices() if one.spec not in before]
    assert [(one.spec, one.options) for one in found] == [("torchvision:squeezenet1_1", {"weights": "DEFAULT"})]
    assert not found[0].random


def test_the_net_is_held_while_it_computes(offer: Offer) -> None:
    model = offer.model("reference:vit-digits")
    assert isinstance(model.known.net, nn.Module)
    with model.busy, model.busy:  # the same thread may hold it twice
        pass
