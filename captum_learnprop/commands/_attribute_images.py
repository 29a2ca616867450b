"""The work of ``learnprop attribute``: images in, maps and a report out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from captum_learnprop.attribution_predictions import as_entry
from captum_learnprop.attribution_store import MAX_CLASSES, AttributionStore, require_h5py
from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.commands._attribute_request import Report, Request
from captum_learnprop.commands._explain_batches import Batch, Engine, Outcome, TargetOf, explain_all
from captum_learnprop.commands._explainer import Explainer, explainer
from captum_learnprop.commands._inputs import (
    Classifier,
    classifier_of,
    digest,
    load,
    model_digest,
    preprocessing_of,
    weights_name,
)
from captum_learnprop.commands._pipeline import readers
from captum_learnprop.commands._request import FROM_FOLDER, LABEL
from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation.treatments import MapTreatment
from captum_learnprop.files import check_folder
from captum_learnprop.image_lists import list_images
from captum_learnprop.images import ImageFile, Preprocessing, class_numbers, folder_labels
from captum_learnprop.progress import Progress
from zennit_rules.ready import located


def run(request: Request, report: Report) -> None:
    """Explains the images that the output folder does not hold yet, then gathers all maps.

    Args:
        request: What to do.
        report: Is filled on the way.

    Raises:
        LearnpropError: The request cannot be carried out as given.
    """
    started = time.monotonic()
    request = replace(request, hdf5=request.hdf5 is not False)
    ready = prepared(request)
    images = list_images(
        request.images, recursive=searches_folders(request), exclude=request.out, left_out=report.skipped
    )
    report.found = len(images) + len(report.skipped)
    subject = Subject.of(ready)
    images = _with_targets(request, images, report)
    targets = _targets(request.target, images, subject.classifier)
    store = AttributionStore(request.out, subject.options, overwrite=request.overwrite)
    keeper = _Files(store, report)
    engine = subject.engine(None if targets is None else lambda image: targets[image.id])

    with Progress(len(images), str(request.method)) as progress, memory_errors(request):

        def told(outcome: Outcome) -> None:
            report.resumed += [image.id for image in outcome.done]
            report.skipped.update({image.id: reason for image, reason in outcome.skipped.items()})
            progress.advance(len(outcome.done), worked=False)
            progress.advance(len(outcome.explained) + len(outcome.skipped))

        batches = _batches(images, request.batch_size, keeper)
        threads = request.workers or readers()
        explain_all(batches, engine, batch_size=request.batch_size, threads=threads, told=told)
    _gather(request, subject, store, images, report, started)


def prepared(request: Request) -> Request:
    """Returns a request with ready rules by their path, after what can be checked before a model is loaded."""
    if request.hdf5:
        require_h5py()  # now, not after hours of work
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    check_folder(request.out)
    return request if request.rules is None else replace(request, rules=located(request.rules))


@contextmanager
def memory_errors(request: Request) -> Iterator[None]:
    """Says what to do where a GPU has too little memory."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise LearnpropError(
            f"out of memory with --batch-size {request.batch_size}; a smaller one resumes the run"
        ) from error


@dataclass(frozen=True)
class Subject:
    """A model and a method that were loaded.

    Attributes:
        request: What was asked for.
        classifier: The model.
        preprocessing: How images become its input.
        explainer: The method.
    """

    request: Request
    classifier: Classifier
    preprocessing: Preprocessing
    explainer: Explainer

    @classmethod
    def of(cls, request: Request) -> Subject:
        """Loads what was asked for.

        Raises:
            LearnpropError: There is no such model or method, or they do not go together.
        """
        module = load(request)
        preprocessing = preprocessing_of(request, module)
        classifier = classifier_of(request, module, preprocessing)
        if request.hdf5 and classifier.classes > MAX_CLASSES:
            raise LearnpropError(
                f"{request.model} has {classifier.classes} classes, the HDF5 layout ends at {MAX_CLASSES}: "
                "add --no-hdf5"
            )
        if isinstance(request.target, int):
            classifier.check(request.target)
        candidate = Candidate(request.model, module, preprocessing)
        return cls(request, classifier, preprocessing, explainer(request, candidate))

    def engine(self, target_of: TargetOf | None) -> Engine:
        """Returns what explains batches.

        Args:
            target_of: Gives the class to explain; None for the predicted one.
        """
        request = self.request
        return Engine(self.classifier, self.preprocessing, self.explainer, request.device, request.seed, target_of)

    @property
    def options(self) -> dict[str, Any]:
        """Everything that decides over what is written; see `_options`."""
        return _options(self.request, self.preprocessing, self.explainer.drawing)


@dataclass(frozen=True)
class _Files:
    """One file an image, as users of a few thousand images know it."""

    store: AttributionStore
    report: Report

    def has(self, image: ImageFile, sha256: str) -> bool:
        """Returns whether the map of an image with this content is there."""
        return self.store.has(image, sha256)

    def write(self, outcome: Outcome) -> None:
        """Draws and writes what became of a batch."""
        for one in outcome.explained:
            picture, small = one.picture()
            self.store.save(one.source.image, one.stored(small), picture, one.source.sha256)
            self.report.computed.append(one.source.image.id)

    def close(self) -> None:
        """Does nothing: each file is whole."""


def _batches(images: Sequence[ImageFile], size: int, keeper: _Files) -> Iterator[Batch]:
    for start in range(0, len(images), size):
        yield Batch(list(images[start : start + size]), keeper)


def _gather(
    request: Request, subject: Subject, store: AttributionStore, images: list[ImageFile], report: Report, started: float
) -> None:
    """Makes the files that cover all images, and the report."""
    complete = {*report.computed, *report.resumed}
    images = [image for image in images if image.id in complete]
    names = subject.classifier.names()
    if images and request.hdf5:
        store.write_hdf5(images)
    if images and request.dataset_file:
        store.write_dataset(images, lambda image: subject.preprocessing.pixels(image.image()), names)
    store.write_curves(images)
    cards = store.write_cards(images, names, about=about(subject)) if images else []
    store.write_report(
        {
            "found": report.found,
            "computed": report.computed,
            "resumed": report.resumed,
            "skipped": [{"id": name, "reason": reason} for name, reason in report.skipped.items()],
            "images": [as_entry(card.id, card.prediction) for card in cards],
            "seconds": round(time.monotonic() - started, 3),
        }
    )


def about(subject: Subject) -> str:
    """Returns what the pages say of the maps on them."""
    drawing, colours = subject.explainer.drawing, "red speaks for the class, blue against it"
    if drawing.sign != "signed":
        colours = "the redder, the more relevant"
    outlines = f", following outlines within {drawing.outlines:g}" if drawing.outlines else ""
    return f"Maps are {drawing.sign}, smoothed by {drawing.smoothing:g} of the sides{outlines}: {colours}."


def searches_folders(request: Request) -> bool:
    """Returns whether sub-folders count."""
    return request.recursive or request.target == FROM_FOLDER


def _with_targets(request: Request, images: list[ImageFile], report: Report) -> list[ImageFile]:
    """Returns the images that have a label, where labels are explained."""
    if request.target != LABEL:
        return images
    kept = [image for image in images if image.label is not None]
    if not kept:
        raise LearnpropError(f"{request.images} names no class: --target {LABEL} needs {NO_LABELS}")
    report.skipped.update({image.id: "has no label" for image in images if image.label is None})
    return kept


NO_LABELS = "a CSV with a second column, or a .tar with .cls members"


def _targets(target: int | str, images: Sequence[ImageFile], classifier: Classifier) -> dict[str, int] | None:
    """Returns the class to explain for each image id; None for the predicted one."""
    if isinstance(target, int):
        return dict.fromkeys((image.id for image in images), target)
    if target == FROM_FOLDER:
        return folder_labels(images, classifier.classes, classifier.class_names)
    if target == LABEL:
        labels = {image.id: str(image.label) for image in images}
        numbers = class_numbers(labels.values(), classifier.classes, classifier.class_names, what="label")
        return {name: numbers[label] for name, label in labels.items()}
    return None


def _options(request: Request, preprocessing: Preprocessing, drawing: MapTreatment) -> dict[str, Any]:
    """Returns everything that decides over what is written of an image; files by content, because paths move."""
    pixels = asdict(preprocessing)
    return {
        "model": request.model,
        **model_digest(request),
        "weights": weights_name(request),
        "checkpoint": digest(request.checkpoint),
        "method": request.method,
        "composite": request.composite,
        "gate": request.gate,
        "start": request.start,
        "pooling": request.pooling,
        "rule_option": request.rule_option or None,
        "method_option": request.method_option or None,
        "rules": digest(request.rules),
        "steps": request.steps,
        "target": request.target,
        "seed": request.seed,
        "size": pixels.pop("crop"),  # the name of its option
        **pixels,
        **asdict(drawing),
    }
