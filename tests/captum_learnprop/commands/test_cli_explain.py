"""``learnprop explain``, run as a user runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from captum_learnprop.cli import cli

NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, size in enumerate([(24, 32), (20, 20)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photo{number}.png")
    (tmp_path / "my_cli_net.py").write_text(NET)
    (tmp_path / "names.txt").write_text("cat\ndog\n\nEgyptian boat\n")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["explain", *arguments], catch_exceptions=True)


@pytest.mark.parametrize("spec", ["my_cli_net.py:make", "my_cli_net:make"])
def test_prints_and_draws(folder: Path, spec: str) -> None:
    options = ["--model", spec, "--classes", "names.txt", "--size", "16", "--mean", "0.5", "--std", "0.2,0.2,0.3"]
    result = run("photo0.png", "photo1.png", *options, "--target", "egyptian_boat", "--target", "0",
                 "--method", "saliency", "--method", "grad_cam")  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    lines = [line for line in lines if not line.startswith("warning")]
    assert lines[0].startswith("photo0.png: ")
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "  Egyptian boat by saliency", "  Egyptian boat by Grad-CAM", "  cat by saliency", "  cat by Grad-CAM",
    ]  # fmt: skip
    assert "2 passes" in lines[1]
    assert lines[-1] == "wrote explanation.png"
    with Image.open(folder / "explanation.png") as figure:
        assert min(figure.size) > 300


def test_says_what_the_model_does_not_see(folder: Path) -> None:
    net = NET.replace("    return nn.Seq", "    net = nn.Seq") + (
        "    from captum_learnprop.images import Preprocessing\n    net.preprocessing = Preprocessing(16, 16)\n"
        "    return net\n"
    )
    (folder / "square.py").write_text(net)
    result = run("photo0.png", "--model", "square.py:make", "--method", "saliency", "--out", "map.pdf")
    assert "(the model sees rows 0 to 24, columns 3 to 27 of 24 x 32)" in result.output
    assert (folder / "map.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo0.png", "--target", "Egyptian goat"], "no class 'Egyptian goat'; did you mean 'Egyptian boat'"),
        (["photo0.png", "--target", "7"], "target 7 is out of range: Sequential has 3 classes, 0 to 2"),
        (["photo0.png", "--method", "gradcamm"], "no method 'gradcamm'; did you mean 'Grad-CAM'"),
        (["photo2.png"], "there is no image photo2.png"),
        (["photo0.png", "--out", "map"], "has no suffix"),
        (["photo0.png", "--mean", "1,2"], "neither a number nor three"),
        (["photo0.png", "--mean", "127"], "divide by 255"),
        (["photo0.png", "--rules", "nothing.safetensors"], "nothing.safetensors"),
        (["photo0.png", "--sign", "positiv"], "did you mean 'positive'"),
    ],
)
def test_mistakes(folder: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments, "--model", "my_cli_net.py:make", "--classes", "names.txt", "--size", "16")
    assert result.exit_code != 0
    assert message in " ".join(f"{result.output} {result.exception}".split())
    assert not (folder / "explanation.png").exists()


def test_grey_nets_go_with_every_command(folder: Path) -> None:
    (folder / "grey.py").write_text(NET.replace("Conv2d(3,", "Conv2d(1,"))
    options = ["--model", "grey.py:make", "--size", "16", "--mean", "0.5", "--std", "0.2"]
    trained = CliRunner().invoke(
        cli, ["train", *options, "--images", ".", "--out", "rules.safetensors", "--steps", "1"]
    )
    assert trained.exit_code == 0, trained.output
    assert "--size 16 --mean 0.5 --std 0.2 --method learned_propagation" in trained.output
    written = CliRunner().invoke(cli, ["attribute", *options, "--images", ".", "--method", "saliency", "--out", "out"])
    assert written.exit_code == 0, written.output
    shown = run("photo0.png", *options, "--rules", "rules.safetensors")
    assert "by rules: " in shown.output, shown.output


TRANSFORM = """
from torchvision import transforms

ready = transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)])
number = 3


def make_it():
    return ready


def by_hand(picture):
    return ready(picture)


def of_nothing(*, side=3):
    return side
"""


@pytest.mark.parametrize(
    "name", ["prepare_it.py:ready", "prepare_it.py:by_hand", "prepare_it.py:make_it", "prepare_it:ready"]
)
def test_a_function_of_ones_own_makes_the_input(folder: Path, name: str) -> None:
    (folder / "prepare_it.py").write_text(TRANSFORM)
    options = ["photo0.png", "--model", "my_cli_net.py:make", "--method", "saliency"]
    own = run(*options, "--transform", name)
    assert own.exit_code == 0, own.output
    usual = run(*options, "--size", "16", "--mean", "0.5", "--std", "0.25")
    first, other = (next(line for line in one.output.splitlines() if line.startswith("photo0")) for one in (own, usual))
    assert [part.split()[0] for part in first.split(": ")[1].split(", ")] == [
        part.split()[0] for part in other.split(": ")[1].split(", ")
    ]
    assert "says nothing" not in own.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--transform", "prepare_it.py:redy"], "has no transform 'redy'"),
        (["--transform", "prepare_it.py:number"], "has a int for the transform 'number'"),
        (["--transform", "prepare_it.py:of_nothing"], "it must return a function that does, and not int"),
        (["--transform", "gone.py:ready"], "there is no file gone.py"),
        (["--transform", "ready"], "is neither FILE.py:FUNCTION nor package.module:FUNCTION"),
        (["--transform", "prepare_it.py:ready", "--size", "16"], "leave out --size"),
    ],
)
def test_a_wrong_function_is_refused(folder: Path, options: list[str], message: str) -> None:
    (folder / "prepare_it.py").write_text(TRANSFORM)
    result = run("photo0.png", "--model", "my_cli_net.py:make", "--method", "saliency", *options)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
