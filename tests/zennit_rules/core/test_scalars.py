"""The number that a tensor or an array without dimensions holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zennit_rules as zr
from zennit_rules.core.scalars import plain, plain_fields, plain_options

KINDS: dict[str, Callable[[float], Any]] = {
    "tensor": torch.tensor,
    "array": np.array,
    "numpy": lambda value: np.int64(value) if isinstance(value, int) else np.float64(value),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
def test_plain(kind: Callable[[float], Any]) -> None:
    for value in (3, 0.5, True):
        found = plain(kind(value))
        assert found == value
        assert type(found) in (type(value), int if type(value) is bool else type(value), float)
    several = [torch.ones(1), np.ones(2), [1], "a", None]
    assert all(plain(value) is value for value in several)
    assert plain_options({"a": kind(2), "b": "c"}) == {"a": 2, "b": "c"}
    assert plain_options(None) is None


@every_kind
def test_plain_fields(kind: Callable[[float], Any]) -> None:
    @dataclass(frozen=True)
    class Record:
        number: float
        several: tuple[float, ...]
        name: str = "a"

        def __post_init__(self) -> None:
            plain_fields(self)

    assert Record(kind(2), (kind(3), 0.5)) == Record(2, (3, 0.5))
    assert type(Record(kind(2.5), ()).number) is float


@every_kind
@pytest.mark.filterwarnings("ignore::zennit_rules.RuleWarning")
def test_rule_options(kind: Callable[[float], Any]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    for composite, options in (
        ("learned_epsilon_gamma_box", {"low": 0.0, "high": 1.0, "gamma": 0.25, "epsilon": 2**-20}),
        ("rect_grad", {"percentile": 50.0}),
        ("learned_deeplift", {"baseline": 0.5}),
    ):
        given = {name: kind(value) for name, value in options.items()}
        one, other = (
            zr.RuleSet.build(model, torch.rand(2, 1, 8, 8), composite, rule_options=o) for o in (given, options)
        )
        assert one.config == other.config
