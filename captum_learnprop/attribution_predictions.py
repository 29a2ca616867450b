"""What a model said of each image that was explained, as rows of a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.files import replacing

PREDICTIONS = "predictions.csv"

SUM_TOLERANCE = 1e-3
"""How far the sum of an output may be from 1 if it is to be one of probabilities already."""


@dataclass(frozen=True)
class Prediction:
    """What a model said of an image.

    Attributes:
        predicted: The class with the highest output.
        predicted_name: Its name; its number where none is known.
        probability: Its probability.
        target: The class that was explained.
        target_name: Its name.
        target_probability: Its probability.
    """

    predicted: int
    predicted_name: str
    probability: float
    target: int
    target_name: str
    target_probability: float


def prediction_of(output: Tensor, target: int, names: Sequence[str]) -> Prediction:
    """Returns what an output ``(classes,)`` says.

    Args:
        output: Logits, of which the softmax is taken; or probabilities, which are left as they are.
        target: The class that was explained.
        names: A name for each class.
    """
    values = output.double()
    if values.min() < 0 or abs(float(values.sum()) - 1) > SUM_TOLERANCE:
        values = torch.softmax(values, 0)
    predicted = int(values.argmax())
    found = [(number, names[number], round(float(values[number]), 6)) for number in (predicted, target)]
    return Prediction(*found[0], *found[1])


def as_entry(identifier: str, prediction: Prediction) -> dict[str, Any]:
    """Returns the id with the fields of its prediction, for a report."""
    return {"id": identifier, **asdict(prediction)}


def write_predictions(folder: Path, rows: Iterable[tuple[str, Prediction]]) -> Path:
    """Writes ``predictions.csv``: one line an image, ``id`` and the fields of `Prediction`; returns its path.

    Args:
        folder: The output folder.
        rows: Ids with predictions, read as a stream.

    Raises:
        WriteError: The disk is full, or the folder is read-only.
    """
    path = folder / PREDICTIONS
    columns = ["id", *(field.name for field in fields(Prediction))]
    # Bytes of names that are no UTF-8 are written as escapes, as everywhere.
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([identifier, *asdict(prediction).values()] for identifier, prediction in rows)
    return path
