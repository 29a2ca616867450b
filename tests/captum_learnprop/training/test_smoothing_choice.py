"""The smoothing of finished maps: rough maps are smoothed, fine ones are not, and what is asked for is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import captum_learnprop as cl
from captum_learnprop.maps import postprocess
from captum_learnprop.training.smoothing_choice import SMOOTHINGS, USUAL, passes

SIDE = 48
OPTIONS: dict[str, Any] = {"steps": 1, "batch_size": 4, "deletions": 8}


class Energy(nn.Module):
    """A model that sees the energy of an image, and whose gradient has noise that its values know nothing of."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.activation = nn.ReLU()
        self.register_buffer("noise", noise * torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.activation(x)
        total = (0.5 * seen**2 + (seen - seen.detach()) * self.noise).sum((1, 2, 3))
        return torch.stack([total, -total], dim=1)


def _bumps(count: int = 40) -> Tensor:
    """Returns images of a wide bump at a random place."""
    centre = 2 * torch.rand(count, 2, 1, 1, generator=torch.Generator().manual_seed(0)) - 1
    along = torch.linspace(-1, 1, SIDE)
    across = (along[:, None] - centre[:, 0]) ** 2 + (along - centre[:, 1]) ** 2
    return torch.exp(-6 * across)[:, None] + 0.01


def _strokes(count: int = 40) -> Tensor:
    """Returns images of lines at random places."""
    lines = torch.rand(count, 2, SIDE, generator=torch.Generator().manual_seed(0)) < 0.15
    return (lines[:, 0, :, None] | lines[:, 1, None])[:, None].float() + 0.01


def _chosen(images: Tensor, noise: float = 0.0, validation: float = 0.2, **options: Any) -> dict[str, Any]:
    trainer = cl.RuleTrainer(Energy(noise).eval(), **{**OPTIONS, **options})
    return trainer.fit(images, validation=validation).training


def test_rough_maps_of_something_wide_are_smoothed_more() -> None:
    training = _chosen(_bumps(), noise=1.0)
    assert training["smoothing"] > USUAL
    assert training["smoothing"] in SMOOTHINGS
    assert (training["smoothing_in_training"], training["chooses_smoothing"]) == (USUAL, True)


def test_fine_strokes_are_not_blurred() -> None:
    assert _chosen(_strokes())["smoothing"] < USUAL


def test_what_is_asked_for_is_kept() -> None:
    training = _chosen(_strokes(), smoothing=0.075)
    assert (training["smoothing"], training["chooses_smoothing"]) == (0.075, False)


def test_one_held_out_image_proves_nothing() -> None:
    assert _chosen(_strokes(5))["smoothing"] == USUAL


def test_without_held_out_images_maps_are_finished_as_they_were_learned() -> None:
    assert _chosen(_strokes(), validation=0.0)["smoothing"] == USUAL


def test_forward_passes_are_counted() -> None:
    class Counted(Energy):
        passed = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passed += len(x) * (not torch.is_grad_enabled())
            return super().forward(x)

    counts = []
    for options in ({}, {"smoothing": 0.05}):
        model = Counted().eval()
        cl.RuleTrainer(model, **OPTIONS, **options).fit(_strokes())
        counts.append(model.passed)
    assert counts[0] - counts[1] == passes(8)


def test_maps_are_finished_with_it() -> None:
    model, images = Energy().eval(), _strokes()
    rules = cl.RuleTrainer(model, **OPTIONS).fit(images)
    assert rules.training["smoothing"] != USUAL
    explainer = cl.LearnedPropagation(model, rules=rules)
    expected = postprocess(explainer.attribute(images[:2], 0), "absolute", rules.training["smoothing"])
    torch.testing.assert_close(explainer.maps(images[:2], 0), expected)


@pytest.mark.parametrize("dims", [1, 3])
def test_sequences_and_volumes_have_a_choice_too(dims: int) -> None:
    size = (64,) if dims == 1 else (8, 8, 8)
    layer = nn.Conv1d if dims == 1 else nn.Conv3d
    torch.manual_seed(0)
    model = nn.Sequential(layer(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    data = torch.randn(20, 1, *size)
    model(data[:1])
    assert cl.RuleTrainer(model, **OPTIONS).fit(data).training["smoothing"] in SMOOTHINGS
