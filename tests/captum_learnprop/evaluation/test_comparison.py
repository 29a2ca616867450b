"""Treatments: what they do, that they are chosen where they are told to, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from captum_learnprop.evaluation.comparison import (
    SIGMAS,
    TREATMENTS,
    Method,
    Treatment,
    best_treatment,
    choose_treatment,
    treatments_at,
)
from captum_learnprop.evaluation.localization import average_precision
from captum_learnprop.evaluation.maps import SIGNS, reduce_channels, smooth
from captum_learnprop.evaluation.scenes import make_scenes


def test_every_sign_with_every_smoothing() -> None:
    assert len(TREATMENTS) == len(SIGNS) * len(SIGMAS) == len(set(TREATMENTS))
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
