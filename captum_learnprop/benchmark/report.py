"""The benchmark's results in sections of text and tables: an overview, the families of rules, and every net and scene
family by itself. `to_markdown` writes them as Markdown, `captum_learnprop.benchmark.page` as HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from captum_learnprop.benchmark.contenders import CONTROL
from captum_learnprop.benchmark.rule_families import RULE_FAMILIES, RuleFamily
from captum_learnprop.benchmark.scorecard import in_table_order, score
from captum_learnprop.benchmark.summary import (
    BEST_OF_FAMILY,
    BEST_SEARCHED,
    CLEARLY,
    LEARNED,
    NOT_RUN,
    UNTRAINED_START,
    Difference,
    Row,
    differences,
    shown,
)
from captum_learnprop.tables import markdown

FAMILY_SCORES = ("average precision", "class AUC", "deletion, blur", "randomisation")
"""Scores that have a table of the families of rules."""


@dataclass(frozen=True)
class Table:
    """A table of a report; ``**`` around a text in a cell makes it bold.

    Attributes:
        head: Titles of the ``C`` columns.
        lines: ``R`` lines of ``C`` cells.
        learned: Numbers of the lines that are about methods that learn.
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    learned: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Items:
    """A list in a report.

    Attributes:
        texts: The items.
    """

    texts: Sequence[str]


Part = str | Table | Items
"""What a section is made of; a text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        title: Its heading.
        parts: What stands below, without empty parts.
        alike: What says the same of maps that are all smoothed alike: less important.
    """

    title: str
    parts: Sequence[Part]
    alike: Sequence[Part] = ()


def sections(rows: Sequence[Row]) -> list[Section]:
    """Returns an overview of average precision, then for each net and scene family all scores and differences."""
    found = differences(rows)
    parts = [Section("Average precision", [_overview(rows)]), *_families(rows, found)]
    for model, scenes in places(rows):
        room = [row for row in rows if (row.model, row.scenes) == (model, scenes)]
        table, failed, alike = scores_table(room), failures(room), scores_table(room, "same")
        own: list[Part] = [_recognised(room)] if _recognised(room) else []
        own += [table] if table.lines else []
        own += [failed] if failed.texts else []
        own += _paired([one for one in found if (one.model, one.scenes) == (model, scenes)])
        parts.append(Section(f"{model}, {scenes}", own, [_ALIKE, alike] if alike.lines else []))
    return parts


_ALIKE = "All maps smoothed like the learned ones:"


def to_markdown(rows: Sequence[Row]) -> str:
    """Returns all `sections` as Markdown."""
    texts = ["# Results", READING]
    for section in sections(rows):
        paired = section.parts.index(PAIRED) if PAIRED in section.parts else len(section.parts)
        parts = [*section.parts[:paired], *section.alike, *section.parts[paired:]]
        texts += [f"## {section.title}", *map(_markdown, parts)]
    return "\n\n".join(texts) + "\n"


def _markdown(part: Part) -> str:
    if isinstance(part, Table):
        return markdown(part.head, part.lines)
    return "\n".join(f"- {text}" for text in part.texts) if isinstance(part, Items) else part


READING = (
    "Mean ± standard error over scenes (questions about one scene count as one); in brackets the standard error over "
    "training seeds (standard deviation of the seeds' means / square root of their number). The best of each column is "
    "bold, controls left out. Every hand-made method has the treatment of its maps that is best on other scenes. `^`: "
    "higher is better, `v`: lower is better."
)


def _recognised(room: Sequence[Row]) -> str:
    known = [row.recognised for row in room if not math.isnan(row.recognised)]
    return f"The net names the asked class in {100 * known[0]:.0f} % of the questions." if known else ""


def _overview(rows: Sequence[Row]) -> Table:
    name, where = "average precision", places(rows)
    by_place = {(row.model, row.scenes, row.method): row for row in rows}
    head = ["method", *(f"{model} {scenes}" for model, scenes in where)]
    lines: list[list[str]] = []
    best = {place: _best([row for row in rows if (row.model, row.scenes) == place], name) for place in where}
    for method in dict.fromkeys(row.method for row in rows):
        cells = []
        for place in where:
            row = by_place.get((*place, method))
            known = row is not None and name in row.estimates
            cells.append(shown(row.estimates[name], best[place]) + row.mark if row is not None and known else "-")
        lines.append([method, *cells])
    return Table(head, lines, _learned([line[0] for line in lines], rows))


def _learned(methods: Sequence[str], rows: Sequence[Row]) -> frozenset[int]:
    """Returns the numbers of the lines whose methods learn, by their names or labels."""
    learned = {name for row in rows if row.family == LEARNED for name in (row.method, row.label)}
    return frozenset(number for number, method in enumerate(methods) if method in learned)


def _families(rows: Sequence[Row], found: Sequence[Difference]) -> list[Section]:
    """A table for each of `FAMILY_SCORES`; nothing where no trained member was asked for."""
    trained = [family for family in RULE_FAMILIES if any(row.composite == family.composite for row in rows)]
    if not trained:
        return []
    parts: list[Part] = [_FAMILY_READING]
    for name in FAMILY_SCORES:
        if any(name in row.estimates for row in rows):
            arrow = "higher" if score(name).higher_is_better else "lower"
            lines = [line for family in trained for line in _family_lines(family, name, rows, found)]
            head = ["family", "method", *(f"{model} {scenes}" for model, scenes in places(rows))]
            table = Table(head, lines, _learned([line[1] for line in lines], rows))
            parts += [f"{name[0].upper()}{name[1:]} ({arrow} is better):", table]
    return [Section("Hand-made and trained members of each family", parts)]


def _family_lines(
    family: RuleFamily, name: str, rows: Sequence[Row], found: Sequence[Difference]
) -> Iterator[list[str]]:
    """The members of a family, hand-made ones first; after each trained one its differences."""
    members = [row for row in rows if row.method in (*family.hand_made, *family.searched)]
    members += [row for row in rows if row.composite == family.composite]
    best = {place: _best([row for row in members if (row.model, row.scenes) == place], name) for place in places(rows)}
    by_place = {(row.model, row.scenes, row.method): row for row in members}
    by_key = {(one.model, one.scenes, one.method, one.reference): one for one in found if one.score == name}
    for method in dict.fromkeys(row.method for row in members):
        own = [by_place.get((*place, method)) for place in best]
        known = [None if row is None else row.estimates.get(name) for row in own]
        texts = ["-" if one is None else shown(one, best[place]) for one, place in zip(known, best, strict=True)]
        yield [family.name, method, *texts]
        for reference in (BEST_OF_FAMILY, BEST_SEARCHED):
            against = [by_key.get((*place, method, reference)) for place in best]
            if any(against):
                yield [family.name, f"{method} minus {reference}", *(_gain(one, reference) for one in against)]


def places(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Returns the nets and scene families of rows, as they come."""
    return list(dict.fromkeys((row.model, row.scenes) for row in rows))


_FAMILY_READING = (
    "The same nets and scenes for all. A trained member propagates as the hand-made ones of its family do, but for the "
    "numbers in its rules and gates; `untrained` is where its training started. Gamma grids choose the gammas of LRP "
    "without labels, by the objective of the training and with as many attribution passes as that takes. Bold: the "
    "best of each family, and differences as below: paired, over the same samples, the reference being the best for "
    "that score."
)


def scores_table(room: Sequence[Row], which: str = "estimates") -> Table:
    """Returns all scores of all methods with their cost, the best of each in bold; an empty table without scores.

    Args:
        room: The methods on one scene family of one net.
        which: ``"estimates"``, or ``"same"`` for maps that are all smoothed alike.
    """
    names = in_table_order(name for row in room for name in getattr(row, which))
    if not names:
        return Table((), ())
    best = {name: _best(room, name, which) for name in names}
    arrows = [f"{name} {'^' if score(name).higher_is_better else 'v'}" for name in names]
    trained = which == "estimates" and any(not math.isnan(row.training_seconds) for row in room)
    head = ["method", *arrows, "passes", "ms / image", *["training s"] * trained, "treatment"]
    lines = []
    for row in room:
        found = getattr(row, which)
        if row.error is None:
            cells = [shown(found[name], best[name]) if name in found else "-" for name in names]
            training = "-" if math.isnan(row.training_seconds) else f"{row.training_seconds:.0f}"
            last = [*[training] * trained, row.treatment if which == "estimates" else ""]
            lines.append([row.label, *cells, str(row.passes), f"{1000 * row.seconds:.1f}", *last])
    return Table(head, lines, _learned([line[0] for line in lines], room))


def _best(room: Sequence[Row], name: str, which: str = "estimates") -> float:
    methods = [row for row in room if row.family != CONTROL]  # the true pixels are the best by definition
    means = [getattr(row, which)[name].mean for row in methods if name in getattr(row, which)]
    means = [mean for mean in means if not math.isnan(mean)]
    return (max if score(name).higher_is_better else min)(means, default=math.nan)


def failures(room: Sequence[Row]) -> Items:
    """Returns what did not run, and why."""
    lines = []
    for row in room:
        seeds_of: dict[str, list[int]] = {}
        for seed, error in row.failures:
            seeds_of.setdefault(error, []).extend([] if seed is None else [seed])
        for error, seeds in seeds_of.items():
            which = "".join(f", seed {seed}" for seed in seeds)
            lines.append(f"{row.method}{which}: {error if error == NOT_RUN else f'did not run. {error}'}")
    return Items(lines)


def _paired(found: Sequence[Difference]) -> list[Part]:
    if not found:
        return []
    names = list(dict.fromkeys(one.score for one in found))
    lines = []
    by_key = {(one.method, one.reference, one.score): one for one in found}
    for method, reference in dict.fromkeys((one.method, one.reference) for one in found):
        cells = [_gain(by_key.get((method, reference, name)), reference) for name in names]
        lines.append([f"{method} minus {reference}", *cells])
    return [PAIRED, Table(["learned method minus", *names], lines)]


def _gain(one: Difference | None, reference: str) -> str:
    if one is None or math.isnan(one.mean):
        return "-"
    against = "" if reference in (one.against, UNTRAINED_START) else f", {one.against}"
    number = f"{one.mean:+.3f}"
    error = "" if math.isnan(one.standard_error) else f" ± {one.standard_error:.3f}"
    seeds = "" if math.isnan(one.seed_error) else f" ({one.seed_error:.3f})"
    return f"{f'**{number}**' if one.better else number}{error}{seeds}{against}"


PAIRED = (
    "Paired differences over the same samples ± their standard error over scenes, in brackets the standard error over "
    "training seeds, of the mean difference of each seed. Bold: better than the reference by more than "
    f"{CLEARLY:g} standard errors, the root of the sum of both squared."
)
