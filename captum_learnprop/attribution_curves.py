"""How the output grows with the area of extremal masks, image by image, as rows of a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from captum_learnprop.files import replacing

CURVES = "extremal_areas.csv"

SUFFICIENT = 0.9
"""The share of the output that the mask of an extremal area preserves."""


def extremal_area(curve: Tensor) -> float:
    """Returns the smallest area that preserves `SUFFICIENT` of the output; NaN where none does.

    Args:
        curve: Areas and the shares of the output that their masks preserve, ``(P, 2)``.
    """
    enough = [float(area) for area, share in curve.tolist() if share >= SUFFICIENT]
    return min(enough, default=math.nan)


def write_curves(folder: Path, curves: Iterable[tuple[str, Tensor]]) -> Path:
    """Writes a row for each area of each image: its id, the area, the preserved share and the extremal area.

    Args:
        folder: Where.
        curves: Pairs of an image's id and its curve ``(P, 2)``.
    """
    path = folder / CURVES
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "area", "preserved", "extremal_area"))
        for identifier, curve in curves:
            smallest = extremal_area(curve)
            last = "" if math.isnan(smallest) else f"{smallest:.6g}"
            writer.writerows((identifier, f"{area:.6g}", f"{share:.6g}", last) for area, share in curve.tolist())
    return path
