"""The maps of a run's first questions, kept beside its cells, so that the report can show all methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from captum_learnprop.benchmark.gallery import draw_gallery, keep_maps, keep_questions, read_maps, read_questions
from captum_learnprop.benchmark.identity import file_stem
from captum_learnprop.benchmark.summary import LEARNED, Row
from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.scenes import Questions

FOLDER = "maps"
"""Folder of the maps in that of the benchmark."""

SHOWN = 12
"""Number of questions whose maps are kept, the first ones."""


def keep(
    out: Path, model: str, family: str, method: str, seed: int | None, questions: Questions, names: Sequence[str],
    maps: Tensor,
) -> None:  # fmt: skip
    """Writes the maps of the first questions, and the questions themselves where they are not there.

    Args:
        out: Folder of the benchmark.
        model: Name of the net.
        family: Name of the scenes.
        method: Name of the method.
        seed: Training seed; None for methods that have none.
        questions: What was asked, ``M`` rows.
        names: Names of the asked classes, one for each row.
        maps: ``(M, H, W)``.
    """
    asked = _questions_path(out, model, family)
    titles = [f"where is the {name}?" for name in names[:SHOWN]]
    if not _same_questions(asked, titles, questions):
        for stale in asked.parent.glob(f"{_place(model, family)}_*.safetensors"):
            stale.unlink()  # maps of other questions
        keep_questions(asked, questions.images[:SHOWN], questions.masks[:SHOWN], titles)
    keep_maps(_maps_path(out, model, family, method, seed), method, maps[:SHOWN])


def galleries(out: Path, rows: Sequence[Row]) -> list[tuple[str, bytes]]:
    """Returns a picture for each kept question, as its title and a JPEG file, with the maps of all methods.

    Args:
        out: Folder of the benchmark.
        rows: Results; of rules that were learned several times, those of the first seed are shown.

    Raises:
        LearnpropError: A file is damaged.
    """
    found: list[tuple[str, bytes]] = []
    places = dict.fromkeys((row.model, row.scenes) for row in rows)
    for model, family in places:
        path = _questions_path(out, model, family)
        if not path.is_file():
            continue
        room = [row for row in rows if (row.model, row.scenes) == (model, family) and row.error is None]
        maps = {row.method: read_maps(file)[1] for row in room if (file := _first(out, row)) is not None}
        if not maps:
            continue
        learned = [row.method for row in room if row.family == LEARNED]
        where = f" ({model}, {family})" if len(places) > 1 else ""
        pictures = draw_gallery(read_questions(path), maps, highlighted=learned)
        found += [(title + where, picture) for title, picture in pictures]
    return found


def _same_questions(path: Path, titles: Sequence[str], questions: Questions) -> bool:
    """Returns whether the questions in a file are these."""
    try:
        kept = read_questions(path)
    except LearnpropError:
        return False
    images = (questions.images[:SHOWN].clamp(0, 1) * 255).round()
    alike = kept.images.shape == images.shape and bool((kept.images.float() - images).abs().max() <= 1)
    return alike and list(kept.titles) == list(titles)


def _first(out: Path, row: Row) -> Path | None:
    """Returns the maps of the first training seed, or of the method that has none."""
    once = _maps_path(out, row.model, row.scenes, row.method, None)
    learned = once.parent.glob(f"{once.stem.removesuffix('once')}seed*.safetensors")
    return next(
        iter([*once.parent.glob(once.name), *sorted(learned, key=lambda path: (len(path.name), path.name))]), None
    )


def _place(model: str, family: str) -> str:
    return f"{file_stem(model)}_{family}"


def _questions_path(out: Path, model: str, family: str) -> Path:
    return out / FOLDER / f"{_place(model, family)}_questions.safetensors"


def _maps_path(out: Path, model: str, family: str, method: str, seed: int | None) -> Path:
    which = "once" if seed is None else f"seed{seed}"
    return out / FOLDER / f"{_place(model, family)}_{file_stem(method)}_{which}.safetensors"
