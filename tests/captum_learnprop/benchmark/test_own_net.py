"""The benchmark on a net of the user's own: what it asks, what it keeps, and that rules fit the bare net."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.candidate import Candidate, OnPixels
from captum_learnprop.benchmark.comparison import Treatment, treatments_of
from captum_learnprop.benchmark.gallery import read_maps, read_questions
from captum_learnprop.benchmark.identity import file_stem
from captum_learnprop.benchmark.kept_maps import galleries
from captum_learnprop.benchmark.own_net import OwnNet
from captum_learnprop.benchmark.scorecard import score
from captum_learnprop.benchmark.suite import SettingsError, Suite, read_cells, run
from captum_learnprop.benchmark.summary import summarise
from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import Preprocessing
from captum_learnprop.scenes.cutouts import CutoutSource
from captum_learnprop.scenes.seen import seen_by
from zennit_rules import RuleSet

SIDE = 48
PREPROCESSING = Preprocessing(SIDE, SIDE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CLASSES = 4


class Coloured(nn.Module):
    """Sees which colours are in an image: its classes are red, green, blue and none of them."""

    def __init__(self, gain: float = 6.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(3, CLASSES)
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.weight[:, :, 1, 1] = gain * (1.5 * torch.eye(3) - 0.5)
            self.first.bias.fill_(-1.0)
            self.head.weight.zero_()
            self.head.weight[:3] = torch.eye(3)
            self.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.relu(self.first(x)).mean((2, 3)))
        return logits


def candidate(name: str = "coloured", gain: float = 6.0, preprocessing: Preprocessing = PREPROCESSING) -> Candidate:
    return Candidate(name, Coloured(gain).eval(), preprocessing, ("red", "green", "blue", "nothing"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CutoutSource:
    folder = tmp_path_factory.mktemp("photographs")
    return draw_source(folder)


def draw_source(folder: Path, classes: int = 3, each: int = 3) -> CutoutSource:
    """Discs of one colour a class, on grey backgrounds."""
    (folder / "cutouts").mkdir()
    (folder / "backgrounds").mkdir()
    colours = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (10, 10, 10)]
    rows = []
    for label in range(classes):
        for copy in range(each):
            image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
            ImageDraw.Draw(image).ellipse((2 + copy, 2, 56, 56), fill=(*colours[label % 4], 255))
            image.save(folder / "cutouts" / f"{label}-{copy}.png")
            rows.append((f"{label}-{copy}.png", label))
    for number in range(5):
        grey = Image.effect_noise((80, 80), 20 + number).convert("RGB")
        grey.save(folder / "backgrounds" / f"{number}.png")
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "class"), *rows])
    return CutoutSource(folder / "cutouts", folder / "labels.csv", folder / "backgrounds")


METHODS = ("saliency", "Grad-CAM", "intensity", "ground truth", "gates, untrained", "gates, learned")


def suite(source: Any, *candidates: Candidate, **changed: Any) -> Suite:
    options: dict[str, Any] = {
        "variants": {"gates": {"deletions": 4, "batch_size": 4, "smoothing": 0.05}}, "methods": METHODS,
        "metrics": ("average precision", "class AUC", "deletion, blur", "insertion, other nets"),
        "training_seeds": (0,), "questions": 4, "tuning_questions": 4, "training_scenes": 6, "training_steps": 2,
    }  # fmt: skip
    return Suite.of_candidates(candidates or (candidate(),), (source,), **{**options, **changed})


@pytest.fixture(scope="module")
def whole(source: CutoutSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("whole")
    return out, run(suite(source, candidate(), candidate("other:net", 3.0)), out)


def test_every_method_has_a_cell_with_all_scores(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    cells = whole[1]
    assert [(one["model"], one["method"]) for one in cells] == [
        (name, method) for name in ("coloured", "other:net") for method in METHODS
    ]
    for one in cells:
        assert one["error"] is None, one["error"]
        assert one["scenes"] == "cutouts"
        assert list(one["scores"]) == ["average precision", "class AUC", "deletion, blur", "insertion, other nets"]
        assert all(len(values) == 4 and None not in values for values in one["scores"].values())
        assert one["questions per scene"] == 2
        assert one["recognised"] == 0.5  # of two objects one is the highest
    assert {row.together for row in summarise(cells)} == {2}
    assert {path.name for path in (whole[0] / "cells").iterdir()} >= {"other-net_cutouts_gates-learned_seed0.json"}


def test_the_truth_is_the_best_map(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    scores = {one["method"]: one["scores"] for one in whole[1] if one["model"] == "coloured"}
    assert scores["ground truth"]["average precision"] == [1.0] * 4
    assert min(scores["saliency"]["class AUC"]) > 0.9  # a red pixel speaks for red
    assert min(scores["saliency"]["class AUC"]) > max(scores["intensity"]["class AUC"])


def test_rules_are_those_of_the_bare_net_and_give_the_maps_that_were_scored(
    source: CutoutSource, whole: tuple[Path, list[dict[str, Any]]]
) -> None:
    net = candidate().net
    (path,) = (whole[0] / "rules").glob("coloured_cutouts_*_gates_scenes0_seed0.safetensors")
    rules = RuleSet.load(path, net)
    assert rules.sites[0].name == "relu"  # and not "net.relu"
    own = OwnNet(suite(source), candidate(), source, whole[0])
    questions = own.questions("cutouts", "test")
    inputs = PREPROCESSING.normalize(questions.images)
    maps = LearnedPropagation(net, rules=rules).maps(inputs, target=questions.targets)
    cell = next(one for one in whole[1] if (one["model"], one["method"]) == ("coloured", "gates, learned"))
    assert cell["scores"]["average precision"] == pytest.approx(
        score("average precision").metric.of({"maps": maps, "masks": questions.masks}).tolist(), abs=2e-6
    )
    assert cell["treatment"] == {"sign": "absolute", "sigma": pytest.approx(0.05 * SIDE)}


def test_only_scenes_that_the_net_sees_are_asked_about(source: CutoutSource, tmp_path: Path) -> None:
    blind = candidate()
    with torch.no_grad():
        blind.net.head.bias.copy_(torch.tensor([0.0, 0.0, -50.0, -1.0]))  # blue is never among the two highest
    questions = OwnNet(suite(source), blind, source, tmp_path, seen_among=2).questions("cutouts", "test")
    assert len(questions) == 4
    assert 2 not in questions.targets
    drawn = source.draw(20, split="test", seed=0, size=SIDE)
    assert 2 in drawn.targets
    expected = seen_by(blind.on_pixels(), drawn, top=2)[torch.arange(2)].questions()
    assert torch.equal(questions.images, expected.images)
    everything = OwnNet(suite(source), blind, source, tmp_path, seen_among=0).questions("cutouts", "test")
    assert torch.equal(everything.images, drawn[torch.arange(2)].questions().images)


def test_a_net_that_sees_nothing_is_told(source: CutoutSource, tmp_path: Path) -> None:
    blind = candidate()
    with torch.no_grad():
        blind.net.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 90.0]))
    with pytest.raises(LearnpropError, match=r"coloured, split '\w+': no scene that the model sees.*--seen-among 0"):
        OwnNet(suite(source), blind, source, tmp_path, seen_among=2)


def test_scenes_of_classes_that_the_net_does_not_have_are_refused(tmp_path: Path) -> None:
    source = draw_source(tmp_path, classes=6, each=1)
    with pytest.raises(LearnpropError, match="ask for class 5, and coloured has 4 classes, 0 to 3: give labels"):
        OwnNet(suite(source), candidate(), source, tmp_path)


def test_what_is_no_classifier_of_such_images_is_refused() -> None:
    with pytest.raises(LearnpropError, match=r"features is no classifier: it gives \(1, 3, 48, 48\)"):
        _ = Candidate("features", nn.Conv2d(3, 3, 1).eval(), PREPROCESSING).classes
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(10, 2)).eval()
    with pytest.raises(LearnpropError, match=r"narrow does not take an input of \(1, 3, 48, 48\): .*; give its size"):
        _ = Candidate("narrow", narrow, PREPROCESSING).classes


def test_cells_of_other_scenes_or_preprocessing_are_refused(
    source: CutoutSource, whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    both = (candidate(), candidate("other:net", 3.0))
    assert len(read_cells(suite(source, *both), whole[0])) == len(whole[1])
    with pytest.raises(SettingsError, match="computed with scenes"):
        run(suite(draw_source(tmp_path, each=2), *both), whole[0])
    brighter = replace(PREPROCESSING, mean=(0.1, 0.1, 0.1))
    with pytest.raises(SettingsError, match="computed with input"):
        run(suite(source, candidate(preprocessing=brighter)), whole[0])
    with pytest.raises(SettingsError, match="computed with seen among 10, this run has 3"):
        run(suite(source, *both, seen_among=3), whole[0])


def test_maps_of_the_first_questions_are_kept(source: CutoutSource, whole: tuple[Path, list[dict[str, Any]]]) -> None:
    shown = read_questions(whole[0] / "maps" / "coloured_cutouts_questions.safetensors")
    questions = OwnNet(suite(source), candidate(), source, whole[0]).questions("cutouts", "test")
    names = [("red", "green", "blue")[target] for target in questions.targets.tolist()]
    assert list(shown.titles) == [f"where is the {name}?" for name in names]
    method, maps = read_maps(whole[0] / "maps" / "coloured_cutouts_ground-truth_once.safetensors")
    assert method == "ground truth"
    cell = next(one for one in whole[1] if one["method"] == "ground truth")
    expected = Treatment(**cell["treatment"])(questions.masks[:, None].float())
    torch.testing.assert_close(maps.float(), expected, atol=1e-3, rtol=0.0)


def test_maps_that_were_trained_to_follow_outlines_are_scored_so(source: CutoutSource, tmp_path: Path) -> None:
    variants = {"gates": {"deletions": 4, "batch_size": 4, "smoothing": 0.05, "outlines": 0.2}}
    wanted = suite(
        source, variants=variants, methods=("gates, learned",), metrics=("average precision", "randomisation")
    )
    (cell,) = run(wanted, tmp_path)
    assert cell["error"] is None
    assert cell["treatment"]["outlines"] == pytest.approx(0.2 * SIDE)
    assert summarise([cell])[0].treatment.endswith(f"outlines {0.2 * SIDE:g} px")
    subject = OwnNet(wanted, candidate(), source, tmp_path)
    questions = subject.questions("cutouts", "test")
    method = LearnedPropagation(subject.net, rules=subject.trained("gates", 0))
    expected = method.maps(subject.inputs(questions.images), questions.targets)
    _, kept = read_maps(tmp_path / "maps" / "coloured_cutouts_gates-learned_seed0.safetensors")
    expected = expected / expected.abs().amax((1, 2), keepdim=True)  # as maps are kept, in half precision
    torch.testing.assert_close(kept.float(), expected, rtol=0.0, atol=2e-3)


def test_maps_are_scored_with_the_smoothing_that_training_chose(
    source: CutoutSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_learnprop.training.trainer.chosen_smoothing", lambda task, **options: 0.1)
    wanted = suite(source, variants={"gates": {"deletions": 4, "batch_size": 4}}, methods=("gates, learned",))
    (cell,) = run(wanted, tmp_path)
    assert cell["treatment"]["sigma"] == pytest.approx(0.1 * SIDE)
    (path,) = (tmp_path / "cells").iterdir()
    path.unlink()
    (again,) = run(wanted, tmp_path)  # by the rules that were kept
    assert (again["error"], again["scores"]) == (None, cell["scores"])


def test_images_in_pixels_are_normalised_for_the_net() -> None:
    net, images = Coloured().eval(), torch.rand(2, 3, SIDE, SIDE)
    on_pixels = OnPixels(net, PREPROCESSING)
    torch.testing.assert_close(on_pixels(images), net(PREPROCESSING.normalize(images)))
    assert not list(on_pixels.state_dict().keys() - {f"net.{name}" for name in net.state_dict()})
    small = torch.rand(2, 3, 20, 20)
    resized = nn.functional.interpolate(small, (SIDE, SIDE), mode="bilinear")
    torch.testing.assert_close(OnPixels(net, PREPROCESSING, resize=True)(small), on_pixels(resized))


def test_smoothings_are_fractions_of_the_side() -> None:
    assert {one.sigma for one in treatments_of(224)} == {0.0, 3.5, 7.0, 10.5, 14.0, 21.0, 28.0}
    assert {one.sigma for one in treatments_of(64)} == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_names_that_would_share_files_are_refused(source: CutoutSource) -> None:
    with pytest.raises(LearnpropError, match="two models have the name 'a-b'"):
        suite(source, candidate("a:b"), candidate("a b"))


def test_cells_say_what_decided_them(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    settings = whole[1][0]["settings"]
    assert settings["input"] == {"crop": SIDE, "mean": list(PREPROCESSING.mean), "std": list(PREPROCESSING.std)}
    assert settings["seen among"] == 10
    assert json.loads(json.dumps(settings)) == settings


def test_rules_of_other_scenes_are_not_taken_for_these(source: CutoutSource, tmp_path: Path) -> None:
    plain = suite(source, methods=("gates, learned",), metrics=("average precision",))
    run(plain, tmp_path)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "rules").iterdir()}
    shutil.rmtree(tmp_path / "cells")
    brighter = replace(PREPROCESSING, mean=(0.1, 0.1, 0.1))
    run(replace(plain, candidates=(candidate(preprocessing=brighter),)), tmp_path)
    found = {path.name: path.read_bytes() for path in (tmp_path / "rules").iterdir()}
    assert len(found) == 2
    assert kept.items() <= found.items()


def test_a_report_alone_refuses_cells_of_other_scenes(
    source: CutoutSource, whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    both = (candidate(), candidate("other:net", 3.0))
    with pytest.raises(SettingsError, match="computed with scenes"):
        read_cells(suite(draw_source(tmp_path, each=2), *both), whole[0])
    with pytest.raises(SettingsError, match="computed with weights"):
        read_cells(suite(source, candidate(gain=9.0)), whole[0])
    with pytest.raises(SettingsError, match="computed with net"):
        read_cells(suite(source, replace(candidate(), code="edited")), whole[0])


def test_other_judges_judge_anew(source: CutoutSource, tmp_path: Path) -> None:
    def judged(gain: float) -> dict[str, Any]:
        both = (candidate(), candidate("judge", gain))
        asked = suite(source, *both, methods=("saliency",), metrics=("average precision", "insertion, other nets"))
        found: dict[str, Any] = run(asked, tmp_path)[0]["scores"]
        return found

    first, again = judged(3.0), judged(3.0)
    assert first == again
    (tmp_path / "cells" / "judge_cutouts_saliency_once.json").unlink()
    other = judged(0.5)
    assert other["insertion, other nets"] != first["insertion, other nets"]
    assert other["average precision"] == first["average precision"]


def test_maps_of_other_questions_are_thrown_away(source: CutoutSource, tmp_path: Path) -> None:
    few = suite(source, methods=("saliency", "ground truth"), metrics=("average precision",))
    run(few, tmp_path)
    shutil.rmtree(tmp_path / "cells")
    rows = summarise(run(replace(few, methods=("saliency",), seed=5, questions=6), tmp_path))
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "coloured_cutouts_questions.safetensors", "coloured_cutouts_saliency_once.safetensors",
    ]  # fmt: skip
    assert len(galleries(tmp_path, rows)) == 6


def test_long_names_of_nets_make_short_names_of_files() -> None:
    first, second = "/a" * 200 + ":make", "/a" * 199 + "/b:make"
    assert len(file_stem(first)) < 90
    assert file_stem(first) != file_stem(second)
    assert file_stem("other:net") == "other-net"
