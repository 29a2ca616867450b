"""The work of ``learnprop attribute`` in shards: any number of processes on one list of images."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from captum_learnprop.attribution_index import write_index
from captum_learnprop.attribution_predictions import write_predictions
from captum_learnprop.attribution_shards import INDEXED, Part, Result, ShardStore
from captum_learnprop.attribution_store import FORMAT, REPORT, delete_run
from captum_learnprop.commands._attribute_images import (
    NO_LABELS,
    Subject,
    about,
    memory_errors,
    prepared,
    searches_folders,
)
from captum_learnprop.commands._attribute_request import Request
from captum_learnprop.commands._explain_batches import Batch, Outcome, explain_all
from captum_learnprop.commands._pipeline import readers
from captum_learnprop.commands._processes import Process
from captum_learnprop.commands._request import FROM_FOLDER, LABEL, PREDICTED
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import write_text
from captum_learnprop.image_lists import stream_images
from captum_learnprop.images import ImageFile, class_numbers
from captum_learnprop.progress import SECONDS, Progress


@dataclass
class Counts:
    """What a process did.

    Attributes:
        computed: Images that it explained.
        skipped: Images that it left out.
    """

    computed: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Total:
    """What is there of all processes.

    Attributes:
        found: Images in the list, and what is none.
        done: Maps.
        skipped: Images without a map.
    """

    found: int
    done: int
    skipped: int

    def __str__(self) -> str:
        counts = f"{self.done} of {self.found} images done"
        return counts + (f", {self.skipped} skipped" if self.skipped else "")


def run(request: Request, process: Process, counts: Counts) -> Total | None:
    """Explains this process's share of what is not done yet, and what processes that died have left.

    Args:
        request: What to do.
        process: Which one this is.
        counts: Is filled on the way.

    Returns:
        What is there, from the process that finished last; None where others are still at work.

    Raises:
        LearnpropError: The request cannot be carried out as given.
    """
    started = time.monotonic()
    request = replace(
        request, hdf5=bool(request.hdf5), device=process.device(request.device, torch.cuda.device_count())
    )
    if request.overwrite:
        delete_run(request.out)
    subject = Subject.of(prepared(request))
    store = _begin(subject, process)
    labels = store.manifest["labels"]
    engine = subject.engine(_target_of(request, labels))
    done = store.done_parts()
    with (
        Progress(store.count, f"{request.method}{_name(process)}", shown=process.rank == 0) as progress,
        memory_errors(request),
    ):
        watch = _Watch(store, progress, done)

        def told(outcome: Outcome) -> None:
            counts.computed += len(outcome.explained)
            counts.skipped += len(outcome.skipped)
            watch.own(len(outcome.explained) + len(outcome.skipped))

        opened: list[Part] = []
        batches = _batches(store, process, request.batch_size, watch, opened)
        threads = request.workers or readers()
        try:
            explain_all(batches, engine, batch_size=request.batch_size, threads=threads, told=told)
        finally:
            for part in opened:
                part.release()
    return _finish(store, subject, started)


def _begin(subject: Subject, process: Process) -> ShardStore:
    request = subject.request
    left_out: dict[str, str] = {}
    labels: set[str] = set()
    images = stream_images(
        request.images, left_out, recursive=searches_folders(request), exclude=request.out
    )  # fmt: skip

    def told() -> dict[str, Any]:
        classifier = subject.classifier
        if request.target in (FROM_FOLDER, LABEL) and not labels:
            raise LearnpropError(f"{request.images} names no class: --target {LABEL} needs {NO_LABELS}")
        what = "folder" if request.target == FROM_FOLDER else "label"
        numbers = class_numbers(labels, classifier.classes, classifier.class_names, what=what) if labels else None
        return {"class_names": classifier.names(), "labels": numbers, "about": about(subject)}

    options = {
        **subject.options, "images": os.path.abspath(request.images), "recursive": searches_folders(request),
    }  # fmt: skip
    return ShardStore.begin(
        request.out, options, told, _labelled(request.target, images, labels, left_out), left_out,
        shard_size=request.shard_size, batch_size=request.batch_size, processes=process.world, first=process.rank == 0,
    )  # fmt: skip


def _labelled(
    target: int | str, images: Iterator[ImageFile], labels: set[str], left_out: dict[str, str]
) -> Iterator[ImageFile]:
    """Yields the images with the label that is explained, and collects which labels there are."""
    if target not in (FROM_FOLDER, LABEL):
        yield from images
        return
    for image in images:
        label = image.folder if target == FROM_FOLDER else image.label
        if label is None and target == FROM_FOLDER:
            raise LearnpropError(f"{image.id} lies in no sub-folder that could name its class")
        if label is None:
            left_out[image.id] = "has no label"
        else:
            labels.add(label)
            yield replace(image, label=label)


def _target_of(request: Request, labels: dict[str, int] | None) -> Any:
    if request.target == PREDICTED:
        return None
    if isinstance(request.target, int):
        number = request.target
        return lambda image: number
    assert labels is not None
    return lambda image: labels[str(image.label)]


@dataclass(frozen=True)
class _PartKeeper:
    """Puts results into a part."""

    part: Part

    def has(self, image: ImageFile, sha256: str) -> bool:
        """Returns whether an image was done before; its content is not looked at again."""
        return self.part.has(image)

    def write(self, outcome: Outcome) -> None:
        """Writes what became of a batch, with thumbnails of the first images."""
        numbers = self.part.numbers
        results = []
        for one in outcome.explained:
            number = numbers[one.source.image.id]
            small = one.picture()[1] if number < INDEXED else b""
            results.append(Result(number, one.source.image.id, one.source.sha256, one.stored(small)))
        self.part.write(results, {image.id: reason for image, reason in outcome.skipped.items()})

    def close(self) -> None:
        """Makes the shard."""
        self.part.close()


def _batches(store: ShardStore, process: Process, size: int, watch: _Watch, opened: list[Part]) -> Iterator[Batch]:
    """Yields the batches of all parts that this process gets hold of, and tells which."""
    for number in store.to_do(process.rank, process.world):
        part = store.open_part(number)
        if part is None:
            continue
        opened.append(part)
        keeper = _PartKeeper(part)
        images = part.images
        chunks = [images[start : start + size] for start in range(0, len(images), size)]
        left = [chunk for chunk in chunks if not all(part.has(image) for image in chunk)]
        watch.taken(number, sum(part.has(image) for image in images))
        yield from (Batch(chunk, keeper) for chunk in left)
        yield Batch([], keeper, last=True)


class _Watch:
    """Counts images on the progress, with those that other processes finish."""

    def __init__(self, store: ShardStore, progress: Progress, done: set[int]) -> None:
        self._store, self._progress, self._known = store, progress, set(done)
        progress.advance(sum(map(store.images_of, done)), worked=False)
        self._looked = time.monotonic()

    def own(self, count: int) -> None:
        """Counts images of this process, and now and then looks for shards of others."""
        self._progress.advance(count)
        if time.monotonic() - self._looked >= SECONDS:
            self._looked = time.monotonic()
            new = self._store.done_parts() - self._known
            self._known |= new
            self._progress.advance(sum(map(self._store.images_of, new)))

    def taken(self, part: int, before: int) -> None:
        """Counts what was done of a part, which is this process's from now on."""
        self._known.add(part)
        self._progress.advance(before, worked=False)


def _name(process: Process) -> str:
    return f" in {process.world} processes" if process.world > 1 else ""


def _finish(store: ShardStore, subject: Subject, started: float) -> Total | None:
    """Makes what covers all images, where all shards are there and nobody else is at it."""
    if len(store.done_parts()) < store.parts:
        return None
    held = store.finishing()
    if held is None:
        return None
    try:
        return gather(store, hdf5=bool(subject.request.hdf5), seconds=time.monotonic() - started)
    finally:
        held.release()


def gather(store: ShardStore, *, hdf5: bool, seconds: float | None = None) -> Total:
    """Makes the table, the pages, the report and, if asked for, the HDF5 file of all shards that are there.

    Raises:
        LearnpropError: A shard is damaged.
        WriteError: The disk is full, or the folder is read-only.
    """
    names, options = store.manifest["class_names"], store.manifest["options"]
    skipped = [{"id": name, "reason": reason} for name, reason in store.manifest["left_out"].items()]
    done = 0
    for shard in store.shards():
        done += len(shard)
        skipped += [{"id": name, "reason": reason} for name, reason in shard.skipped.items()]
    rows = (card for shard in store.shards() for card in shard.cards(names, thumbnails=False))
    write_predictions(store.folder, ((card.id, card.prediction) for card in rows))
    cards = (card for shard in store.shards() for card in shard.cards(names, thumbnails=True))
    shown = min(done, INDEXED)
    title, said = f"{options['method']} on {options['model']}", store.manifest["about"]
    first = f" The first {shown:,} of {done:,} images." if shown < done else ""
    write_index(store.folder, islice(cards, shown), shown, title=title, about=said + first)
    if hdf5 and done:
        store.write_hdf5()
    store.clean()
    total = Total(store.count + len(store.manifest["left_out"]), done, len(skipped))

    report = {"format": FORMAT, "layout": "shards", "found": total.found, "done": done, "skipped": skipped}
    report |= {} if seconds is None else {"seconds": round(seconds, 3)}
    write_text(store.folder / REPORT, json.dumps(report, indent=1) + "\n")
    return total
