"""Tables from cells, against numpy and small cases done by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from captum_learnprop.evaluation.summary import differences, estimate, summarise, to_markdown


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
    assert (found.samples, found.seeds) == (20, 3)


def test_estimates_of_one_seed_one_sample_and_none() -> None:
    one = estimate([[0.25, None, 0.75]])
    assert (one.mean, one.samples, one.seeds) == (0.5, 2, 1)
    assert one.standard_error == pytest.approx(0.25)
    assert math.isnan(one.seed_spread)
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
        cell("gates, learned", "learned", {NAME: [0.4, 0.6, 0.5], "deletion, zero": [0.2, 0.2, 0.2]}, 0),
        cell("gates, learned", "learned", {NAME: [0.6, 0.8, 0.7], "deletion, zero": [0.4, 0.4, 0.4]}, 1),
    ]


def test_learned_methods_are_compared_on_the_same_samples() -> None:
    found = {(one.reference, one.score): one for one in differences(summarise(cells()))}
    saliency = found["saliency", NAME]
    values = np.array([0.5, 0.7, 0.6]) - np.array([0.1, 0.2, 0.3])
    assert saliency.mean == pytest.approx(values.mean())
    assert saliency.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert saliency.better
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
    assert "| gates, learned | **0.600** ± 0.058 (0.141) |" in text
    assert "| method | average precision ^ | deletion, zero v | passes | ms / image | treatment |" in text
    assert "- broken: did not run. it has no ReLU" in text
    assert "| LRP z+, box | 0.400 ± 0.000 | **0.100** ± 0.000 | 2 | 2.0 | positive, 2 px |" in text
    assert "| gates, learned minus best gradient or CAM | **+0.267** ± 0.067, Grad-CAM |" in text
    assert "All maps smoothed like the learned ones" in text
    assert "The net names the asked class in 96 % of the questions." in text
    assert "nan" not in text
