"""``learnprop train``, run as a user runs it, on a small model without downloads."""

from __future__ import annotations

import errno
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from launched import each_launcher, launch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_learnprop import LearnpropError, files, plugins
from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.cli import cli
from captum_learnprop.commands import _objective, _train_rules
from captum_learnprop.commands import train as train_command
from captum_learnprop.maps import SIGNS
from captum_learnprop.models import loading
from captum_learnprop.plugins import ModelRecord, ObjectiveRecord, PluginManager, hookimpl
from captum_learnprop.training import trainer
from captum_learnprop.training.log import read_log
from captum_learnprop.training.masked_input import MaskedInput
from captum_learnprop.training.masks import AreaMask, MaxMask
from captum_learnprop.training.objectives import Agreement
from captum_learnprop.training.quantities import QUANTITIES
from captum_learnprop.training.terms import ClassContrast, Necessity, Objective, OcclusionRegression, Sufficiency
from zennit_rules import RuleSet, composite_class

CLASSES = 4
SIZE = 16
COUNT = 10


class TinyNet(nn.Module):
    """Two convolutions and a linear layer, which can be interrupted in a pass of a given number."""

    passes = 0
    interrupt_at = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        TinyNet.passes += 1
        if TinyNet.passes == TinyNet.interrupt_at:
            raise KeyboardInterrupt
        logits: Tensor = self.classifier(self.features(images).amax((2, 3)))
        return 4 * logits


class ExtraParts:
    @hookimpl
    def learnprop_models(self) -> Iterator[ModelRecord]:
        yield ModelRecord("tiny", lambda *_: TinyNet(), "a small classifier")
        linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, CLASSES))
        yield ModelRecord("linear", lambda *_: linear, "a classifier without activations")

    @hookimpl
    def learnprop_objectives(self) -> Iterator[ObjectiveRecord]:
        yield ObjectiveRecord("plain", lambda: Necessity(area=0.3), "a term")
        yield ObjectiveRecord("odd", lambda: 7, "no objective")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = PluginManager.discover()
    manager.register(ExtraParts(), "extra")
    for module in (plugins, loading, _objective):
        monkeypatch.setattr(module, "get_manager", lambda: manager)
    TinyNet.passes = TinyNet.interrupt_at = 0


def draw(folder: Path, count: int = COUNT, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        generator = np.random.default_rng(number)
        pixels = generator.integers(0, 128, (SIZE + 4, SIZE, 3), dtype=np.uint8)
        row, column = generator.integers(3, SIZE - 6, 2)
        pixels[row : row + 5, column : column + 5] += 127
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images")


def arguments(images: Path, out: Path, model: str) -> list[str]:
    fixed = ["train", "--model", model, "--images", str(images), "--out", str(out), "--size", str(SIZE)]
    quick = ["--threads", "1", "--steps", "4", "--deletions", "5", "--batch-size", "4", "--fill", "colours"]
    return [*fixed, *quick, "--quantity", "softmax", "--objective", "OcclusionRegression"]


def train(images: Path, out: Path, *options: str, model: str = "tiny") -> Result:
    return CliRunner().invoke(cli, [*arguments(images, out, model), *options])


def check_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr


def assert_same(first: Path, second: Path, tolerance: float = 0.0) -> None:
    """Equal rules, away from the start."""
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys()
    assert any(tensor.abs().max() > 0.01 for tensor in ours.values())
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)


class TestResult:
    def test_rules_and_summary(self, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "rules.safetensors"
        result = train(images, out)
        assert result.exit_code == 0, result.output
        rules = RuleSet.load(out, TinyNet().eval())
        assert rules.training["training_rows"] == 8
        assert rules.training["validation_rows"] == 2
        assert rules.training["preprocessing"]["crop"] == SIZE
        assert rules.training["model"] == "tiny"
        best, start = rules.training["validation_loss"], rules.training["start_validation_loss"]
        assert best <= start
        lines = result.stdout.splitlines()
        assert lines[0].startswith("rules of 2 sites")
        assert "learned from 8 rows in 4 steps" in lines[0]
        assert f"best validation loss {best:.4f}" in lines[1]
        assert f"{start:.4f} untrained (2 rows held out)" in lines[1]
        assert str(out) in result.stdout
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["rules.safetensors"]

    def test_attribute_uses_them_as_the_summary_says(self, images: Path, tmp_path: Path) -> None:
        rules, maps = tmp_path / "rules.safetensors", tmp_path / "maps"
        result = train(images, rules, "--normalization", "imagenet")
        (usage,) = [line.split() for line in result.stdout.splitlines() if line.startswith("  learnprop")]
        assert usage[-4:] == ["--images", "DIR", "--out", "DIR"]
        arguments = [*usage[1:-4], "--images", str(images), "--out", str(maps), "--no-hdf5"]
        explained = CliRunner().invoke(cli, arguments)
        assert explained.exit_code == 0, explained.output
        plain = ["attribute", "--model", "tiny", "--images", str(images), "--size", str(SIZE), "--method", "saliency"]
        CliRunner().invoke(cli, [*plain, "--normalization", "imagenet", "--out", str(tmp_path / "g"), "--no-hdf5"])
        name = "maps/00.png.safetensors"
        learned, gradient = (load_file(folder / name)["attribution"] for folder in (maps, tmp_path / "g"))
        assert learned.shape == gradient.shape
        assert not torch.allclose(learned, gradient, rtol=0.05)

    @pytest.mark.parametrize("normalization", ["none", "imagenet"])
    def test_it_is_what_the_trainer_gives(self, images: Path, tmp_path: Path, normalization: str) -> None:
        out = tmp_path / "rules.safetensors"
        train(images, out, "--normalization", normalization)
        mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if normalization == "imagenet" else ([0.0], [1.0])
        stack = []
        for path in sorted(images.iterdir()):
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 255
            stack.append((pixels[:, 2:-2] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
        quick = trainer.RuleTrainer(
            TinyNet().eval(), objective=OcclusionRegression(), quantity="softmax", steps=4, deletions=5, batch_size=4,
            fill="colours",
        )  # fmt: skip
        quick.fit(torch.stack(stack)).save(tmp_path / "expected.safetensors")
        assert_same(out, tmp_path / "expected.safetensors", 1e-6)

    def test_without_validation(self, images: Path, tmp_path: Path) -> None:
        result = train(images, tmp_path / "rules.safetensors", "--validation", "0")
        assert "no image was held out: these are the rules of the last step" in result.stdout

    def test_log(self, images: Path, tmp_path: Path) -> None:
        objective = "OcclusionRegression + 0.1*ClassContrast"
        log = images / "log"  # inside the images: what is drawn there is no training image
        for _ in range(2):
            out = tmp_path / "rules.safetensors"
            result = train(images, out, "--recursive", "--overwrite", "--log-dir", str(log), "--objective", objective)
            assert result.exit_code == 0, result.output
            rows = read_log(log / "training.csv")
            assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
            assert rows[1]["loss"] == pytest.approx(rows[1]["OcclusionRegression"] + 0.1 * rows[1]["ClassContrast"])
            assert (log / "training.png").read_bytes().startswith(b"\x89PNG")
            assert RuleSet.load(out).training["images"] == COUNT

    def test_a_figure_that_cannot_be_written_costs_no_rules(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("captum_learnprop.commands._train_rules.save_figure", full)
        result = train(images, tmp_path / "rules.safetensors", "--log-dir", str(tmp_path / "log"))
        assert result.exit_code == 0
        assert "warning: cannot draw" in result.stderr
        RuleSet.load(tmp_path / "rules.safetensors")

    def test_examples_are_used_again(self, images: Path, tmp_path: Path) -> None:
        options = ["--examples-dir", str(tmp_path / "examples"), "--overwrite"]
        train(images, tmp_path / "first.safetensors", *options)
        first, TinyNet.passes = TinyNet.passes, 0
        train(images, tmp_path / "second.safetensors", *options)
        # But for the shard's prediction and two passes for each image (whole and changed).
        assert TinyNet.passes == first - (1 + 2 * COUNT)
        assert_same(tmp_path / "first.safetensors", tmp_path / "second.safetensors")


class TestOptions:
    def test_defaults_are_those_of_the_trainer(self) -> None:
        theirs = inspect.signature(trainer.RuleTrainer).parameters
        given = ["--model", "tiny", "--images", "images", "--out", "rules.safetensors"]
        ours = train_command.command.make_context("train", given).params
        for name in _train_rules._TRAINED_WITH:
            assert ours[name] == theirs[name].default, name
        fit = inspect.signature(trainer.RuleTrainer.fit).parameters
        for name in ("validation", "targets_per_image"):
            assert ours[name] == fit[name].default, name
        assert ours["objective"] is None

    def test_choices_are_those_of_the_trainer(self) -> None:
        choices = {o.name: o.type.choices for o in train_command.command.params if isinstance(o.type, click.Choice)}
        assert tuple(choices["quantity"]) == tuple(QUANTITIES)
        assert tuple(choices["sign"]) == SIGNS
        assert set(choices["precision"]) == {name for name in trainer.PRECISIONS if name}

    def test_all_reach_the_trainer(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[str, Any] = {}

        class Spy(trainer.RuleTrainer):
            def __init__(self, model: nn.Module, **options: Any) -> None:
                seen.update(options)
                super().__init__(model, **options)

            def fit(self, data: Any, targets: str = "", **options: Any) -> Any:
                seen.update(options, targets=targets)
                raise LearnpropError("enough")

        monkeypatch.setattr(_train_rules, "RuleTrainer", Spy)
        given = {
            "quantity": "logit", "sign": "signed", "smoothing": 0.125, "outlines": 0.25, "steps": 7,
            "batch_size": 3, "lr": 0.5,
            "deletions": 6, "regions": "boxes", "fill": "mixed", "patience": 2,
            "seed": 5, "internal_batch_size": 8, "precision": "bfloat16",
            "composite": "learned_guided_backprop", "gate": "feature", "start": "deconvnet", "pooling": "exact",
            "targets_per_image": 2, "validation": 0.5, "examples_dir": tmp_path / "e", "log_dir": tmp_path / "l",
        }  # fmt: skip
        options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        flags = ["--fusion", "--contrast", "--resume", str(tmp_path / "run"), "--objective", "2*Sufficiency"]
        check_error(train(images, tmp_path / "rules.safetensors", *options, *flags), "enough")
        expected = {
            **given, "fusion": True, "rule_options": {}, "gate_options": {"position": True, "contrast": True},
            "targets": "predicted",
            "checkpoint": tmp_path / "run", "objective": 2 * Sufficiency(), "show_progress": True,
        }  # fmt: skip
        assert {name: value for name, value in seen.items() if name in expected} == expected

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ([], {"position": True}),
            (["--no-positions"], {"position": False}),
            (["--contrast"], {"position": True, "contrast": True}),
            (
                ["--gate-option", "position=false", "--gate-option", "contrast=true"],
                {"position": False, "contrast": True},
            ),
            (["--gate", "channel"], {}),
            (["--gate", "quadrant", "--gate-option", 'per="layer"'], {"per": "layer"}),
            (["--gate", "quadrant", "--gate-option", "per=layer"], {"per": "layer"}),
        ],
        ids=str,
    )
    def test_gates(self, images: Path, tmp_path: Path, options: list[str], expected: dict[str, Any]) -> None:
        result = train(images, tmp_path / "rules.safetensors", "--steps", "1", *options)
        assert result.exit_code == 0, result.output
        assert RuleSet.load(tmp_path / "rules.safetensors").config["gate_options"] == expected

    @pytest.mark.parametrize(
        ("composite", "given", "expected"),
        [
            ("learned_gradient", [], None),
            ("learned_guided_backprop", [], None),
            ("learned_deeplift", ["baseline=0.5"], {"baseline": 0.5}),
            ("learned_epsilon_gamma_box", ["gamma=0.5", 'conv="gamma"'], {"gamma": 0.5, "conv": "gamma"}),
            ("learned_epsilon_gamma_box", ["gamma=inf", "conv=alpha_beta"], {"gamma": inf, "conv": "alpha_beta"}),
        ],
    )
    def test_composites(
        self, images: Path, tmp_path: Path, composite: str, given: list[str], expected: dict[str, Any] | None
    ) -> None:
        out, maps = tmp_path / "rules.safetensors", tmp_path / "maps"
        options = [part for option in given for part in ("--rule-option", option)]
        result = train(images, out, "--composite", composite, *options)
        assert result.exit_code == 0, result.output
        rules = RuleSet.load(out)
        assert rules.composite_name == composite
        defaults = trainer.training_defaults(composite)
        assert f"maps are {defaults.sign} and " in result.stdout
        smoothing = rules.training["smoothing"]
        assert ("and not smoothed, chosen on held-out images" in result.stdout) == (smoothing == 0)
        assert f"postprocess(attribution, {defaults.sign!r}, {smoothing:g})" in result.stdout
        assert (rules.config.get("rule_options") or {}).items() >= (expected or {}).items()
        assert expected is not None or "rule_options" not in rules.config
        (usage,) = [line.split() for line in result.stdout.splitlines() if line.startswith("  learnprop")]
        arguments = [*usage[1:-4], "--images", str(images), "--out", str(maps), "--no-hdf5"]
        explained = CliRunner().invoke(cli, arguments)
        assert explained.exit_code == 0, explained.output
        name = "00.png.safetensors"
        stored = load_file(maps / "maps" / name)
        image = Image.open(images / "00.png")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, :, 2:-2].float() / 255
        target = int(stored["target"])
        model = TinyNet().eval()
        expected_map = LearnedPropagation(model, rules=RuleSet.load(out, model)).attribute(pixels, target=target)
        torch.testing.assert_close(stored["attribution"], expected_map[0], atol=1e-6, rtol=1e-4)

    def test_a_first_image_of_one_colour_does_not_hinder_a_box_rule(self, images: Path, tmp_path: Path) -> None:
        Image.new("RGB", (SIZE, SIZE), (20, 30, 40)).save(images / "000.png")
        out = tmp_path / "rules.safetensors"
        result = train(images, out, "--composite", "learned_epsilon_gamma_box", "--gate", "none")
        assert result.exit_code == 0, result.output

    def test_labels_from_folders(self, tmp_path: Path) -> None:
        for number in (1, 3):
            draw(tmp_path / "images" / str(number), 4, 10 * number)
        (tmp_path / "images" / "2").mkdir()
        broken = tmp_path / "images" / "0" / "a.png"
        broken.parent.mkdir()
        broken.write_text("no image")
        out = tmp_path / "rules.safetensors"
        result = train(tmp_path / "images", out, "--target", "label-from-folder")
        assert result.exit_code == 0, result.output
        assert "warning: no image in the class folder 2" in result.stderr
        assert "warning: no image in the class folder 0 can be read" in result.stderr
        assert RuleSet.load(out).training["rows_per_class"] == {"1": 3, "3": 3}

    def test_unreadable_images_are_left_out_by_name(self, images: Path, tmp_path: Path) -> None:
        expected = tmp_path / "expected.safetensors"
        assert train(images, expected).exit_code == 0
        (images / "00a.jpg").write_text("no image")
        (images / "04b.png").write_bytes((images / "04.png").read_bytes()[:200])
        result = train(images, tmp_path / "rules.safetensors")
        assert result.exit_code == 0
        for name in ("00a.jpg", "04b.png"):
            assert result.stderr.count(f"warning: skipped {name}: cannot read image") == 1
        assert_same(tmp_path / "rules.safetensors", expected)
        assert RuleSet.load(tmp_path / "rules.safetensors").training["skipped_images"] == 2

    def test_images_are_read_one_by_one(self, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from captum_learnprop.images import Preprocessing, find_images, read_image

        read: list[Path] = []
        monkeypatch.setattr(
            "captum_learnprop.commands._train_rules.read_image", lambda path: (read.append(path), read_image(path))[1]
        )
        data = _train_rules._ReadableImages(find_images(images), Preprocessing(SIZE, SIZE), None, {})
        assert read == []
        next(iter(data))
        assert [path.name for path in read] == ["00.png"]


class TestObjective:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("OcclusionRegression", OcclusionRegression()),
            (" OcclusionRegression() ", OcclusionRegression()),
            ("OcclusionRegression + 0.1*ClassContrast", OcclusionRegression() + 0.1 * ClassContrast()),
            ("ClassContrast(other='strongest')*2", 2 * ClassContrast(other="strongest")),
            ("2 * (Sufficiency + 0.5 * Necessity)", 2 * Sufficiency() + 1.0 * Necessity()),
            ("Sufficiency(area=(0.1, 0.2), fill=['noise', 'colour'])", None),
            ("Sufficiency(mask=AreaMask(temperature=0.2), area=0.3)", Sufficiency(AreaMask(temperature=0.2), 0.3)),
            ("Sufficiency(area=None, mask=MaxMask)", Sufficiency(MaxMask(), None)),
            ("plain + 1e-2*occlusion_regression", Necessity(area=0.3) + 0.01 * OcclusionRegression()),
            ("agreement(area=2, baseline='noise')", MaskedInput(Agreement(area=2, baseline="noise"), MaxMask())),
        ],
    )
    def test_values(self, text: str, expected: Any) -> None:
        if expected is None:
            from captum_learnprop.training.fills import FILLS

            first, second = list(FILLS)[:2]
            text = f"Sufficiency(area=(0.1, 0.2), fill=['{first}', '{second}'])"
            expected = Sufficiency(area=(0.1, 0.2), fill=(first, second))
        assert _objective.parse(text) == Objective.of(expected)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is no formula"),
            ("OcclusionRegression +", "is no formula"),
            ("OcclusionRegresion", r"unknown term 'OcclusionRegresion'; choose one of OcclusionRegression, .*plain"),
            ("OcclusionRegression - Area", "'OcclusionRegression - Area' is no weighted sum"),
            ("OcclusionRegression * Area", "is no weighted sum"),
            ("OcclusionRegression + 3", "'OcclusionRegression [+] 3' is no weighted sum"),
            ("2 * 3", "is no weighted sum"),
            ("3", "names no term"),
            ("True * Area", "'True' is no weighted sum"),
            ("'Area'", "is no weighted sum"),
            ("-1 * Area", "weight -1.* must be a finite number, at least 0"),
            ("0 * Area", "no weight above 0"),
            ("Area(2)", r"'Area\(2\)' must be a name with options"),
            ("Area(**{})", "must name its options"),
            ("Area(size=2)", r"Area cannot be made from \{'size': 2\}"),
            ("ClassContrast(other='nearest')", "unknown other 'nearest'"),
            ("Area(mask=RoundMask())", "unknown mask 'RoundMask'; choose one of AreaMask, MaxMask"),
            ("Sufficiency(area=1+1)", "'1 [+] 1' is no number"),
            ("__import__('os').system('true')", "must be a name with options"),
            ("Area(mask=open('x'))", "must be a name with options"),
            ("(lambda: 1)()", "must be a name with options"),
            ("odd", "odd gave 7, which is neither"),
        ],
    )
    def test_errors(self, text: str, message: str) -> None:
        with pytest.raises(LearnpropError, match=message):
            _objective.parse(text)


class TestResume:
    def test_an_interrupted_run_ends_alike(self, images: Path, tmp_path: Path) -> None:
        run = ["--examples-dir", str(tmp_path / "examples"), "--overwrite"]
        expected = tmp_path / "expected.safetensors"
        train(images, expected, *run)
        TinyNet.passes = 0
        train(images, expected, *run)
        total = TinyNet.passes
        # size and sites, first validation, steps, last validation, choice of the smoothing
        assert total == 3 + 1 + 4 + 1 + 8
        for at in (4, 5, 7, total):
            checkpoint, log, out = (tmp_path / f"{name}-{at}" for name in ("run", "log", "rules"))
            options = [*run, "--resume", str(checkpoint), "--log-dir", str(log)]
            TinyNet.passes, TinyNet.interrupt_at = 0, at
            stopped = train(images, out, *options)
            assert stopped.exit_code == 130, stopped.output
            assert "stopped; " in stopped.stderr
            assert (f"goes on from {checkpoint}" in stopped.stderr) == checkpoint.is_file()
            assert not out.exists()
            TinyNet.interrupt_at = 0
            assert train(images, out, *options).exit_code == 0
            assert_same(out, expected)
            assert [row["step"] for row in read_log(log / "training.csv")] == [0, 1, 2, 3, 4]
        assert (tmp_path / "run-7").is_file()

    def test_what_is_kept_is_told(self, images: Path, tmp_path: Path) -> None:
        for options, message in (
            ([], "--examples-dir keeps what was measured"),
            (["--examples-dir", str(tmp_path / "e")], f"what was measured is in {tmp_path / 'e'}"),
        ):
            TinyNet.passes, TinyNet.interrupt_at = 0, 9
            stopped = train(images, tmp_path / "rules.safetensors", *options)
            assert stopped.exit_code == 130
            assert message in stopped.stderr

    def test_another_run(self, images: Path, tmp_path: Path) -> None:
        options = ["--resume", str(tmp_path / "run.safetensors"), "--overwrite"]
        assert train(images, tmp_path / "rules.safetensors", *options).exit_code == 0
        result = train(images, tmp_path / "rules.safetensors", *options, "--lr", "0.5")
        check_error(result, "run.safetensors is of a run with other options", "lr: 0.03 there, 0.5 now")


class TestTorchrun:
    @each_launcher
    def test_two_processes_learn_what_one_learns(
        self, launcher: str, images: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The module itself, as torchrun starts it, with a model that ships with the package."""
        (images / "05b.png").write_text("no image")

        options = ["--size", "64", "--steps", "2", "--validation", "0.4", "--log-dir", str(tmp_path / "log")]
        options += ["--quantity", "logit", "--objective", "OcclusionRegression(density=0.5)"]
        one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
        assert train(images, one, *options, model="digits_cnn").exit_code == 0
        command = ["-m", "captum_learnprop.cli", *arguments(images, two, "digits_cnn"), *options]
        stdout, stderr = launch(command, 2, tmp_path_factory.mktemp("written"), launcher)
        assert stdout.count("written to") == 1
        assert stderr.count("skipped 05b.png") == 1
        first, second = (RuleSet.load(path).training for path in (one, two))
        assert (first["processes"], second["processes"]) == (1, 2)
        assert second["validation_loss"] == pytest.approx(first["validation_loss"], abs=1e-4)
        assert_same(one, two, 5e-3)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "images",
            "log",
            "one.safetensors",
            "two.safetensors",
        ]

    def test_the_first_process_alone_writes_and_prints(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (images / "05b.png").write_text("no image")
        monkeypatch.setenv("RANK", "1")
        result = train(images, tmp_path / "rules.safetensors", "--log-dir", str(tmp_path / "log"))
        assert result.exit_code == 0
        assert result.output == ""
        assert not (tmp_path / "rules.safetensors").exists()
        assert not (tmp_path / "log" / "training.png").exists()

    @pytest.mark.parametrize(
        ("device", "local", "expected"),
        [("cuda", "3", "cuda:3"), ("cuda", None, "cuda"), ("cuda:1", "3", "cuda:1"), ("cpu", "3", "cpu")],
    )
    def test_devices(self, device: str, local: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if local is not None:
            monkeypatch.setenv("LOCAL_RANK", local)
        seen: list[str] = []

        def run(request: _train_rules.Request) -> None:
            seen.append(request.device)
            raise LearnpropError("enough")

        monkeypatch.setattr(_train_rules, "run", run)
        check_error(train(Path("images"), Path("out"), "--device", device), "enough")
        assert seen == [expected]


def test_a_full_disk_at_the_end_costs_no_step(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, run = tmp_path / "rules.safetensors", tmp_path / "run.safetensors"
    save = RuleSet.save

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RuleSet, "save", full)
    check_error(train(images, out, "--resume", str(run)), "No space left", f"the run is kept in {run}")
    monkeypatch.setattr(RuleSet, "save", save)
    assert train(images, out, "--resume", str(run)).exit_code == 0
    assert RuleSet.load(out).training["steps_done"] == 4


def test_a_full_disk_on_the_way_costs_the_checkpoint_alone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save = RuleSet.save

    def save_with_room(*args: Any) -> Path:  # that the rules do not fit is another test
        with monkeypatch.context() as room:
            room.setattr(files.os, "fsync", lambda number: None)
            return save(*args)

    monkeypatch.setattr(files.os, "fsync", full)
    monkeypatch.setattr(RuleSet, "save", save_with_room)
    out, run = tmp_path / "rules.safetensors", tmp_path / "run.safetensors"
    result = train(images, out, "--resume", str(run), "--log-dir", str(tmp_path / "log"))
    assert result.exit_code == 0, result.output
    assert f"cannot write the checkpoint {run}: cannot write {run}: No space left on device" in result.stderr
    assert "cannot draw" in result.stderr
    assert RuleSet.load(out).training["steps_done"] == 4
    assert not run.exists()
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_names_of_files_may_be_as_long_as_the_disk_allows(images: Path, tmp_path: Path) -> None:
    out, run = tmp_path / ("r" * 243 + ".safetensors"), tmp_path / ("s" * 255)
    (images / "00.png").rename(images / ("x" * 251 + ".png"))
    (images / "01.png").rename(images / "\udcff.png")
    result = train(images, out, "--resume", str(run))
    assert result.exit_code == 0, result.output
    assert "warning: cannot write" not in result.stderr
    assert out.is_file()
    assert run.is_file()


def test_what_is_no_file_is_left_out(images: Path, tmp_path: Path) -> None:
    os.mkfifo(images / "pipe.png")
    (images / "dangling.png").symlink_to("nowhere")
    result = train(images, tmp_path / "rules.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[:2] == [
        "warning: skipped dangling.png: is a link to nothing",
        "warning: skipped pipe.png: is a pipe and no regular file",
    ]


@pytest.mark.parametrize(
    ("option", "value", "meant"),
    [
        ("--objective", "Sufficency", "'Sufficiency'"),
        ("--objective", "Sufficiency(aera=0.2)", "'area'"),
        ("--objective", "Sufficiency(mask=MaxMsk())", "'MaxMask'"),
        ("--objective", "Sufficiency(mask=MaxMask(sigmaa=0.1))", "'sigma'"),
        ("--objective", "plian", "'plain'"),
        ("--quantity", "logits", "'logit'"),
        ("--sign", "absolut", "'absolute'"),
        ("--precision", "bfloat", "'bfloat16'"),
        ("--target", "label_from_folder", "'label-from-folder'"),
        ("--model", "tinny", "'tiny'"),
    ],
)
def test_did_you_mean(images: Path, tmp_path: Path, option: str, value: str, meant: str) -> None:
    result = train(images, tmp_path / "rules.safetensors", option, value)
    assert result.exit_code in (1, 2)
    assert f"did you mean {meant}" in result.stderr


class TestMistakes:
    """All are told before anything is measured."""

    @pytest.fixture(autouse=True)
    def nothing_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def measure(*_: Any, **__: Any) -> None:
            raise AssertionError("measured")

        monkeypatch.setattr(trainer, "collect", measure)

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            (["--model", "torchvision:resnet19"], ["'resnet19'"]),
            (["--size", "2"], ["tiny does not take an input of (1, 3, 2, 2)", "--size"]),
            (["--device", "toaster"], ["device 'toaster' cannot be used"]),
            (["--gate", "golden"], ["unknown gate 'golden'"]),
            (["--gate", "element"], ["nothing to share", "'element'"]),
            (["--gate", "channel", "--contrast"], ["ChannelGate does not take", "contrast"]),
            (["--gate-option", "colour=1"], ["FeatureGate does not take colour: gate_options="]),
            (["--gate", "none", "--contrast"], ["PlainGate does not take contrast: gate_options={'contrast': True}"]),
            (["--positions", "--gate-option", "position=true"], ["'position' is given twice"]),
            (["--composite", "golden"], ["golden"]),
            (["--rule-option", "gamma=1"], ["LearnedGradient has no rule option 'gamma'; it has: none"]),
            (
                ["--composite", "learned_deeplift", "--rule-option", "gamma=1"],
                ["LearnedDeepLift has no rule option 'gamma'", "baseline"],
            ),
            (["--composite", "learned_deeplift", "--rule-option", "baseline=[1]"], ["baseline=[1]", "a finite number"]),
            (["--start", "golden"], ["golden"]),
            (["--objective", "Golden"], ["unknown term 'Golden'"]),
            (["--lr", "0"], ["lr and clip must be positive"]),
            (["--deletions", "2"], ["deletions must be at least 3"]),
            (["--validation", "1"], ["validation must be a share in [0, 1)"]),
            (["--target", "label-from-folder"], ["00.png lies in no sub-folder"]),
            (["--target", "label-from-folder", "--targets-per-image", "2"], ["--targets-per-image 2", "one class"]),
            (["--model", "linear"], ["no site"]),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_options(self, images: Path, tmp_path: Path, options: list[str], parts: list[str]) -> None:
        check_error(train(images, tmp_path / "rules.safetensors", *options), *parts)
        assert not (tmp_path / "rules.safetensors").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--gate-option", "position"], "'position' is not NAME=VALUE, such as position=true"),
            (["--rule-option", "gamma"], "'gamma' is not NAME=VALUE, such as gamma=0.25"),
            (["--rule-option", "gamma=1,5"], "'gamma=1,5' is neither JSON nor inf nor a word; write e.g. gamma=0.25"),
            (["--rule-option", "gamma=NaN"], "the value of 'gamma=NaN' is neither JSON"),
            (["--gate-option", "position=False"], "the value of 'position=False' is neither JSON"),
            (["--rule-option", "gamma=1", "--rule-option", "gamma=2"], "'gamma' is given twice"),
            (["--gate-option", "a=1", "--gate-option", "a=2"], "'a' is given twice"),
            (["--steps", "0"], "0 is not in the range"),
            (["--seed", "-1"], "-1 is not in the range"),
            (["--quantity", "probability"], "'probability' is not one of 'softmax'"),
            (["--target", "3"], "'3' is not one of 'predicted'"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_usage(self, images: Path, tmp_path: Path, options: list[str], message: str) -> None:
        result = train(images, tmp_path / "rules.safetensors", *options)
        assert result.exit_code == 2
        assert message in result.stderr

    def test_places(self, images: Path, tmp_path: Path) -> None:
        missing, file = tmp_path / "missing", tmp_path / "file"
        file.write_text("old")
        check_error(train(images, missing / "rules.safetensors"), f"the folder {missing} does not exist")
        check_error(train(images, tmp_path), "is a folder; name a file in it")
        check_error(train(images, file), f"{file} exists; add --overwrite")
        out = tmp_path / "rules.safetensors"
        check_error(train(images, out, "--resume", str(missing / "run")), "--resume", str(missing))
        for option in ("--log-dir", "--examples-dir"):
            check_error(train(images, out, option, str(file)), f"{option} {file} is a file")
        assert file.read_text() == "old"
        assert TinyNet.passes == 0

    def test_images(self, images: Path, tmp_path: Path) -> None:
        out, empty = tmp_path / "rules.safetensors", tmp_path / "empty"
        empty.mkdir()
        check_error(train(empty, out), f"no image in {empty}")
        check_error(train(tmp_path / "missing", out), "no such folder")
        check_error(train(tmp_path, out), "add --recursive")
        check_error(train(images, out, "--examples-dir", str(images)), "but those of --log-dir and --examples-dir")
        for path in images.iterdir():
            path.write_text("no image")
        check_error(train(images, out), f"none of the {COUNT} images can be read: cannot read image 00.png")

    def test_folders_that_name_no_class(self, tmp_path: Path) -> None:
        draw(tmp_path / "images" / "7", 2)
        result = train(tmp_path / "images", tmp_path / "rules.safetensors", "--target", "label-from-folder")
        check_error(result, "folder 7 is out of range")

    def test_more_images_than_memory(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_train_rules, "MEMORY_LIMIT", COUNT * 3 * SIZE**2 * 4 - 1)
        monkeypatch.setenv("WORLD_SIZE", "2")  # one process keeps them in a temporary folder
        check_error(
            train(images, tmp_path / "rules.safetensors"), "10 images of 16 x 16 pixels take", "--examples-dir DIR"
        )

    def test_random_weights_are_told(self, images: Path, tmp_path: Path) -> None:
        result = train(images, tmp_path / "r", "--gate", "golden", model="torchvision:squeezenet1_1")
        assert "has random weights" in result.stderr


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from captum_learnprop.cli import cli; cli(['train', '--help'], standalone_mode=False); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, timeout=60
    )
    assert "--objective FORMULA" in done.stdout
    words = set(re.findall(r"\w+", done.stdout.partition("Rule options")[2].partition("Options:")[0]))
    for composite in ("learned_epsilon_gamma_box", "learned_deeplift"):
        assert {composite, *composite_class(composite).default_options} <= words
    assert done.stdout.splitlines()[-1] == "False", done.stderr
