"""The scores of the benchmark by name: what they need, which scenes they are defined on, which way is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.evaluation.faithfulness import deletion, insertion, morf_lerf_area
from captum_learnprop.evaluation.localization import (
    average_precision,
    class_auc,
    grid_pointing,
    pointing_game,
    relevance_mass,
    relevance_rank_accuracy,
)
from captum_learnprop.evaluation.part_importance import part_correlation, part_drops
from captum_learnprop.evaluation.road import road
from captum_learnprop.scenes.scenes import Questions

STEPS = 10
"""Points of removal curves: one for every tenth of the pixels."""

ROAD_PERCENTAGES = (10, 30, 50, 70)

RANDOMISATION = "randomisation"
"""Needs the method itself and not only its maps: see `captum_learnprop.benchmark.suite`."""


class ScoreError(LearnpropError):
    """A score that does not exist."""


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
    _drops: Tensor | None = field(default=None, repr=False)

    def part_drops(self) -> Tensor:
        """What the net loses with each part, ``(M, P)``; computed once."""
        if self._drops is None:
            questions = self.questions
            if questions.without is None:
                raise ScoreError("part correlation needs scenes made with counterfactuals=True")
            self._drops = part_drops(
                self.model, questions.images, questions.without, questions.targets, output=self.output
            )
        return self._drops


@dataclass(frozen=True)
class Score:
    """A score of maps.

    Attributes:
        name: as in tables.
        higher_is_better: which way.
        rate: ``(case, maps (M, H, W)) -> (M,)``; NaN where it is not defined.
        families: scene families it is defined on; empty for all.
        cheap: whether it needs no pass through the net.
    """

    name: str
    higher_is_better: bool
    rate: Callable[[Case, Tensor], Tensor]
    families: tuple[str, ...] = ()
    cheap: bool = True

    def defined_on(self, family: str) -> bool:
        """Whether scenes of a family have what the score needs."""
        return not self.families or family in self.families


def score(name: str) -> Score:
    """The score of a name.

    Raises:
        ScoreError: no such score.
    """
    if name not in SCORES:
        raise ScoreError(f"unknown metric {name!r}; choose one of {', '.join(SCORES)}{did_you_mean(name, SCORES)}")
    return SCORES[name]


def _average_precision(case: Case, maps: Tensor) -> Tensor:
    return average_precision(maps, case.questions.masks)


def _class_auc(case: Case, maps: Tensor) -> Tensor:
    """NaN where the other objects are hidden."""
    questions = case.questions
    shown = questions.other_masks.flatten(1).any(1)
    values = torch.full((len(maps),), torch.nan, dtype=torch.float64)
    if shown.any():
        values[shown] = class_auc(maps[shown], questions.masks[shown], questions.other_masks[shown])
    return values


def _removal(function: Callable[..., Tensor], baseline: str) -> Callable[[Case, Tensor], Tensor]:
    def rate(case: Case, maps: Tensor) -> Tensor:
        questions = case.questions
        return function(
            case.model, questions.images, maps, questions.targets, baseline=baseline, steps=STEPS, output=case.output
        )

    return rate


def _judged(case: Case, maps: Tensor) -> Tensor:
    """Insertion judged by nets trained on their own: a map that encodes an answer for one net helps no other."""
    questions = case.questions
    each = [
        insertion(judge, questions.images, maps, questions.targets, baseline="blur", steps=STEPS, output=case.output)
        for judge in case.judges
    ]
    return torch.stack(each).mean(0)


def _road(case: Case, maps: Tensor) -> Tensor:
    questions = case.questions
    return road(case.model, questions.images, maps, questions.targets, percentages=ROAD_PERCENTAGES, output=case.output)


def _rank_accuracy(case: Case, maps: Tensor) -> Tensor:
    return relevance_rank_accuracy(maps, case.questions.masks)


def _grid_pointing(case: Case, maps: Tensor) -> Tensor:
    cells = case.questions.cells
    if cells is None:
        raise ScoreError("grid pointing needs mosaics")
    first = cells.flatten(1).int().argmax(1)
    row, column = first // cells.shape[-1], first % cells.shape[-1]
    return grid_pointing(maps, 2 * (row > 0).long() + (column > 0).long())


def _part_correlation(case: Case, maps: Tensor) -> Tensor:
    parts = case.questions.parts
    if parts is None:
        raise ScoreError("part correlation needs figures")
    return part_correlation(maps, parts, case.part_drops())


def _on_other_nets(case: Case, maps: Tensor) -> Tensor:
    raise ScoreError(f"{RANDOMISATION} is no score of maps alone")


SCORES: dict[str, Score] = {
    one.name: one
    for one in (
        Score("average precision", True, _average_precision),
        Score("class AUC", True, _class_auc, families=("pairs", "grid")),
        Score("distractor AUC", True, _class_auc, families=("patch",)),
        Score("pointing game", True, lambda case, maps: pointing_game(maps, case.questions.masks)),
        Score("relevance mass", True, lambda case, maps: relevance_mass(maps, case.questions.masks)),
        Score("rank accuracy", True, _rank_accuracy),
        Score("grid pointing", True, _grid_pointing, families=("grid",)),
        Score("part correlation", True, _part_correlation, families=("parts",), cheap=False),
        Score("deletion, zero", False, _removal(deletion, "zero"), cheap=False),
        Score("deletion, blur", False, _removal(deletion, "blur"), cheap=False),
        Score("deletion, mean", False, _removal(deletion, "mean"), cheap=False),
        Score("insertion, blur", True, _removal(insertion, "blur"), cheap=False),
        Score("insertion, other nets", True, _judged, cheap=False),
        Score("MoRF-LeRF area", True, _removal(morf_lerf_area, "mean"), cheap=False),
        Score("ROAD", False, _road, cheap=False),
        Score(RANDOMISATION, False, _on_other_nets, cheap=False),
    )
}
"""Scores by name, in the order of the tables."""
