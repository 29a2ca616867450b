"""Options that are numbers take tensors and arrays without dimensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop.evaluation import deletion

KINDS: dict[str, Callable[[float], Any]] = {
    "tensor": torch.tensor,
    "array": np.array,
    "numpy": lambda value: np.int64(value) if isinstance(value, int) else np.float64(value),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
pytestmark = pytest.mark.filterwarnings("ignore::zennit_rules.RuleWarning")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double().eval()


def images() -> Tensor:
    return torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


AREAS: dict[str, tuple[Callable[[float], Any], int]] = {
    "tensor": (torch.tensor, 1), "array": (np.array, 1), "numpy": (np.float32, 1),
    "list of tensors": (lambda v: [torch.tensor(v)] * 2, 2), "tensor of two": (lambda v: torch.tensor([v, v]), 2),
    "array of two": (lambda v: np.array([v, v]), 2),
}  # fmt: skip


@pytest.mark.parametrize(("areas", "count"), AREAS.values(), ids=AREAS)
def test_areas(areas: Callable[[float], Any], count: int) -> None:
    for model in (net(),):
        for method in (cl.ExtremalPerturbation(model), cl.LayerExtremalPerturbation(model, model[0])):
            want = 0.5 if count == 1 else [0.5, 0.5]
            options: dict[str, Any] = {"target": 1, "n_steps": 3}
            torch.testing.assert_close(
                method.attribute(images(), areas=areas(0.5), **options),
                method.attribute(images(), areas=want, **options),
            )
        layer = cl.LayerExtremalPerturbation(model, model[0])
        numbers = torch.tensor(2), torch.tensor([1, 2]), np.int64(2)
        for number, same in zip(numbers, (2, [1, 2], 2), strict=True):
            torch.testing.assert_close(
                layer.attribute(images(), 1, areas=number, n_steps=3),
                layer.attribute(images(), 1, areas=same, n_steps=3),
            )
    with pytest.raises(cl.LearnpropError, match=r"in \(0, 1\), got 1.5"):
        cl.ExtremalPerturbation(net()).attribute(images(), 1, areas=torch.tensor(1.5))


OPTIONS: dict[str, Callable[[Callable[[float], Any]], Any]] = {
    "extremal": lambda k: cl.ExtremalPerturbation(net()).attribute(
        images(), k(1), n_steps=k(3), step=k(0.125), sigma=k(0.25), soften=k(0.1), draws=k(1), seed=k(2),
        baselines=k(0.5), internal_batch_size=k(1),
    ),
    "extremal area": lambda k: cl.ExtremalPerturbation(net()).extremal_area(
        images(), k(1), share=k(0.5), halvings=k(1), n_steps=k(3)
    ).area.nan_to_num(),
    "layer_extremal": lambda k: (lambda m: cl.LayerExtremalPerturbation(m, m[0]).attribute(
        images(), k(1), n_steps=k(3), masks="spatial", step=k(0.2), sigma=k(0.2), baselines=k(0.1)
    ))(net()),
    "learned": lambda k: cl.LearnedPropagation(net()).attribute(images(), k(1), n_steps=k(2), lr=k(0.1), seed=k(3)),
    "mask and objective": lambda k: cl.LearnedPropagation(net()).attribute(
        images(), 1, n_steps=2, mask=cl.MaxMask(sigma=k(0.1), power=k(0.5)),
        objective=cl.Agreement(area=k(0.5), total_variation=k(0.1), baseline=k(0.2)),
    ),
    "rect_grad": lambda k: cl.RectGrad(net(), k(50.0)).attribute(images(), k(1)),
    "deep_lift": lambda k: cl.LearnedDeepLift(net(), eps=k(1e-9)).attribute(images(), k(0.5), k(1)),
    "rule options": lambda k: cl.LearnedPropagation(
        net(), "learned_epsilon_gamma_box", rule_options={"low": k(-4.0), "high": k(4.0), "gamma": k(0.5)}
    ).attribute(images(), k(1), n_steps=0),
    "deletion": lambda k: deletion(
        net(), images(), images()[:, 0], torch.ones(2).long(), steps=k(4), baseline=k(0.5), seed=k(0)
    ),
}  # fmt: skip


@every_kind
@pytest.mark.parametrize("run", OPTIONS.values(), ids=OPTIONS)
def test_options(run: Callable[[Callable[[float], Any]], Any], kind: Callable[[float], Any]) -> None:
    torch.testing.assert_close(run(kind), run(lambda value: value))


@every_kind
def test_the_trainer(kind: Callable[[float], Any]) -> None:
    def fitted(k: Callable[[float], Any]) -> zr.RuleSet:
        term = cl.OcclusionRegression(density=k(0.5)) * k(0.5)
        trainer = cl.RuleTrainer(
            net(), "learned_epsilon_gamma_box", gate="none", objective=term, steps=k(2), batch_size=k(4), lr=k(0.01),
            smoothing=k(0.1), deletions=k(6), seed=k(1), internal_batch_size=k(8), rule_options={"gamma": k(0.25)},
        )  # fmt: skip
        return trainer.fit(images().repeat(4, 1, 1, 1), validation=k(0.25), targets_per_image=k(1))

    one, other = fitted(kind), fitted(lambda value: value)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    json.dumps(one.training)
