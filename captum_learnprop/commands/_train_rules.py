"""The work of ``learnprop train``: images in, a rule set out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from captum_learnprop.commands import _objective
from captum_learnprop.commands._inputs import (
    Classifier,
    classifier_of,
    load,
    preprocessing_of,
    weights_name,
)
from captum_learnprop.commands._main_process import is_main, warn
from captum_learnprop.commands._request import FROM_FOLDER, PREDICTED
from captum_learnprop.commands._train_request import Request
from captum_learnprop.commands._training_summary import Result
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import printable
from captum_learnprop.images import (
    ImageFile,
    Preprocessing,
    UnreadableImageError,
    find_images,
    folder_labels,
    read_image,
)
from captum_learnprop.plot import save_figure, training_curves
from captum_learnprop.training.examples import MEMORY_LIMIT
from captum_learnprop.training.trainer import FEATURE_OPTIONS, RuleTrainer, starting_rules
from zennit_rules import RuleSet

_CHECKED = 4
"""The number of images that rules are built on before anything is measured; one alone could be of one colour, without a
range."""

_TRAINED_WITH = ("quantity", "sign", "smoothing", "outlines", "steps", "batch_size", "lr", "deletions", "regions",
                 "fill", "patience", "seed", "internal_batch_size", "precision", "composite", "gate", "start",
                 "pooling", "fusion")  # fmt: skip
"""The options that `RuleTrainer` takes under the same name."""


def run(request: Request) -> Result:
    """Trains rules and saves them.

    Raises:
        LearnpropError: The request cannot be carried out as given.
    """
    started = time.monotonic()
    _check_output(request)
    images = _find(request)
    objective = None if request.objective is None else _objective.parse(request.objective)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    module = load(request)
    if request.device.startswith("cuda:"):
        torch.cuda.set_device(request.device)
    preprocessing = preprocessing_of(request, module)
    labels = _labels(request, images, classifier_of(request, module, preprocessing))
    _check_memory(request, len(images), preprocessing)
    options = {name: getattr(request, name) for name in _TRAINED_WITH}
    trainer = RuleTrainer(
        module, objective=objective, gate_options=_gate_options(request), rule_options=request.rule_option, **options
    )
    skipped: dict[str, str] = {}
    data = _ReadableImages(images, preprocessing, labels, skipped)
    _check_rules(trainer, data, skipped)
    rules = _fit(request, trainer, data)
    if labels is not None:
        _warn_of_lost_classes(images, skipped)
    rules.training |= _origin(request, preprocessing, skipped)
    if is_main():
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
    own = [path.resolve() for path in (request.log_dir, request.examples_dir) if path is not None]
    recursive = request.recursive or request.target == FROM_FOLDER
    left_out: dict[str, str] = {}
    images = [
        image
        for image in find_images(request.images, recursive=recursive, left_out=left_out)
        if not any(folder in image.path.resolve().parents for folder in own)
    ]
    for name, reason in left_out.items():
        warn(f"skipped {printable(name)}: {reason}")
    if not images:
        raise LearnpropError(f"no image in {request.images} but those of --log-dir and --examples-dir")
    return images


def _labels(request: Request, images: Sequence[ImageFile], classifier: Classifier) -> dict[str, int] | None:
    """Returns the class of each image id by its folder; None where the model says it."""
    if request.target == PREDICTED:
        return None
    if request.targets_per_image != 1:
        raise LearnpropError(
            f"--targets-per-image {request.targets_per_image} with --target {FROM_FOLDER}: a folder names one class; "
            "leave one of them out"
        )
    if request.images.is_dir():
        for name in _empty_folders(request, images):
            warn(f"no image in the class folder {name}: its class is not trained on")
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
        warn(f"no image in the class folder {name} can be read: its class was not trained on")


def _check_memory(request: Request, count: int, preprocessing: Preprocessing) -> None:
    size = count * 3 * preprocessing.crop**2 * 4
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and size > MEMORY_LIMIT and request.examples_dir is None:
        raise LearnpropError(
            f"{count} images of {preprocessing.crop} x {preprocessing.crop} pixels take {size / 2**30:.1f} GiB of "
            "memory: name a folder that all processes see, --examples-dir DIR"
        )


def _gate_options(request: Request) -> dict[str, Any]:
    flags = {"position": request.positions, "contrast": request.contrast}
    given = {name: value for name, value in flags.items() if value is not None}
    both = sorted(given.keys() & request.gate_option.keys())
    if both:
        raise LearnpropError(f"the gate option {both[0]!r} is given twice, by a flag and by --gate-option")
    return {**(FEATURE_OPTIONS if request.gate == "feature" else {}), **request.gate_option, **given}


class _ReadableImages(IterableDataset[tuple[Any, Any]]):
    """The images that can be read, in order, each when asked for, with its class where labels are given.

    Args:
        images: The files.
        preprocessing: How an image becomes an input of the model.
        labels: Classes by image id, or None.
        skipped: Takes the reasons why others cannot be read, by image id.
    """

    def __init__(
        self,
        images: Sequence[ImageFile],
        preprocessing: Preprocessing,
        labels: dict[str, int] | None,
        skipped: dict[str, str],
    ) -> None:
        self._images, self._preprocessing, self._labels, self._skipped = images, preprocessing, labels, skipped

    def __len__(self) -> int:
        """How many there are at most: not all may be readable."""
        return len(self._images)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for image in self._images:
            try:
                pixels = self._preprocessing.pixels(read_image(image.path))
            except UnreadableImageError as error:
                if image.id not in self._skipped:
                    warn(f"skipped {printable(image.id)}: {error}")
                self._skipped[image.id] = str(error)
                continue
            yield self._preprocessing.normalize(pixels), None if self._labels is None else self._labels[image.id]


def _check_rules(
    trainer: RuleTrainer, data: IterableDataset[tuple[Tensor, int | None]], skipped: dict[str, str]
) -> None:
    """Builds the rules on a few images, so that a wrong gate does not wait for the measurements."""
    some = [pixels for pixels, _ in islice(data, _CHECKED)]
    if not some:
        raise LearnpropError(f"none of the {len(skipped)} images can be read: {next(iter(skipped.values()))}")
    device = next((parameter.device for parameter in trainer.model.parameters()), torch.device("cpu"))
    starting_rules(trainer.model, torch.stack(some).to(device), trainer.build_options)


def _fit(request: Request, trainer: RuleTrainer, data: Any) -> RuleSet:
    try:
        return trainer.fit(
            data,
            PREDICTED if request.target == PREDICTED else "labels",
            targets_per_image=request.targets_per_image,
            validation=request.validation,
            examples_dir=request.examples_dir,
            checkpoint=request.resume,
            log_dir=request.log_dir,
            show_progress=is_main(),
        )
    except torch.cuda.OutOfMemoryError as error:
        raise LearnpropError(
            "out of memory even with one image at a time; train at a smaller --size, or with --device cpu"
        ) from error


def _origin(request: Request, preprocessing: Preprocessing, skipped: dict[str, str]) -> dict[str, Any]:
    """Returns what the trainer cannot know, for the file of the rules."""
    return {
        "model": request.model,
        "model_weights": weights_name(request),
        "preprocessing": asdict(preprocessing),
        "skipped_images": len(skipped),
    }


def _draw(request: Request, trainer: RuleTrainer) -> None:
    if request.log_dir is None:
        return
    try:
        save_figure(training_curves(trainer.log), request.log_dir / "training.png")
    except OSError as error:
        warn(f"cannot draw {request.log_dir / 'training.png'}: {error}")
