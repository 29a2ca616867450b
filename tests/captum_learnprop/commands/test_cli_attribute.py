"""``learnprop attribute``, run as a user runs it, on small models without downloads."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from captum.attr import GradientAttribution, PerturbationAttribution, Saliency
from captum.log import log_usage
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_learnprop import files, plugins
from captum_learnprop.attribution.extremal.inputs import ExtremalPerturbation
from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.cli import cli
from captum_learnprop.commands import _explainer
from captum_learnprop.images import Preprocessing, read_image
from captum_learnprop.models import loading
from captum_learnprop.plugins import MethodRecord, ModelRecord, PluginManager, hookimpl
from zennit_rules import RuleSet

CLASSES = 5
SIZE = 24


class TinyNet(nn.Module):
    """Two convolutions and a linear layer; images with a blue corner give NaN."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Tanh())
        self.classifier = nn.Linear(6 * 3 * 3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        blue = (images[:, 2, 0, 0] == 1) & (images[:, 0, 0, 0] == 0)
        return torch.where(blue[:, None], torch.nan, logits)


class Stubborn(GradientAttribution):
    """Saliency that misbehaves at the call whose number says so."""

    calls = 0
    interrupt_at = 0
    ends_at = 0
    nan_at = 0

    @log_usage()
    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        Stubborn.calls += 1
        if Stubborn.calls == Stubborn.interrupt_at:
            raise KeyboardInterrupt
        if Stubborn.calls == Stubborn.ends_at:
            raise GeneratorExit
        attribution = Saliency(self.forward_func).attribute(inputs, target=target, abs=False)
        return attribution * torch.nan if Stubborn.calls == Stubborn.nan_at else attribution


class Noisy(GradientAttribution):
    """Gradient plus noise from torch's global generator: depends on the batch unless seeded with care."""

    def __init__(self, forward_func: Callable[..., Any], *, gate: str = "quiet") -> None:
        super().__init__(forward_func)
        self.level = {"quiet": 0.1, "loud": 10.0}[gate]

    @log_usage()
    def attribute(self, inputs: Tensor, target: Any = None, n_steps: int = 1) -> Tensor:
        return n_steps + self.level * torch.randn_like(inputs)


class Coarse(GradientAttribution):
    """One channel on a coarse grid, as layer methods give it."""

    @log_usage()
    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        return inputs.mean(1, keepdim=True)[:, :, ::8, ::8]


class Shapeless(GradientAttribution):
    """No map at all."""

    @log_usage()
    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        return inputs.sum()


class Occluding(PerturbationAttribution):
    """Stands for methods without a backward pass."""

    @log_usage()
    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        return torch.ones_like(inputs)


class Ruled(Saliency):
    """Takes rules itself, as LearnedPropagation does, and shows how many parameters they have."""

    def __init__(self, forward_func: Callable[..., Any], *, rules: RuleSet | None = None) -> None:
        super().__init__(forward_func)
        self.parameters = 0 if rules is None else sum(each.numel() for each in rules.parameters())

    @log_usage()
    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        return torch.full_like(inputs, self.parameters)


class ReluNet(nn.Sequential):
    """A net with rectifiers, so that guided backprop differs from the gradient."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(
            nn.Conv2d(3, 8, 5, 2),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            pool,
            nn.Flatten(),
            nn.Linear(8, 4),
        )


class Quitting(TinyNet):
    """A model that was made for another program."""

    def forward(self, images: Tensor) -> Tensor:
        raise SystemExit(0)


class ExtraParts:
    @hookimpl
    def learnprop_methods(self) -> Iterator[MethodRecord]:
        for factory in (Stubborn, Noisy, Coarse, Shapeless, Occluding, Ruled):
            yield MethodRecord(factory.__name__.lower(), factory, "for tests")
        yield MethodRecord("methodless", lambda model: model, "gives the model itself")
        yield MethodRecord("nothing", lambda model: None, "gives nothing")

    @hookimpl
    def learnprop_models(self) -> Iterator[ModelRecord]:
        yield ModelRecord("tiny", lambda *_: TinyNet(), "a small classifier")
        yield ModelRecord("relu", lambda *_: ReluNet(), "a small classifier with rectifiers")
        wide = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2**16 + 1))
        yield ModelRecord("wide", lambda *_: wide, "a classifier of very many classes")
        yield ModelRecord("features", lambda *_: TinyNet().features, "no classifier")
        yield ModelRecord("quitting", lambda *_: Quitting(), "ends the program when it is run")
        yield ModelRecord("number", lambda *_: 3, "no model")


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = PluginManager.discover()
    manager.register(ExtraParts(), "extra")
    for module in (plugins, loading, _explainer):
        monkeypatch.setattr(module, "get_manager", lambda: manager)
    Stubborn.calls = Stubborn.interrupt_at = Stubborn.ends_at = Stubborn.nan_at = 0


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        generator = np.random.default_rng(number)
        pixels = generator.integers(0, 255, (30 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def attribute(images: Path, out: Path, *options: str, model: str = "tiny", method: str = "saliency") -> Result:
    fixed = ["attribute", "--model", model, "--method", method, "--images", str(images), "--out", str(out)]
    return CliRunner().invoke(cli, [*fixed, "--size", str(SIZE), "--threads", "1", *options])


def preprocessed(path: Path) -> Tensor:
    preprocessing = Preprocessing(SIZE, SIZE).without_normalization()
    return preprocessing.normalize(preprocessing.pixels(read_image(path)))


def maps(out: Path) -> dict[str, dict[str, Tensor]]:
    folder, suffix = out / "maps", ".safetensors"
    found = sorted(folder.rglob(f"*{suffix}"))
    return {path.relative_to(folder).as_posix().removesuffix(suffix): load_file(path) for path in found}


def attributions(out: Path) -> Tensor:
    return torch.stack([tensors["attribution"] for tensors in maps(out).values()])


def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return content


def check_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr


class TestOutput:
    def test_torchvision_model(self, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = attribute(images, out, "--size", "64", model="torchvision:squeezenet1_1")
        assert result.exit_code == 0, result.output
        assert "random weights" in result.stderr
        assert "5 of 5 images done" in result.stdout
        drawn = sorted(path.name for path in (out / "overlays").iterdir())
        assert drawn == [f"{number}.png.png" for number in range(5)]
        with Image.open(out / "overlays" / "0.png.png") as overlay:
            assert (overlay.size, overlay.mode) == ((64, 64), "RGB")
        with h5py.File(out / "attributions.h5") as file:
            assert {name: (data.dtype, data.shape) for name, data in file.items() if name != "id"} == {
                "attribution": (np.float32, (5, 3, 64, 64)),
                "prediction": (np.float32, (5, 1000)),
                "label": (np.uint16, (5,)),
                "index": (np.uint32, (5,)),
            }
            assert np.abs(file["attribution"][:]).max() > 0
            assert file["label"][:].tolist() == file["prediction"][:].argmax(1).tolist()

    def test_maps_are_the_signed_gradient(self, images: Path, tmp_path: Path) -> None:
        assert attribute(images, tmp_path / "out", "--target", "2").exit_code == 0
        kept = maps(tmp_path / "out")["1.png"]
        with Image.open(images / "1.png") as image:
            scale = SIZE / image.height
            small = image.resize((int(image.width * scale), SIZE), Image.Resampling.BILINEAR)
        left = round((small.width - SIZE) / 2)
        pixels = torch.from_numpy(np.array(small)[:, left : left + SIZE]).permute(2, 0, 1)[None] / 255
        pixels.requires_grad_()
        logits = TinyNet()(pixels)
        (gradient,) = torch.autograd.grad(logits[0, 2], pixels)
        torch.testing.assert_close(kept["attribution"], gradient[0])
        torch.testing.assert_close(kept["prediction"], logits[0].detach())
        assert int(kept["target"]) == 2
        assert gradient.min() < 0 < gradient.max()

    def test_batch_size_does_not_change_the_maps(self, images: Path, tmp_path: Path) -> None:
        for size in ("1", "3", "64"):
            assert attribute(images, tmp_path / size, "--batch-size", size).exit_code == 0
        single = attributions(tmp_path / "1")
        torch.testing.assert_close(attributions(tmp_path / "3"), single, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(attributions(tmp_path / "64"), single, rtol=1e-5, atol=1e-7)

    def test_coarse_maps_are_kept_and_drawn_over_the_image(self, images: Path, tmp_path: Path) -> None:
        assert attribute(images, tmp_path / "out", method="coarse").exit_code == 0
        assert attributions(tmp_path / "out").shape == (5, 1, 3, 3)
        with Image.open(tmp_path / "out" / "overlays" / "0.png.png") as overlay:
            assert overlay.size == (SIZE, SIZE)

    def test_extremal_masks(self, images: Path, tmp_path: Path) -> None:
        options = ("--target", "2", "--steps", "30")
        assert attribute(images, tmp_path / "out", *options, method="extremal_perturbation").exit_code == 0
        masks = attributions(tmp_path / "out")
        assert masks.shape == (5, 1, SIZE, SIZE)
        assert 0 <= masks.min() < masks.max() <= 1

    def test_extremal_masks_bring_their_curve_and_the_area_that_suffices(self, images: Path, tmp_path: Path) -> None:
        areas = [0.1, 0.3, 0.6]
        options = ("--target", "2", "--steps", "20", "--method-option", f"areas={areas}")
        out = tmp_path / "out"
        for _ in range(2):  # the second run resumes, and writes the same
            assert attribute(images, out, *options, method="extremal_perturbation").exit_code == 0
            with (out / "extremal_areas.csv").open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            assert [(row["id"], float(row["area"])) for row in rows] == [
                (f"{number}.png", area) for number in range(5) for area in areas
            ]
        pixels = torch.stack([preprocessed(path) for path in sorted(images.iterdir())])
        masks, found = ExtremalPerturbation(TinyNet().eval()).attribute(
            pixels, 2, areas=areas, n_steps=20, return_masks=True
        )
        torch.testing.assert_close(attributions(out), masks, atol=1e-5, rtol=1e-3)
        shares = (found.rewards - found.empty[:, None]) / (found.original - found.empty)[:, None]
        torch.testing.assert_close(
            torch.tensor([float(row["preserved"]) for row in rows]), shares.flatten(), atol=1e-3, rtol=1e-3
        )
        for row, share in zip(rows[::3], shares, strict=True):
            enough = [area for area, one in zip(areas, share.tolist(), strict=True) if one >= 0.9]
            assert row["extremal_area"] == (f"{min(enough):g}" if enough else "")
        deleted = (*options, "--method-option", "variant=delete")
        assert attribute(images, tmp_path / "deleted", *deleted, method="extremal_perturbation").exit_code == 0
        assert not (tmp_path / "deleted" / "extremal_areas.csv").exists()

    def test_options_of_methods_and_of_their_attribute(self, images: Path, tmp_path: Path) -> None:
        given = {
            "multiply_by_inputs": True, "areas": 0.2, "perturbation": "fade", "baselines": 0.5, "variant": "dual",
        }  # fmt: skip
        flags = [part for name, value in given.items() for part in ("--method-option", f"{name}={json.dumps(value)}")]
        result = attribute(
            images, tmp_path / "out", "--target", "2", "--steps", "5", *flags, method="extremal_perturbation"
        )
        assert result.exit_code == 0, result.output
        pixels = torch.stack([preprocessed(path) for path in sorted(images.iterdir())])
        built = given.pop("multiply_by_inputs")
        method = ExtremalPerturbation(TinyNet().eval(), multiply_by_inputs=bool(built))
        expected = method.attribute(pixels, 2, n_steps=5, **given)
        assert expected.shape == (5, 3, SIZE, SIZE)
        torch.testing.assert_close(attributions(tmp_path / "out"), expected, atol=1e-5, rtol=1e-3)

    def test_options_that_a_method_does_not_have(self, images: Path, tmp_path: Path) -> None:
        for option, message in (
            ("areas=0.1", "--method-option areas means nothing to the method saliency; leave it out"),
            ("n_steps=3", "n_steps is an option of the command: --steps"),
            ("target=3", "target is an option of the command: --target"),
            ("inputs=1", "inputs is an option of the command: --images"),
            ("forward_func=1", "forward_func is an option of the command: --model"),
            ("areas", "'areas' is not NAME=VALUE, such as variant=dual"),
        ):
            result = attribute(images, tmp_path / "out", "--method-option", option)
            assert result.exit_code != 0
            assert message in result.output
        result = attribute(
            images, tmp_path / "out", "--method-option", "areas=2", "--target", "2", method="extremal_perturbation"
        )
        check_error(result, "areas are shares of the input in (0, 1), got 2")

    @pytest.mark.parametrize("method", ["cdam", "smooth_cdam", "generic_attention", "attention_map"])
    def test_maps_of_tokens_have_the_size_of_the_images(self, images: Path, tmp_path: Path, method: str) -> None:
        options = ("--size", "64", "--target", "2")
        result = attribute(images, tmp_path / "out", *options, method=method, model="reference:vit-digits")
        assert result.exit_code == 0, result.output
        found = attributions(tmp_path / "out")
        assert found.shape == (5, 1, 64, 64)
        assert abs(found).max() > 0

    def test_files_for_virelay(self, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert attribute(images, out, "--dataset-file").exit_code == 0
        with h5py.File(out / "dataset.h5") as data, h5py.File(out / "attributions.h5") as file:
            assert data["data"].shape == (5, 3, SIZE, SIZE)
            assert 0 <= data["data"][:].min() < 0.1 < 0.9 < data["data"][:].max() <= 1
            assert data["label"][:].tolist() == file["label"][:].tolist()
        assert len(json.loads((out / "label_map.json").read_text())) == CLASSES
        assert (out / "project.yaml").is_file()

    def test_no_hdf5(self, images: Path, tmp_path: Path) -> None:
        assert attribute(images, tmp_path / "out", "--no-hdf5").exit_code == 0
        assert not (tmp_path / "out" / "attributions.h5").exists()
        assert len(maps(tmp_path / "out")) == 5

    def test_files_for_virelay_need_the_hdf5_file(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--no-hdf5", "--dataset-file")
        assert result.exit_code == 2
        assert "leave out --no-hdf5" in result.stderr

    def test_out_inside_of_the_images(self, images: Path) -> None:
        for _ in range(2):
            result = attribute(images, images / "out", "--recursive")
            assert "5 of 5 images done" in result.stdout

    def test_options_reach_the_method(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--gate", "loud", "--steps", "1000", method="noisy")
        assert result.exit_code == 0, result.output
        values = attributions(tmp_path / "out")
        assert values.mean() == pytest.approx(1000, abs=1)
        assert values.std() == pytest.approx(10, rel=0.1)


class TestTarget:
    def test_predicted(self, images: Path, tmp_path: Path) -> None:
        assert attribute(images, tmp_path / "out").exit_code == 0
        for tensors in maps(tmp_path / "out").values():
            assert int(tensors["target"]) == int(tensors["prediction"].argmax())

    def test_from_folder(self, images: Path, tmp_path: Path) -> None:
        for number in (1, 4):
            (images / str(number)).mkdir()
            (images / f"{number}.png").rename(images / str(number) / "a.png")
        for left in (0, 2, 3):
            (images / f"{left}.png").unlink()
        assert attribute(images, tmp_path / "out", "--target", "label-from-folder").exit_code == 0
        targets = {name: int(tensors["target"]) for name, tensors in maps(tmp_path / "out").items()}
        assert targets == {"1/a.png": 1, "4/a.png": 4}

    def test_from_folder_without_folders(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--target", "label-from-folder")
        check_error(result, "0.png lies in no sub-folder")

    @pytest.mark.parametrize("target", ["5", "-1", "100000"])
    def test_out_of_range(self, images: Path, tmp_path: Path, target: str) -> None:
        result = attribute(images, tmp_path / "out", "--target", target)
        check_error(result, f"target {target} is out of range: tiny has 5 classes, 0 to 4")
        assert not (tmp_path / "out").exists()

    def test_no_number(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--target", "cat")
        assert result.exit_code == 2
        assert "'cat' is neither 'predicted', 'label-from-folder', 'label' nor a class number" in result.stderr


class TestSkipped:
    def test_unreadable_images_are_reported(self, images: Path, tmp_path: Path) -> None:
        (images / "2.png").write_bytes((images / "2.png").read_bytes()[:300])
        (images / "a.jpg").write_text("no image")
        out = tmp_path / "out"
        result = attribute(images, out, "--batch-size", "2", "--dataset-file")
        assert result.exit_code == 0, result.output
        assert "skipped 2.png: cannot read image 2.png" in result.stderr
        assert "4 of 6 images done, 2 skipped" in result.stdout
        assert [each["id"] for each in report(out)["skipped"]] == ["2.png", "a.jpg"]
        assert report(out)["computed"] == ["0.png", "1.png", "3.png", "4.png"]
        with h5py.File(out / "attributions.h5") as file:
            assert file["id"].asstr()[:].tolist() == ["0.png", "1.png", "3.png", "4.png"]
            assert file["index"][:].tolist() == [0, 1, 2, 3]

    def test_no_readable_image_is_a_failure(self, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        (folder / "a.png").write_text("no image")
        for _ in range(2):  # the report alone must not lock the folder
            result = attribute(folder, tmp_path / "out")
            assert result.exit_code == 1
            assert "0 of 1 images done, 1 skipped" in result.stdout
        assert report(tmp_path / "out")["skipped"][0]["id"] == "a.png"
        assert not (tmp_path / "out" / "attributions.h5").exists()

    def test_attributions_that_are_not_finite_are_refused(self, images: Path, tmp_path: Path) -> None:
        Stubborn.nan_at = 2
        result = attribute(images, tmp_path / "out", "--batch-size", "1", method="stubborn")
        assert result.exit_code == 0
        assert "skipped 1.png: refused: 1728 of 1728 attribution values are not finite" in result.stderr
        assert list(maps(tmp_path / "out")) == ["0.png", "2.png", "3.png", "4.png"]
        assert len(list((tmp_path / "out" / "overlays").iterdir())) == 4

    def test_an_output_that_is_not_finite_spares_its_batch(self, images: Path, tmp_path: Path) -> None:
        Image.new("RGB", (40, 40), "blue").save(images / "3.png")
        result = attribute(images, tmp_path / "out")
        assert "skipped 3.png: refused: the model's output for it is not finite" in result.stderr
        assert list(maps(tmp_path / "out")) == ["0.png", "1.png", "2.png", "4.png"]


class TestResume:
    @pytest.mark.parametrize("batch_size", ["1", "2"])
    def test_an_interrupted_run_loses_nothing(self, images: Path, tmp_path: Path, batch_size: str) -> None:
        def start(out: Path) -> Result:
            return attribute(images, out, "--batch-size", batch_size, method="stubborn")

        out = tmp_path / "out"
        assert start(tmp_path / "whole").exit_code == 0
        Stubborn.calls, Stubborn.interrupt_at = 0, 3
        stopped = start(out)
        before = 2 * int(batch_size)
        assert stopped.exit_code == 130
        assert f"stopped with {before} of 5 images done; the same command resumes" in stopped.stderr
        assert len(maps(out)) == before
        assert not [path for path in out.rglob(".*") if path.is_file()]
        stamps = {path: path.stat().st_mtime_ns for path in (out / "maps").iterdir()}

        resumed = start(out)
        assert resumed.exit_code == 0
        assert f"5 of 5 images done ({before} from an earlier run)" in resumed.stdout
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
        assert len(report(out)["resumed"]) == before
        torch.testing.assert_close(attributions(out), attributions(tmp_path / "whole"), rtol=0, atol=0)
        with h5py.File(out / "attributions.h5") as file:
            torch.testing.assert_close(torch.from_numpy(file["attribution"][:]), attributions(out))

    def test_random_numbers_are_those_of_an_uninterrupted_run(self, images: Path, tmp_path: Path) -> None:
        for out in ("whole", "parts"):
            assert attribute(images, tmp_path / out, "--batch-size", "3", method="noisy").exit_code == 0
        (tmp_path / "parts" / "maps" / "1.png.safetensors").unlink()
        attribute(images, tmp_path / "parts", "--batch-size", "3", method="noisy")
        assert report(tmp_path / "parts")["computed"] == ["1.png"]
        parts, whole = attributions(tmp_path / "parts"), attributions(tmp_path / "whole")
        torch.testing.assert_close(parts, whole, rtol=0, atol=0)
        assert attribute(images, tmp_path / "other", "--seed", "1", method="noisy").exit_code == 0
        assert not torch.allclose(attributions(tmp_path / "other"), whole)

    def test_nothing_is_explained_twice(self, images: Path, tmp_path: Path) -> None:
        (images / "a.jpg").write_text("no image")
        for _ in range(2):
            assert attribute(images, tmp_path / "out", method="stubborn").exit_code == 0
        assert Stubborn.calls == 1

    def test_new_and_changed_images_join(self, images: Path, tmp_path: Path) -> None:
        attribute(images, tmp_path / "out")
        Image.new("RGB", (40, 40), "red").save(images / "1.png")
        Image.new("RGB", (40, 40), "green").save(images / "00.png")
        attribute(images, tmp_path / "out")
        assert report(tmp_path / "out")["computed"] == ["00.png", "1.png"]
        with h5py.File(tmp_path / "out" / "attributions.h5") as file:
            assert file["id"].asstr()[:].tolist() == ["0.png", "00.png", "1.png", "2.png", "3.png", "4.png"]

    def test_another_run_in_the_folder(self, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        attribute(images, out)
        before = attributions(out)
        result = attribute(images, out, "--target", "1", method="input_x_gradient")
        check_error(
            result,
            "method: 'saliency' there, 'input_x_gradient' now",
            "target: 'predicted' there, 1 now",
            "--overwrite",
        )
        torch.testing.assert_close(attributions(out), before, rtol=0, atol=0)
        assert attribute(images, out, "--overwrite", method="input_x_gradient").exit_code == 0
        assert report(out)["resumed"] == []
        assert not torch.allclose(attributions(out), before)

    def test_a_checkpoint_with_new_content_is_another_run(self, images: Path, tmp_path: Path) -> None:
        checkpoint = tmp_path / "model.pt"
        checkpoint.write_bytes(b"first")
        assert attribute(images, tmp_path / "out", "--checkpoint", str(checkpoint)).exit_code == 0
        checkpoint.write_bytes(b"second")
        result = attribute(images, tmp_path / "out", "--checkpoint", str(checkpoint))
        check_error(result, "checkpoint: 'sha256:")

    def test_a_folder_of_somebody_else(self, images: Path, tmp_path: Path) -> None:
        check_error(attribute(images, images), "was not written by `learnprop attribute`")
        check_error(attribute(images, images, "--overwrite"), "was not written by `learnprop attribute`")
        assert len(list(images.iterdir())) == 5


class TestRules:
    @pytest.fixture
    def rules(self, tmp_path: Path) -> Path:
        model = ReluNet().eval()
        example = torch.rand(1, 3, SIZE, SIZE)
        built = RuleSet.build(model, example, gate="quadrant", start="guided_backprop")
        return built.save(tmp_path / "rules.safetensors", model)

    def test_a_gradient_method_runs_by_them(self, images: Path, tmp_path: Path, rules: Path) -> None:
        attribute(images, tmp_path / "plain", model="relu")
        attribute(images, tmp_path / "guided", model="relu", method="guided_backprop")
        result = attribute(images, tmp_path / "ruled", "--rules", str(rules), model="relu")
        assert result.exit_code == 0, result.output
        guided = attributions(tmp_path / "guided")
        torch.testing.assert_close(attributions(tmp_path / "ruled"), guided)
        assert not torch.allclose(attributions(tmp_path / "plain"), guided, rtol=0.1)

    def test_a_method_that_takes_them_gets_them(self, images: Path, tmp_path: Path, rules: Path) -> None:
        assert attribute(images, tmp_path / "out", "--rules", str(rules), model="relu", method="ruled").exit_code == 0
        expected = sum(each.numel() for each in RuleSet.load(rules).parameters())
        assert expected > 0
        assert (attributions(tmp_path / "out") == expected).all()

    def test_learned_propagation_runs_by_them(self, images: Path, tmp_path: Path, rules: Path) -> None:
        attribute(images, tmp_path / "guided", model="relu", method="guided_backprop")
        options = ["--rules", str(rules)]
        result = attribute(images, tmp_path / "ruled", *options, model="relu", method="learned_propagation")
        assert result.exit_code == 0, result.output
        torch.testing.assert_close(attributions(tmp_path / "ruled"), attributions(tmp_path / "guided"))

    @pytest.mark.parametrize(
        ("composite", "options"),
        [
            ("learned_guided_backprop", {}),
            ("learned_deeplift", {"baseline": 0.25}),
            ("learned_epsilon_gamma_box", {"gamma": 0.5, "conv": "gamma"}),
        ],
    )
    def test_rules_of_any_composite(
        self, images: Path, tmp_path: Path, composite: str, options: dict[str, Any]
    ) -> None:
        model, file = ReluNet().eval(), tmp_path / "of_composite.safetensors"
        start = "gradient" if composite == "learned_epsilon_gamma_box" else "deconvnet"  # gates of LRP have no other
        build: dict[str, Any] = {"composite": composite, "gate": "channel", "start": start}
        built = RuleSet.build(model, torch.rand(4, 3, SIZE, SIZE), **build, rule_options=options or None)
        with torch.no_grad():
            for number, parameter in enumerate(built.parameters()):
                parameter.add_(0.1 + 0.01 * number)
        built.save(file, model)
        result = attribute(images, tmp_path / "ruled", "--rules", str(file), model="relu", method="learned_propagation")
        assert result.exit_code == 0, result.output
        assert "warning: learned_propagation" not in result.stderr
        pixels = torch.stack([preprocessed(path) for path in sorted(images.iterdir())])
        targets = model(pixels).argmax(1)
        expected = LearnedPropagation(model, rules=built).attribute(pixels, target=targets)
        torch.testing.assert_close(attributions(tmp_path / "ruled"), expected, atol=1e-6, rtol=1e-3)
        saliency = attribute(images, tmp_path / "plain", "--rules", str(file), model="relu")
        assert saliency.exit_code == 0
        assert ("saliency neither starts nor ends as rules of" in saliency.stderr) == bool(options)
        flags = [part for name, value in options.items() for part in ("--rule-option", f"{name}={json.dumps(value)}")]
        flags += ["--composite", composite, "--gate", "channel", "--start", start, "--pooling", "exact"]
        learned = attribute(
            images, tmp_path / "new", "--steps", "1", *flags, model="relu", method="learned_propagation"
        )
        assert learned.exit_code == 0, learned.output
        method = LearnedPropagation(model, **{**build, "rule_options": options or None})
        expected = method.attribute(pixels, target=targets, n_steps=1)
        torch.testing.assert_close(attributions(tmp_path / "new"), expected, atol=1e-6, rtol=1e-3)

    def test_options_of_rules_that_mean_nothing(self, images: Path, tmp_path: Path, rules: Path) -> None:
        for option, flag in (("start=1", "--rule-option"), ("deconvnet", "--start"), ("soft", "--pooling")):
            result = attribute(images, tmp_path / "out", flag, option, model="relu")
            check_error(result, f"{flag} means nothing to the method saliency; leave it out")
        propagation: Any = {"model": "relu", "method": "learned_propagation"}
        result = attribute(images, tmp_path / "out", "--rule-option", "gamma=1", **propagation)
        check_error(result, "LearnedGradient has no rule option 'gamma'")
        result = attribute(images, tmp_path / "out", "--start", "deconvnet", "--rules", str(rules), **propagation)
        check_error(result, "start='deconvnet' was given, but the rule set has 'guided_backprop'")
        result = attribute(images, tmp_path / "out", "--rule-option", "gamma=1", "--rules", str(rules), **propagation)
        check_error(result, "rule_options={'gamma': 1} was given", "leave rule_options out")
        assert not (tmp_path / "out").exists()

    def test_learned_propagation_learns_without_them(self, images: Path, tmp_path: Path) -> None:
        attribute(images, tmp_path / "start", model="relu")
        for size in ("1", "4"):
            options = ["--gate", "position", "--steps", "4", "--batch-size", size]
            result = attribute(images, tmp_path / size, *options, model="relu", method="learned_propagation")
            assert result.exit_code == 0, result.output
        torch.testing.assert_close(attributions(tmp_path / "4"), attributions(tmp_path / "1"), rtol=1e-3, atol=1e-6)
        assert not torch.allclose(attributions(tmp_path / "1"), attributions(tmp_path / "start"), rtol=0.05)

    def test_an_unknown_gate_is_told_in_one_line(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--gate", "golden", method="learned_propagation")
        check_error(result, "golden")
        assert not (tmp_path / "out").exists()

    def test_other_rules_are_another_run(self, images: Path, tmp_path: Path, rules: Path) -> None:
        attribute(images, tmp_path / "out", "--rules", str(rules), model="relu")
        check_error(attribute(images, tmp_path / "out", model="relu"), "rules: 'sha256:", "None now")

    def test_rules_of_another_model(self, images: Path, tmp_path: Path, rules: Path) -> None:
        result = attribute(images, tmp_path / "out", "--rules", str(rules))
        check_error(result, "this rule set belongs to another model")
        assert not (tmp_path / "out").exists()

    def test_damaged_rules(self, images: Path, tmp_path: Path, rules: Path) -> None:
        rules.write_bytes(rules.read_bytes()[:100])
        check_error(attribute(images, tmp_path / "out", "--rules", str(rules), model="relu"), "truncated")

    @pytest.mark.parametrize(
        ("method", "reason"),
        [("occluding", "needs a gradient-based method"), ("deconvolution", "rules of its own")],
    )
    def test_methods_that_cannot_use_them(
        self, images: Path, tmp_path: Path, rules: Path, method: str, reason: str
    ) -> None:
        result = attribute(images, tmp_path / "out", "--rules", str(rules), model="relu", method=method)
        check_error(result, method, reason)


class TestMistakes:
    def test_no_image(self, tmp_path: Path) -> None:
        check_error(attribute(tmp_path, tmp_path / "out"), "no image in")

    def test_unknown_method(self, images: Path, tmp_path: Path) -> None:
        check_error(attribute(images, tmp_path / "out", method="salience"), "'salience'", "saliency")

    def test_unknown_model(self, images: Path, tmp_path: Path) -> None:
        check_error(attribute(images, tmp_path / "out", model="torchvision:resnet19"), "'resnet19'")

    def test_input_size_that_the_model_does_not_take(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--size", "60")
        check_error(result, "tiny does not take an input of (1, 3, 60, 60)", "--size")

    def test_model_that_does_not_classify(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", model="features")
        check_error(result, "features is no classifier: it gives (1, 6, 3, 3), expected (batch, classes)")

    def test_more_classes_than_the_layout_can_number(self, images: Path, tmp_path: Path) -> None:
        check_error(attribute(images, tmp_path / "out", model="wide"), "wide has 65537 classes", "--no-hdf5")
        assert attribute(images, tmp_path / "out", "--no-hdf5", model="wide").exit_code == 0

    def test_method_that_gives_no_map(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", method="shapeless")
        check_error(result, "shapeless gave () for images (5, 3, 24, 24), expected (B, C, H, W)")

    @pytest.mark.parametrize("option", ["--steps", "--gate", "--composite"])
    def test_options_of_other_methods(self, images: Path, tmp_path: Path, option: str) -> None:
        result = attribute(images, tmp_path / "out", option, "3")
        check_error(result, f"{option} means nothing to the method saliency")

    def test_device_that_is_not_there(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--device", "toaster")
        check_error(result, "device 'toaster' cannot be used")

    def test_debug_shows_the_traceback(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--target", "9", "--debug")
        assert result.exit_code == 1
        assert type(result.exception).__name__ == "LearnpropError"


class TestAnyFile:
    def test_names_that_are_too_long_for_their_maps(self, images: Path, tmp_path: Path) -> None:
        long = ["x" * 240 + ".png", "y" * 251 + ".png"]
        for number, name in enumerate(long):
            (images / f"{number}.png").rename(images / name)
        for done in ("5 of 5 images done in", "5 of 5 images done (5 from an earlier run)"):
            result = attribute(images, tmp_path / "out", method="stubborn")
            assert (result.exit_code, result.stderr) == (0, "")
            assert done in result.stdout
        assert Stubborn.calls == 1
        assert len(maps(tmp_path / "out")) == 5
        with h5py.File(tmp_path / "out" / "attributions.h5") as file:
            assert set(file["id"].asstr()[:]) == {"2.png", "3.png", "4.png", *long}

    def test_names_that_differ_by_bytes_that_are_no_text(self, images: Path, tmp_path: Path) -> None:
        for number, name in enumerate(("0\udcff.png", "0\udcfe.png", "0\\xff.png")):
            (images / f"{number}.png").rename(images / name)
        for done in ("5 of 5 images done in", "5 of 5 images done (5 from an earlier run)"):
            result = attribute(images, tmp_path / "out", "--dataset-file")
            assert result.exit_code == 0, result.output
            assert done in result.stdout
        assert len(maps(tmp_path / "out")) == 5
        assert not torch.allclose(*attributions(tmp_path / "out")[:2], rtol=0.01)
        check_error(attribute(images, tmp_path / "out\udcff"), r"out\udcff', whose name is no UTF-8")

    def test_what_is_no_file_is_left_out(self, images: Path, tmp_path: Path) -> None:
        os.mkfifo(images / "pipe\n.png")
        (images / "dangling.png").symlink_to("nowhere")
        (images / "folder.png").mkdir()
        (images / "broken.png").write_text("no image")
        for _ in range(2):
            result = attribute(images, tmp_path / "out")
            assert result.exit_code == 0
            assert "5 of 9 images done" in result.stdout
            assert "4 skipped in" in result.stdout
            assert result.stderr.splitlines() == [
                "skipped dangling.png: is a link to nothing",
                "skipped folder.png: is a folder and no regular file",
                r"skipped pipe\n.png: is a pipe and no regular file",
                "skipped broken.png: cannot read image broken.png: cannot identify image file",
            ]
        assert [one["id"] for one in report(tmp_path / "out")["skipped"]][2] == "pipe\n.png"

    def test_an_image_that_becomes_a_pipe(self, images: Path, tmp_path: Path) -> None:
        attribute(images, tmp_path / "out")
        (images / "1.png").unlink()
        os.mkfifo(images / "1.png")
        result = attribute(images, tmp_path / "out")
        assert "4 of 5 images done (4 from an earlier run), 1 skipped" in result.stdout

    def test_nothing_but_a_pipe(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        os.mkfifo(tmp_path / "images" / "a.png")
        check_error(attribute(tmp_path / "images", tmp_path / "out"), "left out a.png: is a pipe and no regular file")


class TestFullDisk:
    @pytest.fixture
    def room(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        """How many more files the disk takes."""
        left = {"files": 10**6}

        def fsync(number: int) -> None:
            left["files"] -= 1
            if left["files"] < 0:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(files.os, "fsync", fsync)
        return left

    @pytest.mark.parametrize("taken", range(16))
    def test_is_one_line_and_the_run_goes_on_later(
        self, images: Path, tmp_path: Path, room: dict[str, int], taken: int
    ) -> None:
        out = tmp_path / "out"
        room["files"] = taken
        result = attribute(images, out, "--batch-size", "2", method="stubborn")
        done = max(0, min(5, (taken - 1) // 2))
        if taken == 15:  # a manifest, five maps with their overlays, the HDF5 file, table, page and report
            assert result.exit_code == 0
            return
        check_error(result, "error: cannot write ", f"Disk quota exceeded; {done} of 5 images done")
        assert result.stderr.count("\n") == 1
        assert "make room, the same command resumes" in result.stderr
        assert len([path for path in out.rglob("*") if path.is_file()]) == taken
        room["files"] = 100
        resumed = attribute(images, out, "--batch-size", "2", method="stubborn")
        assert resumed.exit_code == 0, resumed.output
        assert "5 of 5 images done" in resumed.stdout
        assert len(report(out)["resumed"]) == done

    def test_a_folder_that_is_read_only(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files.os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
        result = attribute(images, tmp_path / "out", method="stubborn")
        check_error(result, "cannot write --out", "no permission to write to")
        assert Stubborn.calls == 0


class TestSeveralProcesses:
    @pytest.mark.parametrize("count", ["1", "", "many"])
    def test_one_is_none(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str) -> None:
        monkeypatch.setenv("WORLD_SIZE", count)
        assert attribute(images, tmp_path / "out", "--no-hdf5").exit_code == 0
        assert len(maps(tmp_path / "out")) == 5


class TestPluginsInUse:
    def test_ctrl_c_says_where_it_was(self, images: Path, tmp_path: Path) -> None:
        Stubborn.interrupt_at = 1
        result = attribute(images, tmp_path / "out", method="stubborn")
        assert result.exit_code == 130
        assert "the same command resumes (plugin 'extra': method 'stubborn')" in result.stderr

    def test_what_would_end_the_program_names_the_method(self, images: Path, tmp_path: Path) -> None:
        Stubborn.ends_at = 2
        result = attribute(images, tmp_path / "out", "--batch-size", "2", method="stubborn")
        check_error(result, "error: plugin 'extra': method 'stubborn': GeneratorExit")
        assert len(maps(tmp_path / "out")) == 2

    def test_a_model_that_ends_the_program(self, images: Path, tmp_path: Path) -> None:
        check_error(attribute(images, tmp_path / "out", model="quitting"), "plugin 'extra': SystemExit: 0")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": "number"}, "plugin 'extra': model 'number': model 'number' is not a torch.nn.Module but int"),
            ({"method": "nothing"}, "plugin 'extra': method 'nothing': it made nothing (None)"),
            ({"method": "methodless"}, "plugin 'extra': method 'methodless': it gave TinyNet("),
            ({"method": "shapeless"}, "plugin 'extra': method 'shapeless': shapeless gave () for images"),
        ],
    )
    def test_what_is_none(self, images: Path, tmp_path: Path, options: dict[str, str], message: str) -> None:
        check_error(attribute(images, tmp_path / "out", **options), message)


class TestDidYouMean:
    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            (["--method", "salincy"], "'saliency'"),
            (["--model", "tinyy"], "'tiny'"),
            (["--model", "torchvision:resnet_18"], "'resnet18'"),
            (["--model", "torchvision:resnet18", "--weights", "default"], "'DEFAULT'"),
            (["--model", "reference:resnet-digit"], "'resnet-digits'"),
            (["--method-option", "ab=true"], "'abs'"),
            (["--method", "extremal_perturbation", "--method-option", "area=0.1"], "'areas'"),
            (["--target", "predict"], "'predicted'"),
            (["--target", "label_from_folder"], "'label-from-folder'"),
            (["--pooling", "sotf"], "'soft'"),
            (["--normalization", "imagnet"], "'imagenet'"),
        ],
    )
    def test_wherever_a_name_is_given(self, images: Path, tmp_path: Path, given: list[str], meant: str) -> None:
        result = attribute(images, tmp_path / "out", *given)
        assert result.exit_code in (1, 2)
        assert f"did you mean {meant}" in result.stderr
        assert result.stderr.count("\n") == 1 + ("random weights" in result.stderr)
