"""``learnprop evaluate`` on nets and photographs of the user's own: reports, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from drawn_files import draw_folder, draw_photograph, write_table
from PIL import Image

from captum_learnprop.cli import cli
from captum_learnprop.models import load_model
from zennit_rules import RuleSet

OWN_NET = '''
import torch
from torch import nn

class Net(nn.Module):
    """Two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 5, stride=2), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        if x.mean() < 1e9:  # control flow that no tracer follows
            x = torch.relu(self.second(x))
        return self.head(x.mean((2, 3)))

def make():
    torch.manual_seed(0)
    return Net().eval()
'''

FEW = (
    "--questions", 4, "--training-scenes", 4, "--steps", 1, "--seeds", "0", "--size", 48,
    "--method", "Grad-CAM", "--method", "LRP z+, box", "--method", "RISE", "--method", "CDAM",
    "--method", "ground truth", "--method", "gates, untrained", "--method", "gates, learned",
    "--metric", "average_precision", "--metric", "class_auc", "--metric", "insertion",
)  # fmt: skip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)], obj={"debug": False})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The options of scenes from three cut-outs."""
    folder = tmp_path_factory.mktemp("three")
    cutouts, labels, backgrounds = draw_folder(folder, (0, 1, 2), backgrounds=3)
    return ("--scenes", "cutouts", "--cutouts", cutouts, "--labels", labels, "--backgrounds", backgrounds)


@pytest.fixture(scope="module")
def own_net(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("code") / "my_net.py"
    path.write_text(OWN_NET)
    return f"{path}:make"


@pytest.fixture(scope="module")
def vision_transformer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the configuration of a small one, which then has random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=48, patch_size=8,
        num_labels=3,
    ).save_pretrained(folder)  # fmt: skip
    return f"huggingface:{folder}"


def complete(out: Path, result: Result) -> dict[str, Any]:
    """The results of a run that must have succeeded, by method."""
    assert result.exit_code == 0, result.output
    document = json.loads((out / "results.json").read_text())
    page = (out / "report.html").read_text()
    for row in document["rows"]:
        assert row["method"] in page
    assert (out / "table.md").is_file()
    assert (out / "figure.png").is_file()
    return {row["method"]: row for row in document["rows"]}


def test_a_net_of_ones_own_file(scenes: tuple[object, ...], own_net: str, tmp_path: Path) -> None:
    result = invoke("--model", own_net, *scenes, *FEW, "--out", tmp_path)
    rows = complete(tmp_path, result)
    assert "CDAM" not in rows  # it is no transformer
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {}
    assert rows["ground truth"]["estimates"]["average precision"]["mean"] == 1.0
    assert rows["RISE"]["passes"] > 100
    assert "cells to compute, " in result.stderr
    assert "cut-outs" in (tmp_path / "report.html").read_text()  # splits share them, which the page says
    torch.manual_seed(0)
    rules = next((tmp_path / "rules").glob("*gates*.safetensors"))
    assert RuleSet.load(rules, load_model(own_net)).sites
    again = invoke("--model", own_net, *scenes, *FEW, "--out", tmp_path, "--report-only")
    assert complete(tmp_path, again) == rows


def test_a_net_of_timm(scenes: tuple[object, ...], tmp_path: Path) -> None:
    result = invoke("--model", "timm:test_resnet", *scenes, *FEW, "--seen-among", 0, "--out", tmp_path)
    rows = complete(tmp_path, result)
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {}
    assert "timm:test_resnet has random weights" in result.stderr


def test_a_net_of_hugging_face_has_token_methods(
    scenes: tuple[object, ...], vision_transformer: str, tmp_path: Path
) -> None:
    rows = complete(tmp_path, invoke("--model", vision_transformer, *scenes, *FEW, "--out", tmp_path))
    assert rows["CDAM"]["error"] is None
    assert rows["gates, learned"]["error"] is None
    assert "CDAM" in (tmp_path / "table.md").read_text()


def test_two_nets_judge_each_other_and_a_segmentation_of_ones_own(own_net: str, tmp_path: Path) -> None:
    for number in range(6):
        draw_photograph(tmp_path / "images" / f"{number}.png", number, size=(64, 48))
        mask = Image.new("L", (64, 48), 0)
        mask.paste(255, (20, 10, 20 + 4 * number + 6, 30))
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "masks" / f"{number}.png")
    other = tmp_path / "other.py"
    other.write_text(OWN_NET.replace("manual_seed(0)", "manual_seed(1)"))
    result = invoke(
        "--model", own_net, "--model", f"{other}:make", "--scenes", "masks", "--images", tmp_path / "images",
        "--masks", tmp_path / "masks", *FEW, "--method", "saliency", "--out", tmp_path / "out",
    )  # fmt: skip
    complete(tmp_path / "out", result)
    assert " of 4 questions, there are no more such scenes" in result.stderr
    more = (*FEW, "--method", "saliency", "--metric", "pointing_game", "--out", tmp_path / "out")
    masks = ("--scenes", "masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks")
    complete(tmp_path / "out", invoke("--model", own_net, "--model", f"{other}:make", *masks, *more))  # goes on
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len({row["model"] for row in document["rows"]}) == 2
    for row in document["rows"]:
        assert row["recognised"] == 1.0  # asked for what the net says
        assert {"insertion, blur", "insertion, other nets"} <= row["estimates"].keys()
        assert "class AUC" not in row["estimates"]  # there is no other object


def test_mosaics_of_ones_own_photographs(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        draw_photograph(tmp_path / "images" / f"{number}.png", number, size=(64, 48))
        rows.append((f"{number}.png", number % 4))
    write_table(tmp_path / "labels.csv", rows)
    net = tmp_path / "net.py"
    net.write_text(OWN_NET.replace("nn.Linear(8, 3)", "nn.Linear(8, 4)"))
    result = invoke(
        "--model", f"{net}:make", "--scenes", "mosaics", "--images", tmp_path / "images", "--labels",
        tmp_path / "labels.csv", "--questions", 4, "--training-scenes", 4, "--size", 48, "--method", "saliency",
        "--method", "ground truth", "--metric", "grid_pointing", "--metric", "class_auc", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows_found = {row["method"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]}
    assert rows_found["ground truth"]["estimates"]["grid pointing"]["mean"] == pytest.approx(1.0)
    assert 0 < rows_found["saliency"]["estimates"]["grid pointing"]["mean"] < 1


def test_faces_that_scikit_image_brings(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(OWN_NET.replace("nn.Linear(8, 3)", "nn.Linear(8, 4)"))
    asked = (
        "--model", f"{net}:make", "--scenes", "faces", "--questions", 4, "--training-scenes", 4, "--method", "saliency",
        "--method", "ground truth", "--metric", "average_precision", "--metric", "distractor AUC",
    )  # fmt: skip
    result = invoke(*asked, "--size", 64, "--normalization", "none", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]}
    assert rows["ground truth"]["estimates"]["average precision"]["mean"] == 1.0
    assert 0 < rows["saliency"]["estimates"]["distractor AUC"]["mean"] < 1
    refused = invoke(*asked, "--size", 48, "--out", tmp_path / "other")
    assert refused.exit_code == 1
    assert "--size 64" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scenes", "mnist"), "are for nets that know them, and no --model is given"),
        (("--model", "resnett"), "unknown model 'resnett'; choose one of vgg"),
        (("--scenes", "cutouts"), "are for nets that know photographs, and no --model is given"),
        (("--model", "vgg", "--scenes", "photos"), "vgg was trained on digits: give one such as"),
        (("--model", "vgg", "--model", "timm:test_resnet"), "are two runs"),
        (("--model", "timm:test_resnet", "--scenes", "pairs"), "scenes 'pairs' are for the reference nets"),
        (("--model", "timm:test_resnet", "--scenes", "cutouts"), "needs --cutouts DIR --labels FILE --backgrounds DIR"),
        (("--model", "timm:test_resnet", "--scenes", "masks"), "needs --images DIR --masks DIR; --images is missing"),
        (("--model", "timm:test_resnet", "--scenes", "photos"), "learnprop data photos"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNPROP_CACHE", str(tmp_path / "cache"))
    result = invoke(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())


def test_scenes_that_the_net_does_not_see_or_that_are_too_large(
    scenes: tuple[object, ...], own_net: str, tmp_path: Path
) -> None:
    result = invoke("--model", "timm:test_resnet", *scenes, *FEW, "--out", tmp_path)
    assert result.exit_code == 1
    assert "no scene that the model sees" in result.stderr
    assert "--seen-among 0 asks about all scenes" in result.stderr
    result = invoke("--model", own_net, *scenes, *FEW, "--size", 500, "--out", tmp_path)
    assert result.exit_code == 1
    assert "500" in result.stderr


def test_a_run_that_takes_too_long_says_so_before_it_begins(
    scenes: tuple[object, ...], own_net: str, tmp_path: Path
) -> None:
    result = invoke("--model", own_net, *scenes, *FEW, "--max-hours", 1e-6, "--out", tmp_path)
    assert result.exit_code == 1
    assert "this run will take" in result.stderr
    assert "--max-hours 1" in result.stderr
    assert not list((tmp_path / "cells").glob("*"))
