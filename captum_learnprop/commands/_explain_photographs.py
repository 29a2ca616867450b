"""The work of ``learnprop explain``: a figure, and in words what the model says and what the maps took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import torch

from captum_learnprop.commands._inputs import class_names_of, load, preprocessing_of
from captum_learnprop.commands._request import ModelRequest
from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation import Explanation, explain
from captum_learnprop.files import printable
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


def run(request: Request) -> None:
    """Explains, prints and draws.

    Raises:
        LearnpropError: The request cannot be carried out as given.
    """
    check_figure_path(request.out)  # now, not after the work
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    model = load(request)
    found = explain(
        model,
        list(request.photo),
        [int(one) if one.isdecimal() else one for one in request.target] or None,
        list(request.method) or None,
        rules=list(request.rules) or None,
        preprocessing=preprocessing_of(request, model),
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


def _cut_off(one: Explanation) -> str:
    frame = one.frame
    if frame.complete:
        return ""
    rows, columns = frame.rows, frame.columns
    seen = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
    return f" (the model sees {seen} of {frame.height} x {frame.width})"
