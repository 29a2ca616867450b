"""Signals that are computed again, against those that autograd keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zennit_rules.core.recomputed import are_alone, recomputed, rules_alone

G = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def rule(g: Tensor, weight: Tensor) -> list[Tensor | None]:
    """Two operands get a signal, one gets none, and one the same as another."""
    first = g * weight.tanh() * g.abs()
    return [first, None, g.sum() * weight, first]


def gradients(*, again: bool) -> tuple[list[Tensor | None], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    g = (2 * G).requires_grad_()
    signal = g.square()
    found = recomputed(lambda g: rule(g, weight), signal, (weight,)) if again else rule(signal, weight)
    value = sum(((k + 1) * one.square()).sum() for k, one in enumerate(found) if one is not None)
    assert isinstance(value, Tensor)
    return found, torch.autograd.grad(value, (g, weight))


def test_signals_and_gradients_are_those_that_are_kept() -> None:
    kept, again = gradients(again=False), gradients(again=True)
    assert [one is None for one in again[0]] == [False, True, False, False]
    torch.testing.assert_close(again, kept, rtol=1e-12, atol=0)


def test_a_closed_form_is_used() -> None:
    g = G.clone().requires_grad_()
    (found,) = recomputed(lambda g: (2 * g,), g, (), lambda g, towards: (7 * towards[0],))
    assert found is not None
    torch.testing.assert_close(torch.autograd.grad(found.sum(), g)[0], torch.full_like(G, 7))


def test_a_rule_that_passes_nothing_on() -> None:
    g, weight = G.clone().requires_grad_(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    (found,) = recomputed(lambda g: (torch.zeros_like(g),), g, (weight,))
    assert found is not None
    for gradient in torch.autograd.grad(found.sum(), (g, weight)):
        assert not gradient.any()


def test_parameters_that_change_before_the_gradient_are_told() -> None:
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (found,) = recomputed(lambda g: (g * weight,), G.clone().requires_grad_(), (weight,))
    assert found is not None
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        found.sum().backward()


def test_rules_are_alone_where_gradients_are_recorded() -> None:
    assert not are_alone()
    with rules_alone():
        assert are_alone()
        with torch.no_grad():
            assert not are_alone()
    assert not are_alone()
