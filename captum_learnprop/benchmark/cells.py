"""The benchmark's results on disk: a cell is one method on one scene family of one net, for one training seed.

A cell is a JSON file in the folder ``cells``, written as a whole when it is done. Its settings are everything that
decides its scores, so that results of other settings are refused and never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captum_learnprop.benchmark.contenders import UNTRAINED, Contender
from captum_learnprop.benchmark.identity import file_stem, require_same
from captum_learnprop.benchmark.scorecard import JUDGED, in_table_order
from captum_learnprop.benchmark.settings import Settings
from captum_learnprop.benchmark.summary import LEARNED
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import write_text
from captum_learnprop.scenes.scenes import SIZE

VERSION = 1
"""Version of cells and of all constants that decide their scores: part of the settings of a cell."""

FOLDER = "cells"
"""Folder of the cells in that of the benchmark."""

Cell = dict[str, Any]


def cell_path(out: Path, architecture: str, family: str, contender: Contender, seed: int) -> Path:
    """Returns the file of a cell in the benchmark's folder."""
    last = f"seed{seed}" if contender.seeded else "once"
    return out / FOLDER / f"{file_stem(architecture)}_{family}_{file_stem(contender.name)}_{last}.json"


def empty_cell(architecture: str, family: str, contender: Contender, seed: int, *, error: str | None = None) -> Cell:
    """Returns a cell without scores.

    Args:
        architecture: Name of the net.
        family: Scene family.
        contender: The method.
        seed: Training seed, kept only for methods that learn anew for each.
        error: Why there are no scores.
    """
    return {
        "model": architecture, "scenes": family, "method": contender.name, "family": contender.family,
        "seed": seed if contender.seeded else None, "passes": None, "settings": {}, "error": error,
        "composite": contender.composite, "scores": {},
    }  # fmt: skip


def read_cell(path: Path) -> Cell:
    """Returns the cell in a file.

    Raises:
        LearnpropError: The file is damaged.
    """
    try:
        cell: Cell = json.loads(path.read_text(encoding="utf-8"))
        cell["settings"], cell["scores"], cell["error"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise LearnpropError(f"{path} is damaged ({error!r}); delete it to compute it again") from error
    return cell


def write_cell(path: Path, cell: Cell) -> None:
    """Writes a cell as a whole.

    Raises:
        WriteError: The disk is full, or the folder is read-only.
    """
    write_text(path, json.dumps(cell, indent=1) + "\n")


def settings_of(settings: Settings, contender: Contender, side: int = SIZE) -> dict[str, Any]:
    """Returns what decides the scores of a method, but for the net and its scenes.

    Args:
        settings: What decides the outcome of methods.
        contender: The method.
        side: Height and width of the images in pixels.
    """
    found: dict[str, Any] = {
        "version": VERSION,
        "questions": settings.questions,
        "tuning questions": settings.tuning_questions,
        "seed": settings.seed,
        "training scenes": settings.training_scenes,  # batch norms of re-initialised nets are measured on them
        "same smoothing": settings.smoothing(side),
        "method options": contender.options,
    }
    if contender.family in (LEARNED, UNTRAINED):
        found["training steps"] = settings.training_steps
    if contender.variant is not None:
        found["training options"] = settings.training_options(contender.variant)
    return found


def missing_scores(cell: Mapping[str, Any] | None, wanted: Sequence[str], judges: Sequence[str] | None) -> list[str]:
    """Returns the wanted scores that a cell lacks: all without a cell, or for one with an error.

    Args:
        cell: The cell, or None.
        wanted: Names of scores.
        judges: The nets that judge now; scores by others are lacking. None where they are always the same.
    """
    if cell is None or cell["error"] is not None:
        return list(wanted)
    stale = judges is not None and cell.get("judges") != list(judges)
    return [name for name in wanted if name not in cell["scores"] or (name == JUDGED and stale)]


def require_same_settings(kept: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Checks that a cell was computed with the settings of this run.

    Options that the trainer got after the cell was written were at their defaults then, but for the choice of the
    smoothing, which was not made.

    Args:
        kept: Settings of the cell.
        wanted: Settings of this run, from `settings_of`.
        path: File of the cell, for the message.

    Raises:
        SettingsError: A setting differs.
    """
    require_same(kept, {name: value for name, value in wanted.items() if name != "training options"}, path)
    if "training options" in wanted:
        defaults = {**Settings().training_options(None), "chooses_smoothing": False}
        require_same({**defaults, **kept.get("training options", {})}, wanted["training options"], path)


def add_scores(kept: Mapping[str, Any], found: Cell) -> None:
    """Puts scores that a cell had before into the one that was computed now, in the order of the tables."""
    for old, new in ((kept, found), (kept["same smoothing"], found["same smoothing"])):
        scores = {**old["scores"], **new["scores"]}
        new["scores"] = {name: scores[name] for name in in_table_order(scores)}
