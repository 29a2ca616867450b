"""``huggingface:FOLDER``."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing
from captum_learnprop.models import class_names_of, files_of, hugging_face, load_model, preprocessing_of
from zennit_rules import RuleSet


def configuration(**options: object) -> transformers.ViTConfig:
    return transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        num_labels=3, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bare() -> nn.Module:
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(configuration()).eval()


@pytest.fixture
def folder(bare: nn.Module, tmp_path: Path) -> Path:
    bare.save_pretrained(tmp_path / "vit")  # type: ignore[operator]
    return tmp_path / "vit"


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_gives_logits(folder: Path, bare: nn.Module, images: Tensor) -> None:
    model = load_model(f"huggingface:{folder}")
    assert not model.training
    assert torch.equal(model(images), bare(images).logits)
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_rules_fit_the_bare_model(folder: Path, bare: nn.Module, images: Tensor, tmp_path: Path) -> None:
    rules = RuleSet.build(load_model(f"huggingface:{folder}"), images[:1], "learned_transformer")
    rules.save(tmp_path / "rules.safetensors")
    assert RuleSet.load(tmp_path / "rules.safetensors", bare).sites == rules.sites


def test_a_bare_configuration_has_random_weights(
    folder: Path, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "model.safetensors").unlink()
    for path in (folder, folder / "config.json"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "captum_learnprop"):
            model = load_model(f"huggingface:{path}")
        assert model(images).shape == (2, 3)
        assert "the model has random weights" in caplog.text


def test_checkpoint(folder: Path, bare: nn.Module, images: Tensor, tmp_path: Path) -> None:
    torch.save(bare.state_dict(), tmp_path / "net.pt")
    model = load_model(f"huggingface:{folder / 'config.json'}", checkpoint=tmp_path / "net.pt")
    assert torch.equal(model(images), bare(images).logits)


def test_what_it_says_of_its_input(folder: Path) -> None:
    spec = f"huggingface:{folder}"
    assert preprocessing_of(spec, load_model(spec)).crop == 32
    processor = {"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 36}, "do_center_crop": True,
                 "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], "resample": 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    found = preprocessing_of(spec, load_model(spec))
    assert (found.resize, found.crop, found.interpolation) == (40, 36, "bicubic")
    assert (found.mean, found.std) == ((0.5,) * 3, (0.2,) * 3)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 32, "do_normalize": False}))
    assert preprocessing_of(spec, load_model(spec)).std == (1.0, 1.0, 1.0)


def test_class_names(folder: Path) -> None:
    spec = f"huggingface:{folder}"
    assert class_names_of(spec, load_model(spec)) is None, "LABEL_0 is no name"
    content = json.loads((folder / "config.json").read_text())
    names = {"id2label": {"2": "bird", "0": "cat", "1": "dog"}, "label2id": {"bird": 2, "cat": 0, "dog": 1}}
    (folder / "config.json").write_text(json.dumps(content | names))
    assert class_names_of(spec, load_model(spec)) == ("cat", "dog", "bird")


def test_files(folder: Path) -> None:
    assert [file.name for file in files_of(f"huggingface:{folder}")] == ["config.json", "model.safetensors"]
    assert files_of(f"huggingface:{folder / 'config.json'}") == [folder / "config.json"]
    assert files_of("torchvision:resnet18") == []


def test_no_classifier(folder: Path, bare: nn.Module, tmp_path: Path) -> None:
    bare.vit.save_pretrained(tmp_path / "base")  # type: ignore[union-attr, operator]
    with pytest.raises(LearnpropError, match=r"no fitting classifier\.bias, classifier\.weight: it is not a trained"):
        load_model(f"huggingface:{tmp_path / 'base'}")


def test_unusable_requests(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LearnpropError, match="huggingface:path/to/folder"):
        load_model("huggingface")
    with pytest.raises(LearnpropError, match="no model of that name in the local cache"):
        load_model("huggingface:google/vit")
    with pytest.raises(LearnpropError, match=r"has no config\.json"):
        load_model(f"huggingface:{tmp_path}")
    with pytest.raises(LearnpropError, match="leave out 'DEFAULT'"):
        load_model(f"huggingface:{folder}", "DEFAULT")
    for text, message in (
        ("{", "cannot be read"), ("[1]", "is no configuration"), ('{"model_type": "vitt"}', "did you mean 'vit'"),
        ('{"model_type": "bert"}', "bert is no image classifier"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(LearnpropError, match=message):
            load_model(f"huggingface:{tmp_path / 'config.json'}")


def test_weights_under_another_name(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(LearnpropError, match=r"has no model\.safetensors, but pytorch_model\.bin"):
        load_model(f"huggingface:{folder}")


def test_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(LearnpropError, match="vit cannot be loaded"):
        load_model(f"huggingface:{folder}")


@pytest.mark.parametrize(
    "odd",
    [{"do_flip_channel_order": True}, {"do_rescale": False}, {"rescale_factor": 1.0}, {"image_mean": 0.5}],
)
def test_processors_that_do_something_else_are_refused(odd: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32, **odd}))
    (name,) = odd
    with pytest.raises(LearnpropError, match=rf"preprocessor_config.json has {name} .*FILE.py:FUNCTION"):
        hugging_face._preprocessing(tmp_path)


def test_without_a_mean_nothing_is_normalised(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32}))
    assert hugging_face._preprocessing(tmp_path) == Preprocessing(32, 32, squeeze=True).without_normalization()


def test_hf_is_a_short_name(folder: Path, images: Tensor) -> None:
    assert torch.equal(load_model(f"hf:{folder}")(images), load_model(f"huggingface:{folder}")(images))
    assert files_of(f"hf:{folder}") == files_of(f"huggingface:{folder}") != []


@pytest.mark.parametrize(
    "processor",
    [
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
        transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 56}),
    ],
    ids=["squeezed", "cropped", "crop_pct"],
)
def test_images_become_what_the_processor_makes_of_them(processor: Any, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8))
    processor.save_pretrained(tmp_path)
    ours = hugging_face._preprocessing(tmp_path)
    assert ours is not None
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    # Theirs resizes tensors, ours images of PIL: bytes are rounded in other places.
    torch.testing.assert_close(ours.normalize(ours.pixels(image)), theirs, atol=0.03, rtol=0)


def test_a_model_knows_the_processor_beside_its_files(folder: Path) -> None:
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    model = transformers.ViTForImageClassification.from_pretrained(folder)
    found = hugging_face.preprocessing_beside(model)
    assert found is not None
    assert (found.crop, found.mean, found.squeeze) == (32, (0.1, 0.2, 0.3), True)
    assert preprocessing_of("", model) == found


def test_a_name_that_is_not_in_the_cache() -> None:
    with pytest.raises(LearnpropError, match="nothing is downloaded here: get it with 'hf download nobody/nothing'"):
        load_model("hf:nobody/nothing")
