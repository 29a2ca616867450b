"""Examples: training images (or rows of a table) with their targets and what random deletions cost each target.

The model is evaluated once per image and deletion, before training. Regions are kept as bits: 96 of them take as much
memory as a coloured image. Images are kept in memory, or in a folder of safetensors files when there are many. A folder
is also what an interrupted collection goes on from.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from captum_learnprop.chunks import rows_together
from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import output_of
from captum_learnprop.training.data import Labels
from captum_learnprop.training.distributed import Processes
from captum_learnprop.training.occlusion import IMAGES, DeletionFills, generator_of, measure_drops
from captum_learnprop.training.quantities import Quantity
from captum_learnprop.training.regions import packed, random_regions
from zennit_rules.core import fingerprint
from zennit_rules.files import replacing

PREDICTED = "predicted"
LABELS = "labels"

SHARD = 64
"""The number of images per file of a folder."""

MEMORY_LIMIT = 1 << 30
"""The bytes of examples that are kept in memory; more go to a temporary folder."""

FORMAT_VERSION = "2"


@dataclass(frozen=True)
class Collection:
    """The measurements that are made of each image.

    Attributes:
        quantity: What is explained.
        name: Its name.
        targets: ``"predicted"`` explains what the model says, ``"labels"`` what the data say.
        targets_per_image: Number K of targets; of predictions, the K highest are taken.
        deletions: Number D of regions removed from each image; 0 measures none.
        seed: Decides regions and fills.
        regions: What regions are unions of, one of `regions.KINDS`.
        fill: What replaces them, one of `occlusion.FILL_KINDS`.
        internal_batch_size: How many changed images go through the model together.
    """

    quantity: Quantity
    name: str
    targets: str = PREDICTED
    targets_per_image: int = 1
    deletions: int = 96
    seed: int = 0
    regions: str = "both"
    fill: str = IMAGES
    internal_batch_size: int = 256

    def config(self) -> dict[str, Any]:
        """Returns what a stored collection must share with this one, ready for JSON."""
        names = ("name", "targets", "targets_per_image", "deletions", "seed", "regions", "fill")
        return {name: getattr(self, name) for name in names}


class Examples:
    """Examples of ``N`` images with ``K`` targets and ``D`` deletions each, read by row.

    Row ``K * i + k`` is target k of image i.

    Args:
        shards: Tensors ``images``, ``targets`` and ``drops``, ``regions`` where there are deletions; in memory, or the
            path of a file.
        sizes: Images per shard.
        targets_per_image: Number K of targets.
        classes: Number of classes of the model.
        digest: Tells images, labels, model and what was measured apart from others.
    """

    def __init__(
        self,
        shards: list[dict[str, Tensor] | Path],
        sizes: list[int],
        targets_per_image: int,
        *,
        classes: int = 0,
        digest: str = "",
    ) -> None:
        self._shards, self._sizes, self.targets_per_image = shards, sizes, targets_per_image
        self.classes, self.digest = classes, digest
        self.temporary: TemporaryDirectory[str] | None = None  # removed with these examples
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]

    def __len__(self) -> int:
        """Returns the number of rows, ``N * K``."""
        return self.images * self.targets_per_image

    @property
    def images(self) -> int:
        """The number of images, N."""
        return sum(self._sizes)

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """Returns rows: ``inputs`` ``(R, C, *spatial)`` and ``targets`` ``(R,)``.

        Where there are deletions, their ``regions`` ``(R, D, bytes)`` uint8 (see `regions.unpacked`) and ``drops``
        ``(R, D)`` come with them.

        Args:
            index: Which rows, ``(R,)``.
        """
        found = [self._row(*divmod(row, self.targets_per_image)) for row in index.tolist()]
        return {name: torch.stack([row[name] for row in found]) for name in found[0]}

    def targets(self) -> Tensor:
        """Returns the targets of all rows, ``(N * K,)``."""
        return torch.cat([self._slice(shard, "targets", slice(None)) for shard in self._shards]).flatten()

    def _row(self, image: int, target: int) -> dict[str, Tensor]:
        shard = max(index for index, start in enumerate(self._starts) if start <= image and self._sizes[index])
        source, at = self._shards[shard], image - self._starts[shard]
        row = {
            "inputs": self._slice(source, "images", slice(at, at + 1))[0],
            "targets": self._slice(source, "targets", slice(at, at + 1))[0, target],
        }
        if "drops" in (source if isinstance(source, dict) else self._names(source)):
            row["regions"] = self._slice(source, "regions", slice(at, at + 1))[0]
            row["drops"] = self._slice(source, "drops", slice(at, at + 1))[0, target]
        return row

    @staticmethod
    def _slice(source: dict[str, Tensor] | Path, name: str, part: slice) -> Tensor:
        if isinstance(source, dict):
            return source[name][part]
        with safe_open(source, framework="pt") as file:
            tensor: Tensor = file.get_slice(name)[part]
            return tensor

    @staticmethod
    def _names(source: Path) -> list[str]:
        with safe_open(source, framework="pt") as file:
            return list(file.keys())


def collect(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Labels]],
    what: Collection,
    *,
    processes: Processes,
    folder: Path | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[int], None] | None = None,
) -> Examples:
    """Reads all images and measures what their targets lose by random deletions.

    Args:
        model: The model, in evaluation mode; run without gradient.
        batches: Images with labels or None, as `data.read_batches` yields them.
        what: What is measured.
        processes: Measure each their share of the images; all of them keep all examples.
        folder: Where examples are kept as files, which a later call with the same data goes on from; None keeps them
            in memory.
        memory_limit: Bytes in memory from which examples go to a temporary folder, for as long as they are used.
        progress: Called with the number of images done.

    Raises:
        LearnpropError: Labels are missing or out of range, or the folder belongs to other data or cannot be written
            to.
    """
    store = _Store(model, what, processes, folder, progress)
    labelled = what.targets == LABELS
    pending: list[dict[str, Tensor]] = []
    done = used = 0
    for images, labels in batches:
        for index, image in enumerate(images):
            pending.append({"image": image, **({} if labels is None or not labelled else {"label": labels[index]})})
            if len(pending) == SHARD:
                used += store.add(pending, done)
                done, pending = done + len(pending), []
                store.tell(done)
                if store.folder is None and used > memory_limit:
                    store.spill()
    if pending:
        store.add(pending, done)
        done += len(pending)
        store.tell(done)
    digest = hashlib.sha256("".join(store.digests).encode()).hexdigest()
    found = Examples(store.shards, store.sizes, what.targets_per_image, classes=store.classes, digest=digest)
    if store.temporary is not None:
        found.temporary = store.temporary
        weakref.finalize(found, store.temporary.cleanup)
    return found


class _Store:
    """A store that measures shards of images, or reads the ones that were measured before."""

    def __init__(
        self, model: nn.Module, what: Collection, processes: Processes, folder: Path | None,
        tell: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.tell = tell or (lambda done: None)
        self.model, self.what, self.processes, self.folder = model, what, processes, folder
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.shards: list[dict[str, Tensor] | Path] = []
        self.sizes: list[int] = []
        self.temporary: TemporaryDirectory[str] | None = None
        self.digests: list[str] = []
        self.classes = 0
        self.fills: DeletionFills | None = None  # made of the first shard
        self.fills_digest = ""
        self.key = {
            **what.config(), "architecture": fingerprint.architecture(model),
            "weights": fingerprint.weights(model), "format_version": FORMAT_VERSION,
        }  # fmt: skip
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LearnpropError(f"cannot make the folder {folder} for examples: {error}") from error

    def spill(self) -> None:
        """Goes on in a temporary folder, with what is in memory so far.

        Raises:
            LearnpropError: Several processes need a folder that all of them see; or the disk is full.
        """
        if self.processes.world > 1:
            raise LearnpropError(
                f"{sum(self.sizes)} images with their deletions are more than memory should hold: "
                "give examples_dir=, a folder that all processes see"
            )
        self.temporary = TemporaryDirectory(prefix="learnprop-examples-")
        self.folder = Path(self.temporary.name)
        for number, (tensors, digest) in enumerate(zip(self.shards, self.digests, strict=True)):
            assert isinstance(tensors, dict)
            path = self.folder / f"examples-{number:05d}-{digest[:12]}.safetensors"
            _write(path, tensors, {"digest": digest, "classes": str(self.classes)})
            self.shards[number] = path

    def add(self, items: list[dict[str, Tensor]], first: int) -> int:
        """Measures a shard, or reads it, and returns the bytes that it takes in memory; 0 where it was read."""
        images = torch.stack([item["image"] for item in items])
        labelled = all("label" in item for item in items)
        labels = torch.stack([item["label"] for item in items]) if labelled else None
        if self.fills is None:
            self.fills = DeletionFills(self.what.fill, images)
            self.fills_digest = _digest((images,), {})
        digest = _digest((images, labels), {**self.key, "first": first, "fills": self.fills_digest})
        if not self.processes.agree(digest):
            raise LearnpropError(
                f"the processes hold different models, or read different images (around image {first}): "
                "give all of them the same weights and the same data in the same order"
            )
        self.digests.append(digest)
        # Named by its content: runs with other data, models or seeds may share a folder.
        name = f"examples-{len(self.shards):05d}-{digest[:12]}.safetensors"
        path = None if self.folder is None else self.folder / name
        if path is None or not self._is_there(path, digest):
            tensors = self._measure(images, labels, self.fills, first)
            if path is not None and self.processes.main:
                _write(path, tensors, {"digest": digest, "classes": str(self.classes)})
            self.processes.barrier()
            self.shards.append(tensors if path is None else path)
            size = sum(tensor.nbytes for tensor in tensors.values())
        else:
            with safe_open(path, framework="pt") as file:
                self.classes = int(file.metadata()["classes"])
            self.shards.append(path)
            size = 0
        self.sizes.append(len(images))
        return size

    def _is_there(self, path: Path, digest: str) -> bool:
        """Returns whether a file holds this very shard; the same answer in every process."""
        found = 0.0
        if self.processes.main and path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    found = float((file.metadata() or {}).get("digest") == digest)
            except (SafetensorError, OSError):
                found = 0.0  # cut short: measured again
        return bool(self.processes.sum(torch.tensor(found)).item() > 0)

    @torch.no_grad()
    def _measure(self, images: Tensor, labels: Labels, fills: DeletionFills, first: int) -> dict[str, Tensor]:
        targets = self._targets(images, labels, first)
        tensors = {"images": images.contiguous(), "targets": targets}
        if not self.what.deletions:
            return tensors
        count = self.what.deletions
        kept, drops = [], torch.zeros(len(images), self.what.targets_per_image, count)
        for index, image in enumerate(images):
            if index:
                self.tell(first + index)
            generator = generator_of(self.what.seed, first + index)
            regions = random_regions(image, count, generator, self.what.regions)
            kept.append(packed(regions))
            if (first + index) % self.processes.world != self.processes.rank:
                continue
            drops[index] = measure_drops(
                self.model, image.to(self.device), targets[index].to(self.device), regions,
                fills.draw(count, first + index, generator), self.what.quantity,
                internal_batch_size=self._together(images),
            ).cpu()  # fmt: skip
        drops = self.processes.sum(drops)
        bad = ~drops.isfinite().flatten(1).all(1)
        if bad.any():
            raise LearnpropError(
                f"the model's output is NaN or infinite for a deletion of image {first + int(bad.nonzero()[0])}: "
                "check the weights and the range of the images"
            )
        return {**tensors, "regions": torch.stack(kept), "drops": drops}

    def _together(self, images: Tensor) -> int:
        return rows_together(self.what.internal_batch_size, images.shape[1:], self.device)

    @torch.no_grad()
    def _outputs(self, images: Tensor, first: int) -> Tensor:
        parts = images.to(self.device).split(self._together(images))
        outputs = torch.cat([output_of(self.model, (part,)) for part in parts])
        if outputs.ndim != 2:
            raise LearnpropError(f"the model must return (B, classes), it returned {tuple(outputs.shape)}; wrap it")
        bad = ~outputs.isfinite().all(1)
        if bad.any():
            raise LearnpropError(
                f"the model's output is NaN or infinite for image {first + int(bad.nonzero()[0])}: "
                "check the weights and the range of the images"
            )
        return outputs

    def _targets(self, images: Tensor, labels: Labels, first: int) -> Tensor:
        outputs = self._outputs(images, first)
        self.classes, count = outputs.shape[1], self.what.targets_per_image
        classes = self.classes
        if self.what.targets == PREDICTED:
            if count > classes:
                raise LearnpropError(f"targets_per_image={count}, but the model has {classes} classes")
            return outputs.topk(count, 1).indices.cpu()
        if labels is None:
            raise LearnpropError(
                "targets='labels', but the data have none; targets='predicted' explains what the model says"
            )
        labels = labels.reshape(len(images), -1)
        if labels.is_floating_point() or labels.shape[1] != count:
            raise LearnpropError(
                f"labels must be class indices, {count} per image (targets_per_image), got {labels.dtype} "
                f"{tuple(labels.shape)}"
            )
        out = (labels < 0) | (labels >= classes)
        if out.any():
            row = int(out.any(1).nonzero()[0])
            raise LearnpropError(
                f"label {labels[row].tolist()} of image {first + row} is out of range: the model has {classes} classes"
            )
        return labels.long().cpu()


def _digest(tensors: tuple[Labels, ...], key: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
    for tensor in tensors:
        if tensor is not None:
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(save({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata))
    except OSError as error:
        raise LearnpropError(
            f"cannot write examples to {path}: {error}; free some space and start again, it goes on"
        ) from error
