"""Batches of images through the model and the method, read ahead and written behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_learnprop.attribution_store import StoredMap
from captum_learnprop.commands._drawing import drawn, thumbnail
from captum_learnprop.commands._explainer import Explainer
from captum_learnprop.commands._inputs import Classifier
from captum_learnprop.commands._pipeline import Writer, read_ahead
from captum_learnprop.images import ImageFile, Preprocessing, UnreadableImageError

AHEAD = 2
"""Batches that are read before it is their turn, and that may wait to be written."""

TargetOf = Callable[[ImageFile], int]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that was read.

    Attributes:
        image: The image.
        sha256: The digest of its content.
        pixels: What the model gets to see, ``(3, H, W)`` in [0, 1]; None where its map is there, or it cannot be read.
        fault: Why it cannot be read; None where it can.
    """

    image: ImageFile
    sha256: str = ""
    pixels: Tensor | None = None
    fault: str | None = None


@dataclass(frozen=True, eq=False)
class Explained:
    """An image with its results.

    Attributes:
        source: The image.
        attribution: ``(C, H', W')``, float32, finite.
        prediction: ``(classes,)``, float32.
        target: The class that was explained.
        shown: The map that is drawn, ``(H, W)``.
        curve: Of extremal masks, areas and the shares of the output that they preserve, ``(P, 2)``.
    """

    source: Prepared
    attribution: Tensor
    prediction: Tensor
    target: int
    shown: Tensor
    curve: Tensor | None = None

    def stored(self, small: bytes = b"") -> StoredMap:
        """Returns what is kept of it, with a thumbnail."""
        return StoredMap(self.attribution, self.prediction, self.target, small, self.curve)

    def picture(self) -> tuple[npt.NDArray[np.uint8], bytes]:
        """Returns the overlay ``(H, W, 3)`` and its thumbnail."""
        assert self.source.pixels is not None
        picture = drawn(self.source.pixels, self.shown)
        return picture, thumbnail(picture)


@dataclass
class Outcome:
    """What became of a batch: images with results, images whose results were there, and reasons of the others."""

    explained: list[Explained] = field(default_factory=list)
    done: list[ImageFile] = field(default_factory=list)
    skipped: dict[ImageFile, str] = field(default_factory=dict)


class Keeper(Protocol):
    """A place that results go to."""

    def has(self, image: ImageFile, sha256: str) -> bool:
        """Returns whether the results of an image with this content are there; called in threads."""

    def write(self, outcome: Outcome) -> None:
        """Keeps what became of a batch; called in one thread."""

    def close(self) -> None:
        """Is called in that thread after the last batch."""


@dataclass(frozen=True)
class Batch:
    """Images that go through the model together, in an order that does not depend on what is done already.

    Attributes:
        images: The images; none for the mere end.
        keeper: Where their results go.
        last: Whether the keeper gets no more.
    """

    images: list[ImageFile]
    keeper: Keeper
    last: bool = False


@dataclass(frozen=True)
class Engine:
    """A model with a method, ready to explain.

    Attributes:
        classifier: The model.
        preprocessing: How images become its input.
        explainer: The method.
        device: Where to compute.
        seed: Seeds each batch.
        target_of: Gives the class to explain; None for the predicted one.
    """

    classifier: Classifier
    preprocessing: Preprocessing
    explainer: Explainer
    device: str
    seed: int
    target_of: TargetOf | None = None

    def read(self, image: ImageFile, keeper: Keeper | None = None) -> Prepared:
        """Reads an image, once; not further than its content where its results are there."""
        try:
            content = image.content()
            digest = hashlib.sha256(content).hexdigest()
            if keeper is not None and keeper.has(image, digest):
                return Prepared(image, digest)
            return Prepared(image, digest, self.preprocessing.pixels(image.image(content)))
        except UnreadableImageError as error:
            return Prepared(image, fault=str(error))

    def run(self, found: list[Prepared]) -> Outcome:
        """Explains what is not done yet of a batch.

        The finished images join once more: a method that draws random numbers must draw them for the same batch as in a
        run that was never interrupted.
        """
        outcome = Outcome(skipped={one.image: one.fault for one in found if one.fault is not None})
        outcome.done = [one.image for one in found if one.pixels is None and one.fault is None]
        if len(outcome.skipped) + len(outcome.done) == len(found):
            return outcome
        done = set(outcome.done)
        whole = [self.read(one.image) if one.image in done else one for one in found]
        self._explain([one for one in whole if one.pixels is not None], done, outcome)
        return outcome

    def _explain(self, found: list[Prepared], done: set[ImageFile], outcome: Outcome) -> None:
        torch.manual_seed(self.seed)
        pixels = torch.stack([one.pixels for one in found if one.pixels is not None]).to(self.device)
        inputs = self.preprocessing.normalize(pixels)
        with torch.no_grad():
            predictions = self.classifier.module(inputs)
        finite = predictions.isfinite().all(1)
        if not finite.all():
            self._refuse(found, finite, done, outcome)
            return
        targets = self._targets(found, predictions)
        attributions = self.explainer.attribute(pixels, inputs, targets)
        curves = self.explainer.curves()
        wrong = (~attributions.isfinite()).flatten(1).sum(1).tolist()
        shown = self.explainer.drawing.maps(attributions.nan_to_num().float(), inputs.float()).cpu()
        kept, predictions, numbers = attributions.float().cpu(), predictions.float().cpu(), targets.tolist()
        for row, one in enumerate(found):
            if one.image in done:
                continue
            if wrong[row]:
                count = kept[row].numel()
                outcome.skipped[one.image] = f"refused: {wrong[row]} of {count} attribution values are not finite"
            else:
                curve = None if curves is None else curves[row]
                outcome.explained.append(Explained(one, kept[row], predictions[row], numbers[row], shown[row], curve))

    def _refuse(self, found: list[Prepared], finite: Tensor, done: set[ImageFile], outcome: Outcome) -> None:
        """Leaves out the images whose output is not finite, and explains the others."""
        good = [one for one, each in zip(found, finite.tolist(), strict=True) if each]
        for one in found:
            if one not in good and one.image not in done:
                outcome.skipped[one.image] = "refused: the model's output for it is not finite"
        if {one.image for one in good} - done:
            self._explain(good, done, outcome)

    def _targets(self, found: list[Prepared], predictions: Tensor) -> Tensor:
        if self.target_of is None:
            return predictions.argmax(1)
        return torch.tensor([self.target_of(one.image) for one in found], device=predictions.device)


def explain_all(
    batches: Iterable[Batch], engine: Engine, *, batch_size: int, threads: int, told: Callable[[Outcome], None]
) -> None:
    """Explains batches while the next are read and the ones before are written.

    Args:
        batches: Are asked for one after the other.
        engine: The model and the method.
        batch_size: Size of batches, which decides how many are read ahead.
        threads: Threads that read.
        told: Is called with what became of each batch, before it is written.
    """

    def items(batch: Batch) -> list[tuple[ImageFile, Keeper]]:
        return [(image, batch.keeper) for image in batch.images]

    def read(item: tuple[ImageFile, Keeper]) -> Prepared:
        return engine.read(*item)

    ready = read_ahead(batches, items, read, threads=threads, ahead=AHEAD * batch_size)
    with Writer(AHEAD) as writer, closing(ready):
        for batch, found in ready:
            if found:
                outcome = engine.run(found)
                told(outcome)
                writer.do(batch.keeper.write, outcome)
            if batch.last:
                writer.do(batch.keeper.close)
