"""What the benchmark's results say of each net, in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from captum_learnprop.benchmark.contenders import CONTROL, TRUTH, UNTRAINED
from captum_learnprop.benchmark.scorecard import in_table_order, score
from captum_learnprop.benchmark.summary import CLEARLY, LEARNED, UNTRAINED_START, Difference, Row, difference

SCORE = "average precision"
"""Score that the sentences are about."""

FEW_PASSES = 2
"""Passes through the net of a quick method: one forward and one backward pass."""

BEST_QUICK = "the best hand-made method of at most two passes"


@dataclass(frozen=True)
class Verdict:
    """What results say; names are bold between ``**``.

    Attributes:
        sentences: Which method finds the asked object best, and whether trained ones are better.
        others: The best methods by the other scores.
    """

    sentences: tuple[str, ...]
    others: tuple[str, ...] = ()


def verdict(room: Sequence[Row]) -> Verdict:
    """Returns what the scores of one scene family of one net say.

    Which method finds the asked object best; whether the best trained one is clearly better than its untrained start
    and than the best quick hand-made one, by paired differences; and which methods are best by the other scores.
    Controls, which look at no net, are left out.

    Args:
        room: The methods on one scene family of one net.
    """
    known = [row for row in room if row.error is None and row.family != CONTROL]
    best = best_by(known, SCORE)
    if best is None:
        return Verdict(("No method has scores here; the reasons are below.",))
    said = [f"**{best.label}** finds the asked object best: {SCORE} {_mean(best)}.{_against_controls(room, best)}"]
    trained = best_by([row for row in known if row.family == LEARNED], SCORE)
    said.append("No trained method was compared." if trained is None else _of_trained(trained, best, known))
    return Verdict(tuple(text for text in said if text), tuple(_others(known)))


def best_by(rows: Sequence[Row], name: str) -> Row | None:
    """Returns the row with the best mean of a score, the first of equals; None where none has it."""
    known = [row for row in rows if name in row.estimates and not math.isnan(row.estimates[name].mean)]
    choose = max if score(name).higher_is_better else min
    return choose(known, key=lambda row: row.estimates[name].mean, default=None)


def _mean(row: Row) -> str:
    found = row.estimates[SCORE]
    return f"{found.mean:.3f}" + ("" if math.isnan(found.standard_error) else f" ± {found.standard_error:.3f}")


def _against_controls(room: Sequence[Row], best: Row) -> str:
    """Returns a warning where a map that is made without the net is as good; the true pixels are 1 by definition."""
    control = best_by([row for row in room if row.family == CONTROL and row.method != TRUTH], SCORE)
    if control is None or control.estimates[SCORE].mean < best.estimates[SCORE].mean:
        return ""
    return f" But **{control.label}**, which does not look at the net, has {_mean(control)}: these scenes say nothing."


def _of_trained(trained: Row, best: Row, known: Sequence[Row]) -> str:
    name = (
        "It was trained, and is"
        if trained is best
        else f"The best trained one, **{trained.label}** ({_mean(trained)}), is"
    )
    variant = trained.method.rpartition(", ")[0]
    start = next((row for row in known if row.method == f"{variant}, {UNTRAINED}"), None)
    quick = best_by(
        [row for row in known if row.family not in (LEARNED, UNTRAINED) and row.passes <= FEW_PASSES], SCORE
    )
    against = [
        _compared(difference(trained, other, reference, SCORE), what)
        for other, reference, what in (
            (start, UNTRAINED_START, "its untrained start"),
            (quick, BEST_QUICK, f"{BEST_QUICK}, **{quick.label if quick else ''}**"),
        )
        if other is not None and SCORE in trained.samples and SCORE in other.samples
    ]
    return f"{name} {' and '.join(against)}." if against else ""


def _compared(one: Difference, what: str) -> str:
    error = math.hypot(one.standard_error, 0.0 if math.isnan(one.seed_error) else one.seed_error)
    gain = one.mean if score(one.score).higher_is_better else -one.mean
    word = "not clearly different from"
    if abs(gain) > CLEARLY * error:  # never for an unknown error
        word = "clearly better than" if gain > 0 else "clearly worse than"
    size = f"{one.mean:+.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
    return f"{word} {what} ({size})"


def _others(known: Sequence[Row]) -> list[str]:
    """Returns the best methods by the other scores, scores of one method together."""
    found: dict[str, list[str]] = {}
    for name in in_table_order(name for row in known for name in row.estimates):
        best = best_by(known, name)
        if best is not None and name != SCORE:
            found.setdefault(best.label, []).append(f"{name} {best.estimates[name].mean:.3f}")
    return [f"**{method}**: {'; '.join(scores)}" for method, scores in found.items()]
