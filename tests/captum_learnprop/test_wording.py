"""What results show of themselves: one line as their ``repr``, a table in a notebook."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from html_cells import Cells
from torch import nn

from captum_learnprop.evaluation.analysis import Analysis, RuleReport
from captum_learnprop.evaluation.backward_rules import backward_rule
from captum_learnprop.evaluation.conservation import Conservation
from captum_learnprop.evaluation.metrics import METRICS
from captum_learnprop.evaluation.profiles import Filtering, LayerProfile
from captum_learnprop.evaluation.randomization import ParameterRandomization
from captum_learnprop.plugins import PluginManager
from captum_learnprop.tables import html
from captum_learnprop.wording import counted, listed

PROFILE = LayerProfile(("conv1", "conv2"), torch.tensor([[0.5, 0.25], [1.0, math.nan]], dtype=torch.float64))

REPORT = RuleReport(
    rule="gradient", alignment={}, alignment_raw={}, classes={}, convergence={}, passed_positive={}, passed_negative={},
    cascading={}, full=0.0, full_absolute=0.0, redraws=0.0,
    verdicts={"weights": "Weights: it depends on them.", "class": "Class: another.", "input": "Input: not."},
)  # fmt: skip

SHOWN: dict[str, tuple[Any, str, list[list[str]]]] = {
    "profile": (
        PROFILE,
        "LayerProfile(2 layers, 2 samples: 'conv1' 0.375, 'conv2' 1.000)",
        [["layer", "mean of 2 samples"], ["conv1", "0.375"], ["conv2", "1.000"]],
    ),
    "filtering": (
        Filtering(PROFILE, LayerProfile(PROFILE.names, torch.zeros(2, 2))),
        "Filtering(2 activations, 2 samples: positive 0.583, negative 0.000)",
        [["activation", "positive part", "negative part"], ["conv1", "0.375", "0.000"], ["conv2", "1.000", "0.000"]],
    ),
    "conservation": (
        Conservation(torch.tensor([0.5]), torch.tensor([1.0])),
        "Conservation(1 sample: 0.500 with biases, 1.000 without)",
        [["sample", "arrives with biases", "without biases"], ["0", "0.500", "1.000"]],
    ),
    "randomization": (
        ParameterRandomization(("head",), torch.tensor([[0.25, 0.75]])),
        "ParameterRandomization(1 layer, 2 samples: 'head' 0.500)",
        [["randomised up to", "similarity"], ["head", "0.500"]],
    ),
    "report": (
        REPORT,
        "RuleReport('gradient': Weights: it depends on them. Class: another. Input: not.)",
        [["about", "gradient"], ["weights", "it depends on them."], ["class", "another."], ["input", "not."]],
    ),
    "metric": (
        METRICS["compactness"],
        "Metric('compactness': share of values near zero; needs maps; 0 to 1, higher is better)",
        [
            ["metric", "what it is", "needs", "bounds", "which way"],
            ["compactness", "share of values near zero", "maps", "0 to 1", "higher is better"],
        ],
    ),
}


@pytest.mark.parametrize("what", SHOWN)
def test_a_result_shows_itself(what: str) -> None:
    shown, line, rows = SHOWN[what]
    assert repr(shown) == line
    assert Cells(shown._repr_html_()).rows == rows


def test_plugins() -> None:
    manager = PluginManager.discover()
    assert repr(manager).startswith("PluginManager(builtin ")
    rows = Cells(manager._repr_html_()).rows
    assert rows[0] == ["plugin", "version", "owner", "status", "error"]
    assert ["builtin", "gate", "channel", "ok", "one weight per channel, shared over samples"] in rows


def test_an_analysis() -> None:
    assert repr(Analysis("vgg", 4, {}, (REPORT,))) == "Analysis('vgg', 4 images: gradient)"


def test_a_backward_rule() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    assert repr(backward_rule("rect_grad", model, torch.ones(1, 2))) == "BackwardRule('rect_grad', rect_grad)"


def test_html_of_names_is_not_html() -> None:
    assert Cells(html(["<b>"], [["a & b"]])).rows == [["<b>"], ["a & b"]]


def test_long_lists_are_cut_in_the_middle() -> None:
    line = listed({f"layer{index}": 0.0 for index in range(20)})
    assert line.count("layer") == 6
    assert line.startswith("'layer0' 0.000, ")
    assert ", ..., " in line
    assert line.endswith("'layer19' 0.000")
    assert counted(0, "layer") == "0 layers"
