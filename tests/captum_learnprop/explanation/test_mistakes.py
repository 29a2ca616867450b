"""Typical mistakes, each with the sentence that it gets: the table on the page *Explain any model*."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers
from small_nets import SIZE, net
from torch import nn

import captum_learnprop as cl
from captum_learnprop.errors import InputWarning
from captum_learnprop.images import Preprocessing

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "explain.md"


def model() -> nn.Module:
    found = net()
    found.preprocessing = Preprocessing(SIZE, SIZE)
    found.class_names = ("tabby", "Egyptian cat", "dog", "boat")
    return found


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def without_timm() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "timm", None)
        cl.explain("timm:resnet18", photograph())


def fixed_size() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 30 * 30, 4)).eval()


def segmentation() -> nn.Module:
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 2}
    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(**options).eval()


def hugging_face_batch() -> Any:
    return transformers.BatchFeature({"pixel_values": torch.zeros(1, 3, SIZE, SIZE)})


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT = transformers.ViTConfig(image_size=SIZE, patch_size=8, **SMALL)


def text_model() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **SMALL)).eval()


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "`eval()` is forgotten": (
        lambda: cl.explain(model().train(), photograph()), "the model is in training mode",
    ),
    "a class in place of a model": (
        lambda: cl.explain(torchvision.models.ResNet, photograph()), "is a class of models: make one, ResNet(...)",
    ),
    "a dictionary of parameters in place of a model": (
        lambda: cl.explain(model().state_dict(), photograph()), "a dictionary of parameters is no model",
    ),
    "what a processor of Hugging Face returns in place of a picture": (
        lambda: cl.explain(model(), hugging_face_batch()), 'an image processor returned: pass its "pixel_values"',
    ),
    "an array of 0 to 255 in floating point": (
        lambda: cl.explain(model(), photograph().astype(np.float32)), "divide by 255",
    ),
    "a tensor in [0, 1] for a model that takes normalised ones": (
        lambda: cl.explain(model(), torch.rand(3, SIZE, SIZE)), "as a picture that is not normalised",
    ),
    "a class, or a method, that is misspelt": (
        lambda: cl.explain(model(), photograph(), "egiptian cat"), "did you mean 'Egyptian cat'",
    ),
    "a number that is no class": (
        lambda: cl.explain(model(), photograph(), 1000),
        "target 1000 is out of range: Sequential has 4 classes, 0 to 3",
    ),
    "the wrong size": (
        lambda: cl.explain(fixed_size(), photograph()), "give size=, or preprocessing=",
    ),
    "a segmentation net without saying what of its output is meant": (
        lambda: cl.explain(segmentation(), photograph(), size=None, preprocessing=Preprocessing(64, 64)),
        "such as Region or Detection",
    ),
    "an extra that is not installed": (without_timm, "pip install 'captum-learnprop[vit]'"),
    "a text model of Hugging Face as it is": (
        lambda: cl.explain(text_model(), "a text"),
        "takes numbers of tokens, which have no gradient: explain OnEmbeddings",
    ),
    "a model of Hugging Face without its head": (
        lambda: cl.explain(transformers.ViTModel(VIT).eval(), photograph()),
        "ViTModel is no classifier, it returned BaseModelOutputWithPooling",
    ),
    "a processor or a configuration in place of a model": (
        lambda: cl.explain(VIT, photograph()), "a name such as 'torchvision:resnet50', got ViTConfig",
    ),
    "the name of a model that is misspelt": (
        lambda: cl.explain("torchvision:resnet5", photograph()),
        "torchvision has no classification model 'resnet5'; did you mean 'resnet50'",
    ),
    "rules of another model": (
        lambda: cl.explain(model(), photograph(), rules="efficientnet_lite0/gates"),
        "this rule set belongs to another model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_gets_its_sentence(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "the tensor lies in", InputWarning)
        with pytest.raises((ValueError, InputWarning), match=re.escape(message)) as caught:
            make()
    said = str(caught.value)
    assert "\n" not in said.strip()
    assert len(said) < 600


def test_the_page_has_all_of_them() -> None:
    page = PAGE.read_text()
    for mistake, (_, message) in MISTAKES.items():
        assert mistake in page, mistake
        assert message in page, message
