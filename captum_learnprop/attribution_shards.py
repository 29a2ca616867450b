"""The output folder of ``learnprop attribute`` for millions of images and several processes: many images a file.

The images are listed once and cut into parts. A process takes a part, writes what it finishes at once, and makes one
file of it in the end, so that whoever dies costs only the images it had not written::

    manifest.json               the options of the run, the number of images and the size of parts
    images.jsonl                all images in order, one a line: id, path, offset, size, label
    shards/0000/00000012.safetensors      the part 12, with the images 12 S to 13 S - 1 for parts of S
    shards/0000/00000012.part/            the part 12 while it is at work: a file a batch, and the lock
    predictions.csv, index.html, report.json, attributions.h5     made from the shards when all are there

A shard holds attribution (n, C, H, W), prediction (n, classes), target (n,), number (n,) (the line in the list) and,
for the first images, thumbnails; ids, digests, and what was skipped and why, are in its metadata. A thousand shards lie
in a folder: ten million images are 39,063 files in 40 folders.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from captum_learnprop.attribution_index import Card
from captum_learnprop.attribution_predictions import prediction_of
from captum_learnprop.attribution_store import FORMAT, LISTING, MANIFEST, SHARDS, StoredMap, check_same, hdf5_file
from captum_learnprop.claims import Claim, claim, locks_work, only_one
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import replacing, write_bytes, write_text
from captum_learnprop.images import ImageFile

LAYOUT = "shards"
SETUP_LOCK, FINISH_LOCK = ".setup.lock", ".finish.lock"

PER_FOLDER = 1000
"""Shards in a folder: listing one stays quick on any disk."""

SHARD_SIZE = 256
"""Images in a shard, at most, by default: 150 MB of float32 maps of 224 pixels."""

PARTS_EACH = 8
"""Parts that each process has to do at least, by default, so that all end at about the same time."""

PATIENCE = 4 * 3600.0
"""Seconds in which the first process must have listed the images, on disks without locks."""

INDEXED = 10_000
"""Images that get thumbnails, and are on the pages: the first of the list."""

_ROWS = ("attribution", "prediction", "target", "number")


@dataclass(frozen=True)
class Result:
    """What is kept of an image, with its line in the list and the digest of its content."""

    number: int
    id: str
    sha256: str
    stored: StoredMap


class ShardStore:
    """A folder of shards.

    Args:
        folder: Where it is; it holds a run in shards.

    Attributes:
        folder: The same.
        manifest: What the run was begun with.

    Raises:
        LearnpropError: There is no run in shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        self.count, self.size = int(self.manifest["images"]), int(self.manifest["shard_size"])
        self.parts = -(-self.count // self.size)

    @classmethod
    def begin(
        cls, folder: Path, options: Mapping[str, Any], about: Callable[[], Mapping[str, Any]],
        images: Iterable[ImageFile], left_out: Mapping[str, str], *, shard_size: int | None, batch_size: int,
        processes: int, first: bool,
    ) -> ShardStore:  # fmt: skip
        """Begins a run, or goes on with one; every process calls it, and one lists the images.

        Args:
            folder: The output folder.
            options: What decides over what is written; a run with others is refused.
            about: Returns what is kept beside the options, such as names of classes; called after the images were read.
            images: All images, read as a stream by the process that begins.
            left_out: Reasons of what is no image, complete when the images were read.
            shard_size: Images in a shard; None for `SHARD_SIZE`, or less where there are few images.
            batch_size: Images in a batch: a shard holds whole ones.
            processes: Number of processes, for the default.
            first: Whether this is the process that begins where the disk has no locks.

        Raises:
            LearnpropError: The folder holds another run, or something else.
        """
        options = json.loads(json.dumps(dict(options)))
        if first or locks_work_in(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with only_one(folder / SETUP_LOCK):
                if not (folder / MANIFEST).is_file():
                    _check_foreign(folder)
                    count = _write_listing(folder / LISTING, images)
                    size = shard_size or _default_size(count, batch_size, processes)
                    manifest = {
                        "format": FORMAT, "layout": LAYOUT, "options": options, "images": count, "shard_size": size,
                        "left_out": dict(left_out), **about(),
                    }  # fmt: skip
                    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        else:
            _wait_for(folder / MANIFEST)
        store = cls(folder)
        check_same(folder, store.manifest["options"], options)
        return store

    def path(self, part: int) -> Path:
        """Returns where a shard is, or will be."""
        return self.folder / SHARDS / f"{part // PER_FOLDER:04d}" / f"{part:08d}.safetensors"

    def is_done(self, part: int) -> bool:
        """Returns whether a shard is there."""
        return self.path(part).is_file()

    def done_parts(self) -> set[int]:
        """Returns the numbers of all shards that are there, with one look into each folder."""
        found: set[int] = set()
        for number in range(-(-self.parts // PER_FOLDER)):
            with suppress(FileNotFoundError), os.scandir(self.folder / SHARDS / f"{number:04d}") as entries:
                names = (entry.name for entry in entries)
                found |= {int(name[:8]) for name in names if name.endswith(".safetensors") and name[:8].isdecimal()}
        return found

    def images_of(self, part: int) -> int:
        """Returns the number of images of a part."""
        return min(self.size, self.count - part * self.size)

    def open_part(self, part: int) -> Part | None:
        """Returns a part to work on; None where it is done, or another process works on it."""
        if self.is_done(part):
            return None
        place = self.path(part).with_suffix(".part")
        held: Claim | None = None
        if self._locks:
            held = claim(place / "lock")
            if held is None:
                return None
            if self.is_done(part):  # by the one who held it before
                held.release()
                shutil.rmtree(place, ignore_errors=True)
                return None
        return Part(self, part, place, held, self._images(part))

    def to_do(self, rank: int, world: int) -> Iterator[int]:
        """Yields the parts that a process should try, its own first and then those that others have left.

        Args:
            rank: Number of the process.
            world: How many there are.
        """
        done = self.done_parts()
        left = [part for part in range(self.parts) if part not in done]
        yield from (part for part in left if part % world == rank)
        if self._locks:  # without locks nobody knows what others work on
            yield from (part for part in reversed(left) if part % world != rank)

    def rows(self) -> int:
        """Returns the number of maps in all shards."""
        return sum(len(shard) for shard in self.shards())

    def shards(self) -> Iterator[Shard]:
        """Yields all shards that are there, in order.

        Raises:
            LearnpropError: One is damaged.
        """
        for part in range(self.parts):
            if self.is_done(part):
                yield Shard.read(self.path(part))

    def clean(self) -> None:
        """Deletes what processes that died have left beside shards that are there."""
        for folder in (self.folder / SHARDS).glob("*"):
            for path in folder.iterdir():
                if path.suffix == ".part" and path.with_suffix(".safetensors").is_file():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name.startswith(".") and path.suffix == ".safetensors":
                    with suppress(OSError):
                        path.unlink()

    def finishing(self) -> Claim | None:
        """Returns the claim of the process that makes what covers all images; None where another one does."""
        try:
            return claim(self.folder / FINISH_LOCK)
        except OSError:
            return Claim(os.open(self.folder / MANIFEST, os.O_RDONLY))  # both write the same files, each as a whole

    def write_hdf5(self) -> Path:
        """Gathers all maps into ``attributions.h5``, in the layout of `AttributionStore.write_hdf5`.

        Raises:
            LearnpropError: h5py is missing, there is no map, or the maps differ in shape.
            WriteError: The disk is full.
        """
        first = next((shard for shard in self.shards() if len(shard)), None)
        if first is None:
            raise LearnpropError(f"{self.folder} holds no map to gather")
        shape, count = first.shape, self.rows()
        path = self.folder / "attributions.h5"
        with hdf5_file(path) as (file, disk):
            file.attrs["options"] = json.dumps(self.manifest["options"])
            file.create_dataset("attribution", (count, *shape), dtype=np.float32)
            file.create_dataset("prediction", (count, *first.tensor("prediction").shape[1:]), dtype=np.float32)
            file.create_dataset("label", (count,), dtype=np.uint16)
            file["index"] = np.arange(count, dtype=np.uint32)
            ids: list[str] = []
            row = 0
            for shard in self.shards():
                if len(shard) and shard.shape != shape:
                    raise LearnpropError(f"maps of the shapes {shape} and {shard.shape}: one HDF5 file needs one shape")
                for place in range(len(shard)):
                    file["attribution"][row + place] = shard.attribution(place).numpy()
                    disk.check()
                if len(shard):
                    file["prediction"][row : row + len(shard)] = shard.tensor("prediction").numpy()
                    file["label"][row : row + len(shard)] = shard.tensor("target").numpy()
                ids += shard.ids
                row += len(shard)
            file["id"] = ids
        return path

    @cached_property
    def _locks(self) -> bool:
        return locks_work(self.folder)

    @cached_property
    def _offsets(self) -> list[int]:
        """The places in the list where the lines of each part begin: the list may not fit into memory."""
        offsets, position, number = [], 0, -1
        with (self.folder / LISTING).open("rb") as file:
            for number, line in enumerate(file):
                if number % self.size == 0:
                    offsets.append(position)
                position += len(line)
        if number + 1 != self.count:
            raise LearnpropError(f"{self.folder / LISTING} has {number + 1} lines in place of {self.count}")
        return offsets

    def _images(self, part: int) -> list[ImageFile]:
        with (self.folder / LISTING).open("rb") as file:
            file.seek(self._offsets[part])
            lines = [file.readline() for _ in range(self.images_of(part))]
        return [_image(line) for line in lines]


@dataclass
class Part:
    """A part at work.

    Attributes:
        store: Its folder of shards.
        number: Which part.
        place: The folder of its pieces.
        held: The lock; None on disks without.
        images: Its images.
    """

    store: ShardStore
    number: int
    place: Path
    held: Claim | None
    images: list[ImageFile]
    _done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for piece in self._pieces():
            self._done |= {*piece.ids, *piece.skipped}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The line of each id in the list of all images."""
        first = self.number * self.store.size
        return {image.id: first + place for place, image in enumerate(self.images)}

    def has(self, image: ImageFile) -> bool:
        """Returns whether an image was done, or skipped, when the part was opened."""
        return image.id in self._done

    def write(self, results: Sequence[Result], skipped: Mapping[str, str]) -> None:
        """Writes what became of a batch.

        Args:
            results: Maps, all of one shape.
            skipped: Reasons by id.

        Raises:
            WriteError: The disk is full, or the folder is read-only.
        """
        if not results and not skipped:
            return
        first = min([*(one.number for one in results), *(self.numbers[name] for name in skipped)])
        tensors = _stacked(results)
        write_bytes(self.place / f"{first:010d}.safetensors", save(tensors, metadata=_metadata(results, skipped)))

    def close(self) -> None:
        """Makes the shard of the pieces, and lets the part go.

        Raises:
            LearnpropError: A piece is damaged.
            WriteError: The disk is full.
        """
        _join(self._pieces(), self.store.path(self.number))
        self.release()
        shutil.rmtree(self.place, ignore_errors=True)

    def release(self) -> None:
        """Lets another process have what is left of the part."""
        if self.held is not None:
            self.held.release()

    def _pieces(self) -> list[Shard]:
        return [Shard.read(path) for path in sorted(self.place.glob("[0-9]*.safetensors"))]


@dataclass(frozen=True)
class Shard:
    """A file of many maps.

    Attributes:
        path: The file.
        ids: Ids of the images, by row.
        digests: SHA-256 of their content.
        skipped: Why images of the part have no map, by id.
        shape: Shape of a map; empty where there is none.
    """

    path: Path
    ids: list[str]
    digests: list[str]
    skipped: dict[str, str]
    shape: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> Shard:
        """Opens a shard without reading its maps.

        Raises:
            LearnpropError: It is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                shape = file.get_slice("attribution").get_shape()[1:] if "attribution" in file.keys() else ()  # noqa: SIM118
            ids, digests, skipped = (json.loads(told[name]) for name in ("ids", "sha256", "skipped"))
            return cls(path, ids, digests, skipped, tuple(shape))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise LearnpropError(f"cannot read the shard {path}: {error}; delete it, and run again") from error

    def __len__(self) -> int:
        """Returns the number of maps."""
        return len(self.ids)

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor with a row for each map."""
        with safe_open(self.path, framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def attribution(self, row: int) -> Tensor:
        """Returns one map, ``(C, H, W)``."""
        with safe_open(self.path, framework="pt") as file:
            found: Tensor = file.get_slice("attribution")[row]
        return found

    def thumbnails(self) -> list[bytes]:
        """Returns a JPEG for each map; empty where none was made."""
        if not len(self):
            return []
        content, ends = self.tensor("thumbnails").numpy().tobytes(), self.tensor("thumbnail_ends").tolist()
        return [content[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def cards(self, class_names: Sequence[str], *, thumbnails: bool) -> Iterator[Card]:
        """Yields what the pages and the table say of each map.

        Args:
            class_names: A name for each class.
            thumbnails: Whether thumbnails are wanted.
        """
        if not len(self):
            return
        pictures = self.thumbnails() if thumbnails else [b""] * len(self)
        rows = zip(self.ids, self.tensor("prediction"), self.tensor("target").tolist(), pictures, strict=True)
        for identifier, output, target, picture in rows:
            yield Card(identifier, prediction_of(output, target, class_names), picture)


def locks_work_in(folder: Path) -> bool:
    """Returns whether files in a folder that may not exist yet can be locked."""
    folder.mkdir(parents=True, exist_ok=True)
    return locks_work(folder)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LearnpropError(f"{folder} holds no run of `learnprop attribute`") from error
    except (OSError, ValueError) as error:
        raise LearnpropError(f"{path} is damaged or of another program; choose another --out") from error
    if not isinstance(found, dict) or found.get("layout") != LAYOUT:
        raise LearnpropError(f"{folder} holds a run with one file an image, and none in shards; choose another --out")
    if found.get("format") != FORMAT:
        raise LearnpropError(
            f"{folder} was written in format {found.get('format')}, this version writes {FORMAT}: choose another --out"
        )
    return found


def _wait_for(path: Path) -> None:
    """Waits until the first process has listed the images.

    Raises:
        LearnpropError: It takes more than `PATIENCE` seconds.
    """
    end = time.monotonic() + PATIENCE
    while not path.is_file():
        if time.monotonic() > end:
            raise LearnpropError(f"{path} has not come within {PATIENCE / 3600:g} h: is the process of rank 0 at work?")
        time.sleep(0.2)


def _check_foreign(folder: Path) -> None:
    if any(not entry.name.startswith(".") and entry.name != LISTING for entry in folder.iterdir()):
        raise LearnpropError(f"{folder} exists and was not written by `learnprop attribute`; choose another --out")


def _default_size(count: int, batch_size: int, processes: int) -> int:
    """Returns a size of shards of whole batches."""
    wanted = min(SHARD_SIZE, max(1, count // (processes * PARTS_EACH)))
    return max(1, wanted // batch_size) * batch_size


def _write_listing(path: Path, images: Iterable[ImageFile]) -> int:
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="ascii") as file:
        for image in images:
            line = [image.id, os.path.abspath(image.path), image.offset, image.size, image.label]
            file.write(json.dumps(line) + "\n")  # bytes of names that are no UTF-8 come back from their escapes
            count += 1
    return count


def _image(line: bytes) -> ImageFile:
    identifier, path, offset, size, label = json.loads(line)
    return ImageFile(identifier, Path(path), offset, size, label)


def _stacked(results: Sequence[Result]) -> dict[str, Tensor]:
    if not results:
        return {}
    pictures = [one.stored.thumbnail for one in results]
    return {
        "attribution": torch.stack([one.stored.attribution.float() for one in results]),
        "prediction": torch.stack([one.stored.prediction.float() for one in results]),
        "target": torch.tensor([one.stored.target for one in results]),
        "number": torch.tensor([one.number for one in results]),
        **_packed(pictures),
    }


def _packed(pictures: Sequence[bytes]) -> dict[str, Tensor]:
    content = torch.from_numpy(np.frombuffer(b"".join(pictures), np.uint8).copy())
    return {"thumbnails": content, "thumbnail_ends": torch.tensor([len(one) for one in pictures]).cumsum(0)}


def _metadata(results: Sequence[Result], skipped: Mapping[str, str]) -> dict[str, str]:
    return _told([one.id for one in results], [one.sha256 for one in results], skipped)


def _told(ids: Sequence[str], digests: Sequence[str], skipped: Mapping[str, str]) -> dict[str, str]:
    found = {"ids": list(ids), "sha256": list(digests), "skipped": dict(skipped)}
    return {"format": str(FORMAT), **{name: json.dumps(value) for name, value in found.items()}}


def _join(pieces: Sequence[Shard], path: Path) -> None:
    """Makes one file of pieces, its rows in the order of the list; no more than one map is in memory."""
    skipped = {name: reason for piece in pieces for name, reason in piece.skipped.items()}
    filled = [piece for piece in pieces if len(piece)]
    if len({piece.shape for piece in filled}) > 1:
        raise LearnpropError(f"maps of one part have several shapes: {', '.join(str(each.shape) for each in filled)}")
    if not filled:
        write_bytes(path, save({"number": torch.zeros(0, dtype=torch.long)}, metadata=_told([], [], skipped)))
        return
    small = {name: torch.cat([piece.tensor(name) for piece in filled]) for name in _ROWS[1:]}
    order = torch.argsort(small["number"]).tolist()
    rows = [(piece, row) for piece in filled for row in range(len(piece))]
    pictures = [picture for piece in filled for picture in piece.thumbnails()]
    tensors = {name: value[order].contiguous() for name, value in small.items()}
    tensors |= _packed([pictures[place] for place in order])
    ids = [rows[place][0].ids[rows[place][1]] for place in order]
    digests = [rows[place][0].digests[rows[place][1]] for place in order]
    maps = (rows[place][0].attribution(rows[place][1]) for place in order)
    _write_streamed(path, tensors, (len(order), *filled[0].shape), maps, _told(ids, digests, skipped))


def _write_streamed(
    path: Path, tensors: Mapping[str, Tensor], shape: Sequence[int], maps: Iterable[Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file whose float32 attributions come one after the other.

    The format is a length of eight bytes, a header of JSON and the bare values: github.com/huggingface/safetensors.
    """
    kinds = {torch.int64: "I64", torch.uint8: "U8", torch.float32: "F32"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Values of eight bytes first, then those of four and of one: all are aligned.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    wide = [name for name in ordered if tensors[name].element_size() > 1]
    narrow = [name for name in ordered if tensors[name].element_size() == 1]
    facts = {name: (kinds[each.dtype], list(each.shape), each.numel() * each.element_size())
             for name, each in tensors.items()}  # fmt: skip
    facts["attribution"] = ("F32", list(shape), 4 * math.prod(shape))
    place = 0
    for name in (*wide, "attribution", *narrow):
        kind, dims, size = facts[name]
        header[name] = {"dtype": kind, "shape": dims, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in wide:
            file.write(tensors[name].numpy().tobytes())
        for one in maps:
            file.write(one.contiguous().numpy().tobytes())
        for name in narrow:
            file.write(tensors[name].numpy().tobytes())
