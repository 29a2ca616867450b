"""The benchmark's tables, made from its cells: means, standard errors over scenes and seeds, paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_learnprop.benchmark.comparison import standard_error
from captum_learnprop.benchmark.rule_families import rule_family
from captum_learnprop.benchmark.scorecard import in_table_order, score
from captum_learnprop.scenes.scenes import QUESTIONS_PER_SCENE
from captum_learnprop.tables import html
from zennit_rules._moved import renamed

Array = NDArray[np.float64]

SALIENCY, LRP_BOX = "saliency", "LRP z+, box"
GRADIENT_FAMILIES = ("gradient", "cam")

LEARNED = "learned"

UNTRAINED_START = "its untrained start"

BEST_OF_FAMILY, BEST_SEARCHED = "best hand-made of its family", "best gamma grid"

REFERENCES = (UNTRAINED_START, SALIENCY, "best gradient or CAM", LRP_BOX, "best LRP", BEST_OF_FAMILY, BEST_SEARCHED)
"""What learned methods are compared with, sample by sample, every reference with its best treatment. The best ones are
the best of each score; only trained variants have an untrained start and a family, and only LRP has gamma grids."""

CLEARLY = 2.0
"""Combined standard errors that a difference has to exceed to be called one."""

NOT_RUN = "not run"
"""Error of a cell that is not there."""


@dataclass(frozen=True)
class Estimate:
    """A score of a method on one scene family of one net.

    Attributes:
        mean: over samples and training seeds: the mean of the seeds' means.
        standard_error: over scenes, of their scores averaged over seeds; NaN for one scene.
        seed_spread: standard deviation over the seeds' means; NaN for one seed.
        seed_error: standard error over training seeds, ``seed_spread / sqrt(seeds)``.
        samples: how many had a score.
        seeds: how many.
    """

    mean: float
    standard_error: float
    seed_spread: float
    seed_error: float
    samples: int
    seeds: int


@dataclass(frozen=True)
class Row:
    """A method on one scene family of one net.

    Attributes:
        model: architecture.
        scenes: family of scenes.
        method: name.
        family: of the method.
        passes: per image.
        seconds: per image, median over seeds.
        treatment: of the first seed.
        estimates: by score.
        same: by score, all maps smoothed like the learned ones.
        samples: by score, ``(seeds, M)``, NaN where not defined.
        recognised: share of the questions whose class the net names.
        training_seconds: that its rules were trained, mean over seeds; NaN where there are none or it is not known.
        seeds: training seeds that have scores.
        asked: training seeds that were asked for.
        failures: ``(training seed or None, why it has no scores)``.
        error: why there are no scores at all, or None.
        composite: of the variant of trained rules that it is or needs.
        together: how many samples in a row are about one scene.
    """

    model: str
    scenes: str
    method: str
    family: str
    passes: int
    seconds: float
    treatment: str
    estimates: dict[str, Estimate]
    same: dict[str, Estimate]
    samples: dict[str, Array]
    recognised: float
    training_seconds: float
    seeds: int
    asked: int
    failures: tuple[tuple[int | None, str], ...]
    error: str | None
    composite: str | None = None
    together: int = 1

    def __repr__(self) -> str:
        """Returns the scores, without those of single samples."""
        found = self.error or "".join(f", {name} {_plain(one)}" for name, one in self.estimates.items()).strip(", ")
        return f"Row({self.model}, {self.scenes}, {self.label!r}: {found})"

    @property
    def label(self) -> str:
        """The method's name, with a mark where training seeds are missing."""
        return self.method + self.mark

    @property
    def mark(self) -> str:
        """A note that training seeds are missing, empty if all have scores."""
        return "" if self.seeds == self.asked else f" ({self.seeds} of {self.asked} seeds)"


@dataclass(frozen=True)
class Difference:
    """A learned method against a reference: mean of the differences over the same samples, and its standard errors.

    Attributes:
        model: architecture.
        scenes: family of scenes.
        method: the learned one.
        reference: of `REFERENCES`.
        against: the method that the reference is for this score.
        score: name.
        mean: learned minus reference.
        standard_error: over scenes.
        seed_error: standard error over training seeds, of the seeds' mean differences; NaN for one seed.
        better: whether the mean speaks for the learned method, by more than `CLEARLY` combined standard errors.
    """

    model: str
    scenes: str
    method: str
    reference: str
    against: str
    score: str
    mean: float
    standard_error: float
    seed_error: float
    better: bool


def estimate(scores: Sequence[Sequence[float | None]], together: int = 1) -> Estimate:
    """Returns the estimate from scores by seed and sample, ``(seeds, M)``, None where not defined.

    Args:
        scores: Numbers by seed and sample.
        together: How many samples in a row are about one scene, and count as one for the standard error.
    """
    table = _table(scores)
    samples = _seed_means(table)
    known = samples[~np.isnan(samples)]
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, len(table))
    error = standard_error(samples, np.arange(len(samples)) // together)
    spread = float(np.nanmean(table, axis=1).std(ddof=1)) if len(table) > 1 else math.nan
    return Estimate(float(known.mean()), error, spread, spread / len(table) ** 0.5, len(known), len(table))


class Rows(list[Row]):
    """Results of a benchmark; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        """Returns a table of every score, one line a row."""
        names = in_table_order(name for row in self for name in row.estimates)
        lines = [
            [row.model, row.scenes, row.label, *(_plain(row.estimates.get(name)) for name in names)] for row in self
        ]
        return html(["net", "scenes", "method", *names], lines)


def _plain(found: Estimate | None) -> str:
    return "-" if found is None else shown(found, math.nan)


def summarise(cells: Iterable[Mapping[str, Any]]) -> Rows:
    """Returns one row per net, scene family and method, in the order of the cells.

    Args:
        cells: Cells of a run, from `suite.run` or `suite.read_cells`.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["model"], cell["scenes"], cell["method"]), []).append(cell)
    return Rows(_row(key, group) for key, group in groups.items())


def rows_of(results: Mapping[str, Any]) -> Rows:
    """Returns the rows of a ``results.json``, without the scores of single samples, which only cells have.

    Args:
        results: The file's content, as `json.load` reads it.

    Raises:
        KeyError: It is no such content.
    """
    return Rows(_row_of(fields) for fields in results["rows"])


def _row_of(fields: Mapping[str, Any]) -> Row:
    numbers = {name: math.nan for name in ("seconds", "recognised", "training_seconds") if fields[name] is None}
    tables = {
        which: {name: Estimate(**_nan_for_none(one)) for name, one in fields[which].items()}
        for which in ("estimates", "same")
    }
    failures = tuple((seed, error) for seed, error in fields["failures"])
    return Row(**{**fields, **numbers, **tables, "failures": failures, "samples": {}})


def _nan_for_none(numbers: Mapping[str, float | None]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in numbers.items()}


def _row(key: tuple[str, str, str], group: Sequence[Mapping[str, Any]]) -> Row:
    good = [cell for cell in group if cell["error"] is None]
    known = in_table_order(name for cell in good for name in cell["scores"])
    names = [name for name in known if all(name in cell["scores"] for cell in good)]
    alike = [name for name in names if all(name in cell["same smoothing"]["scores"] for cell in good)]
    together = _together(good or group)
    by_seed = {name: [cell["scores"][name] for cell in good] for name in names}
    return Row(
        *key,
        family=group[0]["family"],
        passes=max((cell["passes"] or 0 for cell in group), default=0),
        seconds=float(np.median([cell["seconds"] for cell in good])) if good else math.nan,
        treatment=_treatment(good[0]["treatment"]) if good else "",
        estimates={name: estimate(by_seed[name], together) for name in names},
        same={name: estimate([cell["same smoothing"]["scores"][name] for cell in good], together) for name in alike},
        samples={name: _table(by_seed[name]) for name in names},
        recognised=good[0]["recognised"] if good else math.nan,
        training_seconds=_mean([cell.get("training seconds") for cell in good]),
        seeds=len(good),
        asked=len(group),
        failures=tuple((cell["seed"], cell["error"]) for cell in group if cell["error"] is not None),
        error=None if good else group[0]["error"],
        composite=_composite((good or group)[0]),
        together=together,
    )


def _together(group: Sequence[Mapping[str, Any]]) -> int:
    """Returns how many questions in a row are about one scene."""
    return int(group[0].get("questions per scene") or QUESTIONS_PER_SCENE.get(group[0]["scenes"], 1))


def _composite(cell: Mapping[str, Any]) -> str | None:
    """Returns the composite of rules from a file, or of the variant that was trained."""
    trained: str | None = cell.get("settings", {}).get("training options", {}).get("composite")
    return cell.get("composite") or trained


def _mean(values: Sequence[float | None]) -> float:
    """Returns the mean, NaN if a value is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else math.nan


def _treatment(fields: Mapping[str, Any]) -> str:
    followed = f", outlines {fields['outlines']:g} px" if "outlines" in fields else ""
    return f"{fields['sign']}, {fields['sigma']:g} px{followed}"


def differences(rows: Sequence[Row]) -> list[Difference]:
    """Returns every learned method against every reference, score by score, on the same samples.

    Args:
        rows: Results of cells, whose samples are kept.
    """
    found = []
    for row in rows:
        if row.family != LEARNED or row.error is not None:
            continue
        room = [one for one in rows if (one.model, one.scenes) == (row.model, row.scenes) and one.error is None]
        for reference in REFERENCES:
            for name in row.samples:
                other = _reference(reference, room, name, row)
                if other is not None:
                    found.append(difference(row, other, reference, name))
    return found


def _reference(reference: str, room: Sequence[Row], name: str, learned: Row) -> Row | None:
    if reference == UNTRAINED_START:
        variant, _, state = learned.method.rpartition(", ")
        candidates = [row for row in room if state == LEARNED and row.method == f"{variant}, untrained"]
    elif reference in (SALIENCY, LRP_BOX):
        candidates = [row for row in room if row.method == reference]
    elif reference in (BEST_OF_FAMILY, BEST_SEARCHED):
        family = rule_family(learned.composite)
        names = () if family is None else family.hand_made if reference == BEST_OF_FAMILY else family.searched
        candidates = [row for row in room if row.method in names]
    else:
        families = ("lrp",) if reference == "best LRP" else GRADIENT_FAMILIES
        candidates = [row for row in room if row.family in families]
    known = [row for row in candidates if name in row.estimates and not math.isnan(row.estimates[name].mean)]
    choose = max if score(name).higher_is_better else min
    return choose(known, key=lambda row: row.estimates[name].mean, default=None)


def difference(row: Row, other: Row, reference: str, name: str) -> Difference:
    """Returns a learned method against another one, on the same samples.

    Args:
        row: The learned method.
        other: The other one, on the same scenes of the same net.
        reference: What it stands for.
        name: The score.
    """
    by_seed = row.samples[name] - _seed_means(other.samples[name])
    values = _seed_means(by_seed)
    known = ~np.isnan(values)
    mean = float(values[known].mean()) if known.any() else math.nan
    error = standard_error(values, np.arange(len(values)) // row.together)
    several = len(by_seed) > 1 and known.any()
    seed_error = float(by_seed[:, known].mean(1).std(ddof=1) / len(by_seed) ** 0.5) if several else math.nan
    gain = mean if score(name).higher_is_better else -mean
    better = gain > CLEARLY * math.hypot(error, seed_error if several else 0.0)
    return Difference(row.model, row.scenes, row.method, reference, other.method, name, mean, error, seed_error, better)


def _table(scores: Sequence[Sequence[float | None]]) -> Array:
    return np.array([[math.nan if value is None else value for value in one] for one in scores], dtype=np.float64)


def _seed_means(table: Array) -> Array:
    """Returns the mean over seeds of each sample that all seeds have; NaN for others."""
    return np.asarray(table.mean(axis=0))


def shown(found: Estimate, best: float) -> str:
    """Returns a mean with its standard errors as tables show it, bold if it is the best; ``"-"`` for NaN."""
    if math.isnan(found.mean):
        return "-"
    mean = f"{found.mean:.3f}"
    text = f"**{mean}**" if found.mean == best else mean
    text += "" if math.isnan(found.standard_error) else f" ± {found.standard_error:.3f}"
    return text + ("" if math.isnan(found.seed_error) else f" ({found.seed_error:.3f})")


__getattr__ = renamed(
    __name__,
    {name: f"captum_learnprop.benchmark.report.{name}" for name in ("FAMILY_SCORES", "to_markdown")},
)
