"""What a notebook shows of rule sets and their coverage."""

from __future__ import annotations

import pytest
import torch
from html_cells import Cells
from torch import nn

import zennit_rules as zr
from zennit_rules.core.coverage import Coverage, CoverageRow
from zennit_rules.core.notebook import MOST_ROWS, html_table


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3), nn.Softmax(1))


@pytest.mark.parametrize("most", [0, 2, 3, 4])
def test_table(most: int) -> None:
    shown = Cells(html_table("a < b", ["x", "y & z"], [["1", "<b>"], ["2", '"'], ["3", "'"]], most))
    assert shown.rows == [["x", "y & z"], *[["1", "<b>"], ["2", '"'], ["3", "'"]][:most]]
    assert shown.around == ["a < b", *([f"... and {3 - most} more"] if most < 3 else [])]


def test_rule_set() -> None:
    rules = zr.RuleSet.build(net(), torch.rand(1, 1, 8, 8))
    shown = Cells(rules._repr_html_())
    assert shown.rows == [["site", "function", "rule", "parameters"], ["1", "ReLU", "ChannelGate", "2"]]
    assert shown.around == [repr(rules)]


def test_shares_of_the_work_add_up() -> None:
    rules = zr.RuleSet.build(net(), torch.rand(1, 1, 8, 8), "lrp")
    shown = Cells(rules._repr_html_())
    assert shown.rows[0][-1] == "share of work"
    # A convolution of 9 weights makes 2 x 6 x 6 values, the dense layer 3 of 72.
    shares = {row[0]: row[-1] for row in shown.rows[1:]}
    assert shares == {"0": f"{648 / 864:.1%}", "1": "0.0%", "3": f"{216 / 864:.1%}"}
    assert {row[0]: row[-1] for row in Cells(rules.coverage()._repr_html_()).rows[1:]}.items() >= shares.items()


def test_coverage() -> None:
    rules = zr.RuleSet.build(net(), torch.rand(1, 1, 8, 8))
    coverage = rules.coverage()
    shown = Cells(coverage._repr_html_())
    assert shown.rows[0] == ["layer", "function", "rule"]
    assert [row[:2] for row in shown.rows[1:]] == [[row.name, row.function] for row in coverage.rows]
    assert repr(coverage) == shown.around[0]
    assert repr(coverage).startswith(f"Coverage(1 of {len(coverage.rows)} layers with a rule")


def test_a_large_model_is_cut_and_all_is_escaped() -> None:
    rows = tuple(CoverageRow(f"<script>{i}", "ReLU & co", "", "<why>") for i in range(MOST_ROWS + 7))
    shown = Cells(Coverage(rows)._repr_html_())
    assert len(shown.rows) == MOST_ROWS + 1
    assert shown.rows[1] == ["<script>0", "ReLU & co", "- (<why>)"]
    assert shown.around[-1] == "... and 7 more"


def test_an_open_rule_set_shows_itself() -> None:
    assert Cells(zr.RuleSet("learned_gradient", {"gate": "channel"})._repr_html_()).rows == [
        ["site", "function", "rule", "parameters"]
    ]
