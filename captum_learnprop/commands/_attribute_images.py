"""The work of ``learnprop attribute``: images in, maps and a report out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from captum_learnprop.attribution_store import MAX_CLASSES, AttributionStore, NonFiniteError, StoredMap, require_h5py
from captum_learnprop.commands._attribute_request import Report, Request
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
from captum_learnprop.commands._request import FROM_FOLDER, PREDICTED
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import check_folder
from captum_learnprop.images import (
    ImageFile,
    Preprocessing,
    UnreadableImageError,
    find_images,
    folder_labels,
    read_image,
)
from captum_learnprop.plot import overlay
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
    if request.hdf5:
        require_h5py()  # now, not after hours of work
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    check_folder(request.out)
    if request.rules is not None:
        request = replace(request, rules=located(request.rules))
    images = find_images(
        request.images, recursive=_searches_folders(request), exclude=request.out, left_out=report.skipped
    )
    report.found = len(images) + len(report.skipped)
    module = load(request)
    preprocessing = preprocessing_of(request, module)
    classifier = classifier_of(request, module, preprocessing)
    if request.hdf5 and classifier.classes > MAX_CLASSES:
        raise LearnpropError(
            f"{request.model} has {classifier.classes} classes, the HDF5 layout ends at {MAX_CLASSES}: add --no-hdf5"
        )
    targets = _targets(request.target, images, classifier)
    explain = explainer(request, classifier.module)
    store = AttributionStore(request.out, _options(request, preprocessing), overwrite=request.overwrite)
    job = Job(request, images, preprocessing, classifier, targets, explain, store, report)
    try:
        job.explain_all()
    except torch.cuda.OutOfMemoryError as error:
        raise LearnpropError(
            f"out of memory with --batch-size {request.batch_size}; a smaller one resumes the run"
        ) from error
    job.gather(time.monotonic() - started)


@dataclass(frozen=True)
class Job:
    """A checked request at work."""

    request: Request
    images: list[ImageFile]
    preprocessing: Preprocessing
    classifier: Classifier
    targets: dict[str, int] | None
    explain: Explainer
    store: AttributionStore
    report: Report

    def explain_all(self) -> None:
        """Explains, in fixed batches, what the store does not hold yet."""
        size = self.request.batch_size
        with tqdm(total=len(self.images), desc=self.request.method, unit="image", disable=None) as progress:
            for start in range(0, len(self.images), size):
                self._resume(self.images[start : start + size])
                progress.update(min(size, len(self.images) - start))

    def _resume(self, batch: list[ImageFile]) -> None:
        done = {image for image in batch if self.store.has(image)}
        self.report.resumed += [image.id for image in batch if image in done]
        pixels = {image: self._read(image) for image in batch if image not in done}
        if all(value is None for value in pixels.values()):
            return
        # The finished images join once more: a method that draws random numbers must draw them for the same
        # batch as in a run that was never interrupted.
        pixels |= {image: self._read(image) for image in done}
        readable = {image: value for image in batch if (value := pixels[image]) is not None}
        self._explain(readable, done)

    def _read(self, image: ImageFile) -> Tensor | None:
        try:
            return self.preprocessing.pixels(read_image(image.path))
        except UnreadableImageError as error:
            self.report.skipped[image.id] = str(error)
            return None

    def _explain(self, pixels: dict[ImageFile, Tensor], done: set[ImageFile]) -> None:
        images = list(pixels)
        torch.manual_seed(self.request.seed)
        inputs = self.preprocessing.normalize(torch.stack(list(pixels.values()))).to(self.request.device)
        with torch.no_grad():
            predictions = self.classifier.module(inputs)
        finite = predictions.isfinite().all(1)
        if not finite.all():
            self._refuse(pixels, finite, done)
            return
        targets = self._targets_of(images, predictions)
        attributions = self.explain(inputs, targets)
        for row, image in enumerate(images):
            if image in done:
                continue
            stored = StoredMap(attributions[row], predictions[row], int(targets[row]))
            try:
                self.store.save(image, stored, _overlay(pixels[image], stored.attribution))
                self.report.computed.append(image.id)
            except NonFiniteError as error:
                self.report.skipped[image.id] = f"refused: {error}"
            except UnreadableImageError as error:
                self.report.skipped[image.id] = str(error)

    def _refuse(self, pixels: dict[ImageFile, Tensor], finite: Tensor, done: set[ImageFile]) -> None:
        """Leaves out the images whose output is not finite, and explains the others."""
        kept = {image: pixels[image] for image, good in zip(pixels, finite.tolist(), strict=True) if good}
        for image in pixels:
            if image not in kept:
                self.report.skipped[image.id] = "refused: the model's output for it is not finite"
        if kept.keys() - done:
            self._explain(kept, done)

    def _targets_of(self, images: list[ImageFile], predictions: Tensor) -> Tensor:
        if self.targets is None:
            return predictions.argmax(1)
        return torch.tensor([self.targets[image.id] for image in images], device=predictions.device)

    def gather(self, seconds: float) -> None:
        """Makes the files that cover all images, and the report."""
        report = self.report
        complete = {*report.computed, *report.resumed}
        images = [image for image in self.images if image.id in complete]
        if images and self.request.hdf5:
            self.store.write_hdf5(images)
        if images and self.request.dataset_file:
            self.store.write_dataset(images, self._pixels, self.classifier.names())
        self.store.write_report(
            {
                "found": report.found,
                "computed": report.computed,
                "resumed": report.resumed,
                "skipped": [{"id": name, "reason": reason} for name, reason in report.skipped.items()],
                "seconds": round(seconds, 3),
            }
        )

    def _pixels(self, image: ImageFile) -> Tensor:
        return self.preprocessing.pixels(read_image(image.path))


def _searches_folders(request: Request) -> bool:
    return request.recursive or request.target == FROM_FOLDER


def _targets(target: int | str, images: Sequence[ImageFile], classifier: Classifier) -> dict[str, int] | None:
    """Returns the class to explain for each image id; None for the predicted one."""
    if target == PREDICTED:
        return None
    if isinstance(target, int):
        return dict.fromkeys((image.id for image in images), classifier.check(target))
    return folder_labels(images, classifier.classes, classifier.class_names)


def _options(request: Request, preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns everything that decides over the values of the maps; files by content, because paths move."""
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
    }


def _overlay(pixels: Tensor, attribution: Tensor) -> npt.NDArray[np.uint8]:
    """Returns the attribution (C, H', W') laid over the image (3, H, W): (H, W, 3)."""
    values = torch.nan_to_num(attribution.float().cpu())  # the store refuses what is not finite
    if values.shape[-2:] != pixels.shape[-2:]:
        values = F.interpolate(values[None], pixels.shape[-2:], mode="bilinear")[0]
    return np.rint(np.clip(overlay(pixels, values), 0, 1) * 255).astype(np.uint8)
