"""The scores of the benchmark's tables: metrics with options and headings, on the scenes that have what they need.

A metric is asked for by its name, ``average_precision``, and is one column of the tables or several: ``deletion`` has
one for each fill. A heading, ``deletion, blur``, asks for that column alone. Metrics of plugins have their name for
a heading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.evaluation.metrics import METRICS, Metric, UnknownMetricError, find_metric
from captum_learnprop.evaluation.part_importance import part_drops
from captum_learnprop.plugins import get_manager
from captum_learnprop.scenes.scenes import Questions
from zennit_rules._moved import renamed

STEPS = 10
"""Points of removal curves: one for every tenth of the pixels."""

ROAD_PERCENTAGES = (10, 30, 50, 70)

RANDOMISATION = "randomisation"
"""Needs the method itself and not only its maps: see `captum_learnprop.benchmark.suite`."""

JUDGED = "insertion, other nets"
"""Needs other nets for the same classes."""

FAMILIES_WITH = {
    "other_masks": ("pairs", "grid", "patch"),
    "cells": ("grid",),
    "parts": ("parts",),
    "drops": ("parts",),
}
"""Scene families that have what a metric can need; all have the rest of it."""

GIVEN = ("model", "inputs", "maps", "targets", "masks", *FAMILIES_WITH)
"""What a `Case` can give."""

PASSES = {"model", "drops", "attribute"}
"""Needs that take passes through the net."""


@dataclass
class Case:
    """What maps are scored against.

    Attributes:
        model: the explained net.
        questions: what was asked.
        output: the quantity on removal curves, ``"sigmoid"`` or ``"softmax"``.
        judges: other nets for the same classes.
    """

    model: nn.Module
    questions: Questions
    output: str
    judges: Sequence[nn.Module] = ()

    @cached_property
    def drops(self) -> Tensor:
        """What the net loses with each part, ``(M, P)``; computed once.

        Raises:
            LearnpropError: the scenes were made without counterfactuals.
        """
        questions = self.questions
        if questions.without is None:
            raise LearnpropError("part correlation needs scenes made with counterfactuals=True")
        return part_drops(self.model, questions.images, questions.without, questions.targets, output=self.output)

    @property
    def cells(self) -> Tensor:
        """The quarter of its mosaic that each asked object is in, ``(M,)`` int64, in reading order.

        Raises:
            LearnpropError: the scenes are no mosaics.
        """
        cells = self.questions.cells
        if cells is None:
            raise LearnpropError("grid pointing needs mosaics")
        first = cells.flatten(1).int().argmax(1)
        row, column = first // cells.shape[-1], first % cells.shape[-1]
        return 2 * (row > 0).long() + (column > 0).long()

    @property
    def parts(self) -> Tensor:
        """Visible pixels of each part of a figure, ``(M, P, H, W)`` bool.

        Raises:
            LearnpropError: the scenes are no figures.
        """
        if self.questions.parts is None:
            raise LearnpropError("part correlation needs figures")
        return self.questions.parts

    def known(self, maps: Tensor, needs: Iterable[str]) -> dict[str, Any]:
        """Returns what a metric needs, by name: of `GIVEN`.

        Args:
            maps: ``(M, H, W)``.
            needs: names.

        Raises:
            LearnpropError: the scenes do not have something of it.
        """
        questions = self.questions
        at_hand = {
            "model": self.model, "inputs": questions.images, "maps": maps, "targets": questions.targets,
            "masks": questions.masks, "other_masks": questions.other_masks,
        }  # fmt: skip
        return {name: at_hand[name] if name in at_hand else getattr(self, name) for name in needs if name in GIVEN}


@dataclass(frozen=True)
class Score:
    """A column of the tables: a metric, with its options.

    Attributes:
        name: heading in tables and key in results.
        metric: what is computed.
        options: of the metric.
        of_output: whether the metric follows the case's ``output``.
        families: scene families it is defined on; empty for those that have what the metric needs.
        special: ``(case, maps (M, H, W)) -> (M,)``, where more than a call of the metric is needed; None for that.
    """

    name: str
    metric: Metric
    options: Mapping[str, Any] = field(default_factory=dict)
    of_output: bool = False
    families: tuple[str, ...] = ()
    special: Callable[[Case, Tensor], Tensor] | None = None

    @property
    def higher_is_better(self) -> bool:
        """Which way."""
        return bool(self.metric.higher_is_better)

    @property
    def cheap(self) -> bool:
        """Whether it needs no pass through the net."""
        return not PASSES & set(self.metric.needs)

    def defined_on(self, family: str) -> bool:
        """Whether scenes of a family have what the score needs."""
        if self.families:
            return family in self.families
        return all(family in FAMILIES_WITH.get(name, (family,)) for name in self.metric.needs)

    def rate(self, case: Case, maps: Tensor) -> Tensor:
        """Returns the values ``(M,)`` of maps ``(M, H, W)``; NaN where the score is not defined.

        Raises:
            LearnpropError: the scenes do not have what the score needs.
            PluginError: a plugin's metric fails.
        """
        if self.special is not None:
            return self.special(case, maps)
        output = {"output": case.output} if self.of_output else {}
        return self.metric.of(case.known(maps, self.metric.needs), **self.options, **output)


def scores_of(names: Sequence[str]) -> list[Score]:
    """Returns the scores that names ask for, each once; all of `SCORES` where there are no names.

    Args:
        names: of metrics, of plugins' too, each for all of its columns; or headings.

    Raises:
        LearnpropError: one of them does not exist, or is none of maps.
    """
    found: dict[str, Score] = {} if names else dict(SCORES)
    for name in names:
        columns = [one for one in SCORES.values() if name in (one.name, one.metric.name)]
        for one in columns or [_further(name)]:
            found.setdefault(one.name, one)
    return list(found.values())


def score(name: str) -> Score:
    """Returns the score of a heading, or of a metric that is one column.

    Raises:
        LearnpropError: no such score, or several.
    """
    if name in SCORES:
        return SCORES[name]
    first, *others = scores_of([name])
    if others:
        raise LearnpropError(f"{name!r} is several columns: {'; '.join(one.name for one in (first, *others))}")
    return first


def _further(name: str) -> Score:
    """A metric that is not among `SCORES`, as a column under its own name."""
    try:
        metric = find_metric(name)
    except UnknownMetricError:
        names = list(dict.fromkeys([*(one.metric.name for one in SCORES.values()), *get_manager().available("metric")]))
        raise LearnpropError(
            f"unknown metric {name!r}; choose one of {', '.join(names)}{did_you_mean(name, [*names, *SCORES])}"
        ) from None
    lacking = [need for need in metric.needs if need not in GIVEN]
    if lacking or metric.higher_is_better is None:
        reason = f"needs {lacking[0]}, which scenes do not have" if lacking else "says not which way is better"
        raise LearnpropError(f"metric {name!r} cannot be a column of the tables: it {reason}")
    return Score(name, metric)


def in_table_order(names: Iterable[str]) -> list[str]:
    """Returns headings in the order of the tables: those of `SCORES`, then others that are known, as they come."""
    given = list(dict.fromkeys(names))
    return [
        *(name for name in SCORES if name in given),
        *(name for name in given if name not in SCORES and _is_known(name)),
    ]


def _is_known(name: str) -> bool:
    try:
        score(name)
    except LearnpropError:
        return False
    return True


def _where_others_are_shown(case: Case, maps: Tensor) -> Tensor:
    """Class AUC, NaN where the other objects are hidden."""
    questions = case.questions
    shown = questions.other_masks.flatten(1).any(1)
    values = torch.full((len(maps),), torch.nan, dtype=torch.float64)
    if shown.any():
        values[shown] = METRICS["class_auc"](maps[shown], questions.masks[shown], questions.other_masks[shown])
    return values


def _judged(case: Case, maps: Tensor) -> Tensor:
    """Insertion judged by nets trained on their own: a map that encodes an answer for one net helps no other."""
    metric = METRICS["insertion"]
    known = case.known(maps, metric.needs)
    each = [
        metric.of({**known, "model": judge}, baseline="blur", steps=STEPS, output=case.output) for judge in case.judges
    ]
    return torch.stack(each).mean(0)


def _on_other_nets(case: Case, maps: Tensor) -> Tensor:
    raise LearnpropError(f"{RANDOMISATION} is no score of maps alone")


def _column(name: str, metric: str, **facts: Any) -> Score:
    return Score(name, METRICS[metric], **facts)


def _removal(name: str, metric: str, baseline: str) -> Score:
    return _column(name, metric, options={"baseline": baseline, "steps": STEPS}, of_output=True)


SCORES: dict[str, Score] = {
    one.name: one
    for one in (
        _column("average precision", "average_precision"),
        _column("class AUC", "class_auc", families=("pairs", "grid"), special=_where_others_are_shown),
        _column("distractor AUC", "class_auc", families=("patch",), special=_where_others_are_shown),
        _column("pointing game", "pointing_game"),
        _column("relevance mass", "relevance_mass"),
        _column("rank accuracy", "relevance_rank_accuracy"),
        _column("grid pointing", "grid_pointing"),
        _column("part correlation", "part_correlation"),
        _removal("deletion, zero", "deletion", "zero"),
        _removal("deletion, blur", "deletion", "blur"),
        _removal("deletion, mean", "deletion", "mean"),
        _removal("insertion, blur", "insertion", "blur"),
        _column(JUDGED, "insertion", special=_judged),
        _removal("MoRF-LeRF area", "morf_lerf_area", "mean"),
        _column("ROAD", "road", options={"percentages": ROAD_PERCENTAGES}, of_output=True),
        _column(RANDOMISATION, "full_randomization", special=_on_other_nets),
    )
}
"""Scores by heading, in the order of the tables; without ``--metric`` all of them."""


__getattr__ = renamed(__name__, {"ScoreError": "LearnpropError"})
