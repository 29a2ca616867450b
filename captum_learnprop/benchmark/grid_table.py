"""The table of the grid: trained rules on every data set and net, beside their start and the best quick rival."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from captum_learnprop.benchmark.contenders import CONTROL, UNTRAINED
from captum_learnprop.benchmark.summary import LEARNED, Difference, Row, difference
from captum_learnprop.benchmark.verdict import best_by
from captum_learnprop.tables import markdown

AP = "average precision"

AUC = ("class AUC", "distractor AUC")
"""The score of other objects of a scene, which depends on its kind."""

DELETIONS = {"series": "deletion, mean"}
"""The deletion that is shown for some scenes; of others that on a blur. The blur of a smooth series is the series."""

BEST = "the best of each net"
"""The name of the lines that choose among the trained rules."""

HEAD = (
    "data", "net", "net right", "rules", "untrained", "trained", "best rival", "rival's", "trained minus rival",
    "AUC: trained / rival", "deletion: trained / rival",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Trained rules of one variant on one data set and net.

    Attributes:
        trained: Their row.
        start: The row of their untrained start; None where it has no scores.
        rival: The row of the best hand-made method by average precision.
        gap: Average precision of the rules minus the rival's, on the same scenes.
    """

    trained: Row
    start: Row | None
    rival: Row
    gap: Difference

    @property
    def error(self) -> float:
        """The standard error of the gap, over scenes and training seeds; infinite where there is none."""
        errors = [one for one in (self.gap.standard_error, self.gap.seed_error) if not math.isnan(one)]
        return math.hypot(*errors) if errors else math.inf

    @property
    def variant(self) -> str:
        """The variant's name."""
        return self.trained.method.rpartition(", ")[0]


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Returns a line for each data set, net and trained variant that has scores, in the order of the rows.

    Args:
        rows: Results of cells, whose samples are kept, of any number of data sets and nets.
    """
    found = []
    for place in dict.fromkeys((row.scenes, row.model) for row in rows):
        room = [row for row in rows if (row.scenes, row.model) == place and AP in row.estimates]
        rival = best_by([row for row in room if row.family not in (LEARNED, UNTRAINED, CONTROL)], AP)
        for trained in (row for row in room if row.family == LEARNED):
            start = f"{trained.method.rpartition(', ')[0]}, {UNTRAINED}"
            own = next((row for row in room if row.method == start), None)
            if rival is not None:
                found.append(Line(trained, own, rival, difference(trained, rival, rival.method, AP)))
    return found


def best_lines(lines: Sequence[Line]) -> list[Line]:
    """Returns the line of the highest average precision of each data set and net."""
    best: dict[tuple[str, str], Line] = {}
    for line in lines:
        place = (line.trained.scenes, line.trained.model)
        if place not in best or line.trained.estimates[AP].mean > best[place].trained.estimates[AP].mean:
            best[place] = line
    return list(best.values())


def count(lines: Sequence[Line]) -> str:
    """Returns how often trained rules are ahead, as a part of a sentence."""
    ahead = sum(line.gap.mean > 0 for line in lines)
    behind = sum(line.gap.mean < -line.error for line in lines)
    clearly = sum(line.gap.mean > line.error for line in lines)
    return (
        f"ahead in {ahead} of {len(lines)} cells ({clearly} by more than an error), "
        f"behind by more than an error in {behind}"
    )


def to_markdown(rows: Sequence[Row]) -> str:
    """Returns the whole table as Markdown: what it says in a few lines, the table, what did not run."""
    lines = lines_of(rows)
    said = [f"- trained rules, {variant}: {count(own)}" for variant, own in _by_variant(lines)]
    parts = ["# Data sets and nets", "\n".join(said), READING, markdown(HEAD, [_cells(line) for line in lines])]
    if failed := _failures(rows):
        parts += ["What has no scores, and why:", "\n".join(failed)]
    return "\n\n".join(part for part in parts if part) + "\n"


READING = (
    "Average precision of the asked object's pixels. Untrained: where the training of the rules starts. Trained: mean "
    "over training seeds ± standard error over scenes, in brackets that over seeds. Rival: the hand-made method of at "
    "most two backward passes that is best on these very scenes, with the treatment of its maps that is best on "
    "validation scenes. Difference: paired, over the same scenes, ± the standard error over scenes and seeds; bold "
    "where trained rules are ahead by more than that. AUC: the probability that a pixel of the asked object outranks "
    "one of the others. Deletion: lower is better."
)


def _by_variant(lines: Sequence[Line]) -> Iterator[tuple[str, list[Line]]]:
    for variant in dict.fromkeys(line.variant for line in lines):
        yield variant, [line for line in lines if line.variant == variant]
    if lines:
        yield BEST, best_lines(lines)


def _failures(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each reason on each data set and net, with the methods that have no scores for it."""
    methods: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        for _, error in row.failures:
            methods.setdefault((row.scenes, row.model, error), {})[row.method] = None
    return [f"- {scenes}, {model}: {'; '.join(names)}: {error}" for (scenes, model, error), names in methods.items()]


def _cells(line: Line) -> list[str]:
    trained, rival = line.trained, line.rival
    gap = f"{line.gap.mean:+.3f}"
    gap = f"**{gap}**" if line.gap.mean > line.error else gap
    error = "" if math.isinf(line.error) else f" ± {line.error:.3f}"
    deletion = DELETIONS.get(trained.scenes, "deletion, blur")
    auc = next((name for name in AUC if name in trained.estimates), AUC[0])
    return [
        trained.scenes, trained.model, f"{100 * trained.recognised:.0f} %", line.variant + trained.mark,
        _mean(line.start, AP), _whole(trained), rival.method, _mean(rival, AP), gap + error,
        f"{_mean(trained, auc)} / {_mean(rival, auc)}", f"{_mean(trained, deletion)} / {_mean(rival, deletion)}",
    ]  # fmt: skip


def _mean(row: Row | None, name: str) -> str:
    found = None if row is None else row.estimates.get(name)
    return "-" if found is None or math.isnan(found.mean) else f"{found.mean:.3f}"


def _whole(row: Row) -> str:
    found = row.estimates[AP]
    error = "" if math.isnan(found.standard_error) else f" ± {found.standard_error:.3f}"
    return f"{found.mean:.3f}{error}" + ("" if math.isnan(found.seed_error) else f" ({found.seed_error:.3f})")
