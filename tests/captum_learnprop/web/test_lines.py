"""The lines that the page shows make the maps that it shows: they are executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_learnprop.web.choices import method_choices
from captum_learnprop.web.concepts import explain_concept
from captum_learnprop.web.examples import example_picture
from captum_learnprop.web.learning import start_training
from captum_learnprop.web.lines import ConceptLines, concept_lines, python_lines
from captum_learnprop.web.offered import ModelChoice, Offer
from captum_learnprop.web.visit import Shot, Visit

NET = """
from torch import nn


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def run(lines: str) -> Any:
    names: dict[str, Any] = {}
    exec(lines, names)
    return names["found"]


def same(visit: Visit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shown = list(visit.explanations())
    if not visit.methods:
        visit.adopt(shown[0])
    lines = python_lines(visit)
    monkeypatch.chdir(folder)
    made = run(lines)
    assert [one.method for one in made] == [one.method for one in shown]
    for one, other in zip(made, shown, strict=True):
        assert torch.equal(one.map, other.map)
        assert one.target == other.target
    assert (folder / "explanation.png").is_file()
    return lines


def test_an_example(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visit.choose_methods(["Grad-CAM", "DeepLift"])
    visit.choose_class(4)
    visit.choose_sign("positive")
    lines = same(visit, tmp_path, monkeypatch)
    assert "torch" not in lines
    assert len(lines.splitlines()) <= 14


def test_an_upload_and_a_net_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(NET)
    (tmp_path / "names.txt").write_text('cat\n"""dog"""\nboat\\\n')
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "it's mine.png")
    options = {"size": 24, "mean": (0.5,), "std": (0.2, 0.2, 0.3), "classes": tmp_path / "names.txt"}
    visit = Visit(Offer([ModelChoice("mine.py:make", options, seed=5)]).model("mine.py:make"), tmp_path)
    visit.look_at(Shot("it's mine.png", Image.open(tmp_path / "it's mine.png")))
    visit.choose_class(1)
    visit.choose_methods(["saliency"])
    assert "torch.manual_seed(5)" in same(visit, tmp_path, monkeypatch)


def test_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(NET)
    torch.manual_seed(9)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    )  # fmt: skip
    torch.save(net.state_dict(), tmp_path / "net.pt")
    options = {"size": 24, "mean": (0.0,), "std": (1.0,), "checkpoint": tmp_path / "net.pt"}
    visit = Visit(Offer([ModelChoice("mine.py:make", options)]).model("mine.py:make"), tmp_path)
    visit.look_at(Shot("coffee", example_picture("coffee"), example=True))
    visit.choose_class(2)
    assert "manual_seed" not in same(visit, tmp_path, monkeypatch)


def test_rules_that_were_trained_on_the_page(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [example_picture(f"digits {number}") for number in (1, 2, 3, 4)]
    rules = start_training(visit.model, pictures, "gates", steps=1).result()
    name = visit.keep_rules(rules, visit.model)
    assert name == "trained_gradient_1"
    visit.choose_methods(["Grad-CAM", name])
    lines = same(visit, visit.folder, monkeypatch)
    assert "'trained_gradient_1.safetensors'" in lines
    assert visit.file_of(name) in visit.save(list(visit.explanations()))


def test_rules_of_the_command_line_come_first(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [example_picture(f"digits {number}") for number in (1, 2, 3, 4)]
    rules = start_training(visit.model, pictures, "LRP", steps=1).result()
    (tmp_path / "mine").mkdir()
    rules.save(tmp_path / "mine" / "rules.safetensors", visit.model.known.net)
    monkeypatch.chdir(tmp_path)
    choice = ModelChoice("reference:resnet-digits", {"size": 64}, rules=("mine/rules.safetensors",))
    other = Visit(Offer([choice]).model("reference:resnet-digits"), tmp_path)
    other.look_at(visit.seen)
    other.choose_class(visit.prediction()[0].index)
    assert method_choices(other.model).at_hand[0] == "mine/rules.safetensors"
    assert [one.method for one in other.explanations()] == ["rules"]
    assert "['mine/rules.safetensors']" in same(other, tmp_path, monkeypatch)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_concept(
    visit_to_transformer: Visit, similarity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = visit_to_transformer
    example_picture("digits 4").save(tmp_path / "mine.png")
    shots = [Shot(name, example_picture(name), example=True) for name in ("digits 3", "digits 5")]
    shots.append(Shot("mine.png", Image.open(tmp_path / "mine.png")))
    shown = explain_concept(visit, shots, similarity)
    monkeypatch.chdir(tmp_path)
    made = run(concept_lines(visit, ConceptLines(shots, similarity)))
    assert torch.equal(made.map, shown.map)
    assert float(shown.map.abs().max()) > 0
    assert (tmp_path / "concept.png").is_file()
