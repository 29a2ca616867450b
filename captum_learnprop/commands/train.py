"""``learnprop train``: learn the rules of a model from a folder of images."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captum_learnprop.commands._inputs import (
    FROM_FOLDER,
    PREDICTED,
    Classifier,
    ModelRequest,
    classifier_of,
    load,
    preprocessing_of,
)
from captum_learnprop.commands._key_value import KeyValue, as_dict
from captum_learnprop.commands._mistakes import users_mistakes
from captum_learnprop.commands._one_of import OneOf
from captum_learnprop.commands._options import (
    PATH,
    POSITIVE,
    checkpoint_option,
    debug_option,
    normalization_option,
    recursive_option,
    size_option,
    threads_option,
    weights_option,
)
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import printable

# torch takes seconds to import: the help must not wait for it.
if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import IterableDataset

    from captum_learnprop.images import ImageFile, Preprocessing
    from captum_learnprop.training.trainer import RuleTrainer
    from zennit_rules import RuleSet

_LOG = logging.getLogger(__name__)

_CHECKED = 4
"""The number of images that rules are built on before anything is measured; one alone could be of one colour, without a
range."""

_TRAINED_WITH = ("quantity", "sign", "smoothing", "steps", "batch_size", "lr", "deletions", "patience", "seed",
                 "internal_batch_size", "precision", "composite", "gate", "start", "pooling", "fusion")  # fmt: skip
"""The options that `RuleTrainer` takes under the same name."""


@dataclass(frozen=True)
class Request(ModelRequest):
    """What the command line asked for; the fields are the options of :data:`command`."""

    images: Path
    recursive: bool
    composite: str
    gate: str
    gate_option: dict[str, Any]
    rule_option: dict[str, Any]
    contrast: bool | None
    positions: bool | None
    fusion: bool
    start: str | None
    pooling: str
    objective: str | None
    quantity: str
    target: str
    targets_per_image: int
    steps: int
    batch_size: int
    lr: float | None
    smoothing: float | None
    sign: str | None
    deletions: int
    validation: float
    patience: int | None
    precision: str | None
    internal_batch_size: int
    threads: int | None
    examples_dir: Path | None
    resume: Path | None
    log_dir: Path | None
    out: Path
    overwrite: bool


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
        rules: The rules, as they were saved.
        seconds: Duration of the whole run.
    """

    rules: RuleSet
    seconds: float


def run(request: Request) -> Result:
    """Trains rules and saves them.

    Raises:
        LearnpropError: The request cannot be carried out as given.
    """
    import torch

    from captum_learnprop.commands import _objective
    from captum_learnprop.training.trainer import RuleTrainer

    started = time.monotonic()
    _check_output(request)
    images = _find(request)
    objective = None if request.objective is None else _objective.parse(request.objective)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    module = load(request)
    if request.device.startswith("cuda:"):
        torch.cuda.set_device(request.device)
    preprocessing = preprocessing_of(request)
    labels = _labels(request, images, classifier_of(request, module, preprocessing))
    _check_memory(request, len(images), preprocessing)
    options = {name: getattr(request, name) for name in _TRAINED_WITH}
    trainer = RuleTrainer(
        module, objective=objective, gate_options=_gate_options(request), rule_options=request.rule_option, **options
    )
    skipped: dict[str, str] = {}
    data = _data(images, preprocessing, labels, skipped)
    _check_rules(trainer, data, skipped)
    rules = _fit(request, trainer, data)
    if labels is not None:
        _warn_of_lost_classes(images, skipped)
    rules.training |= _origin(request, preprocessing, skipped)
    if _is_main():
        _save(request, rules, module)
        _draw(request, trainer)
    return Result(rules, time.monotonic() - started)


def _save(request: Request, rules: RuleSet, module: nn.Module) -> None:
    """Saves the rules; hours of training must not end with a bare error number."""
    try:
        rules.save(request.out, module)
    except OSError as error:
        held = (
            f"; the run is kept in {request.resume}: make room and run the same command again, it trains no step anew"
            if request.resume is not None
            else "; make room and train again, with --resume FILE to keep the run"
        )
        raise LearnpropError(f"cannot write the rules to {request.out}: {error}{held}") from error


def _is_main() -> bool:
    """Returns whether this process writes and prints; under ``torchrun``, the first one alone."""
    return int(os.environ.get("RANK", "0")) == 0


def _warn(message: str) -> None:
    if _is_main():
        _LOG.warning("%s", message)


def _check_output(request: Request) -> None:
    """Refuses now what would fail after the training."""
    out = request.out
    if out.is_dir():
        raise LearnpropError(f"--out {out} is a folder; name a file in it, such as {out / 'rules.safetensors'}")
    if out.exists() and not request.overwrite:
        raise LearnpropError(f"{out} exists; add --overwrite, or name another file with --out")
    for option, path in (("--out", out), ("--resume", request.resume)):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise LearnpropError(
                f"cannot write {option} {path}: the folder {path.parent} does not exist; make it first"
            )
        if not os.access(path.parent, os.W_OK):
            raise LearnpropError(f"cannot write {option} {path}: no permission to write to {path.parent}")
    for option, folder in (("--log-dir", request.log_dir), ("--examples-dir", request.examples_dir)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise LearnpropError(f"{option} {folder} is a file; name a folder")


def _find(request: Request) -> list[ImageFile]:
    """Returns the images of the folder; what earlier runs drew into it does not count."""
    from captum_learnprop.images import find_images

    own = [path.resolve() for path in (request.log_dir, request.examples_dir) if path is not None]
    recursive = request.recursive or request.target == FROM_FOLDER
    left_out: dict[str, str] = {}
    images = [
        image
        for image in find_images(request.images, recursive=recursive, left_out=left_out)
        if not any(folder in image.path.resolve().parents for folder in own)
    ]
    for name, reason in left_out.items():
        _warn(f"skipped {printable(name)}: {reason}")
    if not images:
        raise LearnpropError(f"no image in {request.images} but those of --log-dir and --examples-dir")
    return images


def _labels(request: Request, images: Sequence[ImageFile], classifier: Classifier) -> dict[str, int] | None:
    """Returns the class of each image id by its folder; None where the model says it."""
    from captum_learnprop.images import folder_labels

    if request.target == PREDICTED:
        return None
    if request.targets_per_image != 1:
        raise LearnpropError(
            f"--targets-per-image {request.targets_per_image} with --target {FROM_FOLDER}: a folder names one class; "
            "leave one of them out"
        )
    if request.images.is_dir():
        for name in _empty_folders(request, images):
            _warn(f"no image in the class folder {name}: its class is not trained on")
    return folder_labels(images, classifier.classes, classifier.class_names)


def _empty_folders(request: Request, images: Sequence[ImageFile]) -> list[str]:
    used = {image.folder for image in images}
    own = [path.resolve() for path in (request.log_dir, request.examples_dir) if path is not None]
    return sorted(
        path.name
        for path in request.images.iterdir()
        if path.is_dir() and path.name not in used and not path.name.startswith(".") and path.resolve() not in own
    )


def _warn_of_lost_classes(images: Sequence[ImageFile], skipped: dict[str, str]) -> None:
    """Says which class folders had no image that could be read."""
    left = {image.folder for image in images if image.id not in skipped}
    for name in sorted({str(image.folder) for image in images if image.folder not in left}):
        _warn(f"no image in the class folder {name} can be read: its class was not trained on")


def _check_memory(request: Request, count: int, preprocessing: Preprocessing) -> None:
    from captum_learnprop.training.examples import MEMORY_LIMIT

    size = count * 3 * preprocessing.crop**2 * 4
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and size > MEMORY_LIMIT and request.examples_dir is None:
        raise LearnpropError(
            f"{count} images of {preprocessing.crop} x {preprocessing.crop} pixels take {size / 2**30:.1f} GiB of "
            "memory: name a folder that all processes see, --examples-dir DIR"
        )


def _gate_options(request: Request) -> dict[str, Any]:
    from captum_learnprop.training.trainer import FEATURE_OPTIONS

    flags = {"position": request.positions, "contrast": request.contrast}
    given = {name: value for name, value in flags.items() if value is not None}
    both = sorted(given.keys() & request.gate_option.keys())
    if both:
        raise LearnpropError(f"the gate option {both[0]!r} is given twice, by a flag and by --gate-option")
    return {**(FEATURE_OPTIONS if request.gate == "feature" else {}), **request.gate_option, **given}


def _data(
    images: Sequence[ImageFile], preprocessing: Preprocessing, labels: dict[str, int] | None, skipped: dict[str, str]
) -> IterableDataset[tuple[Tensor, int | None]]:
    """Returns the images that can be read, in order, each when asked for; the reasons of others go to ``skipped``."""
    from torch.utils.data import IterableDataset

    from captum_learnprop.images import UnreadableImageError, read_image

    class Images(IterableDataset[tuple[Any, Any]]):
        def __iter__(self) -> Iterator[tuple[Any, Any]]:
            for image in images:
                try:
                    pixels = preprocessing.pixels(read_image(image.path))
                except UnreadableImageError as error:
                    if image.id not in skipped:
                        _warn(f"skipped {printable(image.id)}: {error}")
                    skipped[image.id] = str(error)
                    continue
                yield preprocessing.normalize(pixels), None if labels is None else labels[image.id]

    return Images()


def _check_rules(
    trainer: RuleTrainer, data: IterableDataset[tuple[Tensor, int | None]], skipped: dict[str, str]
) -> None:
    """Builds the rules on a few images, so that a wrong gate does not wait for the measurements."""
    from itertools import islice

    import torch

    from captum_learnprop.training.trainer import starting_rules

    some = [pixels for pixels, _ in islice(data, _CHECKED)]
    if not some:
        raise LearnpropError(f"none of the {len(skipped)} images can be read: {next(iter(skipped.values()))}")
    device = next((parameter.device for parameter in trainer.model.parameters()), torch.device("cpu"))
    starting_rules(trainer.model, torch.stack(some).to(device), trainer.build_options)


def _fit(request: Request, trainer: RuleTrainer, data: Any) -> RuleSet:
    import torch

    try:
        return trainer.fit(
            data,
            PREDICTED if request.target == PREDICTED else "labels",
            targets_per_image=request.targets_per_image,
            validation=request.validation,
            examples_dir=request.examples_dir,
            checkpoint=request.resume,
            log_dir=request.log_dir,
            show_progress=sys.stderr.isatty(),
        )
    except torch.cuda.OutOfMemoryError as error:
        raise LearnpropError(
            f"out of memory with --internal-batch-size {request.internal_batch_size}; less gives the same rules"
        ) from error


def _origin(request: Request, preprocessing: Preprocessing, skipped: dict[str, str]) -> dict[str, Any]:
    """Returns what the trainer cannot know, for the file of the rules."""
    return {
        "model": request.model,
        "model_weights": request.weights_name,
        "preprocessing": asdict(preprocessing),
        "skipped_images": len(skipped),
    }


def _draw(request: Request, trainer: RuleTrainer) -> None:
    from captum_learnprop.plot import save_figure, training_curves

    if request.log_dir is None:
        return
    try:
        save_figure(training_curves(trainer.log), request.log_dir / "training.png")
    except OSError as error:
        _warn(f"cannot draw {request.log_dir / 'training.png'}: {error}")


_SIGNS = ("absolute", "positive", "signed")
_QUANTITIES = ("softmax", "sigmoid", "logit", "log_probability", "log_sigmoid", "contrastive_logit")


@click.command(name="train", context_settings={"show_default": True})
@click.option("--model", required=True, metavar="SPEC", help="Whose rules to learn, e.g. torchvision:resnet18.")
@weights_option
@checkpoint_option
@click.option("--images", required=True, type=PATH, help="Folder of training images; labels are not needed.")
@recursive_option
@click.option(
    "--composite",
    default="learned_gradient",
    metavar="NAME",
    help="Rules: learned_gradient, learned_guided_backprop, learned_epsilon_gamma_box (LRP), learned_deeplift, and for "
    "transformers learned_transformer or learned_attnlrp; or gates, guided_backprop, lrp, deeplift, transformer, "
    "attnlrp.",
)
@click.option(
    "--rule-option",
    type=KeyValue("gamma=0.25"),
    multiple=True,
    callback=as_dict,
    metavar="NAME=VALUE",
    help="Option of the composite's own rules, e.g. gamma=0.25, gamma=inf, conv=gamma or low=[0,0,0]; named below. "
    "May be repeated.",
)
@click.option("--gate", default="feature", metavar="NAME", help="Gate that all samples share; see `learnprop plugins`.")
@click.option(
    "--gate-option",
    type=KeyValue("position=true"),
    multiple=True,
    callback=as_dict,
    metavar="NAME=VALUE",
    help="Further argument of the gate, e.g. position=true or per=layer. May be repeated.",
)
@click.option("--positions/--no-positions", default=None, help="Feature gates weigh positions.  [default: they do]")
@click.option("--contrast/--no-contrast", default=None, help="Feature gates see the other classes.  [default: no]")
@click.option("--fusion", is_flag=True, help="Multiply relevance maps of several depths into the map.")
@click.option("--start", metavar="NAME", help="Rule the gates start at.  [default: that of the composite]")
@click.option("--pooling", type=OneOf(["soft", "exact"]), default="soft", help="Whether max-pools learn too.")
@click.option(
    "--objective",
    metavar="FORMULA",
    help="What is minimised: terms with weights, e.g. 'OcclusionRegression + 0.1 * ClassContrast'.  "
    "[default: OcclusionRegression with the density that suits the composite]",
)
@click.option("--quantity", type=OneOf(_QUANTITIES), default="logit", help="What is explained.")
@click.option(
    "--target",
    type=OneOf([PREDICTED, FROM_FOLDER]),
    default=PREDICTED,
    help=f"Classes to explain; {FROM_FOLDER} takes them from the top sub-folder's name (implies --recursive).",
)
@click.option("--targets-per-image", type=POSITIVE, default=1, help="The highest predictions that are explained.")
@click.option("--out", required=True, type=PATH, metavar="FILE", help="Where the rules go, e.g. rules.safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@size_option
@normalization_option
@click.option("--steps", type=POSITIVE, default=80, help="Optimiser steps.")
@click.option("--batch-size", type=POSITIVE, default=12, help="Images times targets per step, over all processes.")
@click.option("--lr", type=float, help="First learning rate.  [default: 0.03, for LRP 0.01]")
@click.option(
    "--smoothing", type=float, help="Of maps, as a share of the image's shorter side.  [default: 0.025, for LRP 0]"
)
@click.option(
    "--sign",
    type=OneOf(_SIGNS),
    help="How channels become a map.  [default: absolute, for LRP signed]",
)
@click.option("--deletions", type=POSITIVE, default=48, help="Regions removed from each image.")
@click.option("--validation", type=float, default=0.2, help="Share of the images that is held out; 0 for none.")
@click.option("--patience", type=POSITIVE, help="Stop after this many validations without a better one.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="For random weights, deletions and batches.")
@click.option("--precision", type=OneOf(["float32", "bfloat16"]), help="Of autocast.  [default: that of the model]")
@click.option("--internal-batch-size", type=POSITIVE, default=64, help="Rows at a time; less takes less memory.")
@click.option("--device", default="cpu", metavar="NAME", help="Where to compute; with torchrun, cuda is one GPU each.")
@threads_option
@click.option("--examples-dir", type=PATH, metavar="DIR", help="Keep images and measurements there; used again.")
@click.option("--resume", type=PATH, metavar="FILE", help="Save the run in this file, or go on from it.")
@click.option("--log-dir", type=PATH, metavar="DIR", help="Write training.csv and training.png there.")
@debug_option
@click.pass_context
def command(ctx: click.Context, debug: bool, **options: Any) -> None:
    """Learn the propagation rules of a model from a folder of images.

    The model is run on random deletions of each image, and the rules learn maps that predict what it loses. They are
    learned once; `learnprop attribute --rules` then explains any image by one backward pass. Several GPUs:
    torchrun --nproc-per-node N -m captum_learnprop.cli train ...

    Rule options of learned_epsilon_gamma_box: conv, dense, first, gamma, negative, beta, epsilon, low, high, strength,
    learn_bounds, per, bias, split, stabilizer, merge. Of learned_deeplift: baseline. Of learned_transformer and
    learned_attnlrp: mix, product. The composites' docstrings explain them.
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    request = _placed(Request(**options))
    if _is_main():
        request.warn_of_random_weights()
    try:
        with _short_warnings(), users_mistakes():
            result = run(request)
    except KeyboardInterrupt:
        if _is_main():
            click.echo(_stopped(request), err=True)
        raise
    if _is_main():
        click.echo("\n".join(_summary(request, result)))


def _placed(request: Request) -> Request:
    """Returns the request with ``cuda`` as the GPU of this process, under ``torchrun``."""
    local = os.environ.get("LOCAL_RANK")
    return replace(request, device=f"cuda:{local}") if request.device == "cuda" and local is not None else request


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Prints warnings of the training as one line each, in the first process only."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if not issubclass(category, UserWarning):
                shown(message, category, *rest, **named)
            else:
                _warn(str(message))

        warnings.showwarning = show
        yield


def _stopped(request: Request) -> str:
    if request.resume is not None and request.resume.is_file():
        return f"stopped; the same command goes on from {request.resume}"
    if request.examples_dir is not None:
        return f"stopped; what was measured is in {request.examples_dir} and used again"
    return "stopped; --examples-dir keeps what was measured, --resume where the training stood"


def _summary(request: Request, result: Result) -> Iterator[str]:
    """Yields lines that say what a run made and how to use it."""
    rules, training = result.rules, result.rules.training
    yield (
        f"rules of {len(rules.sites)} sites, {sum(p.numel() for p in rules.parameters())} numbers, learned from "
        f"{training['training_rows']} rows in {training['steps_done']} steps, {result.seconds:.0f} s in all"
    )
    if any(row.is_linear for row in rules.coverage().rows):
        yield f"{rules.coverage().share:.1%} of the net's multiply-adds have a rule"
    if training["stopped"] is not None:
        yield f"stopped early: {training['stopped']}"
    if training["validation_loss"] is None:
        yield "no image was held out: these are the rules of the last step"
    else:
        yield (
            f"best validation loss {training['validation_loss']:.4f} at step {training['best_step']}, "
            f"{training['start_validation_loss']:.4f} untrained ({training['validation_rows']} rows held out)"
        )
        if training["best_step"] == 0:
            yield "no step was better than the start: try more images or steps, or a smaller --lr"
    yield f"written to {request.out}; explain images by them with"
    yield "  " + shlex.join(_usage(request)) + " --images DIR --out DIR"
    sign, smoothing = training["sign"], training["smoothing"]
    smoothed = f"smoothed by {smoothing:g} of the shorter side" if smoothing else "not smoothed"
    yield f"maps were {sign} and {smoothed} in training: make yours alike, by"
    yield f"  captum_learnprop.maps.postprocess(attribution, {sign!r}, {smoothing:g})"


def _usage(request: Request) -> list[str]:
    given = {"--weights": request.weights, "--checkpoint": request.checkpoint, "--size": request.size}
    if request.normalization != "auto":
        given["--normalization"] = request.normalization
    options = [str(part) for option, value in given.items() if value is not None for part in (option, value)]
    return ["learnprop", "attribute", "--model", request.model, *options, "--method", "learned_propagation",
            "--rules", str(request.out)]  # fmt: skip
