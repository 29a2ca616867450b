"""The benchmark on a tiny net: every cell once, resumed where it stopped, and the same whichever way it got there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_learnprop.benchmark import cells as cells_on_disk
from captum_learnprop.benchmark import contenders as methods
from captum_learnprop.benchmark import gamma_grid, hand_made
from captum_learnprop.benchmark.cells import cell_path
from captum_learnprop.benchmark.comparison import Treatment, best_treatment, treatments_at
from captum_learnprop.benchmark.contenders import PER_SAMPLE, REFINED
from captum_learnprop.benchmark.examination import Examination
from captum_learnprop.benchmark.gamma_grid import GRIDS, Grid
from captum_learnprop.benchmark.nets import BATCH, ReferenceSubject, Subject
from captum_learnprop.benchmark.report import to_markdown
from captum_learnprop.benchmark.rule_families import RULE_FAMILIES
from captum_learnprop.benchmark.scorecard import ROAD_PERCENTAGES, SCORES, STEPS, Case, score
from captum_learnprop.benchmark.suite import SettingsError, Suite, contenders, default_variants, read_cells, run
from captum_learnprop.benchmark.summary import NOT_RUN, summarise
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.faithfulness import deletion, insertion, morf_lerf_area
from captum_learnprop.evaluation.localization import average_precision, class_auc
from captum_learnprop.evaluation.randomization import full_randomization
from captum_learnprop.evaluation.road import road
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.scenes import make_scenes
from zennit_rules import RuleError, RuleSet

SHIPPED = reference_nets.load
EXAMPLE = torch.full((1, 3, 64, 64), 0.5)


class Tiny(nn.Module):
    """A net that is quick; its class does not matter to the benchmark."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 5, stride=4, padding=2)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.relu(self.first(x - 0.5))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def tiny(architecture: str, task: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(len(architecture) + 10 * len(task))
        return Tiny().eval()


@pytest.fixture(autouse=True)
def nets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_nets, "load", tiny)


METHODS = ("saliency", "LRP z+, box", "random", "gates, untrained", "gates, learned")

SUITE = Suite(
    architectures=("vgg",),
    families=("pairs",),
    variants={"gates": {"deletions": 4, "batch_size": 4, "smoothing": 0.025}},
    methods=METHODS,
    metrics=("average precision", "class AUC", "deletion, zero"),
    training_seeds=(0, 1),
    questions=4,
    tuning_questions=4,
    training_scenes=6,
    training_steps=2,
    sample_steps=2,
)


def timeless(cells: list[dict[str, Any]]) -> str:
    return json.dumps([{key: value for key, value in one.items() if "seconds" not in key} for one in cells])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    out = tmp_path_factory.mktemp("whole")
    patch = pytest.MonkeyPatch()
    patch.setattr(reference_nets, "load", tiny)
    yield out, run(SUITE, out)
    patch.undo()


def test_one_cell_for_each_method_and_training_seed(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    out, cells = whole
    assert [(one["method"], one["seed"]) for one in cells] == [
        ("saliency", None), ("LRP z+, box", None), ("random", None), ("gates, untrained", None),
        ("gates, learned", 0), ("gates, learned", 1),
    ]  # fmt: skip
    assert len(list((out / "cells").iterdir())) == 6
    assert sorted(path.name for path in (out / "rules").iterdir()) == [
        "vgg_digits_gates_scenes0_seed0.safetensors", "vgg_digits_gates_scenes0_seed1.safetensors",
    ]  # fmt: skip
    for one in cells:
        assert one["error"] is None
        assert list(one["scores"]) == list(SUITE.metrics)
        assert all(len(values) == 4 for values in one["scores"].values())
        assert list(one["same smoothing"]["scores"]) == ["average precision", "class AUC"]
        assert one["seconds"] > 0


def test_scores_are_those_of_the_metrics_and_treatments_those_of_the_tuning_split(
    whole: tuple[Path, list[dict[str, Any]]],
) -> None:
    model = tiny("vgg", "digits")
    explain = hand_made.hand_made("saliency").build(model, EXAMPLE)
    tuning = make_scenes("pairs", 2, split="validation").questions()
    test = make_scenes("pairs", 2, split="test").questions()
    treatment = best_treatment(explain(tuning.images, tuning.targets), tuning.masks)
    maps = treatment(explain(test.images, test.targets))
    cell = whole[1][0]
    assert cell["treatment"] == treatment.config()
    expected = {
        "average precision": average_precision(maps, test.masks),
        "class AUC": class_auc(maps, test.masks, test.other_masks),
        "deletion, zero": deletion(model, test.images, maps, test.targets, steps=10, output="sigmoid"),
    }
    for name, values in expected.items():
        assert cell["scores"][name] == pytest.approx(values.tolist(), abs=2e-6)
    alike = best_treatment(explain(tuning.images, tuning.targets), tuning.masks, treatments_at(0.025 * 64))
    assert cell["same smoothing"]["treatment"] == alike.config()
    same = alike(explain(test.images, test.targets))
    assert not torch.equal(same, maps)
    for name, values in {
        "average precision": average_precision(same, test.masks),
        "class AUC": class_auc(same, test.masks, test.other_masks),
    }.items():
        assert cell["same smoothing"]["scores"][name] == pytest.approx(values.tolist(), abs=2e-6)


def test_removal_curves_have_the_fill_of_their_name_and_randomisation_is_that_of_all_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def normed(architecture: str, task: str) -> nn.Module:
        model = tiny(architecture, task)
        model.second = nn.Sequential(model.second, nn.BatchNorm2d(4))
        return model.eval()

    monkeypatch.setattr(reference_nets, "load", normed)
    names = [name for name, one in SCORES.items() if not one.cheap and one.defined_on("pairs")]
    (cell,) = run(replace(SUITE, methods=("saliency",), metrics=tuple(names), training_scenes=40), tmp_path)
    model, treatment = normed("vgg", "digits"), Treatment(**cell["treatment"])
    questions = make_scenes("pairs", 2, split="test").questions()
    images, targets = questions.images, questions.targets

    def explain(net: nn.Module, inputs: Tensor, asked: Tensor) -> Tensor:
        return treatment(hand_made.hand_made("saliency").build(net, EXAMPLE)(inputs, asked))

    arguments = (model, images, explain(model, images, targets), targets)
    curve = {"steps": STEPS, "output": "sigmoid"}
    training = make_scenes("pairs", 40, split="train").images
    expected = {
        **{f"deletion, {fill}": deletion(*arguments, baseline=fill, **curve) for fill in ("zero", "blur", "mean")},
        "insertion, blur": insertion(*arguments, baseline="blur", **curve),
        "MoRF-LeRF area": morf_lerf_area(*arguments, baseline="mean", **curve),
        "ROAD": road(*arguments, percentages=ROAD_PERCENTAGES, output="sigmoid"),
        "randomisation": full_randomization(
            model, explain, images, targets, seeds=(0, 1), recalibrate=training[:BATCH]
        ),
    }
    assert set(expected) == set(names) - {"insertion, other nets"}  # has a test of its own
    for name, values in expected.items():
        assert cell["scores"][name] == pytest.approx(values.tolist(), abs=2e-6), name
    assert len({str(cell["scores"][name]) for name in names}) == len(names)


def test_learned_maps_have_the_smoothing_that_they_were_trained_with(
    whole: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, cells = whole
    rules = RuleSet.load(out / "rules" / "vgg_digits_gates_scenes0_seed1.safetensors", tiny("vgg", "digits"))
    assert rules.training["seed"] == 1
    assert rules.training["steps_done"] == 2
    assert rules.training["quantity"] == "logit"
    assert rules.training["targets_per_image"] == 2
    learned = cells[-1]
    assert learned["treatment"] == {"sign": "absolute", "sigma": pytest.approx(0.025 * 64)}
    assert learned["treatment"] == learned["same smoothing"]["treatment"]


def test_an_interrupted_run_goes_on_where_it_stopped(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int, text: str) -> None:
        assert total == 6
        if done == 5 and "learning" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SUITE, tmp_path, progress=stop)
    assert len(list((tmp_path / "cells").iterdir())) == 5
    computed: list[str] = []
    measured = Examination.measured

    def spy(self: Any, contender: Any, seed: int, wanted: list[str]) -> dict[str, Any]:
        computed.append(f"{contender.name}, {seed}")
        return measured(self, contender, seed, wanted)

    monkeypatch.setattr(Examination, "measured", spy)
    cells = run(SUITE, tmp_path)
    assert computed == ["gates, learned, 1"]
    assert timeless(cells) == timeless(whole[1])
    assert timeless(read_cells(SUITE, tmp_path)) == timeless(cells)
    computed.clear()
    more = run(replace(SUITE, metrics=("average precision", "pointing game"), methods=("random",)), tmp_path)
    assert computed == ["random, 0"]  # a score was missing
    assert list(more[0]["scores"]) == ["average precision", "class AUC", "pointing game", "deletion, zero"]
    assert list(more[0]["same smoothing"]["scores"]) == ["average precision", "class AUC", "pointing game"]
    before = next(one for one in cells if one["method"] == "random")
    assert {name: more[0]["scores"][name] for name in before["scores"]} == before["scores"]
    monkeypatch.setattr(Examination, "measured", refuse)
    (failed,) = run(replace(SUITE, metrics=("rank accuracy",), methods=("random",)), tmp_path)
    assert failed["error"] == "no map today"
    (kept,) = read_cells(replace(SUITE, methods=("random",)), tmp_path)
    assert kept == more[0]
    monkeypatch.setattr(Examination, "measured", spy)
    path = tmp_path / "cells" / "vgg_pairs_random_once.json"
    path.write_text(json.dumps({**kept, "treatment": {"sign": "signed", "sigma": 9.0}}))
    (anew,) = run(replace(SUITE, metrics=("rank accuracy", "class AUC"), methods=("random",)), tmp_path)
    assert list(anew["scores"]) == ["rank accuracy", "class AUC"]  # the others were of maps treated in another way


def refuse(*arguments: object) -> None:
    raise LearnpropError("no map today")


def test_cells_of_other_settings_or_nets_are_refused(
    whole: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = whole
    before = {path: path.read_bytes() for path in (out / "cells").iterdir()}
    with pytest.raises(LearnpropError, match=r"computed with questions 4, this run has 8; choose another folder"):
        run(replace(SUITE, questions=8), out)
    with pytest.raises(LearnpropError, match="computed with training steps 2, this run has 3"):
        run(replace(SUITE, training_steps=3), out)
    with pytest.raises(LearnpropError, match="computed with deletions 4, this run has 5"):
        run(replace(SUITE, variants={"gates": {**SUITE.variants["gates"], "deletions": 5}}), out)
    monkeypatch.setattr(reference_nets, "load", lambda architecture, task: tiny("another", task))
    with pytest.raises(LearnpropError, match="computed with weights"):
        run(SUITE, out)
    assert before == {path: path.read_bytes() for path in (out / "cells").iterdir()}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"questions": 8}, "questions 4, this run has 8"),
        ({"tuning_questions": 2}, "tuning questions 4, this run has 2"),
        ({"seed": 7}, "seed 0, this run has 7"),
        ({"training_scenes": 5}, "training scenes 6, this run has 5"),
        ({"training_steps": 3, "methods": ("gates, learned",)}, "training steps 2, this run has 3"),
        ({"variants": {"gates": {**SUITE.variants["gates"], "smoothing": 0.05}}}, "same smoothing 1.6, this run"),
        ({"variants": {"gates": {**SUITE.variants["gates"], "lr": 0.5}}}, "lr 0.03, this run has 0.5"),
    ],
)
def test_a_report_of_other_settings_is_refused(
    whole: tuple[Path, list[dict[str, Any]]], changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        read_cells(replace(SUITE, **changed), whole[0])


def test_a_report_of_another_version_or_of_several_nets_is_refused(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole[0] / "cells", tmp_path / "cells")
    monkeypatch.setattr(cells_on_disk, "VERSION", 2)
    with pytest.raises(SettingsError, match="version 1, this run has 2"):
        read_cells(SUITE, tmp_path)
    monkeypatch.undo()
    path = tmp_path / "cells" / "vgg_pairs_random_once.json"
    cell = json.loads(path.read_text())
    cell["settings"]["weights"] = "another net"
    path.write_text(json.dumps(cell))
    with pytest.raises(SettingsError, match="computed with weights 'another net'"):
        read_cells(SUITE, tmp_path)


def test_a_report_names_what_is_missing_and_reads_nothing_else(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    shutil.copytree(whole[0] / "cells", tmp_path / "cells")
    (tmp_path / "cells" / "vgg_pairs_random_once.json").unlink()
    (tmp_path / "cells" / "vgg_pairs_gates-learned_seed1.json").unlink()
    (tmp_path / "cells" / "vgg_grid_random_once.json").write_text("of other scenes, and no JSON")
    cells = read_cells(SUITE, tmp_path)
    assert [(one["method"], one["seed"]) for one in cells if one["error"] == NOT_RUN] == [
        ("random", None), ("gates, learned", 1),
    ]  # fmt: skip
    text = to_markdown(summarise(cells))
    assert "- random: not run\n" in text
    assert "- gates, learned, seed 1: not run\n" in text
    assert "| gates, learned (1 of 2 seeds) |" in text
    assert "| gates, untrained |" in text


def test_a_training_seed_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Subject._train

    def fails(self: Any, variant: str, seed: int, path: Path) -> RuleSet:
        if seed == 1:
            raise RuntimeError("the loss is not finite")
        return train(self, variant, seed, path)

    monkeypatch.setattr(Subject, "_train", fails)
    cells = run(replace(SUITE, methods=("gates, learned",)), tmp_path)
    assert [one["error"] for one in cells] == [None, "RuntimeError: the loss is not finite"]
    (row,) = summarise(cells)
    assert (row.error, row.seeds, row.asked) == (None, 1, 2)
    assert row.estimates["average precision"].mean == pytest.approx(sum(cells[0]["scores"]["average precision"]) / 4)
    text = to_markdown([row])
    assert "| gates, learned (1 of 2 seeds) |" in text
    assert "- gates, learned, seed 1: did not run. RuntimeError: the loss is not finite" in text


def test_a_method_that_cannot_run_says_why_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module, example: Tensor) -> hand_made.Explain:
        raise hand_made.LearnpropError("there is no feature map")

    suite = replace(SUITE, methods=("saliency", "random"))
    broken = replace(hand_made.HAND_MADE["saliency"], build=refuse)
    with monkeypatch.context() as patch:
        patch.setitem(hand_made.HAND_MADE, "saliency", broken)
        cells = run(suite, tmp_path)
    assert [one["error"] for one in cells] == ["there is no feature map", None]
    assert cells[0]["scores"] == {}
    assert run(suite, tmp_path)[0]["error"] is None


def test_all_methods_run_on_every_family(tmp_path: Path) -> None:
    suite = replace(
        SUITE, families=("parts", "grid", "patch", "digits"), training_seeds=(0,), metrics=(), questions=2,
        tuning_questions=2, variants={"gates": {"deletions": 4}, "contrast": {"gate_options": {"contrast": True}}},
        methods=("saliency", "contrast, learned", PER_SAMPLE, REFINED),
    )  # fmt: skip
    cells = run(suite, tmp_path)
    assert {one["method"]: one["error"] for one in cells if one["error"]} == {}
    by_family = {one["scenes"]: one["scores"].keys() for one in cells}
    assert list(by_family) == ["grid", "digits", "patch", "parts"]  # the families of one net in a row
    own = {"class AUC", "distractor AUC", "grid pointing", "part correlation"}
    for family, extra in {
        "grid": {"class AUC", "grid pointing"}, "digits": set(), "patch": {"distractor AUC"},
        "parts": {"part correlation"},
    }.items():  # fmt: skip
        assert by_family[family] == set(SCORES) - own | extra
    for one in cells:
        assert all(0 <= value <= 1 for value in one["scores"]["randomisation"])
    assert {one["method"]: one["passes"] for one in cells} == {
        "saliency": 2, "contrast, learned": 3, PER_SAMPLE: 202, REFINED: 214,
    }  # fmt: skip
    for one in cells:
        if one["method"] == REFINED:
            assert one["treatment"] == {"sign": "absolute", "sigma": pytest.approx(1.6)}  # of the shared rules
            assert one["settings"]["method options"] == "5 steps, occlusion"
            assert one["settings"]["training options"]["deletions"] == 4
            assert one["training seconds"] >= 0
    (first,) = [one for one in contenders(replace(suite, variants={"contrast": suite.variants["contrast"]}))
                if one.name == REFINED]  # fmt: skip
    assert first.passes == 215


def test_given_rules_are_a_method_on_the_net_that_they_fit(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    path = whole[0] / "rules" / "vgg_digits_gates_scenes0_seed0.safetensors"
    suite = replace(SUITE, architectures=("vgg", "inception"), methods=("random",), rules=(path,))
    cells = run(suite, tmp_path)
    given = [one for one in cells if one["method"] == f"rules {path.stem}"]
    assert [one["model"] for one in given] == ["vgg"]
    assert given[0]["scores"] == next(one for one in whole[1] if one["seed"] == 0)["scores"]
    with pytest.raises(LearnpropError, match="fit none of the nets inception"):
        run(replace(suite, architectures=("inception",)), tmp_path / "other")


def test_given_rules_of_one_name_or_that_fail_are_not_hidden(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = whole[0] / "rules" / "vgg_digits_gates_scenes0_seed0.safetensors"
    (tmp_path / "other").mkdir()
    again = shutil.copy(path, tmp_path / "other")
    with pytest.raises(LearnpropError, match="would have the same file names; rename one"):
        replace(SUITE, rules=(path, Path(again)))
    with pytest.raises(LearnpropError, match="'a b, untrained' and 'A-B, untrained' would have the same file names"):
        replace(SUITE, variants={"a b": {}, "A-B": {}}, methods=())

    def fails(subject: Subject, net: nn.Module, rules: RuleSet) -> hand_made.Explain:
        raise RuleError("site 'relu' is not what it was")

    suite = replace(SUITE, methods=("random",), rules=(path,))
    with monkeypatch.context() as patch:
        patch.setattr(methods, "_by_rules", fails)
        cells = run(suite, tmp_path)
    assert [one["error"] for one in cells] == [None, "site 'relu' is not what it was"]


def test_default_suite_has_every_method_with_its_untrained_start() -> None:
    names = [one.name for one in contenders(Suite())]
    assert len(names) == len(set(names)) == len(hand_made.HAND_MADE) + len(GRIDS) + 2 * len(default_variants()) + 3
    for name in default_variants():
        assert names.index(f"{name}, untrained") + 1 == names.index(f"{name}, learned")
    files = {cell_path(Path(), "vgg", "pairs", one, 0) for one in contenders(Suite())}
    assert len(files) == len(names)


def test_variants_are_those_of_the_composites() -> None:
    every = default_variants()
    assert list(every)[:4] == ["gates", "gates + contrast stream", "gates + randomization", "gates + fusion"]
    found = [name for family in RULE_FAMILIES for name in default_variants((family.composite,))]
    assert sorted(found) == sorted(every)
    assert all(default_variants((family.composite,)) for family in RULE_FAMILIES)
    assert list(default_variants(("learned_deeplift", "learned_guided_backprop"))) == [
        "guided backprop, gates", "DeepLift",
    ]  # fmt: skip
    names = [one.name for one in contenders(Suite(variants=default_variants(("learned_deeplift",))))]
    assert REFINED not in names  # is one of gates
    passes = {one.name: one.passes for one in contenders(Suite())}
    assert passes["gates, learned"] == passes["guided backprop, gates, learned"] == 2
    assert (
        passes["gates + contrast stream, learned"] == passes["DeepLift, learned"] == passes["DeepLift, untrained"] == 3
    )
    both = {"composite": "learned_deeplift", "gate_options": {"contrast": True}}
    assert [one.passes for one in contenders(Suite(variants={"both": both}, methods=("both, learned",)))] == [4]


FAMILY_SUITE = replace(
    SUITE,
    variants={name: {**options, "batch_size": 8} for name, options in default_variants().items() if "+" not in name},
    methods=(
        "LRP gamma grid, 15 pairs", "LRP gamma grid, 4 groups", "guided backprop, gates, untrained",
        "guided backprop, gates, learned", "DeepLift, untrained", "DeepLift, learned", "LRP, untrained", "LRP, learned",
    ),
    metrics=("average precision", "randomisation"),
    training_seeds=(0,),
)  # fmt: skip


def test_every_family_has_its_trained_members(tmp_path: Path) -> None:
    cells = run(FAMILY_SUITE, tmp_path)
    assert {one["method"]: one["error"] for one in cells if one["error"]} == {}
    assert [one["method"] for one in cells] == list(FAMILY_SUITE.methods)
    model = tiny("vgg", "digits")
    composites = {
        path.stem.removesuffix("_scenes0_seed0"): RuleSet.load(path, model) for path in tmp_path.rglob("*.safetensors")
        if path.parent.name == "rules"
    }  # fmt: skip
    assert {name: rules.composite_name for name, rules in composites.items()} == {
        "vgg_digits_guided-backprop-gates": "learned_guided_backprop", "vgg_digits_deeplift": "learned_deeplift",
        "vgg_digits_lrp": "learned_epsilon_gamma_box",
    }  # fmt: skip
    assert composites["vgg_digits_deeplift"].config["rule_options"] == {"baseline": 0.5}
    rows = {row.method: row for row in summarise(cells)}
    assert rows["LRP, learned"].composite == rows["LRP, untrained"].composite == "learned_epsilon_gamma_box"
    assert rows["LRP gamma grid, 15 pairs"].composite is None
    assert timeless(run(FAMILY_SUITE, tmp_path)) == timeless(cells)
    shutil.rmtree(tmp_path / "cells")
    assert timeless(run(FAMILY_SUITE, tmp_path)) == timeless(cells)  # rules and searches from their files


def test_the_first_training_images_are_what_an_untrained_start_sees(tmp_path: Path) -> None:
    subject = ReferenceSubject(replace(FAMILY_SUITE, training_scenes=40), "vgg", "digits", tmp_path)
    box = subject.untrained("LRP").gate("first")
    assert torch.equal(box.low[0], (subject.training_images[:32] - 0.5).amin((0, 2, 3)))
    assert torch.equal(box.high[0], (subject.training_images[:32] - 0.5).amax((0, 2, 3)))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name[-8:])
def test_a_gamma_grid_has_the_examples_and_the_budget_of_the_training(grid: Grid, tmp_path: Path) -> None:
    suite = replace(FAMILY_SUITE, methods=(grid.name,), training_scenes=8, training_steps=4)
    interrupted: list[str] = []

    def stop(done: int, total: int, text: str) -> None:
        interrupted.append(text)
        if "(2 of " in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path, progress=stop)
    assert interrupted[-1].startswith(f"vgg, pairs: {grid.name} (2 of ")
    (path,) = (tmp_path / "rules").iterdir()
    assert len(json.loads(path.read_text())["trace"]) == 2
    explained: list[int] = []
    patch = pytest.MonkeyPatch()
    patch.setattr(gamma_grid, "BATCH", 1)
    patch.setattr(gamma_grid._Judge, "__call__", counting(gamma_grid._Judge.__call__, explained))
    (cell,) = run(suite, tmp_path)
    patch.undo()
    assert cell["error"] is None
    assert cell["family"] == "lrp"
    kept = json.loads(path.read_text())
    assert len(explained) == len(kept["trace"]) - 2
    subject = ReferenceSubject(suite, "vgg", "digits", tmp_path)
    found = subject.searched(grid)
    assert found.config() == {name: kept[name] for name in found.config()} | {"trace": found.config()["trace"]}
    assert cell["training seconds"] == found.seconds
    trainer = suite.trainer("LRP", subject.model)
    rules = trainer.fit(subject.training_images, **subject.examples(0))
    budget = trainer.options.passes(rules.training["training_rows"], rules.training["validation_rows"])
    assert kept["options"]["budget"] == budget
    assert budget - max(found.rows, len(grid)) < found.passes <= budget
    examples = trainer.measure(subject.training_images, **subject.examples(0))
    (folder,) = (tmp_path / "examples").iterdir()
    assert len(list((folder / "training").iterdir())) == 1  # measured once for both
    again = gamma_grid.search(subject.model, grid, examples, budget=budget)
    assert [one.score for one in again.trace] == pytest.approx([one.score for one in found.trace], abs=2e-6)
    questions = subject.questions("pairs", "test")
    maps = Treatment(**cell["treatment"])(
        found.best.setting.lrp()(subject.model, EXAMPLE)(questions.images, questions.targets)
    )
    assert cell["scores"]["average precision"] == pytest.approx(
        average_precision(maps, questions.masks).tolist(), abs=2e-6
    )


def counting(judge: Any, calls: list[int]) -> Any:
    def counted(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        return judge(self, *arguments)

    return counted


def test_searches_of_other_settings_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    suite = replace(FAMILY_SUITE, methods=("LRP gamma grid, 4 groups",))
    run(suite, tmp_path)
    with pytest.raises(SettingsError, match="computed with method options"):
        run(replace(suite, training_steps=3), tmp_path)
    shutil.rmtree(tmp_path / "cells")
    (path,) = (tmp_path / "rules").iterdir()
    for changed, words in (
        (replace(suite, training_steps=3), "with steps 2, this run has 3"),
        (replace(suite, training_scenes=9), "with images 6, this run has 9"),
    ):
        with pytest.raises(SettingsError, match=words):
            run(changed, tmp_path)
    path.write_text(path.read_text()[:100])
    (cell,) = run(suite, tmp_path)
    assert f"{path} is damaged" in cell["error"]
    small = replace(suite, methods=("LRP gamma grid, 15 pairs",), training_scenes=2, training_steps=1)
    (cell,) = run(small, tmp_path / "small")
    assert "attribution passes and 4 rows are too few for its 15 settings; train for more steps" in cell["error"]


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    for field, value, words in (
        ("architectures", ("alexnet",), "unknown model 'alexnet'; choose from 'vgg', 'resnet', 'inception'"),
        ("families", ("dogs",), "unknown scenes 'dogs'"),
        ("methods", ("saliencie",), "unknown method 'saliencie'; choose from 'saliency'"),
        ("questions", 0, "questions must be at least 1"),
        ("training_seeds", (), "training_seeds must be one or more"),
        ("training_seeds", (0, 0), "different numbers"),
    ):
        with pytest.raises(LearnpropError, match=words):
            replace(SUITE, **{field: value})
    with pytest.raises(LearnpropError, match="unknown metric 'auc'; choose one of average_precision, class_auc"):
        replace(SUITE, metrics=("auc",))
    with pytest.raises(LearnpropError, match="no cell of these"):
        read_cells(SUITE, tmp_path)


def test_rules_of_other_options_are_refused(whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    shutil.copytree(whole[0] / "rules", tmp_path / "rules")
    suite = replace(SUITE, methods=("gates, learned",))
    assert timeless(run(suite, tmp_path)) == timeless(whole[1][-2:])
    shutil.rmtree(tmp_path / "cells")
    for changed, words in (
        (replace(suite, training_steps=3), "with steps 2, this run has 3"),
        (replace(suite, training_scenes=5), "with images 6, this run has 5"),
        (varied(suite, gate_options={}), "with gate_options {'position': True}, this run has {}"),
        (varied(suite, gate_options={"contrast": True}), "with gate_options"),
        (varied(suite, fusion=True), "with fusion False, this run has"),
        (varied(suite, pooling="exact"), "with pooling 'soft', this run has 'exact'"),
        (varied(suite, start="deconvnet"), "with start 'gradient', this run has 'deconvnet'"),
        (varied(suite, gate="channel"), "with gate 'feature', this run has 'channel'"),
    ):
        with pytest.raises(SettingsError, match=words):
            run(changed, tmp_path)


def varied(suite: Suite, **options: Any) -> Suite:
    return replace(suite, variants={"gates": {**suite.variants["gates"], **options}})


def test_rules_of_other_scenes_are_learned_anew(whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    shutil.copytree(whole[0] / "rules", tmp_path / "rules")
    run(replace(SUITE, methods=("gates, learned",), seed=5, training_seeds=(0,)), tmp_path)
    names = sorted(path.name for path in (tmp_path / "rules").iterdir())
    assert names[-1] == "vgg_digits_gates_scenes5_seed0.safetensors"
    assert [path.name for path in (tmp_path / "examples").iterdir()] == ["vgg_digits_scenes5_seed0"]
    old, new = (RuleSet.load(tmp_path / "rules" / name).training for name in (names[0], names[-1]))
    assert old["start_validation_loss"] != new["start_validation_loss"]


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    suite = replace(SUITE, methods=("random",))
    run(suite, tmp_path)
    path = next((tmp_path / "cells").iterdir())
    path.write_text(path.read_text()[:40])
    with pytest.raises(LearnpropError, match=r"is damaged .* delete it"):
        run(suite, tmp_path)


def test_scores_are_not_defined_where_there_is_no_other_object() -> None:
    questions = make_scenes("pairs", 2, split="test").questions()
    hidden = questions.other_masks.clone()
    hidden[1] = False
    case = Case(tiny("vgg", "digits"), replace(questions, other_masks=hidden), "sigmoid")
    values = score("class AUC").rate(case, questions.masks.float())
    assert values[[0, 2, 3]].tolist() == [1.0, 1.0, 1.0]
    assert values[1].isnan()


def test_grid_pointing_counts_the_asked_cell() -> None:
    questions = make_scenes("grid", 1, split="test").questions()
    case = Case(tiny("vgg", "digits"), questions, "sigmoid")
    assert questions.cells is not None
    assert score("grid pointing").rate(case, questions.cells.float()).tolist() == [1.0] * 4
    assert score("grid pointing").rate(case, torch.ones(4, 64, 64)).tolist() == [0.25] * 4


def test_the_true_pixels_are_a_perfect_detector(tmp_path: Path) -> None:
    suite = replace(
        SUITE, families=("grid",), methods=("ground truth",), metrics=("average precision", "randomisation")
    )
    (cell,) = run(suite, tmp_path)
    assert cell["error"] is None
    assert cell["scores"]["average precision"] == [1.0] * len(cell["scores"]["average precision"])
    assert {value for value in cell["scores"]["randomisation"] if value is not None} == {1.0}


def test_other_nets_judge_by_insertion(tmp_path: Path) -> None:
    suite = replace(SUITE, families=("pairs",), methods=("centre prior",), metrics=("insertion, other nets",))
    (cell,) = run(suite, tmp_path)
    subject = ReferenceSubject(suite, "vgg", "digits", tmp_path)
    questions = subject.questions("pairs", "test")
    maps = Treatment(**cell["treatment"])(
        hand_made.hand_made("centre prior").build(subject.model, subject.example)(questions.images, questions.targets)
    )
    each = [
        insertion(
            reference_nets.load(name, "digits"), questions.images, maps, questions.targets,
            baseline="blur", steps=STEPS, output="sigmoid",
        )
        for name in ("resnet", "inception")
    ]  # fmt: skip
    expected = torch.stack(each).mean(0)
    assert cell["scores"]["insertion, other nets"] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", list(reference_nets.ARCHITECTURES))
def test_hand_made_methods_run_on_the_shipped_nets(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_nets, "load", SHIPPED)
    suite = Suite(
        architectures=(architecture,), families=("patch",), methods=tuple(hand_made.HAND_MADE),
        metrics=("average precision", "distractor AUC"), questions=8, tuning_questions=4, training_scenes=4,
    )  # fmt: skip
    rows = summarise(run(suite, tmp_path))
    assert [row.method for row in rows] == list(hand_made.HAND_MADE)
    assert {row.method: row.error for row in rows if row.error is not None} == {}
    precision = {row.method: row.estimates["average precision"].mean for row in rows}
    assert rows[0].recognised == 1.0
    assert precision["saliency"] > 2 * precision["random"]
