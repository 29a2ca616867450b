"""Short names of composites, and what is said to names that do not exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zennit.composites import COMPOSITES
from zennit.composites import GuidedBackprop as ZennitsGuidedBackprop

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop.plugins import get_manager
from zennit_rules.core.names import did_you_mean
from zennit_rules.core.registry import SHORT_NAMES

each_name = pytest.mark.parametrize(("short", "full"), SHORT_NAMES.items())


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()


@each_name
def test_short_names(short: str, full: str, tmp_path: Path) -> None:
    model, x = net(), torch.rand(4, 1, 8, 8)
    assert zr.composite_class(short) is COMPOSITES[full]
    assert zr.composite_name(short) == zr.composite_name(full) == full
    rules = zr.RuleSet.build(model, x, short)
    assert rules.composite_name == zr.RuleSet(short).composite_name == full
    assert zr.RuleSet.load(rules.save(tmp_path / "r.safetensors")).composite_name == full
    assert cl.LearnedPropagation(model, short).composite == full
    assert cl.LearnedPropagation(model, short, rules=rules).rules is rules
    assert cl.RuleTrainer(model, short).build_options["composite"] == full


def test_zennits_own_names_stay_its_own() -> None:
    assert COMPOSITES["guided_backprop"] is ZennitsGuidedBackprop
    assert "lrp" not in COMPOSITES


def test_a_registered_composite_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(zr.LearnedGradient):
        name = "lrp"

    monkeypatch.setitem(COMPOSITES, "lrp", Mine)
    assert zr.composite_class("lrp") is Mine
    assert zr.composite_name("lrp") == "lrp"


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: zr.composite_class("lpr"), "lrp"),
        (lambda: zr.composite_class("learned_gradiant"), "learned_gradient"),
        (lambda: zr.RuleSet.build(net(), torch.rand(1, 1, 8, 8), gate="chanel"), "channel"),
        (lambda: zr.RuleSet.build(net(), torch.rand(1, 1, 8, 8), start="deconvnt"), "deconvnet"),
        (lambda: zr.RuleSet.build(net(), torch.rand(1, 1, 8, 8), pooling="sof"), "soft"),
        (lambda: zr.RuleSet.build(net(), torch.rand(1, 1, 8, 8), "lrp", rule_options={"gama": 1}), "gamma"),
        (lambda: zr.ChannelGate((1, 2), start="gradients"), "gradient"),
        (lambda: cl.LearnedPropagation(net(), "deep_lift"), "deeplift"),
        (lambda: cl.RuleTrainer(net(), "guided_backprob"), "guided_backprop"),
        (lambda: get_manager().get("gate", "chanel"), "channel"),
    ],
)
def test_did_you_mean(call: Callable[[], Any], meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        call()


def test_nothing_close() -> None:
    assert did_you_mean("xyz", ["channel"]) == ""
    assert did_you_mean(3, ["channel"]) == ""
    with pytest.raises(zr.RuleError, match="given by its name, such as 'learned_gradient', not as 3"):
        zr.composite_class(3)  # type: ignore[arg-type]
