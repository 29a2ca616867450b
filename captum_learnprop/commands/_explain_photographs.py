"""The work of ``learnprop explain``: a figure, and in words what the model says and what the maps took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from captum_learnprop.commands._inputs import class_names_of, load, preprocessing_of
from captum_learnprop.commands._request import ModelRequest
from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation import Explanation, explain
from captum_learnprop.files import printable
from captum_learnprop.models import transform_named
from captum_learnprop.plot import check_figure_path


@dataclass(frozen=True)
class Request(ModelRequest):
    """What the command line asked for; the fields are the options of :data:`command`."""

    photo: tuple[Path, ...]
    target: tuple[str, ...]
    method: tuple[str, ...]
    rules: tuple[str, ...]
    sign: str | None
    smoothing: float | None
    out: Path
    threads: int | None
    transform: str | None


def run(request: Request) -> None:
    """Explains, prints and draws.

    Raises:
        LearnpropError: The request cannot be carried out as given.
    """
    check_figure_path(request.out)  # now, not after the work
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    prepare = _transform_of(request)
    model = load(request)
    found = explain(
        model,
        list(request.photo),
        [int(one) if one.isdecimal() else one for one in request.target] or None,
        list(request.method) or None,
        rules=list(request.rules) or None,
        preprocessing=preprocessing_of(request, model) if prepare is None else prepare,
        classes=class_names_of(request, model),
        sign=request.sign,
        smoothing=request.smoothing,
    )
    shown = None
    for one in found:
        if one.image is not shown:
            shown = one.image
            click.echo(f"{printable(one.title)}: {', '.join(map(str, one.prediction)) or 'no classes'}")
        click.echo(f"  {one.target} by {one.method}: {one.cost}{_cut_off(one)}")
    try:
        click.echo(f"wrote {found.save(request.out)}")
    except OSError as error:
        raise LearnpropError(f"cannot write {request.out}: {error}") from error


def _transform_of(request: Request) -> Callable[..., Any] | None:
    """Returns the function of one's own that makes inputs, None where there is none."""
    if request.transform is None:
        return None
    given = [name for name in ("size", "mean", "std") if getattr(request, name) is not None]
    given += ["normalization"] if request.normalization != "auto" else []
    if given:
        raise LearnpropError(f"--transform decides all of the input by itself: leave out --{given[0]}")
    return transform_named(request.transform)


def _cut_off(one: Explanation) -> str:
    frame = one.frame
    if frame.complete:
        return ""
    rows, columns = frame.rows, frame.columns
    seen = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
    return f" (the model sees {seen} of {frame.height} x {frame.width})"
