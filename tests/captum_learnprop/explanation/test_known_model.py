"""What is known of a model: torchvision, timm, Hugging Face and one's own, as modules and by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from small_nets import SIZE, net
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights

import captum_learnprop as cl
from captum_learnprop.errors import InputWarning, LearnpropError
from captum_learnprop.explanation import method_names
from captum_learnprop.explanation.known_model import known_model
from captum_learnprop.images import Preprocessing
from captum_learnprop.models import imagenet_names
from zennit_rules import RuleSet

SLOW = (
    "extremal perturbation", "extremal perturbation x input", "extremal perturbation, quick", "extremal area",
    "learned_propagation",
)  # fmt: skip


def hugging_face(**options: Any) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=3, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


class Logits(nn.Module):
    """The same model with a plain output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("method", [name for name in method_names() if name not in SLOW])
def test_structured_outputs_are_taken_as_logits_by_every_method(method: str) -> None:
    model, prepare = hugging_face(), Preprocessing(32, 32, squeeze=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = cl.explain(Logits(model), photograph(), 1, method, preprocessing=prepare).map
        except LearnpropError:  # such as class activation maps, of which it has none
            with pytest.raises(LearnpropError):
                cl.explain(model, photograph(), 1, method, preprocessing=prepare)
            return
        torch.testing.assert_close(cl.explain(model, photograph(), 1, method, preprocessing=prepare).map, wanted)
    assert bool(wanted.isfinite().all())
    assert wanted.shape == (24, 32)


def test_an_entry_of_torchvision_tells_all() -> None:
    model = torchvision.models.squeezenet1_1().eval()
    known = known_model(model, weights=SqueezeNet1_1_Weights.DEFAULT)
    assert known.class_names == imagenet_names()
    assert not known.assumed
    one = cl.explain(model, photograph(), "Egyptian cat", "saliency", weights=SqueezeNet1_1_Weights.DEFAULT)
    told = Preprocessing.of_weights("squeezenet1_1", "DEFAULT")
    again = cl.explain(model, photograph(), 285, "saliency", preprocessing=told)
    assert one.index == again.index == 285
    torch.testing.assert_close(one.attribution, again.attribution, atol=1e-4, rtol=1e-2)


def test_what_is_assumed_is_said() -> None:
    model = torchvision.models.squeezenet1_1(num_classes=2).eval()
    with pytest.warns(InputWarning, match="a middle square and ImageNet's normalisation are assumed: give weights="):
        cl.explain(model, photograph(), 0, "saliency")
    with pytest.warns(InputWarning, match="ImageNet's normalisation are assumed"):
        cl.explain(hugging_face(), photograph(), 0, "saliency")
    with pytest.warns(InputWarning, match="squares of pixels in"):
        cl.explain(net(), photograph(), 0, "saliency", size=SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        cl.explain(net(), photograph(), 0, "saliency", size=SIZE, mean=0.5, std=0.2)


def test_rules_tell_what_they_were_trained_with() -> None:
    model = net()
    rules = RuleSet.build(model, torch.zeros(1, 3, SIZE, SIZE), composite="learned_gradient", gate="channel")
    kept = Preprocessing(20, SIZE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    rules.training = {
        "sign": "absolute", "smoothing": 0.05,
        "preprocessing": {"resize": 20, "crop": SIZE, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        found = cl.explain(model, photograph(), 0, rules=rules)
    torch.testing.assert_close(found.map, cl.explain(model, photograph(), 0, rules=rules, preprocessing=kept).map)
    model.preprocessing = Preprocessing(SIZE, SIZE)  # what the model says comes first
    assert cl.explain(model, photograph(), 0, rules=rules).frame != found.frame


def test_timm_tells_its_own() -> None:
    model = timm.create_model("test_vit", num_classes=3).eval()
    known = known_model(model)
    assert isinstance(known.prepare, Preprocessing)
    assert known.prepare.crop == model.pretrained_cfg["input_size"][-1]
    assert known.prepare.mean == tuple(model.pretrained_cfg["mean"])
    with pytest.warns(InputWarning, match="timm:test_vit has random weights"):
        assert known_model("timm:test_vit").prepare == known.prepare


def test_names_of_classes_are_given(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("a\nb\n\nc\nd\n")
    options: dict[str, Any] = {"size": SIZE, "mean": 0.0}
    assert cl.explain(net(), photograph(), "C", "saliency", classes=path, **options).index == 2
    assert cl.explain(net(), photograph(), "b", "saliency", classes=["a", "b", "c", "d"], **options).index == 1
    with pytest.raises(LearnpropError, match="Sequential has 4 classes, and 1000 names are known"):
        cl.explain(net(), photograph(), 0, "saliency", classes="imagenet", **options)
    with pytest.raises(LearnpropError, match="cannot be read"):
        cl.explain(net(), photograph(), 0, "saliency", classes=tmp_path / "none.txt", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "DEFAULT"}, "is a module that has its parameters: give torchvision's entry itself"),
        ({"checkpoint": "net.pt"}, "is for models by name"),
        ({"preprocessing": 3}, "or a function from a picture to a tensor, got int"),
        ({"size": 0}, "size must be a number of pixels"),
        ({"mean": (1, 2)}, "a number for each of 3 channels"),
        ({"mean": 127.0}, "divide by 255"),
        ({"std": 0.0}, "std must be above 0"),
        ({"mean": "x"}, "mean must be a number"),
        ({"preprocessing": lambda image: torch.zeros(3, 4, 4), "size": 4}, "change a Preprocessing"),
        ({"method": 3}, "a method is a name, a rule set or its file, got int"),
        ({"image": "https://example.org/cat.png"}, "nothing is downloaded here"),
        ({"image": torch.zeros(3, 4, 4, dtype=torch.int64)}, "no picture"),
        ({"image": torch.zeros(4, 4)}, r"\(C, H, W\)"),
        ({"image": np.zeros((5, 5, 7))}, "an array of a picture"),
        ({"image": np.zeros((4, 4), bool)}, "is no picture"),
        ({"image": []}, "the list is empty"),
        ({"image": 3}, "an image is a path"),
        ({"target": []}, "the list of targets is empty"),
        ({"target": 1.5}, "a class is a number or a name, got float"),
        ({"target": "dog"}, "names of the model's classes are not known"),
        ({"image": torch.full((3, SIZE, SIZE), torch.nan)}, "NaN or infinite"),
        ({"image": 5 * torch.ones(3, SIZE, SIZE)}, "say how it was made with mean= and std="),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"image": photograph(), "target": 0, "method": "saliency", "size": SIZE} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(LearnpropError, match=message):
            cl.explain(net(), **given)


def test_a_folder_and_inference_mode_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LearnpropError, match="is a folder: name one picture"):
        cl.explain(net(), tmp_path)
    with torch.inference_mode(), pytest.raises(LearnpropError, match=r"leave torch.inference_mode\(\)"):
        cl.explain(net(), photograph())


def test_other_types_and_outputs() -> None:
    one = cl.explain(net(dtype=torch.float64), photograph(), 0, "saliency", size=SIZE, mean=0.0)
    assert one.attribution.dtype == torch.float64
    number = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 1), nn.Flatten(0)).eval()
    found = cl.explain(number, photograph(), None, "saliency", size=SIZE, mean=0.0)
    assert (found.target, found.prediction) == ("output", ())


def test_show_says_where_there_is_no_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    one = cl.explain(net(), photograph(), 0, "saliency", size=SIZE, mean=0.0)
    monkeypatch.setattr("PIL.ImageShow.show", lambda picture: not shown.append(picture.size))
    one.show()
    assert len(shown) == 1
    monkeypatch.setattr("PIL.ImageShow.show", lambda picture: False)
    with pytest.raises(LearnpropError, match=r"use save\('explanation.png'\)"):
        one.show()
