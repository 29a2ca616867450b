"""Fixed signs and smoothings: those that the committed tables chose."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from captum_learnprop.benchmark.hand_made import HAND_MADE
from captum_learnprop.explanation.methods import FOR_OTHERS, FOR_TRANSFORMERS, method_named, method_names
from captum_learnprop.explanation.treatments import TREATMENTS, treatment_for

DOCS = Path(__file__).parents[3] / "docs"
TREATED = re.compile(r"^\| ([^|]+?) \|.*\| (absolute|positive|signed), ([\d.]+) px \|$")
SIDES = {"efficientnet_lite:0": 224, "efficientnet_lite:1": 240, "efficientnet_lite:2": 260}
SMALL = 64
"""Side of drawn scenes."""

CONTROLS = ("random", "centre prior", "intensity")


def chosen(page: str) -> dict[str, list[tuple[str, float]]]:
    """The treatments of a page's first table for each net, by method: sign, and smoothing as a fraction of the side."""
    found: dict[str, list[tuple[str, float]]] = {}
    side = float(SMALL)
    for line in (DOCS / "evaluation" / page).read_text().splitlines():
        if line.startswith("## "):
            side = float(SIDES.get(line.removeprefix("## ").partition(",")[0], SMALL))
        row = TREATED.match(line)
        if row is not None:
            found.setdefault(row[1], []).append((row[2], float(row[3]) / side))
    return found


PHOTOGRAPHS, PAIRS = chosen("photographs.md"), chosen("pairs.md")


TABLED = [name for name in HAND_MADE if name in {**PHOTOGRAPHS, **PAIRS} and name not in CONTROLS]


@pytest.mark.parametrize("name", TABLED)
def test_they_are_those_of_the_tables(name: str) -> None:
    rows = PHOTOGRAPHS.get(name) or PAIRS[name]
    signs = Counter(sign for sign, _ in rows).most_common()
    treatment = treatment_for(name)
    assert treatment.sign in [sign for sign, count in signs if count == signs[0][1]]
    assert treatment.smoothing == pytest.approx(statistics.median(smoothing for _, smoothing in rows), abs=1e-3)


def test_the_tables_are_read() -> None:
    assert len(PHOTOGRAPHS["saliency"]) == 3
    assert len(set(HAND_MADE) & {*PHOTOGRAPHS, *PAIRS}) > 20


def test_all_are_of_methods() -> None:
    assert set(TREATMENTS) <= {*method_names(), "IntegratedCDAM"}


def test_what_is_taken_without_a_method_is_the_best_of_the_tables() -> None:
    table = (DOCS / "evaluation" / "photographs.md").read_text().split("## Average precision")[1].split("## ")[0]
    precision: dict[str, float] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers = [float(found[1]) for cell in cells[1:] if (found := re.match(r"\**([\d.]+)\** ±", cell))]
        if len(numbers) == 3:
            precision[cells[0]] = sum(numbers)
    best = sorted((name for name in HAND_MADE if name in precision), key=precision.__getitem__, reverse=True)
    assert next(name for name in best if not name.startswith("intensity")) == FOR_OTHERS[0]
    page = (DOCS / "results" / "transformers.md").read_text()
    rows = dict(re.findall(r"^\| (\w[\w ]*) \| (\.\d+) ±", page, re.M))
    assert max((name for name in rows), key=lambda name: float(rows[name])) == FOR_TRANSFORMERS[0]


@pytest.mark.parametrize("spelt", ["Grad-CAM", "grad_cam", "gradcam", "GRAD CAM"])
def test_names_are_spelt_as_one_likes(spelt: str) -> None:
    assert method_named(spelt).name == "Grad-CAM"


def test_no_two_methods_are_spelt_alike() -> None:
    names = method_names()
    assert len({re.sub(r"[^a-z0-9+]", "", name.casefold()) for name in names}) == len(names)
