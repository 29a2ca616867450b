"""Which of a user's files belong to training, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.labelled_files import LabelledFile
from captum_learnprop.scenes.scenes import SPLITS

SHARES = (0.6, 0.2, 0.2)
"""Shares of training, validation and test."""


def shuffled(names: Sequence[str]) -> list[str]:
    """Returns names in a fixed order that has nothing to do with the alphabet, and depends on nothing else."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest())


def shared_out(
    names: Sequence[str], least: int = 1, shares: tuple[float, float, float] = SHARES
) -> dict[str, list[str]] | None:
    """Returns the names of each split, disjoint and together all.

    Args:
        names: What is shared out, e.g. classes or files.
        least: How many each split needs.
        shares: How much each split gets; what is rounded away goes to training.

    Returns:
        Names by split, or None where there are fewer than three times ``least``.
    """
    if len(names) < 3 * least:
        return None
    order = shuffled(names)
    test = max(least, round(shares[2] * len(order)))
    validation = max(least, round(shares[1] * len(order)))
    train = len(order) - validation - test
    if train < least:
        return None
    return dict(
        zip(SPLITS, (order[:train], order[train : train + validation], order[train + validation :]), strict=True)
    )


def share_out_objects(
    files: Sequence[LabelledFile], objects: int, what: str = "cut-out"
) -> tuple[dict[str, dict[int, list[LabelledFile]]], str | None]:
    """Shares objects out to splits; `CutoutSource` says by which rules.

    Args:
        files: Pictures with their classes.
        objects: How many classes a scene has.
        what: What a picture is, for the sentences.

    Returns:
        By split and class: the files; and a sentence about what splits share, None if nothing.

    Raises:
        LearnpropError: There are fewer classes than objects in a scene.
    """
    by_class = by_classes(files, objects, what)
    names = {str(target): target for target in by_class}
    apart = shared_out(list(names), objects)
    if apart is not None:
        return {split: {names[name]: by_class[names[name]] for name in apart[split]} for split in SPLITS}, None
    within = {
        target: shares
        for target, members in by_class.items()
        if (shares := shared_out([each.id for each in members])) is not None
    }
    if len(within) >= objects:
        by_id = {each.id: each for each in files}
        return {
            split: {target: [by_id[name] for name in shares[split]] for target, shares in within.items()}
            for split in SPLITS
        }, (
            f"training, validation and test share their {len(within)} classes, though no {what}: for classes of "
            f"their own scenes of {objects} object(s) need {3 * objects} classes"
        )
    if len(by_class) >= 2 * objects:
        order = [names[name] for name in shuffled(list(names))]
        seen = {target: by_class[target] for target in order[:-objects]}
        unseen = {target: by_class[target] for target in order[-objects:]}
        return dict(zip(SPLITS, (seen, seen, unseen), strict=True)), (
            f"training and validation share their {what}s, test has classes of its own: {len(by_class)} classes are "
            f"too few to split in three, scenes of {objects} object(s) need {3 * objects}"
        )
    return dict.fromkeys(SPLITS, by_class), (
        f"training, validation and test share their {what}s: {len(by_class)} classes with {len(files)} {what}s are "
        f"too few to split, scenes of {objects} object(s) need {3 * objects} classes, or 3 {what}s of each of "
        f"{objects}; figures say nothing about objects that training has not seen"
    )


def by_classes(files: Sequence[LabelledFile], objects: int, what: str) -> dict[int, list[LabelledFile]]:
    """Returns pictures by class.

    Raises:
        LearnpropError: There are fewer classes than objects in a scene.
    """
    by_class: dict[int, list[LabelledFile]] = {}
    for each in files:
        by_class.setdefault(each.target, []).append(each)
    if len(by_class) < objects:
        raise LearnpropError(
            f"scenes of {objects} objects of different classes need as many classes, the table has {len(by_class)}: "
            f"add {what}s of other classes, or ask for fewer objects"
        )
    return by_class
