"""Images by whatever names them: a folder, one image, a list of paths, a CSV, or a WebDataset tar.

All of it is read as a stream, in one order that depends on names alone, so that ten million images cost no memory.
"""

from __future__ import annotations

import csv
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import printable
from captum_learnprop.images import MAX_BYTES, SUFFIXES, ImageFile, find_images, identifier, why_no_file

TEXT_LISTS = (".txt", ".list", ".lst")
"""Suffixes of lists with one path a line."""

HEADS = ("path", "file", "filename", "image")
"""Names of the column of paths; a CSV whose first cell is none of them has no header."""

LABEL = "label"
"""Name of the column of labels."""

MAX_LABEL = 4096
"""The largest ``.cls`` member of an archive that is read as a label, in bytes."""


def list_images(
    path: Path, *, recursive: bool = False, exclude: Path | None = None, left_out: dict[str, str] | None = None
) -> list[ImageFile]:
    """Returns all images that a path names, sorted by id.

    Args:
        path: A folder, one image, a list (``.txt``, ``.list``, ``.lst``), a ``.csv``, or a ``.tar``.
        recursive: Whether to look in sub-folders too.
        exclude: A folder whose content never counts.
        left_out: Is filled with the reasons, by id, of what cannot be an image.

    Raises:
        LearnpropError: There is nothing of that name, it names no image, or it cannot be read.
    """
    if not _is_list(path):
        return find_images(path, recursive=recursive, exclude=exclude, left_out=left_out)
    faults: dict[str, str] = {} if left_out is None else left_out
    return sorted(_nonempty(path, _listed(path, faults), faults), key=lambda image: image.id)


def stream_images(
    path: Path, left_out: dict[str, str], *, recursive: bool = False, exclude: Path | None = None
) -> Iterator[ImageFile]:
    """Yields the images of `list_images`, those of folders in the same order, of lists and archives in theirs.

    Args:
        path: As of `list_images`.
        left_out: Is filled with the reasons of what cannot be an image, while the images are read.
        recursive: Whether to look in sub-folders too.
        exclude: A folder whose content never counts.

    Raises:
        LearnpropError: As of `list_images`.
    """
    if _is_list(path):
        return _nonempty(path, _listed(path, left_out), left_out)
    if not path.is_dir():
        return iter(find_images(path))
    excluded = None if exclude is None else exclude.resolve()
    return _nonempty(path, _walked(path, "", excluded, recursive, left_out), left_out)


def _is_list(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")) and path.is_file():
        raise LearnpropError(f"{path} is a compressed archive, in which nothing can be found by its place: unpack it")
    return path.suffix.lower() in (*TEXT_LISTS, ".csv", ".tar") and path.is_file()


def _nonempty(path: Path, images: Iterator[ImageFile], left_out: dict[str, str]) -> Iterator[ImageFile]:
    empty = True
    for image in images:
        empty = False
        yield image
    if empty:
        first = next((f"; left out {printable(name)}: {reason}" for name, reason in left_out.items()), "")
        folders = "; for images in sub-folders add --recursive" if path.is_dir() else ""
        raise LearnpropError(f"no image in {path} (looked for {', '.join(SUFFIXES)}){folders}{first}")


def _listed(path: Path, left_out: dict[str, str]) -> Iterator[ImageFile]:
    """Yields what a list or an archive names, each id once."""
    # Hashes, because the ids of ten million images are a gigabyte, and two of one hash are not to be expected.
    seen: set[int] = set()
    for image in _members(path, left_out) if path.suffix.lower() == ".tar" else _entries(path, left_out):
        if hash(image.id) in seen:
            left_out[image.id] = "is listed twice"
            continue
        seen.add(hash(image.id))
        yield image


def _entries(path: Path, left_out: dict[str, str]) -> Iterator[ImageFile]:
    """Yields the images of a list; an archive in it stands for its members."""
    for text, label in _rows(path):
        entry = path.parent / text
        if entry.suffix.lower() == ".tar":
            within = _listed_id(text).removesuffix(entry.suffix)
            for image in _members(entry, left_out):
                yield replace(image, id=f"{within}/{image.id}", label=image.label if label is None else label)
        else:
            yield ImageFile(_listed_id(text), entry, label=label)


def _rows(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yields the path and the label of each line."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.suffix.lower() != ".csv":
                lines = (line.rstrip("\r\n") for line in file)
                yield from ((line, None) for line in lines if line.strip() and not line.startswith("#"))
                return
            yield from _columns(path, csv.reader(file))
    except (OSError, csv.Error) as error:
        raise LearnpropError(f"cannot read the list {path}: {error}") from error


def _columns(path: Path, rows: Iterable[list[str]]) -> Iterator[tuple[str, str | None]]:
    file, label, first = 0, 1, True
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        names = [cell.strip().lower() for cell in row]
        if first and any(name in HEADS for name in names):
            file = next(place for place, name in enumerate(names) if name in HEADS)
            label = names.index(LABEL) if LABEL in names else -1
        elif file >= len(row) or not row[file].strip():
            raise LearnpropError(f"{path} has a row without a path: {','.join(row)[:80]!r}")
        else:
            told = row[label].strip() if 0 <= label < len(row) else ""
            yield row[file].strip(), told or None
        first = False


def _listed_id(text: str) -> str:
    """Returns the id of a path in a list: never one that leads out of the folder that results are written to."""
    path = PurePath(os.path.normpath(text))
    if path.is_absolute():
        path = path.relative_to(path.anchor)
    return identifier("/".join(part for part in path.parts if part != ".."))


def _members(path: Path, left_out: dict[str, str]) -> Iterator[ImageFile]:
    """Yields the images of an archive; a ``.cls`` member beside one, before or after it, is its label.

    Nothing is unpacked: an image is read from its place when it is its turn.
    """
    # The members of one sample stand together, and are known by their name up to the first dot.
    sample: str | None = None
    images: list[ImageFile] = []
    label: str | None = None
    for member, archive in _tar_members(path, left_out):
        folder, _, name = member.name.rpartition("/")
        key = f"{folder}/{name.partition('.')[0]}"
        if key != sample:
            yield from (replace(image, label=label) for image in images)
            sample, images, label = key, [], None
        if name.lower().endswith(SUFFIXES) and not name.startswith("."):
            reason = _why_no_member(member)
            if reason is None:
                images.append(ImageFile(_listed_id(member.name), path, member.offset_data, member.size))
            else:
                left_out[_listed_id(member.name)] = reason
        elif name.lower().endswith(".cls") and member.isreg() and member.size <= MAX_LABEL:
            found = archive.extractfile(member)
            label = found.read().decode("utf-8", "replace").strip() or None if found is not None else None
    yield from (replace(image, label=label) for image in images)


def _why_no_member(member: tarfile.TarInfo) -> str | None:
    if not member.isreg() or member.issparse():
        return "is no regular member of the archive"
    return f"has {member.size:,} bytes, more than {MAX_BYTES:,}" if member.size > MAX_BYTES else None


def _tar_members(path: Path, left_out: dict[str, str]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    reason = why_no_file(path)
    if reason is not None:
        left_out[identifier(path.name)] = reason
        return
    count = 0
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                count += 1
                yield member, archive
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
            if not _ends(archive, path):
                left_out[identifier(path.name)] = f"is damaged after {count} members"
    # Whatever damaged headers make of it: the members before are good.
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        left_out[identifier(path.name)] = f"is damaged after {count} members: {error}"


def _ends(archive: tarfile.TarFile, path: Path) -> bool:
    """Returns whether an archive ends where its last member does: tarfile takes any damaged header for the end."""
    with path.open("rb") as file:
        file.seek(archive.offset)
        return not file.read(tarfile.BLOCKSIZE).strip(b"\0")


def _walked(
    folder: Path, within: str, excluded: Path | None, recursive: bool, left_out: dict[str, str]
) -> Iterator[ImageFile]:
    """Yields the images of a folder; with ``/`` behind the names of folders, the order is that of the ids."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        if not within:
            raise LearnpropError(f"cannot look into {folder}: {error.strerror}") from error
        left_out[identifier(within)] = f"cannot look into it: {error.strerror}"
        return
    for entry in sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False)):
        path, name = folder / entry.name, f"{within}{entry.name}"
        if entry.is_dir(follow_symlinks=False) and recursive:
            if path.resolve() != excluded:
                yield from _walked(path, f"{name}/", excluded, recursive, left_out)
        elif entry.name.lower().endswith(SUFFIXES):
            reason = None if _is_file(entry) else why_no_file(path)
            if reason is None:
                yield ImageFile(identifier(name), path)
            else:
                left_out[identifier(name)] = reason


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()  # of most files known from the folder itself, without a look at each
    except OSError:
        return False
