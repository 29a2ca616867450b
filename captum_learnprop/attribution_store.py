"""The output folder of ``learnprop attribute``: raw maps, overlays, and one HDF5 file in ViRelAy's layout.

The raw maps are the truth: one safetensors file per image, complete as soon as it has its name. The rest is
made from them at the end, so that an interrupted run loses nothing::

    manifest.json             the options of the run; a resumed run must have the same
    maps/<id>.safetensors     attribution (C, H, W), prediction (classes,), target (), thumbnail (bytes of a JPEG,)
    overlays/<id>.png         the map laid over the image
    attributions.h5           attribution, prediction, label and index of all images
    predictions.csv           what the model said of each image
    extremal_areas.csv        of extremal perturbations: how the output grows with the area, and the area that suffices
    index.html, pages/        thumbnails of all overlays
    report.json               what was done, resumed and skipped
    dataset.h5, label_map.json, project.yaml     on request: what ViRelAy needs beside it

<id> is the path of the image below its folder. Where the disk does not take it as a name (too long, or another id has
it already because upper and lower case are alike there), the files lie in maps/ and overlays/ under a shortened name
with a digest of the id; the id itself is in the map's metadata.

The HDF5 layout is the one that ViRelAy's own reader accepts (github.com/virelay/virelay, ``model.py``).
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from captum_learnprop.attribution_curves import CURVES, write_curves
from captum_learnprop.attribution_index import INDEX, PAGES, Card, write_index
from captum_learnprop.attribution_predictions import PREDICTIONS, prediction_of, write_predictions
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import WriteError, replacing, write_bytes, write_text
from captum_learnprop.images import ImageFile, UnreadableImageError

FORMAT = 2

MAPS, OVERLAYS = "maps", "overlays"
MANIFEST, REPORT, HDF5 = "manifest.json", "report.json", "attributions.h5"
DATASET, LABEL_MAP, PROJECT = "dataset.h5", "label_map.json", "project.yaml"

LISTING, SHARDS = "images.jsonl", "shards"
"""What a run in shards has beside these, see `captum_learnprop.attribution_shards`."""

MAX_CLASSES = 2**16  # ViRelAy's labels are uint16

# What a disk says of a name that it does not take: too long, odd characters, or taken by a folder or a file where the
# other kind is needed ("a.png.png/b.png" beside "a.png", whose overlay is "a.png.png").
_OF_THE_NAME = {
    errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY,
}  # fmt: skip


class NonFiniteError(LearnpropError):
    """An attribution with NaN or infinite values, which is never written."""


@dataclass(frozen=True)
class StoredMap:
    """The results that are kept of one image.

    Attributes:
        attribution: The attribution, (C, H, W), float32.
        prediction: The model's output, (classes,), float32.
        target: The class that was explained.
        thumbnail: A small JPEG of the overlay; empty for none.
        curve: Areas of extremal masks and the shares of the output that they preserve, (P, 2); None for other methods.
    """

    attribution: torch.Tensor
    prediction: torch.Tensor
    target: int
    thumbnail: bytes = b""
    curve: torch.Tensor | None = None


def require_h5py() -> Any:
    """Returns the ``h5py`` module, which only the HDF5 output needs.

    Raises:
        LearnpropError: It is not installed.
    """
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise LearnpropError(
            "the HDF5 file needs h5py: pip install 'captum-learnprop[demo]', or add --no-hdf5"
        ) from error


class AttributionStore:
    """An output folder of ``learnprop attribute``.

    Args:
        folder: Where it is; nothing is created before something is saved.
        options: What decides over the values of the maps, as JSON values. A folder that already holds maps is
            resumed when its options are the same.
        overwrite: Whether what an earlier run wrote there is deleted first.

    Raises:
        LearnpropError: The folder holds a run with other options, or files that no run has written.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], *, overwrite: bool = False) -> None:
        if os.fsencode(folder).decode("utf-8", "replace") != str(folder):
            raise LearnpropError(
                f"safetensors opens no file in {str(folder)!a}, whose name is no UTF-8; choose another --out"
            )
        self.folder = folder
        # A round trip makes tuples lists, as they will be when read back for the comparison.
        self.options: dict[str, Any] = json.loads(json.dumps(dict(options)))
        if overwrite and delete_run(folder):
            return
        manifest = _read_manifest(folder)
        if manifest is not None:
            check_same(folder, manifest, self.options)
        elif folder.exists() and not _is_empty(folder):
            raise LearnpropError(f"{folder} exists and was not written by `learnprop attribute`; choose another --out")

    def has(self, image: ImageFile, sha256: str | None = None) -> bool:
        """Returns whether the map of this image, with the content it has now, is there.

        Args:
            image: The image.
            sha256: The digest of its content, where it was read already.
        """
        stem = self._stem(image.id)
        try:
            return (
                stem is not None
                and self._metadata(stem).get("image_sha256") == (sha256 or image.sha256())
                and self._path(OVERLAYS, stem).is_file()
            )
        except UnreadableImageError:
            return False

    def save(
        self, image: ImageFile, stored: StoredMap, overlay: npt.NDArray[np.uint8], sha256: str | None = None
    ) -> None:
        """Writes the overlay (H, W, 3) and, last because it marks the image as done, the map.

        Args:
            image: The image.
            stored: Its results.
            overlay: The picture of them.
            sha256: The digest of the image's content, where it was read already.

        Raises:
            NonFiniteError: The attribution holds NaN or infinite values.
            UnreadableImageError: The image is gone meanwhile.
            WriteError: The disk is full, or the folder is read-only.
        """
        wrong = int((~torch.isfinite(stored.attribution)).sum())
        if wrong:
            raise NonFiniteError(f"{wrong} of {stored.attribution.numel()} attribution values are not finite")
        self._write_manifest()
        tensors = {
            "attribution": stored.attribution.detach().to("cpu", torch.float32).contiguous(),
            "prediction": stored.prediction.detach().to("cpu", torch.float32).contiguous(),
            "target": torch.tensor(stored.target),
            "thumbnail": torch.from_numpy(np.frombuffer(stored.thumbnail, np.uint8).copy()),
        }
        if stored.curve is not None:
            tensors["curve"] = stored.curve.detach().to("cpu", torch.float32).contiguous()
        metadata = {"format": str(FORMAT), "id": image.id, "image_sha256": sha256 or image.sha256()}
        files = {OVERLAYS: _png(overlay), MAPS: save(tensors, metadata=metadata)}
        known = self._stem(image.id)
        name, digest = _stems(image.id)
        taken = self._metadata(name).get("id", image.id) != image.id
        stems = [known] if known is not None else [digest] if taken else [name, digest]
        for stem in stems:
            try:
                for kind, data in files.items():
                    write_bytes(self._path(kind, stem), data)
                return
            except WriteError as error:
                if error.errno not in _OF_THE_NAME or stem == digest:
                    raise
                with suppress(OSError):  # an overlay whose map's longer name does not fit
                    self._path(OVERLAYS, stem).unlink()

    def load(self, image: ImageFile) -> StoredMap:
        """Reads a map back.

        Raises:
            LearnpropError: There is none, or its file is damaged.
        """
        tensors = self._read(image, "attribution", "prediction", "target", "thumbnail")
        thumbnail = tensors["thumbnail"].numpy().tobytes()
        return StoredMap(tensors["attribution"], tensors["prediction"], int(tensors["target"]), thumbnail)

    def card(self, image: ImageFile, class_names: Sequence[str]) -> Card:
        """Returns what the pages show of an image, without reading its attribution.

        Args:
            image: An image whose map is there.
            class_names: A name for each class.

        Raises:
            LearnpropError: There is no map, or its file is damaged.
        """
        tensors = self._read(image, "prediction", "target", "thumbnail")
        prediction = prediction_of(tensors["prediction"], int(tensors["target"]), class_names)
        link = f"{OVERLAYS}/{self._stem(image.id)}{_SUFFIXES[OVERLAYS]}"
        return Card(image.id, prediction, tensors["thumbnail"].numpy().tobytes(), link)

    def _read(self, image: ImageFile, *names: str) -> dict[str, torch.Tensor]:
        path = self._path(MAPS, self._stem(image.id) or image.id)
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise LearnpropError(f"cannot read the map {path}: {error}") from error

    def write_curves(self, images: Sequence[ImageFile]) -> Path | None:
        """Writes ``extremal_areas.csv``, if the maps are extremal masks with curves.

        Args:
            images: Images whose maps are there.
        """
        curves = []
        for image in images:
            stem = self._stem(image.id)
            assert stem is not None
            with safe_open(self._path(MAPS, stem), framework="pt") as file:
                if "curve" not in file.keys():  # noqa: SIM118 - a file of safetensors is no mapping
                    return None  # the maps of one run are all of one method
                curves.append((image.id, file.get_tensor("curve")))
        return write_curves(self.folder, curves) if curves else None

    def write_hdf5(self, images: Sequence[ImageFile]) -> Path:
        """Gathers the maps of these images, one at a time, into ``attributions.h5``.

        Row i belongs to ``images[i]``: attribution (N, C, H, W) float32, prediction (N, classes) float32,
        label (N,) uint16 (the class that was explained), index (N,) uint32 (the row in ``dataset.h5``), and
        id (N,) text, which ViRelAy does not read.

        Raises:
            LearnpropError: h5py is missing, or the maps differ in shape.
            WriteError: The disk is full.
        """
        first = self.load(images[0])
        path = self.folder / HDF5
        with hdf5_file(path) as (file, disk):
            file.attrs["options"] = json.dumps(self.options)
            count = len(images)
            file.create_dataset("attribution", (count, *first.attribution.shape), dtype=np.float32)
            file.create_dataset("prediction", (count, *first.prediction.shape), dtype=np.float32)
            file.create_dataset("label", (count,), dtype=np.uint16)
            file["index"] = np.arange(count, dtype=np.uint32)
            file["id"] = [image.id for image in images]
            for row, image in enumerate(images):
                stored = self.load(image)
                if stored.attribution.shape != first.attribution.shape:
                    shapes = f"{tuple(first.attribution.shape)} and {tuple(stored.attribution.shape)}"
                    raise LearnpropError(
                        f"the maps of {images[0].id} and {image.id} have the shapes {shapes}: one HDF5 file "
                        "needs one shape (--no-hdf5 goes without)"
                    )
                file["attribution"][row] = stored.attribution.numpy()
                file["prediction"][row] = stored.prediction.numpy()
                file["label"][row] = stored.target
                disk.check()
        return path

    def write_dataset(
        self,
        images: Sequence[ImageFile],
        pixels: Callable[[ImageFile], torch.Tensor],
        class_names: Sequence[str],
    ) -> Path:
        """Writes what ViRelAy shows beside the attributions: images, class names and the project file.

        ``dataset.h5`` holds data (N, C, H, W) float32 in [0, 1] and label (N,) uint16, rows as in
        ``attributions.h5``; ``project.yaml`` is the file to give to ViRelAy.

        Args:
            images: The images of ``attributions.h5``, in the same order.
            pixels: Gives the input of an image before normalisation, (C, H, W) in [0, 1].
            class_names: Name of each class.
        """
        first = pixels(images[0])
        with hdf5_file(self.folder / DATASET) as (file, disk):
            file.create_dataset("data", (len(images), *first.shape), dtype=np.float32)
            file.create_dataset("label", (len(images),), dtype=np.uint16)
            for row, image in enumerate(images):
                file["data"][row] = pixels(image).numpy()
                file["label"][row] = self.load(image).target
                disk.check()
        # ViRelAy asks for a WordNet id by which an analysis may name a class; the class number serves.
        labels = [{"index": i, "word_net_id": str(i), "name": name} for i, name in enumerate(class_names)]
        self._write_text(LABEL_MAP, json.dumps(labels, indent=1, ensure_ascii=False))
        self._write_text(PROJECT, _yaml(self._project(first.shape[-2], first.shape[-1])))
        return self.folder / PROJECT

    def write_report(self, report: Mapping[str, Any]) -> Path:
        """Writes ``report.json``."""
        self._write_manifest()
        return self._write_text(REPORT, json.dumps({"format": FORMAT, **report}, indent=1))

    def write_cards(self, images: Sequence[ImageFile], class_names: Sequence[str], *, about: str = "") -> list[Card]:
        """Writes ``predictions.csv`` and the pages of thumbnails, and returns what is on them without thumbnails.

        Args:
            images: Images whose maps are there.
            class_names: A name for each class.
            about: A sentence for the pages.

        Raises:
            WriteError: The disk is full, or the folder is read-only.
        """
        cards = [replace(self.card(image, class_names), thumbnail=b"") for image in images]
        write_predictions(self.folder, ((card.id, card.prediction) for card in cards))
        title = f"{self.options.get('method')} on {self.options.get('model')}"
        shown = (self.card(image, class_names) for image in images)
        write_index(self.folder, shown, len(cards), title=title, about=about)
        return cards

    def _project(self, height: int, width: int) -> dict[str, Any]:
        by_prediction = self.options.get("target") == "predicted"
        return {
            "project": {
                "name": f"{self.options.get('method')} on {self.options.get('model')}",
                "model": self.options.get("model"),
                "label_map": LABEL_MAP,
                "dataset": {
                    "name": "images",
                    "type": "hdf5",
                    "path": DATASET,
                    "input_width": width,
                    "input_height": height,
                    "down_sampling_method": "none",
                    "up_sampling_method": "none",
                },
                "attributions": {
                    "attribution_method": self.options.get("method"),
                    "attribution_strategy": "predicted_label" if by_prediction else "true_label",
                    "sources": [HDF5],
                },
            }
        }

    def _write_manifest(self) -> None:
        if not (self.folder / MANIFEST).exists():
            self._write_text(
                MANIFEST, json.dumps({"format": FORMAT, "layout": "files", "options": self.options}, indent=1)
            )

    def _write_text(self, name: str, text: str) -> Path:
        return write_text(self.folder / name, text + "\n")

    def _path(self, kind: str, stem: str) -> Path:
        return self.folder / kind / f"{stem}{_SUFFIXES[kind]}"

    def _stem(self, identifier: str) -> str | None:
        """Returns the name under which the map of this id is there."""
        return next((stem for stem in _stems(identifier) if self._metadata(stem).get("id") == identifier), None)

    def _metadata(self, stem: str) -> dict[str, str]:
        """Returns what a map's file says of itself; nothing if there is none, or it is damaged."""
        try:
            with safe_open(self._path(MAPS, stem), framework="pt") as file:
                return file.metadata() or {}
        except (OSError, SafetensorError):
            return {}


_SUFFIXES = {MAPS: ".safetensors", OVERLAYS: ".png"}


def _stems(identifier: str) -> tuple[str, str]:
    """Returns names without their suffix: the id itself, and one that every disk takes.

    The second ends with a digest and an id with the suffix of an image, so that neither can be another's first.
    """
    digest = hashlib.sha256(identifier.encode()).hexdigest()[:24]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", identifier.rpartition("/")[2])[:60].lstrip(".")
    return identifier, f"{readable}-{digest}"


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    # PIL's own errors do not say that the disk is full.
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)  # the default takes five times as long
    return buffer.getvalue()


@contextmanager
def hdf5_file(path: Path) -> Iterator[tuple[Any, _Disk]]:
    """Gives an HDF5 file to fill, which gets its name when it is whole; ask the disk now and then if it is full."""
    h5py = require_h5py()
    with replacing(path) as temporary, _Disk(temporary, "w+") as disk:
        with h5py.File(disk, "w") as file:
            yield file, disk
        disk.check()


class _Disk(io.FileIO):
    """A file that seems to take everything: HDF5 crashes the process some time after it meets an error of the disk.

    What could not be written is kept, since HDF5 crashes too when it does not find what it has written.
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._error: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raises what the disk said, if it is full; better soon, since the rest is kept in memory."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Writes all of it, or keeps it."""
        whole = memoryview(data).cast("B")
        start, done = self.tell(), 0
        try:
            while done < len(whole) and self._error is None:
                done += super().write(whole[done:])
        except OSError as error:
            self._error = error
        if done < len(whole):
            self._kept.append((start + done, bytes(whole[done:])))
            self.seek(start + len(whole))
        return len(whole)

    def readinto(self, buffer: Any) -> int:
        """Reads what was written, wherever it is."""
        view = memoryview(buffer).cast("B")
        start = self.tell()
        view[:] = bytes(len(view))
        super().readinto(view)
        for place, data in self._kept:
            first, last = max(place, start), min(place + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - place : last - place]
        self.seek(start + len(view))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Cuts off or extends the file."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manifest["options"], manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise LearnpropError(f"{path} is damaged or of another program; choose another --out") from error
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    manifest = _manifest(folder)
    if manifest is None:
        return None
    if manifest["format"] != FORMAT:
        raise LearnpropError(
            f"{folder} was written in format {manifest['format']}, this version writes {FORMAT}: "
            "choose another --out or add --overwrite"
        )
    if manifest.get("layout", "files") != "files":
        raise LearnpropError(f"{folder} holds a run in shards: choose another --out, or leave out --layout files")
    return dict(manifest["options"])


def _is_empty(folder: Path) -> bool:
    # Hidden files do not count: a killed run leaves temporary ones, desktops put theirs everywhere.
    return folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir())


def check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses options that differ from those of the run in a folder.

    Raises:
        LearnpropError: They do; the error names each with both values.
    """
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not changed:
        return
    listed = "; ".join(f"{name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in changed)
    raise LearnpropError(
        f"{folder} holds a run with other options ({listed}); choose another --out, "
        "or add --overwrite to delete that run"
    )


def delete_run(folder: Path) -> bool:
    """Deletes what a run wrote, and nothing else that lies in the folder; returns whether there was one.

    The manifest goes last.

    Raises:
        LearnpropError: The manifest is of another program.
    """
    if _manifest(folder) is None:
        return False
    for name in (MAPS, OVERLAYS, PAGES, SHARDS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (HDF5, DATASET, LABEL_MAP, PROJECT, REPORT, PREDICTIONS, CURVES, INDEX, LISTING, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    return True


def _yaml(value: Mapping[str, Any], indent: str = "") -> str:
    """Returns nested mappings as block YAML; lists and scalars as JSON, which YAML contains. Saves a dependency."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += [f"{indent}{key}:", _yaml(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(item, ensure_ascii=False)}")
    return "\n".join(lines)
