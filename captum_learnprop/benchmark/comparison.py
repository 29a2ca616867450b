"""Comparing methods on scenes with known ground truth, each with the treatment of its maps that suits it best.

A method's attribution becomes a map by a *treatment*: how signs and channels are reduced, and how much the
map is smoothed. Hand-made methods gain a lot from a good one, so a comparison without it is not fair: the
treatment is chosen on the tuning split (``"validation"``), and scores are taken on other scenes (``"test"``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.faithfulness import deletion
from captum_learnprop.evaluation.localization import average_precision, class_auc
from captum_learnprop.maps import SIGNS, follow_outlines, reduce_channels, smooth
from captum_learnprop.scenes.scenes import SIZE, Questions
from captum_learnprop.tables import html


@dataclass(frozen=True)
class Treatment:
    """How an attribution ``(B, C, H, W)`` becomes a map ``(B, H, W)``.

    Attributes:
        sign: How signs are treated and channels reduced, a name of `reduce_channels`.
        sigma: Standard deviation of the Gaussian smoothing, in pixels.
        outlines: Radius of the smoothing that follows the images, in pixels (see `follow_outlines`); 0 for none.
    """

    sign: str = "absolute"
    sigma: float = 1.0
    outlines: float = 0.0

    def __call__(self, attribution: Tensor, images: Tensor | None = None) -> Tensor:
        """Returns the map ``(B, H, W)`` of an attribution ``(B, C, H, W)``.

        Args:
            attribution: Signed values.
            images: What the outlines are of, ``(B, C, H, W)``.

        Raises:
            LearnpropError: Outlines are to be followed, and there are no images.
        """
        maps = smooth(reduce_channels(attribution.detach(), self.sign), self.sigma)
        if not self.outlines:
            return maps
        if images is None:
            raise LearnpropError(f"the treatment '{self}' follows outlines: it needs the images")
        return follow_outlines(maps, images, self.outlines)

    def __str__(self) -> str:
        """Returns the treatment as tables show it."""
        followed = f", outlines {self.outlines:g}" if self.outlines else ""
        return f"{self.sign}, sigma {self.sigma:g}{followed}"

    def config(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON; outlines only where there are any."""
        outlines = {"outlines": self.outlines} if self.outlines else {}
        return {"sign": self.sign, "sigma": self.sigma, **outlines}


SMOOTHINGS = (0.0, 1 / 64, 2 / 64, 3 / 64, 4 / 64)
"""Smoothings that hand-made methods choose from, as fractions of a side."""

WIDE_SMOOTHINGS = (*SMOOTHINGS, 6 / 64, 8 / 64)
"""The same for images larger than `SIZE`: on photographs most methods would choose the widest of the others."""


def smoothings_of(side: int) -> tuple[float, ...]:
    """Returns `SMOOTHINGS`, of images larger than `SIZE` pixels `WIDE_SMOOTHINGS`."""
    return WIDE_SMOOTHINGS if side > SIZE else SMOOTHINGS


def treatments_of(side: int) -> tuple[Treatment, ...]:
    """Returns what hand-made methods choose from: every sign with every smoothing.

    Args:
        side: Height and width of the images in pixels.
    """
    return tuple(Treatment(sign, round(side * share, 6)) for sign, share in product(SIGNS, smoothings_of(side)))


TREATMENTS = treatments_of(SIZE)
"""What hand-made methods choose from on the scenes of `SIZE` pixels."""


def treatments_at(sigma: float) -> tuple[Treatment, ...]:
    """Returns every sign with one smoothing in pixels: what is left to choose when all methods are smoothed alike."""
    return tuple(Treatment(sign, sigma) for sign in SIGNS)


@dataclass(frozen=True)
class Method:
    """Something that explains.

    Attributes:
        name: Name of the method, as in tables and figures.
        attribute: A function ``(images (B, C, H, W), targets (B,)) -> attribution (B, C, H, W)``.
        treatments: Treatments that one is chosen from; one means that nothing is chosen.
    """

    name: str
    attribute: Callable[[Tensor, Tensor], Tensor]
    treatments: Sequence[Treatment] = TREATMENTS


@dataclass(frozen=True)
class Result:
    """What a method scored on ``M`` questions.

    Attributes:
        name: Name of the method.
        treatment: Treatment of its maps.
        maps: The maps ``(M, H, W)``.
        scores: Scores ``(M,)`` by the names in `SCORES`.
        seconds: Seconds per image, for the attribution alone.
        scenes: ``(M,)`` int64, the scene of each question; None if every question has its own.
    """

    name: str
    treatment: Treatment
    maps: Tensor
    scores: dict[str, Tensor]
    seconds: float
    scenes: Tensor | None = None

    def __repr__(self) -> str:
        """Returns the scores, without the maps."""
        scores = "".join(f", {name} {self._text(name)}" for name in self.scores)
        return f"Result({self.name!r}, {str(self.treatment)!r}, {len(self.maps)} questions{scores})"

    def _repr_html_(self) -> str:
        """Returns a table of the scores, for a notebook."""
        facts = [["method", self.name], ["treatment", str(self.treatment)], ["questions", str(len(self.maps))]]
        times = [["ms / image", f"{1000 * self.seconds:.1f}"]]
        return html(
            ["", "mean ± standard error"], [*facts, *([name, self._text(name)] for name in self.scores), *times]
        )

    def _text(self, score: str) -> str:
        return f"{self.mean(score):.3f} ± {self.standard_error(score):.3f}"

    def mean(self, score: str) -> float:
        """Returns the mean of a score over the questions."""
        return self.scores[score].mean().item()

    def standard_error(self, score: str) -> float:
        """Returns the standard error of a score's mean over scenes (see the function `standard_error`)."""
        return self._standard_error(self.scores[score])

    def _standard_error(self, values: Tensor) -> float:
        scenes = np.arange(len(values)) if self.scenes is None else self.scenes.cpu()
        return standard_error(values.cpu(), scenes)


def standard_error(values: ArrayLike, scenes: ArrayLike) -> float:
    """Returns the standard error of the mean of values; NaN for fewer than two scenes.

    Questions about one scene share its image and are not independent: their mean counts as one observation.

    Args:
        values: ``(M,)`` numbers, NaN where a value is not defined.
        scenes: ``(M,)`` numbers, the scene of each value.
    """
    numbers, places = np.asarray(values, dtype=np.float64), np.asarray(scenes)
    known = ~np.isnan(numbers)
    means = np.array([numbers[known & (places == scene)].mean() for scene in np.unique(places[known])])
    return float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan")


BASELINE = "blur"
"""Baseline of deletion. A black fill draws the object anew, as a silhouette, when the very pixels of the object are
removed: the true mask then scores worse than a smear around it."""

SCORES: dict[str, bool] = {"average precision": True, "class AUC": True, "deletion": False}
"""Scores by name, and whether higher is better."""


def choose_treatment(method: Method, questions: Questions) -> Treatment:
    """Returns the treatment with the highest mean average precision, the first of equals.

    Args:
        method: The method whose treatments are compared.
        questions: What is asked about validation scenes; test scenes are for scores alone.
    """
    if len(method.treatments) == 1:
        return method.treatments[0]
    return best_treatment(method.attribute(questions.images, questions.targets), questions.masks, method.treatments)


def best_treatment(attribution: Tensor, masks: Tensor, treatments: Sequence[Treatment] = TREATMENTS) -> Treatment:
    """Returns the treatment of an attribution with the highest mean average precision, the first of equals.

    Args:
        attribution: ``(B, C, H, W)``.
        masks: ``(B, H, W)`` bool, the pixels that a map should find.
        treatments: Treatments that one is chosen from.
    """
    return best_of(treatments, attribution, lambda maps: average_precision(maps, masks))


def best_of(treatments: Sequence[Treatment], attribution: Tensor, quality: Callable[[Tensor], Tensor]) -> Treatment:
    """Returns the treatment of an attribution with the highest mean quality, the first of equals.

    Args:
        treatments: Treatments that one is chosen from.
        attribution: ``(B, C, H, W)``.
        quality: A function ``maps (B, H, W) -> (B,)``.
    """
    found = [quality(treat(attribution)).mean().item() for treat in treatments]
    return treatments[found.index(max(found))]


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
    """Explains all questions, scores the maps and takes the time.

    Args:
        method: The method to measure.
        model: The explained model, for deletion with the baseline `BASELINE`.
        questions: What is asked; every image must hold another object, which class AUC compares with.
        treatment: Treatment of the maps, from `choose_treatment` on other scenes.
        output: The quantity on the deletion curve, a name that `deletion` knows.
        deletion_steps: Number of points of the deletion curve.
        repeats: How often the time is taken; the fastest counts, which is the least disturbed by other
            programs.

    Raises:
        LearnpropError: An attribution has no shape of a map.
    """
    seconds = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        attribution = method.attribute(questions.images, questions.targets)
        seconds = min(seconds, (time.perf_counter() - start) / len(questions))
    maps = treatment(attribution, questions.images)
    scores = {
        "average precision": average_precision(maps, questions.masks),
        "class AUC": class_auc(maps, questions.masks, questions.other_masks),
        "deletion": deletion(
            model, questions.images, maps, questions.targets, output=output, steps=deletion_steps, baseline=BASELINE
        ),
    }
    return Result(method.name, treatment, maps, scores, seconds, questions.scenes)


def paired_difference(first: Result, second: Result, score: str) -> tuple[float, float]:
    """Returns the mean difference first - second over the same questions, and its standard error over scenes."""
    difference = first.scores[score].double() - second.scores[score].double()
    return difference.mean().item(), first._standard_error(difference)
