"""``FILE.py:FUNCTION``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing
from captum_learnprop.models import class_names_of, files_of, load_model, preprocessing_of

CODE = """
from dataclasses import dataclass

from torch import nn

from parts import WIDTH
from captum_learnprop.images import Preprocessing


@dataclass
class Plan:
    width: int = WIDTH


class Net(nn.Linear):
    def __init__(self, width=WIDTH, **options):
        super().__init__(width, 2)


def make():
    model = Net(Plan().width)
    model.preprocessing = Preprocessing(40, 32)
    model.class_names = ("cat", "dog")
    return model.train()


def options(weights=None, *, checkpoint):
    model = Net()
    model.asked = (weights, checkpoint)
    return model


ready = Net(5)


def fails():
    return undefined + 1


def needs(width):
    return Net(width)


def three():
    return 3


number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "parts.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "net.py"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "parts", raising=False)


def test_a_function(file: Path) -> None:
    path = list(sys.path)
    model = load_model(f"{file}:make")
    assert not model.training
    assert model.in_features == 4
    assert sys.path == path
    assert preprocessing_of(f"{file}:make", model, size=64) == Preprocessing(80, 64)
    assert class_names_of(f"{file}:make", model) == ("cat", "dog")
    assert files_of(f"{file}:make") == [file]


def test_a_class_and_a_module(file: Path) -> None:
    assert load_model(f"{file}:Net").in_features == 4
    assert load_model(f"{file}:ready").in_features == 5


def test_a_relative_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert load_model("net.py:make").in_features == 4


def test_options(file: Path) -> None:
    assert load_model(f"{file}:options").asked == (None, None)
    assert load_model(f"{file}:options", "best", "x.pt").asked == ("best", "x.pt")
    with pytest.raises(LearnpropError, match=r"make in .*net.py has no parameter 'weights'; leave out 'best'"):
        load_model(f"{file}:make", "best")


def test_checkpoint_of_a_function_that_takes_none(file: Path, tmp_path: Path) -> None:
    state = nn.Linear(4, 2).state_dict()
    torch.save(state, tmp_path / "net.pt")
    for name in ("make", "Net"):
        model = load_model(f"{file}:{name}", checkpoint=tmp_path / "net.pt")
        assert torch.equal(model.weight, state["weight"])
    with pytest.raises(LearnpropError, match=r"does not fit what ready in .* wrong shape: weight \(2, 4\)"):
        load_model(f"{file}:ready", checkpoint=tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"fails in .*net\.py failed at line 37: NameError: name 'undefined'"),
        ("needs", r"needs in .*net\.py needs 'width': it must be callable without arguments"),
        ("three", r"three in .*net\.py must return a torch\.nn\.Module, not int"),
        ("number", r"number in .*net\.py is no function that returns a model, but int"),
        ("mak", r"net\.py has no function 'mak'; did you mean 'make'"),
        ("x", r"net\.py has no function 'x'; it has Plan, Net, make"),
    ],
)
def test_faults_of_the_function(file: Path, name: str, message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        load_model(f"{file}:{name}")


def test_faults_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    with pytest.raises(LearnpropError, match=r"there is no file .*net\.py"):
        load_model(f"{file}:make")
    file.write_text("import torch\nimport no_such_package\n")
    with pytest.raises(LearnpropError, match=r"net\.py cannot be run at line 2: ModuleNotFoundError: No module named"):
        load_model(f"{file}:make")
    file.write_text("import torch\n\ndef make(:\n")
    with pytest.raises(LearnpropError, match=r"net\.py cannot be run at line 3: SyntaxError"):
        load_model(f"{file}:make")
    with pytest.raises(LearnpropError, match=r"which function of .*net\.py\? Name it as in '.*net\.py:make_model'"):
        load_model(str(file))


def test_pixels_stay_as_they_are_with_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = f"{file}:Net"
    model = load_model(spec)
    with caplog.at_level(logging.WARNING, "captum_learnprop"):
        assert preprocessing_of(spec, model).std == (1.0, 1.0, 1.0)
    assert "does not say how images are normalised" in caplog.text
    caplog.clear()
    assert preprocessing_of(spec, model, normalization="imagenet").std == Preprocessing().std
    assert preprocessing_of(spec, model, normalization="none").std == (1.0, 1.0, 1.0)
    assert caplog.text == ""


def test_attributes_of_another_kind(file: Path) -> None:
    spec, model = f"{file}:Net", load_model(f"{file}:Net")
    model.preprocessing = (0.5, 0.5)
    with pytest.raises(LearnpropError, match=r"must be a captum_learnprop\.images\.Preprocessing, got tuple"):
        preprocessing_of(spec, model)
    model.class_names = "cat"
    with pytest.raises(LearnpropError, match="class_names of Net must be a tuple of names, got 'cat'"):
        class_names_of(spec, model)
    layer = load_model(spec)
    layer.preprocessing = nn.Identity()  # a layer of that name tells nothing
    assert preprocessing_of(spec, layer, normalization="none").crop == 224


def test_a_function_in_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_package_of_models"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Linear(2, 3)\n")
    monkeypatch.chdir(tmp_path)
    model = load_model("own_package_of_models.nets:make")
    assert (model.out_features, model.training) == (3, False)
    assert files_of("own_package_of_models.nets:make") == [package / "nets.py"]
    with pytest.raises(LearnpropError, match="has no function 'mak'; did you mean 'make'"):
        load_model("own_package_of_models.nets:mak")
    with pytest.raises(LearnpropError, match=r"own_package_of_models\.net"):
        load_model("own_package_of_models.net:make")
    (package / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(LearnpropError, match=r"own_package_of_models\.broken cannot be imported at line 1"):
        load_model("own_package_of_models.broken:make")
