"""The benchmark's figure: it names the methods that matter and shows the rest."""

from __future__ import annotations

import math

from captum_learnprop.benchmark.cost_figure import MOST_NAMES, cost_figure, mean_scores, methods_that_matter
from captum_learnprop.benchmark.summary import Estimate, Row


def row(method: str, family: str, score: float, *, net: str = "vgg", composite: str | None = None) -> Row:
    estimate = Estimate(score, 0.01, math.nan, math.nan, 8, 1)
    return Row(
        model=net, scenes="pairs", method=method, family=family, passes=2, seconds=0.002, treatment="signed, 1 px",
        estimates={"average precision": estimate}, same={}, samples={}, recognised=1.0, training_seconds=math.nan,
        seeds=1, asked=1, failures=(), error=None, composite=composite,
    )  # fmt: skip


def named(rows: list[Row]) -> set[str]:
    return methods_that_matter({net: mean_scores(rows, net) for net in {one.model for one in rows}})


GATES = "learned_gradient"
MANY = [
    row("saliency", "gradient", 0.5),
    row("DeepLift", "gradient", 0.8),
    row("Grad-CAM", "cam", 0.6),
    row("LRP box", "lrp", 0.7),
    row("LRP plus", "lrp", 0.8),
    row("occlusion", "perturbation", 0.7),
    row("ground truth", "control", 1.0),
    row("intensity", "control", 0.4),
    row("gates, untrained", "untrained", 0.5, composite=GATES),
    row("gates, learned", "learned", 0.849, composite=GATES),
    row("gates + fusion, learned", "learned", 0.851, composite=GATES),
    row("LRP, learned", "learned", 0.9, composite="learned_epsilon_gamma_box"),
    row("learned per sample", "learned", 0.6),
    row("shared + refined", "learned", 0.95, composite=GATES),
    row("rules mine", "learned", 0.1, composite=GATES),
]


def test_the_best_of_each_kind_is_named() -> None:
    assert named(MANY) == {
        "saliency", "DeepLift", "Grad-CAM", "LRP plus", "occlusion", "gates, learned", "LRP, learned",
        "learned per sample", "rules mine",
    }  # fmt: skip


def test_the_best_is_that_of_all_nets() -> None:
    other = [row("LRP plus", "lrp", 0.2, net="resnet"), row("LRP box", "lrp", 0.7, net="resnet")]
    assert {"LRP plus", "LRP box"} & named([*MANY, *other]) == {"LRP box"}


def test_few_are_all_named() -> None:
    few = [one for one in MANY if one.family != "control"][:MOST_NAMES]
    assert named(few) == {one.method for one in few}


def test_the_others_are_grey_and_titles_say_what_a_control_has() -> None:
    figure = cost_figure(MANY)
    assert figure is not None
    (axes,) = figure.axes
    assert {text.get_text().rpartition("  ")[0] for text in axes.texts if text.get_text()} == named(MANY)
    assert axes.get_title(loc="left") == "vgg (best control: intensity 0.40)"
    assert "without a name in grey" in figure.get_suptitle()
    few = cost_figure(MANY[:3])
    assert few is not None
    assert "grey" not in few.get_suptitle()
    assert few.axes[0].get_title(loc="left") == "vgg"


def test_there_is_no_figure_without_average_precision() -> None:
    assert cost_figure([]) is None
