"""Questions about the scenes of one family, which all methods answer for one net, and the scores of their maps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.benchmark.cells import (
    Cell,
    add_scores,
    cell_path,
    empty_cell,
    missing_scores,
    read_cell,
    require_same_settings,
    settings_of,
    write_cell,
)
from captum_learnprop.benchmark.comparison import Treatment, best_treatment, treatments_at, treatments_of
from captum_learnprop.benchmark.contenders import TRUTH, Contender
from captum_learnprop.benchmark.hand_made import Explain
from captum_learnprop.benchmark.identity import SettingsError
from captum_learnprop.benchmark.kept_maps import keep
from captum_learnprop.benchmark.nets import BATCH, Subject
from captum_learnprop.benchmark.scorecard import JUDGED, RANDOMISATION, Case, score
from captum_learnprop.chunks import rows_together
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.similarity import spearman
from captum_learnprop.maps import reduce_channels
from captum_learnprop.scenes.scenes import SIZE, Questions
from zennit_rules import RuleError, RuleSet

RANDOMISED_QUESTIONS = 24
"""Number of questions that `RANDOMISATION` is measured on, the first ones: it costs as many explanations for every
re-initialised net."""

_FAILURES = (LearnpropError, RuntimeError, ValueError, AssertionError, NotImplementedError, IndexError)
"""What methods raise for nets that they cannot explain."""


class Examination:
    """One scene family of one net: every method answers the same questions and is scored alike.

    Args:
        subject: The net.
        family: Scene family.
        wanted: Names of the scores that are asked for.
    """

    def __init__(self, subject: Subject, family: str, wanted: Sequence[str]) -> None:
        self.subject, self.family = subject, family
        self.wanted = wanted_of(subject, wanted)

    @cached_property
    def tuning(self) -> Questions:
        """Questions about validation scenes, on which treatments are chosen."""
        return self.subject.questions(self.family, "validation")

    @cached_property
    def case(self) -> Case:
        """What maps of the test scenes are scored against."""
        subject = self.subject
        return Case(subject.model, subject.questions(self.family, "test"), subject.output, subject.judges)

    @cached_property
    def recognised(self) -> float:
        """Share of the questions whose class the net names: above one half, or the highest."""
        questions = self.case.questions
        with torch.no_grad():
            outputs = torch.cat(
                [self.subject.model(images) for images in questions.images.split(_together(questions.images))]
            )
        asked = outputs.gather(1, questions.targets[:, None])[:, 0]
        named = asked > 0 if self.subject.output == "sigmoid" else asked == outputs.amax(1)
        return named.double().mean().item()

    def cell(self, contender: Contender, seed: int) -> Cell:
        """Returns the cell of a method that fits the net, from its file or computed.

        A method that cannot explain the net leaves a cell with the error. Scores that are in the file are not
        computed again.

        Raises:
            SettingsError: The file, or one of rules, is of other settings.
            LearnpropError: The file is damaged.
        """
        subject = self.subject
        path = cell_path(subject.out, subject.name, self.family, contender, seed)
        settings = {
            **settings_of(subject.settings, contender, subject.side),
            **subject.scene_settings(self.family),
            "weights": subject.weights,
        }
        wanted, kept = self.wanted, None
        if path.is_file():
            before = read_cell(path)
            require_same_settings(before["settings"], settings, path)
            if before["error"] is None:
                kept, wanted = before, missing_scores(before, self.wanted, subject.judge_names())
        if kept is not None and not wanted:
            return kept
        found = empty_cell(subject.name, self.family, contender, seed)
        found |= {"settings": settings, "passes": contender.passes_on(subject), "judges": subject.judge_names()}
        try:
            found |= self.measured(contender, seed, wanted)
            if kept is not None and kept["treatment"] != found["treatment"]:  # scores of other maps
                kept = None
                found |= self.measured(contender, seed, self.wanted)
        except SettingsError:
            raise
        except _FAILURES as error:
            if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                raise  # a full disk says nothing of the method
            known = isinstance(error, (LearnpropError, RuleError))
            found["error"] = str(error) if known else f"{type(error).__name__}: {error}"
            if kept is not None:
                return found  # what is in the file is worth more
        if kept is not None:
            add_scores(kept, found)
        write_cell(path, found)
        return found

    def measured(self, contender: Contender, seed: int, wanted: Sequence[str]) -> dict[str, Any]:
        """Returns what a cell holds of a method: treatments, times and the wanted scores of every question."""
        subject, questions = self.subject, self.case.questions
        explain = self._explain(contender, subject.net, seed)
        rules = None if contender.rules is None else contender.rules(subject, seed)
        learned = None if rules is None else treatment_of(rules, subject.side)
        # Rules come with their treatment: where all are alike, nothing is chosen and nothing is explained for it.
        tuned = None if learned else _explained(explain, self.tuning.images, self.tuning.targets)
        treatment = learned or self._best(tuned, treatments_of(subject.side))
        attribution, seconds = _timed(explain, questions)
        inputs = subject.inputs(questions.images).reshape(questions.images.shape)
        maps = treatment(attribution, inputs)
        self._keep(contender, seed, maps)
        scores = {name: score(name).rate(self.case, maps) for name in wanted if name != RANDOMISATION}
        if RANDOMISATION in wanted:
            scores[RANDOMISATION] = self._randomisation(contender, seed, treatment, maps)
        alike = learned or self._best(tuned, treatments_at(subject.settings.smoothing(subject.side)))
        same = alike(attribution, inputs)
        cheap = [name for name in wanted if score(name).cheap]
        return {
            "treatment": treatment.config(),
            "same smoothing": {
                "treatment": alike.config(),
                "scores": {name: _numbers(score(name).rate(self.case, same)) for name in cheap},
            },
            "recognised": round(self.recognised, 6),
            "questions per scene": int(questions.scenes.unique(return_counts=True)[1].max()),
            "seconds": seconds,
            "training seconds": contender.seconds(subject, seed),
            "scores": {name: _numbers(values) for name, values in scores.items()},
        }

    def _best(self, attribution: Tensor | None, treatments: Sequence[Treatment]) -> Treatment:
        """Returns the treatment that is best on the tuning scenes."""
        assert attribution is not None
        return best_treatment(attribution, self.tuning.masks, treatments)

    def _explain(self, contender: Contender, net: nn.Module, seed: int) -> Explain:
        return self._truth if contender.name == TRUTH else contender.build(self.subject, net, seed)

    def _truth(self, images: Tensor, targets: Tensor) -> Tensor:
        """The pixels of the asked object ``(B, 1, H, W)``, found by image and target: what a perfect detector draws."""
        found = []
        for image, target in zip(images, targets, strict=True):
            for questions in (self.case.questions, self.tuning):
                same = (questions.targets == target) & (questions.images == image).flatten(1).all(1)
                if same.any():
                    found.append(questions.masks[int(same.nonzero()[0])])
                    break
        return torch.stack(found)[:, None].to(images)

    def _keep(self, contender: Contender, seed: int, maps: Tensor) -> None:
        """Keeps the maps of the first questions for the report, if the net is the user's own."""
        subject, questions = self.subject, self.case.questions
        if subject.keeps_maps:
            names = [subject.class_name(target) for target in questions.targets.tolist()]
            own = seed if contender.seeded else None
            keep(subject.out, subject.name, self.family, contender.name, own, questions, names, maps)

    def _randomisation(self, contender: Contender, seed: int, treatment: Treatment, maps: Tensor) -> Tensor:
        """Absolute rank correlation of absolute maps with those of re-initialised nets; NaN beyond the first ones."""
        first, questions, similar = slice(RANDOMISED_QUESTIONS), self.case.questions, []
        for net in self.subject.random_nets:
            explain = self._explain(contender, net, seed)
            images, targets = questions.images[first], questions.targets[first]
            other = treatment(_explained(explain, images, targets), self.subject.inputs(images).reshape(images.shape))
            similar.append(spearman(maps[first].abs(), other.abs()).abs())
        values = torch.full((len(maps),), torch.nan, dtype=torch.float64)
        values[first] = torch.stack(similar).nanmean(0)
        return values


def wanted_of(subject: Subject, names: Sequence[str]) -> list[str]:
    """Returns the scores among names that a net can have: without other nets nothing is judged by them."""
    judged = JUDGED not in names or bool(subject.judges)
    return [name for name in names if name != JUDGED or judged]


def treatment_of(rules: RuleSet, side: int = SIZE) -> Treatment:
    """Returns the sign and, in pixels, the smoothing and the outlines that rules were trained with.

    Args:
        rules: Trained rules.
        side: Height and width of the images in pixels.
    """
    kept = rules.training
    return Treatment(kept.get("sign", "absolute"), kept.get("smoothing", 0.0) * side, kept.get("outlines", 0.0) * side)


def _together(images: Tensor) -> int:
    return rows_together(BATCH, images.shape[1:], images.device)


def _explained(explain: Explain, images: Tensor, targets: Tensor) -> Tensor:
    count = _together(images)
    chunks = zip(images.split(count), targets.split(count), strict=True)
    attribution = torch.cat([explain(*chunk).detach() for chunk in chunks])
    reduce_channels(attribution)  # raises for a shape that is none of a map
    if not attribution.isfinite().all():
        raise LearnpropError(f"{int((~attribution.isfinite()).sum())} values of the attribution are not finite")
    return attribution


def _timed(explain: Explain, questions: Questions, *, enough: float = 1.0, repeats: int = 3) -> tuple[Tensor, float]:
    """Returns the attribution, and seconds per image; quick methods are repeated and the fastest time counts."""
    fastest = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        attribution = _explained(explain, questions.images, questions.targets)
        passed = time.perf_counter() - start
        fastest = min(fastest, passed)
        if passed > enough:
            break
    return attribution, fastest / len(questions)


def _numbers(values: Tensor) -> list[float | None]:
    """Returns values for JSON: six decimals, None for NaN."""
    return [None if math.isnan(value) else round(value, 6) for value in values.double().tolist()]
