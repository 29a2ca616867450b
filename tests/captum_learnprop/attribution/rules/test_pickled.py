"""Methods and rule sets are sent to worker processes: what arrives gives the same maps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import captum_learnprop as cl
import zennit_rules as zr

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
}
METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "LearnedPropagation": cl.LearnedPropagation,
    "LearnedPropagation attnlrp": lambda model: cl.LearnedPropagation(model, "attnlrp"),
    "LearnedLRP": cl.LearnedLRP,
    "LearnedDeepLift": cl.LearnedDeepLift,
    "LearnedGuidedBackprop": cl.LearnedGuidedBackprop,
    "RectGrad": cl.RectGrad,
}
WITH_RULES: dict[str, tuple[type, str]] = {
    "LearnedPropagation": (cl.LearnedPropagation, "gates"),
    "LearnedLRP": (cl.LearnedLRP, "lrp"),
    "LearnedDeepLift": (cl.LearnedDeepLift, "deeplift"),
    "LearnedGuidedBackprop": (cl.LearnedGuidedBackprop, "guided_backprop"),
    "RectGrad": (cl.RectGrad, "rect_grad"),
}
each_copy = pytest.mark.parametrize("how", COPIES)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)).eval()


def images() -> torch.Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def moved(model: nn.Module, composite: str) -> zr.RuleSet:
    rules = zr.RuleSet.build(model, images(), composite)
    with torch.no_grad():
        for parameter in rules.parameters():
            parameter.uniform_(0, 0.5)
    return rules


@each_copy
@pytest.mark.parametrize("name", METHODS)
def test_methods(how: str, name: str) -> None:
    method = METHODS[name](net())
    again = COPIES[how](method)
    assert torch.equal(again.attribute(images(), target=1), method.attribute(images(), target=1))
    used = COPIES[how](method)
    assert torch.equal(used.attribute(images(), target=1), method.attribute(images(), target=1))


@each_copy
@pytest.mark.parametrize("name", WITH_RULES)
def test_methods_with_rules(how: str, name: str) -> None:
    kind, composite = WITH_RULES[name]
    model = net()
    rules = moved(model, composite)
    method = kind(model, rules=rules)
    expected = method.attribute(images(), target=1)
    assert torch.equal(COPIES[how](method).attribute(images(), target=1), expected)
    sent = COPIES[how](rules)
    assert torch.equal(kind(model, rules=sent).attribute(images(), target=1), expected)
    with rules.applied(model):  # in use meanwhile
        there = COPIES[how](method)
    assert torch.equal(there.attribute(images(), target=1), expected)


@each_copy
def test_trainers(how: str) -> None:
    trainer = cl.RuleTrainer(net(), steps=1, batch_size=2, deletions=4)
    found, expected = (one.fit(torch.cat([images()] * 2)).state_dict() for one in (COPIES[how](trainer), trainer))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
