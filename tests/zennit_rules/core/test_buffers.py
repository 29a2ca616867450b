"""Buffers are as they were: those that are written into in training mode, and those that are assigned anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zennit_rules as zr
from zennit_rules.core.buffers import buffers_kept


class Counting(nn.Module):
    """Assigns one buffer anew in each pass, and shares another with its norm."""

    h: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.zeros(2))
        self.norm, self.relu = nn.BatchNorm1d(2), nn.ReLU()
        self.register_buffer("mean", self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.h + 1
        return self.relu(self.norm(x)) + self.h


@pytest.mark.parametrize("training", [False, True])
def test_objects_and_values(training: bool) -> None:
    model = Counting().train(training)
    before = [(name, buffer, buffer.clone()) for name, buffer in model.named_buffers(remove_duplicate=False)]
    assert len(before) == 5
    with buffers_kept(model):
        model(model(torch.rand(3, 2)))
        assert float(model.h[0]) == 2
    after = list(model.named_buffers(remove_duplicate=False))
    assert [name for name, _ in after] == [name for name, *_ in before]
    for (_, found), (_, kept, value) in zip(after, before, strict=True):
        assert found is kept
        assert torch.equal(found, value)


def test_an_exception_passes() -> None:
    model = Counting().eval()
    kept = model.h
    with pytest.raises(RuntimeError, match="running_mean"), buffers_kept(model):
        model(torch.rand(3, 7))
    assert model.h is kept


def test_building_rules_leaves_assigned_buffers() -> None:
    model = Counting().eval()
    kept = model.h
    zr.RuleSet.build(model, torch.rand(3, 2))
    assert model.h is kept


def test_evaluation_mode_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting().eval()
    monkeypatch.setattr(Tensor, "clone", lambda *args, **kwargs: pytest.fail("a buffer was copied"))
    with buffers_kept(model):
        pass
