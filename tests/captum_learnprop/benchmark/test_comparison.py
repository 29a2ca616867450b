"""Treatments: what they do, that they are chosen where they are told to, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_learnprop.benchmark.comparison import (
    SMOOTHINGS,
    TREATMENTS,
    Method,
    Result,
    Treatment,
    best_treatment,
    choose_treatment,
    measure,
    paired_difference,
    standard_error,
    treatments_at,
)
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.localization import average_precision
from captum_learnprop.maps import SIGNS, follow_outlines, reduce_channels, smooth
from captum_learnprop.scenes.scenes import make_scenes


def test_every_sign_with_every_smoothing() -> None:
    assert len(TREATMENTS) == len(SIGNS) * len(SMOOTHINGS) == len(set(TREATMENTS))
    assert {treatment.sigma for treatment in TREATMENTS} == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert [treatment.sign for treatment in treatments_at(1.6)] == list(SIGNS)
    assert {treatment.sigma for treatment in treatments_at(1.6)} == {1.6}


def test_a_treatment_reduces_then_smooths() -> None:
    attribution = torch.randn(2, 3, 9, 9)
    expected = smooth(reduce_channels(attribution, "positive"), 2.0)
    assert torch.equal(Treatment("positive", 2.0)(attribution), expected)


def test_the_best_treatment_has_the_highest_average_precision_and_the_first_of_equals_wins() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[:, 4:10, 5:12] = True
    generator = torch.Generator().manual_seed(0)
    attribution = masks[:, None].float() + torch.randn(2, 3, 16, 16, generator=generator)
    chosen = best_treatment(attribution, masks)
    quality = [average_precision(treat(attribution), masks).mean().item() for treat in TREATMENTS]
    assert chosen == TREATMENTS[quality.index(max(quality))]
    assert chosen.sigma > 0
    assert best_treatment(masks[:, None].float(), masks) == TREATMENTS[0]


def test_only_the_given_questions_are_looked_at() -> None:
    tuning = make_scenes("pairs", 2, split="validation").questions()
    test = make_scenes("pairs", 2, split="test").questions()
    seen: list[Tensor] = []

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        seen.append(images)
        return images

    method = Method("copy", attribute)
    chosen = choose_treatment(method, tuning)
    assert len(seen) == 1
    assert torch.equal(seen[0], tuning.images)
    assert not torch.equal(seen[0], test.images)
    assert chosen == best_treatment(tuning.images, tuning.masks)
    assert choose_treatment(replace(method, treatments=(Treatment("signed", 3.0),)), test) == Treatment("signed", 3.0)
    assert len(seen) == 1


def test_questions_about_one_scene_count_as_one() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.random(6), generator.random(6)
    scenes = torch.tensor([0, 0, 1, 1, 2, 2])
    results = [
        Result("method", Treatment(), torch.zeros(6, 2, 2), {"score": torch.tensor(values)}, 0.1, scenes)
        for values in (first, second)
    ]
    over_scenes = [np.std(values.reshape(3, 2).mean(1), ddof=1) / np.sqrt(3) for values in (first, first - second)]
    assert results[0].standard_error("score") == pytest.approx(over_scenes[0])
    mean, error = paired_difference(*results, "score")
    assert (mean, error) == pytest.approx(((first - second).mean(), over_scenes[1]))
    alone = replace(results[0], scenes=None)
    assert alone.standard_error("score") == pytest.approx(np.std(first, ddof=1) / np.sqrt(6))


def test_standard_errors_of_scenes_in_any_order_with_values_that_are_not_defined() -> None:
    values = [0.1, 0.5, math.nan, 0.7, math.nan, 0.4]
    expected = np.std([0.1, 0.6, 0.4], ddof=1) / np.sqrt(3)
    assert standard_error(values, [4, 1, 4, 1, 3, 9]) == pytest.approx(expected)
    assert math.isnan(standard_error([0.1, 0.2], [0, 0]))
    assert math.isnan(standard_error([math.nan, math.nan], [0, 1]))


def test_measured_results_know_their_scenes() -> None:
    questions = make_scenes("pairs", 3, split="validation").questions()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 10))
    result = measure(Method("copy", lambda images, targets: images), model, questions, Treatment(), deletion_steps=3)
    assert result.scenes is not None
    assert result.scenes.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_result_shows_its_scores_and_not_its_maps() -> None:
    result = Result("a < b", Treatment("signed", 2.0), torch.rand(2, 4, 4), {"score": torch.tensor([0.2, 0.4])}, 0.002)
    assert repr(result) == "Result('a < b', 'signed, sigma 2', 2 questions, score 0.300 ± 0.100)"
    page = result._repr_html_()
    assert "a &lt; b" in page
    assert "0.300 ± 0.100" in page


def test_a_treatment_may_follow_outlines() -> None:
    attribution, images = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    treatment = Treatment("signed", 1.0, 2.0)
    expected = follow_outlines(Treatment("signed", 1.0)(attribution), images, 2.0)
    assert torch.equal(treatment(attribution, images), expected)
    assert str(treatment) == "signed, sigma 1, outlines 2"
    assert Treatment(**treatment.config()) == treatment
    assert Treatment("signed", 1.0).config() == {"sign": "signed", "sigma": 1.0}  # as cells had it before
    with pytest.raises(LearnpropError, match="it needs the images"):
        treatment(attribution)
