"""What ``learnprop attribute`` draws and says of each image: the trained map, the prediction, every method by name."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_cli_attribute import ReluNet, TinyNet, attribute, attributions, images, maps, parts, preprocessed, report
from torch import Tensor

from captum_learnprop import plot
from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.explain import GREY
from captum_learnprop.benchmark.hand_made import HAND_MADE
from captum_learnprop.cli import cli
from captum_learnprop.commands._drawing import drawn
from captum_learnprop.images import Preprocessing
from captum_learnprop.maps import postprocess
from captum_learnprop.training.trainer import RuleTrainer
from zennit_rules import RuleSet

__all__ = ["images", "parts"]  # fixtures


def overlays(out: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((out / "overlays").rglob("*.png"))])


def expected_overlays(pixels: Tensor, shown: Tensor) -> np.ndarray:
    return np.stack([drawn(*pair) for pair in zip(pixels, shown, strict=True)])


@pytest.fixture
def pixels(images: Path) -> Tensor:
    return torch.stack([preprocessed(path) for path in sorted(images.iterdir())])


class TestTrainedRules:
    @pytest.mark.parametrize(
        ("composite", "options"),
        [
            ("learned_gradient", {"sign": "positive", "smoothing": 0.08, "outlines": 0.1}),
            ("learned_gradient", {}),
            ("learned_epsilon_gamma_box", {}),
        ],
    )
    def test_the_overlay_is_the_map_of_the_training(
        self, images: Path, tmp_path: Path, pixels: Tensor, composite: str, options: dict[str, float]
    ) -> None:
        model = ReluNet().eval()
        trainer = RuleTrainer(model, composite=composite, steps=1, deletions=8, **options)
        rules = trainer.fit(pixels)
        file = rules.save(tmp_path / "rules.safetensors", model)
        result = attribute(images, tmp_path / "out", "--rules", str(file), method="learned_propagation", model="relu")
        assert result.exit_code == 0, result.output
        shown = LearnedPropagation(model, rules=RuleSet.load(file, model)).maps(pixels, model(pixels).argmax(1))
        np.testing.assert_array_equal(overlays(tmp_path / "out"), expected_overlays(pixels, shown))
        plain = postprocess(attributions(tmp_path / "out"), "signed", 0.0)
        assert not torch.allclose(shown, plain, rtol=1e-4)

    def test_rules_need_no_method(self, images: Path, tmp_path: Path, pixels: Tensor) -> None:
        model = ReluNet().eval()
        file = RuleSet.build(model, pixels).save(tmp_path / "rules.safetensors", model)
        fixed = ["--rules", str(file)]
        named = attribute(images, tmp_path / "named", *fixed, model="relu", method="learned_propagation")
        assert named.exit_code == 0
        command = ["attribute", "--model", "relu", "--images", str(images), "--size", "24"]
        bare = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "bare"), *fixed])
        assert bare.exit_code == 0, bare.output
        torch.testing.assert_close(attributions(tmp_path / "bare"), attributions(tmp_path / "named"))
        missing = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "none")])
        assert missing.exit_code == 2
        assert "Missing option '--method'" in missing.stderr

    def test_options_override(self, images: Path, tmp_path: Path, pixels: Tensor) -> None:
        flags = ("--sign", "positive", "--smoothing", "0.1", "--outlines", "0.2")
        assert attribute(images, tmp_path / "out", *flags).exit_code == 0
        shown = postprocess(attributions(tmp_path / "out"), "positive", 0.1, 0.2, pixels)
        np.testing.assert_array_equal(overlays(tmp_path / "out"), expected_overlays(pixels, shown))
        result = attribute(images, tmp_path / "out", "--sign", "signed")
        assert "sign: 'positive' there, 'signed' now" in result.stderr

    def test_a_plain_gradient_is_drawn_without_its_sign(self, images: Path, tmp_path: Path, pixels: Tensor) -> None:
        assert attribute(images, tmp_path / "out").exit_code == 0
        shown = postprocess(attributions(tmp_path / "out"), "absolute", 8 / 64)
        np.testing.assert_array_equal(overlays(tmp_path / "out"), expected_overlays(pixels, shown))

    def test_the_picture_is_that_of_the_library(self, pixels: Tensor) -> None:
        shown = torch.randn(24, 24)
        found = drawn(pixels[0], shown).astype(int)
        assert abs(found - 255 * plot.overlay(pixels[0], shown)).max() <= 1


class TestHandMadeMethods:
    @pytest.mark.parametrize(
        "method", ["Grad-CAM", "occlusion", "LRP epsilon plus, flat", "centre prior", "SmoothGrad"]
    )
    def test_by_the_names_of_evaluate(self, images: Path, tmp_path: Path, pixels: Tensor, method: str) -> None:
        result = attribute(images, tmp_path / "out", "--normalization", "imagenet", method=method, model="relu")
        assert result.exit_code == 0, result.output
        candidate = Candidate("relu", ReluNet().eval(), Preprocessing(24, 24))
        targets = candidate.on_pixels()(pixels).argmax(1)
        explain = HAND_MADE[method].build(candidate.on_pixels(), torch.full((1, 3, 24, 24), GREY))
        torch.testing.assert_close(attributions(tmp_path / "out"), explain(pixels, targets), rtol=1e-3, atol=1e-6)

    def test_all_are_there(self, images: Path, tmp_path: Path) -> None:
        (images / "0.png").rename(tmp_path / "0.png")
        for number, method in enumerate(HAND_MADE):
            if method.startswith(("extremal", "RISE", "integrated", "SmoothGrad")):
                continue  # slow, and made alike
            result = attribute(tmp_path / "0.png", tmp_path / f"out{number}", "--no-hdf5", method=method, model="relu")
            assert result.exit_code == 0 or "feature map" in result.stderr or "layer" in result.stderr, result.output

    def test_over_tokens(self, images: Path, tmp_path: Path) -> None:
        flags = ("--size", "64", "--target", "2")
        result = attribute(images, tmp_path / "out", *flags, method="CDAM", model="reference:vit-digits")
        assert result.exit_code == 0, result.output
        other = attribute(images, tmp_path / "other", method="AttentionRollout", model="relu")
        assert "AttentionRollout is for transformers" in other.stderr

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--steps", "3"), "--steps means nothing to the method Grad-CAM; leave it out"),
            (("--gate", "channel"), "--gate means nothing to the method Grad-CAM"),
            (("--method-option", "layer=3"), "--method-option layer means nothing"),
        ],
    )
    def test_take_no_options(self, images: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
        assert message in attribute(images, tmp_path / "out", *options, method="Grad-CAM").stderr

    def test_misspelt(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", method="GradCAM")
        assert "unknown method 'GradCAM'; did you mean 'Grad-CAM'" in result.stderr


class TestPredictions:
    def test_are_in_the_report_and_the_table(self, images: Path, tmp_path: Path, pixels: Tensor) -> None:
        assert attribute(images, tmp_path / "out", "--target", "2").exit_code == 0
        probabilities = TinyNet()(pixels).softmax(1).detach()
        entries = report(tmp_path / "out")["images"]
        assert [entry["id"] for entry in entries] == [f"{number}.png" for number in range(5)]
        for entry, row in zip(entries, probabilities, strict=True):
            assert entry["predicted"] == int(row.argmax())
            assert entry["probability"] == pytest.approx(float(row.max()), abs=1e-6)
            assert (entry["target"], entry["target_name"]) == (2, "2")
            assert entry["target_probability"] == pytest.approx(float(row[2]), abs=1e-6)
        with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [{name: str(value) for name, value in entry.items()} for entry in entries] == rows

    def test_class_names(self, images: Path, tmp_path: Path) -> None:
        result = attribute(images, tmp_path / "out", "--size", "64", model="digits_cnn")
        assert result.exit_code == 0, result.output
        assert {entry["predicted_name"] for entry in report(tmp_path / "out")["images"]} <= set("0123456789")


class TestIndex:
    def test_shows_every_image_and_links_to_its_overlay(self, images: Path, tmp_path: Path) -> None:
        odd = "<b>\"&'#?%41 ü.png"
        (images / "0.png").rename(images / odd)
        (images / "1.png").rename(images / "a\udcff.png")
        assert attribute(images, tmp_path / "out").exit_code == 0
        text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert "<b>&lt;b&gt;&quot;&amp;" in text
        assert "<b><b>" not in text
        links = re.findall(r'<a href="([^"]+)">', text)
        assert len(links) == 5
        for link in links:
            assert (tmp_path / "out" / unquote(unescape(link), errors="surrogateescape")).is_file()
        assert text.count("data:image/jpeg;base64,") == 5
        assert "http" not in text

    def test_pages(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("captum_learnprop.attribution_index.PER_PAGE", 2)
        assert attribute(images, tmp_path / "out").exit_code == 0
        out = tmp_path / "out"
        assert sorted(path.name for path in (out / "pages").iterdir()) == ["2.html", "3.html"]
        shown = "".join(
            path.read_text() for path in (out / "index.html", out / "pages" / "2.html", out / "pages" / "3.html")
        )
        assert shown.count("<figure>") == 5
        assert 'href="../overlays/2.png.png"' in (out / "pages" / "2.html").read_text()
        assert 'href="pages/3.html"' in (out / "index.html").read_text()
        assert 'href="../index.html"' in (out / "pages" / "3.html").read_text()
        for number in (1, 2, 3):
            (images / f"{number}.png").unlink()
        assert attribute(images, out).exit_code == 0
        assert list((out / "pages").iterdir()) == []


class TestLists:
    def test_csv_with_labels(self, images: Path, tmp_path: Path) -> None:
        (images / "some.csv").write_text("path,label\n3.png,4\n1.png,0\n2.png,\ngone.png,1\n")
        result = attribute(images / "some.csv", tmp_path / "out", "--target", "label")
        assert result.exit_code == 0, result.output
        targets = {name: int(tensors["target"]) for name, tensors in maps(tmp_path / "out").items()}
        assert targets == {"1.png": 0, "3.png": 4}
        reasons = {one["id"]: one["reason"] for one in report(tmp_path / "out")["skipped"]}
        assert reasons["2.png"] == "has no label"
        assert "gone.png" in reasons["gone.png"]
        other = attribute(images, tmp_path / "other", "--target", "label")
        assert "names no class" in other.stderr
        (images / "some.csv").write_text("3.png,9\n")
        assert "label 9 is out of range" in attribute(images / "some.csv", tmp_path / "b", "--target", "label").stderr

    def test_tar_gives_the_maps_of_the_folder(self, images: Path, tmp_path: Path) -> None:
        path = tmp_path / "data.tar"
        with tarfile.open(path, "w") as archive:
            for number in range(5):
                archive.add(images / f"{number}.png", f"{number}.png")
            broken = tarfile.TarInfo("broken.png")
            broken.size = 5
            archive.addfile(broken, io.BytesIO(b"noise"))
        (images / "list.txt").write_text("\n".join(f"{number}.png" for number in range(5)))
        for name, source in (("folder", images), ("tar", path), ("list", images / "list.txt")):
            assert attribute(source, tmp_path / name).exit_code == 0
        assert report(tmp_path / "tar")["skipped"][0]["id"] == "broken.png"
        assert list(maps(tmp_path / "tar")) == list(maps(tmp_path / "list")) == list(maps(tmp_path / "folder"))
        for name in ("tar", "list"):
            torch.testing.assert_close(attributions(tmp_path / name), attributions(tmp_path / "folder"), rtol=0, atol=0)
        assert "5 from an earlier run" in attribute(path, tmp_path / "tar").stdout

    def test_an_absolute_list_writes_below_out(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text(f"{images / '1.png'}\n../../../../..{images / '2.png'}\n")
        assert attribute(tmp_path / "list.txt", tmp_path / "out").exit_code == 0
        assert len(maps(tmp_path / "out")) == 2
        assert json.loads((tmp_path / "out" / "report.json").read_text())["found"] == 2
