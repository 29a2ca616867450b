"""How long a run of the benchmark will take: told before it begins, from two measured passes, and as it goes on.

A cell explains questions, scores the maps, and may have to learn rules first. Each is so many passes through the net,
and a pass takes as long as one of the user's net takes on the user's machine. The factors below say how much slower
the real thing is than a bare pass; measured on EfficientNet-Lite0 at 224 px and on a VGG-like net at 64 px, each lies
between half and twice of what it stands for. On a machine busy with other programs, runs on Lite0, on the VGG- and on
the ResNet-like net were forecast 1.5, 1.3 and 1.5 times as long as they took, single cells .93 to 2.35 times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_learnprop.benchmark.comparison import best_treatment, treatments_of
from captum_learnprop.benchmark.contenders import PER_SAMPLE, REFINED, UNTRAINED, Contender
from captum_learnprop.benchmark.examination import RANDOMISED_QUESTIONS
from captum_learnprop.benchmark.nets import RANDOM_NETS, Subject
from captum_learnprop.benchmark.scorecard import JUDGED, PASSES, RANDOMISATION, ROAD_PERCENTAGES, STEPS, score
from captum_learnprop.benchmark.summary import LEARNED
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.road import linear_imputation
from captum_learnprop.training import smoothing_choice
from captum_learnprop.training.options import TrainingOptions
from captum_learnprop.training.parts import held_out_images
from captum_learnprop.training.trainer import HELD_OUT

TIMED_BATCH = 4
TIMED_REPEATS, MOST_REPEATS, TIMED_SECONDS = 3, 50, 0.5
"""A time is the lower quartile of three, or of more up to half a second: a small net's pass is shorter than the moments
that other programs take, and the median of times is not that of undisturbed ones."""

ROAD = "road"

RULES, LEARNING_EACH = 5.0, 2.0
"""How many times as long as bare ones the passes of an explanation by shared rules take, and of one that learns for
its image."""

SLOWER = {"cam": 1.0, "lrp": 3.0, "control": 0.0, LEARNED: RULES, UNTRAINED: RULES}
OTHERS_SLOWER = 1.5
"""The same by family of methods; gradients, perturbations and all others make copies, noise or masks between passes."""

CHANGED = 1.6
"""How many times as long as bare ones the passes of removal curves take: every point is an image to make first."""

TRAINING = 7.0
"""How many times as long as a bare forward and backward pass a row's pass of training takes, which is differentiated
again."""

MEASURING = 1.2
"""How many times as long as a bare forward pass one on an image with a deletion takes."""

TIMED_AGAIN = 2.0
"""Most seconds that a quick method takes more because its time is taken three times."""


@dataclass(frozen=True)
class PassTimes:
    """What a net takes on this machine, in seconds per image.

    Attributes:
        forward: A forward pass.
        both: A forward pass and the backward pass to the image.
        choosing: Finding the treatment of one map that suits it best.
        imputing: Filling in what ROAD removes from an image.
    """

    forward: float
    both: float
    choosing: float = 0.0
    imputing: float = 0.0


@dataclass(frozen=True)
class CellWork:
    """What there is to do for a cell; zeros for one that is there.

    Attributes:
        passes: Forward and backward passes of an explanation, counted in bare ones.
        explanations: Number of explanations, of test, tuning and re-initialised nets' questions together.
        scoring_passes: Forward passes of the scores, of all questions together.
        training_passes: Attribution passes of a training that is not there, as `TrainingOptions.passes` counts them.
        measuring_passes: Forward passes of measuring deletions that are not there, and of choosing the smoothing.
        chosen: Number of maps that a treatment is chosen on.
        imputed: Number of images that ROAD fills in.
        name: The method, to tell the user what takes most.
    """

    passes: float
    explanations: int
    scoring_passes: float = 0.0
    training_passes: float = 0.0
    measuring_passes: float = 0.0
    chosen: int = 0
    imputed: int = 0
    name: str = ""


NOTHING = CellWork(0.0, 0)
"""The work of a cell that is there."""


@dataclass(frozen=True)
class Forecast:
    """How long a run will take, in seconds.

    Attributes:
        explaining: By all methods.
        scoring: Of all maps.
        training: Of rules, with what it learns from.
        methods: Seconds by method, the longest first.
    """

    explaining: float
    scoring: float
    training: float
    methods: tuple[tuple[str, float], ...] = ()

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.explaining + self.scoring + self.training

    def __str__(self) -> str:
        """Returns one line: in all, and by part."""
        parts = (("explaining", self.explaining), ("scoring", self.scoring), ("training", self.training))
        each = ", ".join(f"{name} {describe(one)}" for name, one in parts if one >= 1)
        return describe(self.seconds) + (f" ({each})" if each else "")


@torch.no_grad()
def time_passes(model_on_pixels: nn.Module, image: Tensor) -> PassTimes:
    """Returns what passes of a net take, in batches of four; it takes a few seconds.

    Args:
        model_on_pixels: The net in evaluation mode, for images in [0, 1]; it comes back untouched.
        image: One image ``(1, C, H, W)`` of the size that will be explained.
    """
    images = image[:1].expand(TIMED_BATCH, *image.shape[1:]).contiguous()
    mask = torch.zeros(1, *image.shape[2:], dtype=torch.bool, device=image.device)
    mask[:, : max(1, image.shape[2] // 2)] = True
    noise = torch.rand_like(mask, dtype=torch.float32)
    treatments = treatments_of(image.shape[-1])  # wide smoothing of large maps takes longer

    def both() -> None:
        with torch.enable_grad():
            leaf = images.clone().requires_grad_()
            torch.autograd.grad(model_on_pixels(leaf).flatten(1)[:, 0].sum(), leaf)

    return PassTimes(
        forward=_seconds(lambda: model_on_pixels(images)) / TIMED_BATCH,
        both=_seconds(both) / TIMED_BATCH,
        choosing=_seconds(lambda: best_treatment(noise[:, None], mask, treatments)),
        imputing=_seconds(lambda: linear_imputation(images[:1], noise > 0.5)),
    )


def _seconds(run: Callable[[], object]) -> float:
    """Returns the lower quartile of the seconds of runs, after one that does not count."""
    run()
    times: list[float] = []
    while len(times) < TIMED_REPEATS or (sum(times) < TIMED_SECONDS and len(times) < MOST_REPEATS):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 4]


def cell_work(
    contender: Contender,
    subject: Subject,
    scores: Sequence[str],
    *,
    training: TrainingOptions | None = None,
    measured: bool = False,
) -> CellWork:
    """Returns what there is to do for a cell that is not there.

    Args:
        contender: The method.
        subject: The net.
        scores: Headings of the wanted scores that the cell lacks.
        training: Options of the training or search that must come first; None where its result is there already, or
            an earlier cell of the run will have it.
        measured: Whether deletions of the training images are there already, or an earlier cell measures them.
    """
    settings, each = subject.settings, subject.targets_per_image
    questions, images = settings.questions, settings.training_scenes
    again = min(RANDOMISED_QUESTIONS, questions) * RANDOM_NETS if RANDOMISATION in scores else 0
    held_out = held_out_images(images, HELD_OUT)
    judges = len(subject.judges) if JUDGED in scores else 0
    road = any(score(name).metric.name == ROAD for name in scores)
    return CellWork(
        passes=contender.passes_on(subject) * _slower(contender),
        explanations=questions + settings.tuning_questions + again,
        scoring_passes=questions * sum(_passes_of_score(name, judges) for name in scores),
        training_passes=0.0 if training is None else training.passes((images - held_out) * each, held_out * each),
        measuring_passes=_measuring_passes(training, images, held_out, measured=measured),
        chosen=settings.tuning_questions,
        imputed=questions * len(ROAD_PERCENTAGES) if road else 0,
        name=contender.name,
    )


def _measuring_passes(training: TrainingOptions | None, images: int, held_out: int, *, measured: bool) -> float:
    """Returns the forward passes that deletions take, those of the training and those that choose the smoothing."""
    if training is None:
        return 0.0
    choice = smoothing_choice.passes(held_out) if training.chooses_smoothing else 0
    return choice + (0 if measured else images * (training.deletions + 2))


def _slower(contender: Contender) -> float:
    if contender.name in (PER_SAMPLE, REFINED):
        return LEARNING_EACH
    return SLOWER.get(contender.family, OTHERS_SLOWER)


def _passes_of_score(name: str, judges: int) -> float:
    """Returns the forward passes that a score takes per question; a metric of a plugin counts as a removal curve."""
    found = score(name)
    if name == RANDOMISATION or not PASSES & set(found.metric.needs):
        return 0.0
    if found.metric.name == ROAD:
        return len(ROAD_PERCENTAGES)
    points = float(found.options.get("steps", STEPS)) + 1
    curves = 2 if found.metric.name == "morf_lerf_area" else 1
    return points * curves * (judges if name == JUDGED else 1)


def forecast_cells(items: Sequence[CellWork], times: PassTimes) -> list[float]:
    """Returns the seconds that each cell will take.

    Args:
        items: What there is to do, by cell.
        times: What passes take.
    """
    return [sum(_parts(item, times)) for item in items]


def forecast(items: Sequence[CellWork], times: PassTimes) -> Forecast:
    """Returns the time that a run will take; those of several nets can be added with `together`.

    Args:
        items: What there is to do, by cell.
        times: What passes take.
    """
    explaining = scoring = training = 0.0
    methods: dict[str, float] = {}
    for item in items:
        parts = _parts(item, times)
        explaining, scoring, training = explaining + parts[0], scoring + parts[1], training + parts[2]
        methods[item.name] = methods.get(item.name, 0.0) + sum(parts)
    return Forecast(explaining, scoring, training, _longest_first(methods))


def together(forecasts: Sequence[Forecast]) -> Forecast:
    """Returns the forecast of runs one after the other, such as those of several nets."""
    methods: dict[str, float] = {}
    for one in forecasts:
        for name, seconds in one.methods:
            methods[name] = methods.get(name, 0.0) + seconds
    return Forecast(
        sum(one.explaining for one in forecasts),
        sum(one.scoring for one in forecasts),
        sum(one.training for one in forecasts),
        _longest_first(methods),
    )


def _longest_first(methods: dict[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(methods.items(), key=lambda item: -item[1]))


def _parts(item: CellWork, times: PassTimes) -> tuple[float, float, float]:
    """Returns the seconds of explaining, scoring and training."""
    explaining = item.explanations * item.passes * times.both / 2
    scoring = (
        item.scoring_passes * times.forward * CHANGED + item.chosen * times.choosing + item.imputed * times.imputing
    )
    training = item.training_passes * times.both * TRAINING + item.measuring_passes * times.forward * MEASURING
    return explaining + min(2 * explaining, TIMED_AGAIN), scoring, training


def require_time(found: Forecast, limit_hours: float) -> None:
    """Refuses a run that takes longer than allowed.

    Args:
        found: The forecast of the run.
        limit_hours: The most hours.

    Raises:
        LearnpropError: It takes longer; says what takes most, and how the run becomes shorter.
    """
    if found.seconds <= 3600 * limit_hours:
        return
    parts = {"explaining": found.explaining, "scoring": found.scoring, "training": found.training}
    largest = max(parts, key=lambda name: parts[name])
    methods = ", ".join(f"{name} {describe(seconds)}" for name, seconds in found.methods[:3])
    raise LearnpropError(
        f"this run will take {describe(found.seconds)} on this machine, more than the {limit_hours:g} h allowed; "
        f"most is {largest} ({describe(parts[largest])})" + (f", and by method: {methods}" if methods else "")
        + f". Ask for less ({_WAYS_OUT[largest]}), or allow it: --max-hours {math.ceil(found.seconds / 3600)}"
    )  # fmt: skip


_WAYS_OUT = {
    "explaining": "fewer --questions, or the methods that you need, each with --method",
    "scoring": "fewer --questions, or the scores that you need, each with --metric",
    "training": "fewer --seeds, --steps or --training-scenes, or one --composite",
}


def describe(seconds: float) -> str:
    """Returns a time as people say it, no more exact than a forecast is.

    Example:
        >>> [describe(seconds) for seconds in (3, 48, 700, 11900, 200000)]
        ['a few seconds', 'about 50 s', 'about 12 min', 'about 3 h 20 min', 'about 2 days 8 h']
    """
    if seconds < 10:
        return "a few seconds"
    if seconds < 55:
        return f"about {10 * round(seconds / 10)} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"about {minutes} min"
    minutes = 10 * round(minutes / 10)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"about {hours} h" + (f" {minutes} min" if minutes else "")
    days, hours = divmod(hours + (minutes >= 30), 24)
    return f"about {days} days" + (f" {hours} h" if hours else "")


class Remaining:
    """What is left of a run, as it goes on: the forecast, corrected by how long what is done took.

    Cells differ a hundredfold, and so the share of the work that is done counts, not that of the cells. The first
    tenth of the run trusts the forecast more than what was seen.

    Args:
        forecasts: Seconds of each cell, from `forecast_cells`.
    """

    _TRUST = 0.1

    def __init__(self, forecasts: Sequence[float]) -> None:
        self._total = sum(forecasts)
        self._done = self._took = 0.0

    def done(self, forecast: float, took: float) -> None:
        """Counts a cell.

        Args:
            forecast: Seconds that were forecast.
            took: Seconds that it took.
        """
        self._done += forecast
        self._took += took

    @property
    def share(self) -> float:
        """Share of the work that is done, in [0, 1]."""
        return 1.0 if self._total <= 0 else min(1.0, self._done / self._total)

    def seconds(self, forecast: float = 0.0, running: float = 0.0) -> float:
        """Returns the seconds that are left.

        Args:
            forecast: Seconds that were forecast of the cell that is worked on.
            running: Seconds that it has taken so far.
        """
        trust = self._TRUST * self._total
        pace = (self._took + trust) / (self._done + trust) if trust > 0 else 1.0
        later = max(0.0, self._total - self._done - forecast)
        return pace * later + max(0.0, pace * forecast - running)

    def text(self, forecast: float = 0.0, running: float = 0.0) -> str:
        """Returns `seconds` in words, such as "about 12 min left"."""
        return f"{describe(self.seconds(forecast, running))} left"
