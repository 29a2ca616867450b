"""What methods and their results show of themselves."""

from __future__ import annotations

import html
import logging
from typing import Any

import captum.attr
import pytest
import torch
from html_cells import Cells
from small_nets import images, net
from torch import Tensor, nn

import captum_learnprop as cl
import zennit_rules as zr

METHODS = [
    name for name in cl.__all__
    if isinstance(getattr(cl, name), type) and issubclass(getattr(cl, name), captum.attr.Attribution)
]  # fmt: skip


def first_class(output: Tensor) -> Tensor:
    return output[:, 0]


class TestMethods:
    @pytest.mark.parametrize("name", METHODS)
    def test_every_public_method_is_one_line(self, name: str) -> None:
        model = net()
        layer = (model[0],) if name == "LayerExtremalPerturbation" else ()
        shown = repr(getattr(cl, name)(model, *layer))
        assert shown.startswith(f"{name}(model=Sequential")
        assert shown.endswith(")")
        assert "\n" not in shown

    @pytest.mark.parametrize(("make", "expected"), [
        (lambda model: cl.LearnedPropagation(model), "composite='learned_gradient'"),
        (lambda model: cl.LearnedPropagation(model, "lrp"), "composite='learned_epsilon_gamma_box'"),
        (
            lambda model: cl.LearnedPropagation(model, "deeplift", gate="channel", rule_options={"baseline": 0.5}),
            "composite='learned_deeplift', gate='channel', rule_options={'baseline': 0.5}",
        ),
        (lambda model: cl.LearnedGuidedBackprop(model), ""),
        (lambda model: cl.RectGrad(model, 80.0, pool="proportional"), "percentile=80.0, pool='proportional'"),
        (lambda model: cl.LearnedDeepLift(model, False, eps=0.1), "multiply_by_inputs=False, eps=0.1"),
        (lambda model: cl.ExtremalPerturbation(model, True), "multiply_by_inputs=True"),
        (lambda model: cl.LayerExtremalPerturbation(model, model[0]), "layer='0'"),
        (lambda model: cl.CDAM(model, model[2], grid_size=(4, 4)), "layer='2', grid_size=(4, 4)"),
    ])  # fmt: skip
    def test_arguments_that_differ_from_the_defaults(self, make: Any, expected: str) -> None:
        method = make(net())
        inside = "model=Sequential" + (f", {expected}" if expected else "")
        assert repr(method) == f"{type(method).__name__}({inside})"

    @pytest.mark.parametrize(("kind", "composite", "before"), [
        (cl.LearnedPropagation, "learned_gradient", "composite='learned_gradient', "),
        (cl.LearnedLRP, "learned_epsilon_gamma_box", ""),
        (cl.LearnedDeepLift, "learned_deeplift", ""),
        (cl.RectGrad, "rect_grad", ""),
    ])  # fmt: skip
    def test_rules_show_themselves(self, kind: Any, composite: str, before: str) -> None:
        model = net()
        rules = zr.RuleSet.build(model, images(2), composite)
        assert repr(kind(model, rules=rules)) == f"{kind.__name__}(model=Sequential, {before}rules={rules!r})"

    def test_a_notebook_shows_the_call(self) -> None:
        method = cl.LearnedPropagation(net(), "lrp")
        assert html.unescape(method._repr_html_()) == f"<code>{method!r}</code>"
        assert "<" not in method._repr_html_()[len("<code>") : -len("</code>")]

    def test_a_function_is_named(self) -> None:
        assert repr(cl.ExtremalPerturbation(first_class)) == "ExtremalPerturbation(model=first_class)"


class TestExtremalResults:
    def found(self, areas: Any = (0.1, 0.4)) -> cl.ExtremalMasks:
        method = cl.ExtremalPerturbation(net())
        return method.attribute(images(3), 1, areas=areas, n_steps=5, return_masks=True)[1]

    def test_masks(self) -> None:
        found = self.found()
        shown = repr(found)
        assert shown.startswith("ExtremalMasks(samples=3, areas=[0.1, 0.4], realised=[")
        assert f"rewards=[{float(found.rewards[:, 0].mean()):.3g}, " in shown
        assert shown.endswith(f"converged={int(found.converged.sum())} of 6, neutral={int(found.neutral.sum())})")

    def test_a_table_with_a_row_per_area(self) -> None:
        shown = self.found()._repr_html_()
        cells = Cells(shown)
        assert cells.around[0].startswith("Extremal masks of 3 samples")
        head, *rows = cells.rows
        assert head == ["area", "realised", "reward", "steps", "converged", "neutral"]
        assert [(row[0], row[3]) for row in rows] == [("0.1", "5"), ("0.4", "5")]

    def test_many_areas_are_cut_short(self) -> None:
        assert "areas=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, ...]" in repr(self.found([n / 10 for n in range(1, 8)]))

    def test_area(self) -> None:
        found = cl.ExtremalPerturbation(net()).extremal_area(images(2), 1, areas=[0.1, 0.5], halvings=1, n_steps=5)
        assert repr(found).startswith("ExtremalArea(area=[")
        assert repr(found).endswith("], share=0.9, areas tried: 3)")

    def test_channels(self) -> None:
        model = net()
        summary = cl.LayerExtremalPerturbation(model, model[0]).summary([images(2)], 1, n_steps=5)
        channels = summary.mean.shape[1]
        top = ", ".join(map(str, summary.top(5)[0].tolist()))
        assert repr(summary) == f"ChannelSummary(samples=2, areas=1, channels={channels}, top=[{top}])"


class TestLogging:
    def lines(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("captum_learnprop")]

    def test_rules_of_lrp_are_logged_and_printed_for_who_asks(
        self, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.rand(2, 4)
        cl.LearnedLRP(model).attribute(x, target=0)
        assert self.lines(caplog) == []
        with caplog.at_level(logging.DEBUG, logger="captum_learnprop"):
            cl.LearnedLRP(model).attribute(x, target=0)
        logged = self.lines(caplog)
        assert [line.split(" at ")[1].split(":")[0] for line in logged] == ["0", "2"]
        assert capsys.readouterr().out == ""
        cl.LearnedLRP(model).attribute(x, target=0, verbose=True)
        assert capsys.readouterr().out.splitlines() == logged
