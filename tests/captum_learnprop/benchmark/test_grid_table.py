"""The table of the grid, from cells that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captum_learnprop.benchmark.grid_data import grid_data
from captum_learnprop.benchmark.grid_suites import PATCHES, QUICK_PASSES, VARIANTS, candidate_of, rivals, suite_of
from captum_learnprop.benchmark.grid_table import best_lines, count, lines_of, to_markdown
from captum_learnprop.benchmark.hand_made import HAND_MADE
from captum_learnprop.benchmark.suite import contenders
from captum_learnprop.benchmark.summary import Rows, summarise


def cell(method: str, family: str, precision: list[float], seed: int | None = None, **other: Any) -> dict[str, Any]:
    """A cell of four scenes with a question each."""
    scores = {"average precision": precision, "class AUC": [0.5] * 4, "deletion, blur": [0.25] * 4}
    return {
        "model": "vgg", "scenes": "mnist", "method": method, "family": family, "seed": seed, "passes": 2,
        "settings": {}, "error": None, "composite": None, "scores": scores, "seconds": 0.1, "training seconds": None,
        "treatment": {"sign": "absolute", "sigma": 1.0}, "same smoothing": {"scores": {}}, "recognised": 1.0,
        "questions per scene": 1, **other,
    }  # fmt: skip


def rows(*more: dict[str, Any], **other: Any) -> Rows:
    return summarise([
        cell("saliency", "gradient", [0.5, 0.6, 0.5, 0.6], **other),
        cell("LRP gamma", "lrp", [0.7, 0.6, 0.7, 0.6], **other),
        cell("random", "control", [0.99] * 4, **other),
        cell("gates, untrained", "untrained", [0.5, 0.6, 0.5, 0.6], **other),
        cell("gates, learned", "learned", [0.8, 0.7, 0.8, 0.8], 0, **other),
        cell("gates, learned", "learned", [0.8, 0.7, 0.8, 0.6], 1, **other),
        cell("LRP, z+ start, learned", "learned", [0.6, 0.5, 0.6, 0.5], 0, **other),
        *more,
    ])  # fmt: skip


def test_a_line_compares_trained_rules_with_the_best_quick_rival() -> None:
    gates, lrp = lines_of(rows())
    assert (gates.variant, lrp.variant) == ("gates", "LRP, z+ start")
    assert gates.rival.method == lrp.rival.method == "LRP gamma"  # no control, no start
    assert gates.start is not None
    assert gates.start.method == "gates, untrained"
    assert lrp.start is None
    assert abs(gates.gap.mean - 0.1) < 1e-9  # of 0.1, 0.1, 0.1 and the mean of 0.2 and 0
    assert 0.02 < gates.error < 0.04
    assert abs(lrp.gap.mean + 0.1) < 1e-9


def test_counts_are_of_cells_by_an_error() -> None:
    other = rows(model="vit")
    lines = lines_of([*rows(), *other])
    assert len(lines) == 4
    assert count(lines) == "ahead in 2 of 4 cells (2 by more than an error), behind by more than an error in 2"
    assert [line.variant for line in best_lines(lines)] == ["gates", "gates"]


def test_the_table_says_what_was_compared_and_what_did_not_run() -> None:
    broken = cell("DeepLift", "gradient", [], error="no rule reaches X", scores={})
    text = to_markdown(rows(broken, {**broken, "method": "guided backprop"}))
    assert "- trained rules, the best of each net: ahead in 1 of 1 cells (1 by more than an error)" in text
    table = [line for line in text.splitlines() if line.startswith("| mnist")]
    assert table[0] == (
        "| mnist | vgg | 100 % | gates | 0.550 | 0.750 ± 0.029 (0.025) | LRP gamma | 0.650 | **+0.100** ± 0.025 | "
        "0.500 / 0.500 | 0.250 / 0.250 |"
    )
    assert table[1].startswith("| mnist | vgg | 100 % | LRP, z+ start | - | 0.550 ± 0.029 | LRP gamma | 0.650 | -0.100")
    assert "- mnist, vgg: DeepLift; guided backprop: no rule reaches X" in text
    assert to_markdown([]).startswith("# Data sets and nets")


def test_rivals_are_quick_and_look_at_the_net() -> None:
    names = rivals()
    assert {"saliency", "DeepLift", "guided Grad-CAM", "LRP gamma x Grad-CAM", "CDAM"} <= set(names)
    assert not {"SmoothGrad", "integrated gradients", "RISE", "occlusion", "random", "TokenAblation"} & set(names)
    assert all(HAND_MADE[name].passes <= QUICK_PASSES < PATCHES for name in names if name in HAND_MADE)


def test_a_transformer_has_variants_of_its_own(tmp_path: Path) -> None:
    digits = grid_data("digits")
    for net, wanted in (("vit", [*VARIANTS, "transformer rules", "AttnLRP"]), ("vgg", [*VARIANTS])):
        suite = suite_of(candidate_of(net, digits, tmp_path), digits.source)
        assert list(suite.variants) == wanted
        assert suite.candidates[0].output == "sigmoid"
        assert [one.name for one in contenders(suite) if one.seeded] == [f"{name}, learned" for name in wanted]
