"""Compare methods on scenes with known ground truth, each with the treatment of its maps that suits it best.

A method's attribution becomes a map by a *treatment*: how signs and channels are reduced, and how much the
map is smoothed. Hand-made methods gain a lot from a good one, so a comparison without it is not fair: the
treatment is chosen on the tuning split (``"validation"``), and scores are taken on other scenes (``"test"``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from captum_learnprop.evaluation.faithfulness import deletion
from captum_learnprop.evaluation.localization import average_precision, class_auc
from captum_learnprop.maps import SIGNS, reduce_channels, smooth
from captum_learnprop.scenes.scenes import Questions


@dataclass(frozen=True)
class Treatment:
    """How an attribution ``(B, C, H, W)`` becomes a map ``(B, H, W)``.

    Attributes:
        sign: see `reduce_channels`.
        sigma: Gaussian smoothing in pixels.
    """

    sign: str = "absolute"
    sigma: float = 1.0

    def __call__(self, attribution: Tensor) -> Tensor:
        """The map."""
        return smooth(reduce_channels(attribution.detach(), self.sign), self.sigma)

    def __str__(self) -> str:
        return f"{self.sign}, sigma {self.sigma:g}"


SIGMAS = (0.0, 1.0, 2.0, 3.0, 4.0)
"""Smoothings in pixels that hand-made methods choose from."""

TREATMENTS = tuple(Treatment(sign, sigma) for sign, sigma in product(SIGNS, SIGMAS))
"""What hand-made methods choose from."""


def treatments_at(sigma: float) -> tuple[Treatment, ...]:
    """Every sign with one smoothing in pixels: what is left to choose when all methods are smoothed alike."""
    return tuple(Treatment(sign, sigma) for sign in SIGNS)


@dataclass(frozen=True)
class Method:
    """Something that explains.

    Attributes:
        name: as in tables and figures.
        attribute: ``(images (B, C, H, W), targets (B,)) -> attribution (B, C, H, W)``.
        treatments: what its treatment is chosen from; one means that nothing is chosen.
    """

    name: str
    attribute: Callable[[Tensor, Tensor], Tensor]
    treatments: Sequence[Treatment] = TREATMENTS


@dataclass(frozen=True)
class Result:
    """What a method scored on ``M`` questions.

    Attributes:
        name: of the method.
        treatment: of its maps.
        maps: ``(M, H, W)``.
        scores: by metric, ``(M,)`` each; see `SCORES`.
        seconds: per image, for the attribution alone.
        scenes: ``(M,)`` int64, the scene of each question; None if every question has its own.
    """

    name: str
    treatment: Treatment
    maps: Tensor
    scores: dict[str, Tensor]
    seconds: float
    scenes: Tensor | None = None

    def mean(self, score: str) -> float:
        """Mean over the questions."""
        return self.scores[score].mean().item()

    def standard_error(self, score: str) -> float:
        """Standard error of the mean over scenes, see `standard_error`."""
        return self._standard_error(self.scores[score])

    def _standard_error(self, values: Tensor) -> float:
        scenes = np.arange(len(values)) if self.scenes is None else self.scenes.cpu()
        return standard_error(values.cpu(), scenes)


def standard_error(values: ArrayLike, scenes: ArrayLike) -> float:
    """Of the mean of values ``(M,)``, NaN where not defined; NaN for fewer than two scenes.

    Questions about one scene share its image and are not independent: their mean counts as one observation.

    Args:
        values: ``(M,)``.
        scenes: ``(M,)``, the scene of each.
    """
    numbers, places = np.asarray(values, dtype=np.float64), np.asarray(scenes)
    known = ~np.isnan(numbers)
    means = np.array([numbers[known & (places == scene)].mean() for scene in np.unique(places[known])])
    return float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan")


BASELINE = "blur"
"""Of deletion. A black fill draws the object anew, as a silhouette, when the very pixels of the object are removed:
the true mask then scores worse than a smear around it."""

SCORES: dict[str, bool] = {"average precision": True, "class AUC": True, "deletion": False}
"""Scores by name, and whether higher is better."""


def choose_treatment(method: Method, questions: Questions) -> Treatment:
    """The treatment with the highest mean average precision; the first of equals. Give it validation
    scenes."""
    if len(method.treatments) == 1:
        return method.treatments[0]
    return best_treatment(method.attribute(questions.images, questions.targets), questions.masks, method.treatments)


def best_treatment(attribution: Tensor, masks: Tensor, treatments: Sequence[Treatment] = TREATMENTS) -> Treatment:
    """The treatment of an attribution ``(B, C, H, W)`` with the highest mean average precision on masks
    ``(B, H, W)``; the first of equals."""
    quality = [average_precision(treat(attribution), masks).mean().item() for treat in treatments]
    return treatments[quality.index(max(quality))]


def measure(
    method: Method,
    model: Callable[[Tensor], Tensor],
    questions: Questions,
    treatment: Treatment,
    *,
    output: str = "sigmoid",
    deletion_steps: int = 32,
    repeats: int = 1,
) -> Result:
    """Explain all questions, score the maps, take the time.

    Args:
        method: what to measure.
        model: the explained model, for deletion, see `BASELINE`.
        questions: what is asked; every image must hold another object, which class AUC compares with.
        treatment: from `choose_treatment` on other scenes.
        output: the quantity on the deletion curve, see `deletion`.
        deletion_steps: points of the deletion curve.
        repeats: how often the time is taken; the fastest counts, which is the least disturbed by other
            programs.
    """
    seconds = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        attribution = method.attribute(questions.images, questions.targets)
        seconds = min(seconds, (time.perf_counter() - start) / len(questions))
    maps = treatment(attribution)
    scores = {
        "average precision": average_precision(maps, questions.masks),
        "class AUC": class_auc(maps, questions.masks, questions.other_masks),
        "deletion": deletion(
            model, questions.images, maps, questions.targets, output=output, steps=deletion_steps, baseline=BASELINE
        ),
    }
    return Result(method.name, treatment, maps, scores, seconds, questions.scenes)


def paired_difference(first: Result, second: Result, score: str) -> tuple[float, float]:
    """Mean difference first - second over the same questions, and its standard error over scenes."""
    difference = first.scores[score].double() - second.scores[score].double()
    return difference.mean().item(), first._standard_error(difference)
