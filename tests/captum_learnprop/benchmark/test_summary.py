"""Tables from cells, against numpy and small cases done by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_learnprop.benchmark.report import to_markdown
from captum_learnprop.benchmark.summary import differences, estimate, rows_of, summarise
from captum_learnprop.commands import _compare_methods, evaluate


def cell(method: str, family: str, scores: dict[str, list[float | None]], seed: int | None = None, **more: Any) -> dict:
    return {
        "model": "vgg", "scenes": "digits", "method": method, "family": family, "seed": seed, "passes": 2,
        "error": None, "treatment": {"sign": "positive", "sigma": 2.0}, "seconds": 0.002, "recognised": 0.96,
        "scores": scores,
        "same smoothing": {"treatment": {"sign": "signed", "sigma": 1.6}, "scores": scores}, **more,
    }  # fmt: skip


def test_an_estimate_against_numpy() -> None:
    table = np.random.default_rng(0).random((3, 20))
    found = estimate(table.tolist())
    assert found.mean == pytest.approx(table.mean(axis=1).mean())
    over_samples = table.mean(axis=0)
    assert found.standard_error == pytest.approx(np.std(over_samples, ddof=1) / np.sqrt(20))
    assert found.seed_spread == pytest.approx(np.std(table.mean(axis=1), ddof=1))
    assert found.seed_error == pytest.approx(found.seed_spread / np.sqrt(3))
    assert (found.samples, found.seeds) == (20, 3)


def test_estimates_of_one_seed_one_sample_and_none() -> None:
    one = estimate([[0.25, None, 0.75]])
    assert (one.mean, one.samples, one.seeds) == (0.5, 2, 1)
    assert one.standard_error == pytest.approx(0.25)
    assert math.isnan(one.seed_spread)
    assert math.isnan(one.seed_error)
    assert math.isnan(estimate([[0.5]]).standard_error)
    assert math.isnan(estimate([[None, None]]).mean)


def test_questions_about_one_scene_count_as_one() -> None:
    table = np.random.default_rng(0).random((2, 12))
    found = estimate(table.tolist(), together=4)
    scenes = table.mean(axis=0).reshape(3, 4).mean(axis=1)
    assert found.standard_error == pytest.approx(np.std(scenes, ddof=1) / np.sqrt(3))
    assert found.mean == pytest.approx(table.mean())
    assert math.isnan(estimate([[0.1, 0.2, 0.3, 0.4]], together=4).standard_error)
    some = estimate([[0.1, None, None, None, 0.5, 0.7]], together=2)  # scenes .1, none, .6
    assert some.standard_error == pytest.approx(np.std([0.1, 0.6], ddof=1) / np.sqrt(2))


NAME = "average precision"


def cells() -> list[dict]:
    return [
        cell("saliency", "gradient", {NAME: [0.1, 0.2, 0.3], "deletion, zero": [0.5, 0.5, 0.5]}),
        cell("Grad-CAM", "cam", {NAME: [0.3, 0.3, 0.4], "deletion, zero": [0.6, 0.6, 0.6]}),
        cell("LRP z+, box", "lrp", {NAME: [0.4, 0.4, 0.4], "deletion, zero": [0.1, 0.1, 0.1]}),
        cell("LRP epsilon plus", "lrp", {NAME: [0.5, 0.5, 0.5], "deletion, zero": [0.2, 0.2, 0.2]}),
        cell("broken", "gradient", {}, error="it has no ReLU"),
        cell("gates, untrained", "untrained", {NAME: [0.1, 0.2, 0.15], "deletion, zero": [0.5, 0.5, 0.5]}),
        cell("gates, learned", "learned", {NAME: [0.4, 0.6, 0.5], "deletion, zero": [0.2, 0.2, 0.2]}, 0),
        cell("gates, learned", "learned", {NAME: [0.6, 0.8, 0.7], "deletion, zero": [0.4, 0.4, 0.4]}, 1),
    ]


def test_learned_methods_are_compared_on_the_same_samples() -> None:
    found = {(one.reference, one.score): one for one in differences(summarise(cells()))}
    saliency = found["saliency", NAME]
    values = np.array([0.5, 0.7, 0.6]) - np.array([0.1, 0.2, 0.3])
    assert saliency.mean == pytest.approx(values.mean())
    assert saliency.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    first, second = 0.5 - 0.2, 0.7 - 0.2  # the mean difference of each seed
    assert saliency.seed_error == pytest.approx(np.std([first, second], ddof=1) / np.sqrt(2))
    assert saliency.mean == pytest.approx((first + second) / 2)
    assert saliency.better  # 0.4 > 2 * sqrt(0.058^2 + 0.1^2)
    assert not found["best LRP", NAME].better  # 0.1
    start = found["its untrained start", NAME]
    assert start.against == "gates, untrained"
    assert start.mean == pytest.approx(0.6 - 0.15)
    assert found["best gradient or CAM", NAME].against == "Grad-CAM"
    assert found["best gradient or CAM", "deletion, zero"].against == "saliency"
    assert found["best LRP", NAME].against == "LRP epsilon plus"
    assert found["best LRP", "deletion, zero"].against == "LRP z+, box"
    worse = found["LRP z+, box", "deletion, zero"]
    assert worse.mean == pytest.approx(0.2)
    assert not worse.better
    assert {one.method for one in found.values()} == {"gates, learned"}


def test_the_tables_say_what_was_found_and_what_failed() -> None:
    text = to_markdown(summarise(cells()))
    assert "| gates, learned | **0.600** ± 0.058 (0.100) |" in text  # 0.141 / sqrt(2)
    assert "| method | average precision ^ | deletion, zero v | passes | ms / image | treatment |" in text
    assert "- broken: did not run. it has no ReLU" in text
    assert "| LRP z+, box | 0.400 ± 0.000 | **0.100** ± 0.000 | 2 | 2.0 | positive, 2 px |" in text
    assert "| gates, learned minus best gradient or CAM | **+0.267** ± 0.067 (0.100), Grad-CAM |" in text
    assert "| gates, learned minus its untrained start | **+0.450** ± 0.029 (0.100) |" in text
    assert "| gates, learned minus best LRP | +0.100 ± 0.058 (0.100), LRP epsilon plus |" in text
    assert "| training s |" not in text  # not known
    assert "All maps smoothed like the learned ones" in text
    assert "The net names the asked class in 96 % of the questions." in text
    assert "nan" not in text


def of_composite(name: str) -> dict[str, Any]:
    return {"settings": {"training options": {"composite": name}}}


def family_cells(model: str = "vgg") -> list[dict]:
    lrp = of_composite("learned_epsilon_gamma_box")
    removal = "deletion, blur"
    return [
        {**one, "model": model}
        for one in (
            cell("saliency", "gradient", {NAME: [0.9, 0.9], removal: [0.1, 0.1]}),
            cell("LRP epsilon plus", "lrp", {NAME: [0.4, 0.5], removal: [0.2, 0.2]}),
            cell("excitation backprop", "lrp", {NAME: [0.3, 0.3], removal: [0.1, 0.2]}),
            cell("LRP gamma grid, 15 pairs", "lrp", {NAME: [0.5, 0.5], removal: [0.3, 0.3]}),
            cell("LRP gamma grid, 4 groups", "lrp", {NAME: [0.6, 0.5], removal: [0.3, 0.3]}),
            cell("LRP, untrained", "untrained", {NAME: [0.4, 0.4], removal: [0.2, 0.2]}, **lrp),
            cell("LRP, learned", "learned", {NAME: [0.7, 0.7], removal: [0.2, 0.1]}, 0, **lrp),
            cell("LRP, learned", "learned", {NAME: [0.7, 0.9], removal: [0.2, 0.1]}, 1, **lrp),
            cell("DeepLift, learned", "learned", {NAME: [0.5, 0.5], removal: [0.2, 0.2]}, 0,
                 **of_composite("learned_deeplift")),
        )
    ]  # fmt: skip


def test_trained_members_stand_beside_the_hand_made_ones_of_their_family() -> None:
    rows = summarise(family_cells() + family_cells("resnet")[:-2])
    found = {(one.model, one.method, one.reference, one.score): one for one in differences(rows)}
    best = found["vgg", "LRP, learned", "best hand-made of its family", NAME]
    assert best.against == "LRP epsilon plus"
    values = np.array([0.7, 0.8]) - np.array([0.4, 0.5])
    assert best.mean == pytest.approx(values.mean())
    assert best.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(2))
    assert best.seed_error == pytest.approx(np.std([0.25, 0.35], ddof=1) / np.sqrt(2))
    removal = found["vgg", "LRP, learned", "best hand-made of its family", "deletion, blur"]
    assert (removal.against, removal.mean) == ("excitation backprop", pytest.approx(0.0))
    grid = found["vgg", "LRP, learned", "best gamma grid", NAME]
    assert (grid.against, grid.mean) == ("LRP gamma grid, 4 groups", pytest.approx(0.2))
    assert not any(reference.startswith("best gamma") for _, method, reference, _ in found if "DeepLift" in method)
    assert ("vgg", "DeepLift, learned", "best hand-made of its family", NAME) not in found  # was not asked for

    text = to_markdown(rows).split("## Hand-made and trained members of each family")[1].split("\n## ")[0]
    precision, removed = text.split("Average precision (higher is better):")[1].split(
        "Deletion, blur (lower is better):"
    )
    assert precision.strip().splitlines() == [
        "| family | method | vgg digits | resnet digits |",
        "|---|---|---|---|",
        "| DeepLIFT | DeepLift, learned | **0.500** ± 0.000 | - |",
        "| LRP | LRP epsilon plus | 0.450 ± 0.050 | 0.450 ± 0.050 |",
        "| LRP | excitation backprop | 0.300 ± 0.000 | 0.300 ± 0.000 |",
        "| LRP | LRP gamma grid, 15 pairs | 0.500 ± 0.000 | 0.500 ± 0.000 |",
        "| LRP | LRP gamma grid, 4 groups | 0.550 ± 0.050 | 0.550 ± 0.050 |",
        "| LRP | LRP, untrained | 0.400 ± 0.000 | 0.400 ± 0.000 |",
        "| LRP | LRP, learned | **0.750** ± 0.050 (0.050) | **0.700** ± 0.000 |",
        "| LRP | LRP, learned minus best hand-made of its family | **+0.300** ± 0.000 (0.050), LRP epsilon plus "
        "| **+0.250** ± 0.050, LRP epsilon plus |",
        "| LRP | LRP, learned minus best gamma grid | +0.200 ± 0.100 (0.050), LRP gamma grid, 4 groups "
        "| **+0.150** ± 0.050, LRP gamma grid, 4 groups |",
    ]
    assert "| LRP | excitation backprop | **0.150** ± 0.050 |" in removed
    assert "saliency" not in text  # no trained member of its family


def test_without_trained_members_there_are_no_families() -> None:
    assert "members of each family" not in to_markdown(summarise(family_cells()[:5]))


def test_a_difference_counts_if_it_exceeds_two_combined_standard_errors() -> None:
    for gain, clear in ((0.03, True), (0.028, False)):  # its standard errors: 0.01 over scenes, 0.01 over seeds
        pattern = 0.01 * np.sqrt(3) * np.array([1.0, -1.0, 0.0])
        seeds = [(0.5 + gain + shift + pattern).tolist() for shift in (0.01, -0.01)]
        rows = summarise([
            cell("saliency", "gradient", {NAME: [0.5, 0.5, 0.5]}),
            *(cell("gates, learned", "learned", {NAME: one}, seed) for seed, one in enumerate(seeds)),
        ])  # fmt: skip
        (found, *_) = differences(rows)
        assert (found.standard_error, found.seed_error) == pytest.approx((0.01, 0.01))
        assert found.better is clear
        assert ("**+0.03" in to_markdown(rows)) is clear


def test_seconds_of_training_have_a_column_where_they_are_known() -> None:
    some = [
        cell("saliency", "gradient", {NAME: [0.5]}),
        cell("gates, learned", "learned", {NAME: [0.5]}, 0, **{"training seconds": 30.0}),
        cell("gates, learned", "learned", {NAME: [0.6]}, 1, **{"training seconds": 50.0}),
    ]
    rows = summarise(some)
    assert rows[1].training_seconds == 40.0
    text = to_markdown(rows)
    assert "| ms / image | training s | treatment |" in text
    assert "| 2.0 | 40 | positive, 2 px |" in text
    assert "| 2.0 | - | positive, 2 px |" in text
    del some[1]["training seconds"]
    assert math.isnan(summarise(some)[1].training_seconds)


def test_rows_come_back_from_a_file_of_results() -> None:
    rows = summarise([*cells(), cell("alone", "cam", {NAME: [0.5]})])
    asked = {option.name: None for option in evaluate.command.params} | {
        "out": Path("out"),
        "threads": 1,
        "seeds": (0,),
    }
    plan = _compare_methods.Plan(**asked)
    kept = json.loads(json.dumps(_compare_methods.document(rows, _compare_methods.provenance(plan))))
    for row, found in zip(rows, rows_of(kept), strict=True):
        assert str(asdict(found)) == str(asdict(replace(row, samples={})))  # NaN equals no NaN, but looks like it


def test_a_notebook_shows_rows_as_a_table() -> None:
    rows = summarise(cells())
    page = rows._repr_html_()
    assert page.startswith("<table>")
    for text in ("<th>average precision", "<td>Grad-CAM", "<td>0.333 ± 0.033", "<td>gates, learned"):
        assert text in page
    assert repr(rows[1]).startswith("Row(vgg, digits, 'Grad-CAM': average precision 0.333 ± 0.033, deletion, zero 0.6")
    assert repr(rows[4]) == "Row(vgg, digits, 'broken (0 of 1 seeds)': it has no ReLU)"
