"""The work of ``learnprop analyse``: maps and signals are compared, and a report is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from captum_learnprop.commands._inputs import ModelRequest, classifier_of, load, preprocessing_of
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.evaluation.analysis import Analysis, analyse
from captum_learnprop.evaluation.backward_rules import RULES as KNOWN
from captum_learnprop.evaluation.backward_rules import BackwardRule, backward_rule
from captum_learnprop.files import WriteError, check_folder, printable, write_text
from captum_learnprop.forward import output_of
from captum_learnprop.images import UnreadableImageError, find_images, read_image
from captum_learnprop.plot import alignment_curves, save_figure
from captum_learnprop.scenes.scenes import make_scenes
from zennit_rules import RuleSet, ready_rules


@dataclass(frozen=True)
class Request(ModelRequest):
    """What the command line asked for; the fields are the options of :data:`command`."""

    rules: tuple[str, ...]
    images: Path | None
    recursive: bool
    count: int
    target: int | None
    out: Path
    batch_size: int
    threads: int | None


def run(request: Request) -> Analysis:
    """Measures, and writes ``analysis.json``, ``analysis.md`` and ``analysis.png``.

    Raises:
        LearnpropError: the request cannot be carried out as given.
    """
    check_folder(request.out)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    model = load(request)
    images = _images(request, model).to(request.device)
    with torch.no_grad():
        predicted = torch.cat([output_of(model, (part,)).argmax(1) for part in images.split(request.batch_size)])
    targets = predicted if request.target is None else torch.full_like(predicted, request.target)
    rules = [_rule(name, model, images[: request.batch_size]) for name in request.rules]
    analysis = analyse(
        model, rules, images, targets, name=request.model, internal_batch_size=request.batch_size,
        on_rule=lambda name: click.echo(f"{name} ...", err=True),
    )  # fmt: skip
    try:
        write_text(request.out / "analysis.json", json.dumps(analysis.to_json(), indent=2) + "\n")
        write_text(request.out / "analysis.md", analysis.to_markdown())
        save_figure(alignment_curves(analysis.reports), request.out / "analysis.png")
    except WriteError as error:
        raise LearnpropError(
            f"{error}; {len(analysis.reports)} rules were analysed: make room, or name another --out, and run again"
        ) from error
    return analysis


def _images(request: Request, model: nn.Module) -> Tensor:
    """The inputs, normalised; scenes if there is no folder."""
    if request.images is None:
        return make_scenes("pairs", request.count, split="test", seed=request.seed).images
    preprocessing = preprocessing_of(request, model)
    classifier = classifier_of(request, model, preprocessing)
    if request.target is not None:
        classifier.check(request.target)
    pixels: list[Tensor] = []
    left_out: dict[str, str] = {}
    found = find_images(request.images, recursive=request.recursive, exclude=request.out, left_out=left_out)
    for name, reason in left_out.items():
        click.echo(f"skipped {printable(name)}: {reason}", err=True)
    for image in found:
        if len(pixels) == request.count:
            break
        try:
            pixels.append(preprocessing.pixels(read_image(image.path)))
        except UnreadableImageError as error:
            click.echo(f"skipped {printable(image.id)}: {error}", err=True)
    if not pixels:
        raise LearnpropError(f"no image in {request.images} could be read")
    return preprocessing.normalize(torch.stack(pixels))


def _rule(name: str, model: nn.Module, images: Tensor) -> BackwardRule:
    """A rule by its name, or the trained rules in a file."""
    if name in KNOWN:
        return backward_rule(name, model, images)
    if not Path(name).is_file() and name not in ready_rules():
        known = (*KNOWN, *ready_rules())
        raise LearnpropError(
            f"--rules {name!r} is neither a file nor one of {', '.join(known)}{did_you_mean(name, known)}"
        )
    return backward_rule(RuleSet.load(name, model), model, images, Path(name).stem)
