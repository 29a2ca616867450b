"""The benchmark's figure: what a map costs against how well it finds the asked object, one panel per net."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from captum_learnprop import plot
from captum_learnprop.benchmark.contenders import CONTROL, GIVEN, PER_SAMPLE, REFINED, TRUTH, UNTRAINED
from captum_learnprop.benchmark.summary import LEARNED, SALIENCY, Row

SCORE = "average precision"
"""Score on the vertical axis."""

SHORTEST = 1e-5
"""Seconds per image that the figure starts at: controls take less."""

MOST_NAMES = 10
"""Number of methods up to which all are named."""


@dataclass(frozen=True)
class Mean:
    """A method's mean over all scene families of a net.

    Attributes:
        row: The method on the family with the fewest seeds.
        score: Mean of `SCORE`.
        error: Its standard error; NaN if that of one family is not known.
        seconds: Mean seconds per image.
    """

    row: Row
    score: float
    error: float
    seconds: float


def mean_scores(rows: Sequence[Row], model: str) -> dict[str, Mean]:
    """Returns the means of a net's methods, by method.

    Methods that lack one of the families are left out: their mean would be one of other scenes.

    Args:
        rows: The results.
        model: Name of the net.
    """
    found: dict[str, Mean] = {}
    own = [row for row in rows if row.model == model]
    families = {row.scenes for row in own}
    for method in dict.fromkeys(row.method for row in own):
        group = [row for row in own if row.method == method and SCORE in row.estimates]
        estimates = [row.estimates[SCORE] for row in group]
        if {row.scenes for row in group} != families or any(math.isnan(one.mean) for one in estimates):
            continue
        found[method] = Mean(
            row=min(group, key=lambda row: row.seeds),
            score=sum(one.mean for one in estimates) / len(group),
            error=sum(one.standard_error**2 for one in estimates) ** 0.5 / len(group),
            seconds=sum(row.seconds for row in group) / len(group),
        )
    return found


def cost_figure(rows: Sequence[Row], *, threads: int = 1) -> plot.NotebookFigure | None:
    """Draws milliseconds per image against average precision, one panel per net.

    Named are the methods that matter (see `methods_that_matter`), the others are grey. Controls, which look at no net,
    are not drawn; the titles say what the best of them has.

    Args:
        rows: The results, from `summarise` or `read_rows`.
        threads: Number of CPU threads that times were taken with, for the label.

    Returns:
        The figure, or None where there is no average precision.
    """
    nets = {model: mean_scores(rows, model) for model in dict.fromkeys(row.model for row in rows)}
    named = methods_that_matter(nets)
    panels = {_title(model, means): _points(means, named) for model, means in nets.items()}
    panels = {title: points for title, points in panels.items() if points}
    if not panels:
        return None
    families = ", ".join(dict.fromkeys(row.scenes for row in rows))
    others = any(not point.labelled for points in panels.values() for point in points)
    counted = "one thread" if threads == 1 else f"{threads} threads"
    return plot.cost_quality(
        panels, cost=f"milliseconds per image ({counted}, log scale)", quality=SCORE,
        title=f"Which pixels are the asked object? Mean over {families}; learned rules in red"
        + ", methods without a name in grey" * others,
    )  # fmt: skip


def _title(model: str, means: Mapping[str, Mean]) -> str:
    """Returns the net's name with the best map that is made without the net; the true pixels score 1 by definition."""
    controls = [
        (one.score, one.row.method) for one in means.values() if one.row.family == CONTROL and one.row.method != TRUTH
    ]
    return model + "".join(f" (best control: {name} {score:.2f})" for score, name in sorted(controls)[-1:])


def _points(means: Mapping[str, Mean], named: set[str]) -> list[plot.CostQuality]:
    return [
        plot.CostQuality(
            one.row.label, one.row.family, 1000 * max(one.seconds, SHORTEST), one.score,
            0.0 if math.isnan(one.error) else one.error,
            highlighted=one.row.family == LEARNED and method in named, labelled=method in named,
        )
        for method, one in means.items()
        if one.row.family != CONTROL
    ]  # fmt: skip


def methods_that_matter(nets: Mapping[str, Mapping[str, Mean]]) -> set[str]:
    """Returns the methods that the figure names: all where they are few, else the best of each kind.

    Kinds are the families of hand-made methods and the composites of trained rules; saliency, rules learned per sample
    and rules from files are kinds of their own. The best has the highest mean over the nets to two decimals, as the
    figure shows them; of equals the first is named, which is the simpler one.

    Args:
        nets: Means by net and method.
    """
    kinds: dict[str, str | None] = {}
    scores: dict[str, list[float]] = {}
    for means in nets.values():
        for method, one in means.items():
            if one.row.family != CONTROL:
                kinds[method] = _kind(one.row)
                scores.setdefault(method, []).append(one.score)
    if len(scores) <= MOST_NAMES:
        return set(scores)
    best: dict[str, str] = {}
    for method in sorted(scores, key=lambda name: -round(sum(scores[name]) / len(scores[name]), 2)):
        kind = kinds[method]
        if kind is not None:
            best.setdefault(kind, method)
    return set(best.values())


def _kind(row: Row) -> str | None:
    """Returns what a method can be the best of; None for starts of training and for rules refined for each image."""
    if row.method in (SALIENCY, PER_SAMPLE) or row.method.startswith(GIVEN):
        return row.method
    if row.family == UNTRAINED or row.method == REFINED:
        return None
    return row.composite or row.family
