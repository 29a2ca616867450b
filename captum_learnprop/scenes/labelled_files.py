"""A table of pictures and their classes: a CSV file with the columns ``file`` and ``class``."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import printable
from captum_learnprop.images import ImageFile

LONGEST_CLASS = 6
"""Digits of a class number: no net has a million classes."""

CLASS_COLUMNS = ("class", "imagenet_class")
"""Names of the column that holds the class number."""


@dataclass(frozen=True)
class LabelledFile:
    """One picture of a table.

    Attributes:
        id: The path as the table writes it, relative to the folder of pictures.
        path: Where the file is.
        target: Its class.
    """

    id: str
    path: Path
    target: int


def read_table(labels: Path, folder: Path) -> list[LabelledFile]:
    """Reads a table of pictures, sorted by id. Columns other than the two are ignored.

    Args:
        labels: CSV file with the header ``file,class`` or ``file,imagenet_class``.
        folder: Where the pictures lie; a path in the table is relative to it, and may lead into sub-folders.

    Raises:
        LearnpropError: The table is missing, no CSV, lacks a column or has no row; a class is no number from 0
            on; a picture is missing or listed twice.
    """
    try:
        with labels.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            column = _class_column(labels, reader.fieldnames or ())
            files = [_labelled(labels, folder, reader.line_num, row, column) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LearnpropError(f"cannot read the table {labels}: {reason}; give a CSV file with file,class") from error
    if not files:
        raise LearnpropError(f"{labels} names no picture: write a line file,class for each")
    known: set[Path] = set()
    for each in files:
        path = each.path.resolve()
        if path in known:
            raise LearnpropError(f"{labels} lists {printable(each.id)} twice: keep one of the lines")
        known.add(path)
    return sorted(files, key=lambda each: each.id)


def _class_column(labels: Path, columns: Sequence[str]) -> str:
    found = next((name for name in CLASS_COLUMNS if name in columns), None)
    if "file" not in columns or found is None:
        raise LearnpropError(
            f"{labels} has the columns {printable(', '.join(columns)) or 'none'}: its first line must be file,class "
            "(or file,imagenet_class)"
        )
    return found


def _labelled(labels: Path, folder: Path, line: int, row: dict[str, str | None], column: str) -> LabelledFile:
    name, text = (row["file"] or "").strip(), (row[column] or "").strip()
    if not (text.isascii() and text.isdecimal()):
        raise LearnpropError(f"{labels}, line {line}: class {text!r} is no number from 0 on; write the class's index")
    if len(text) > LONGEST_CLASS:
        raise LearnpropError(f"{labels}, line {line}: class {text[:20]} is out of range; write the class's index")
    path = folder / name
    if not name or not path.is_file():
        raise LearnpropError(
            f"{labels}, line {line}: there is no file {printable(name) or '(no name)'} in {folder}; "
            "paths in the table are relative to that folder"
        )
    return LabelledFile(PurePosixPath(name).as_posix(), path, int(text))


def copies(files: Sequence[LabelledFile]) -> str | None:
    """Returns a sentence about pictures that are copies of others, which could lie in another split; None for none.

    Args:
        files: Pictures with their classes.
    """
    first: dict[str, str] = {}
    found = []
    for each in files:
        other = first.setdefault(ImageFile(each.id, each.path).sha256(), each.id)
        if other != each.id:
            found.append(f"{printable(each.id)} of {printable(other)}")
    if not found:
        return None
    return f"{len(found)} picture(s) are copies of others ({found[0]}): the same one can be in two splits, remove them"


def digest(files: Sequence[LabelledFile] | Sequence[ImageFile]) -> str:
    """Returns the hexadecimal SHA-256 of ids, classes and contents of files.

    Raises:
        UnreadableImageError: A file is gone.
    """
    whole = hashlib.sha256()
    for each in files:
        content = ImageFile(each.id, each.path).sha256()
        whole.update(f"{each.id}\0{getattr(each, 'target', '')}\0{content}\n".encode("utf-8", "backslashreplace"))
    return whole.hexdigest()
