"""The work of ``learnprop data photos``: a folder of cut-outs and backgrounds out of Debian packages."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from captum_learnprop.commands._debian_package import facts_of, fetch, has_apt, read_files
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import WriteError, check_folder, write_bytes, write_text
from captum_learnprop.scenes.photographs import (
    CUTOUTS,
    LABELS,
    SOURCES,
    Wanted,
    photographs_folder,
    wanted_files,
)

LICENCES = {
    "tuxpaint-stamps-default": "GPL-2",
    "lomiri-wallpapers-16.04": "CC-BY-SA-4.0, CC-BY-4.0 or CC0, by picture",
    "mate-backgrounds": "GPL-2 or later",
    "plasma-workspace-wallpapers": "GPL-2 or later",
}
"""What each package's ``copyright`` file says in Debian 12."""

MEGABYTES = {
    "tuxpaint-stamps-default": 161,
    "lomiri-wallpapers-16.04": 16,
    "mate-backgrounds": 47,
    "plasma-workspace-wallpapers": 94,
}
"""Size of each download in Debian 12."""

LICENCES_FOLDER = "licences"

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Package:
    """A package that was read: its facts, where it came from, and what was found in it."""

    name: str
    version: str
    sha256: str
    found: tuple[Wanted, ...]


def run(debs: Sequence[Path], cache: Path | None, *, overwrite: bool, say: Say) -> Path:
    """Makes the folder of photographs, and returns it; one that is complete stays as it is.

    Args:
        debs: Packages that the user has.
        cache: The cache; that of `captum_learnprop.scenes.photographs.cache_folder` by default.
        overwrite: Whether to make a complete one anew.
        say: Is told what happens, a line at a time.

    Raises:
        LearnpropError: A package is missing, cannot be fetched or read, or the folder cannot be written.
    """
    folder = photographs_folder(cache)
    if _is_complete(folder) and not overwrite:
        say(f"they are there already: {_counts(_there(folder))} in {folder} (--overwrite makes them anew)")
        return folder
    check_folder(folder, "--cache")
    given = _given(debs)
    wanted = wanted_files()
    names = list(dict.fromkeys(each.package for each in wanted))
    _check_missing(names, given)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".photos-", dir=folder.parent) as temporary:
            new = Path(temporary) / "photos"
            packages = [_read(name, given.get(name), wanted, new, Path(temporary), say) for name in names]
            _describe(new, packages)
            _replace(folder, new, Path(temporary) / "old")
    except OSError as error:
        if isinstance(error, LearnpropError):
            raise
        raise WriteError(f"cannot write {folder}: {error.strerror or error}") from error
    found = [each for package in packages for each in package.found]
    say(f"{_counts(found)} in {folder}")
    say(f"their licences are in {folder / LICENCES_FOLDER}: whoever passes a picture on passes its licence on too")
    _say_absent(wanted, found, say)
    return folder


def _there(folder: Path) -> list[Wanted]:
    """Returns those files that a folder of photographs has."""
    return [each for each in wanted_files() if (folder / each.place).is_file()]


def _is_complete(folder: Path) -> bool:
    """Returns whether everything that was put there is there still."""
    try:
        recorded = json.loads((folder / SOURCES).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return (folder / LABELS).is_file() and all(_has_content(folder / place) for place in recorded)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _counts(files: Sequence[Wanted]) -> str:
    objects = sum(each.target is not None for each in files)
    return f"{objects} cut-outs and {len(files) - objects} backgrounds"


def _given(debs: Sequence[Path]) -> dict[str, Path]:
    """Returns the user's packages by name."""
    given: dict[str, Path] = {}
    known = set(LICENCES)
    for deb in debs:
        name = facts_of(deb).get("Package", "")
        if name not in known:
            raise LearnpropError(f"{deb} is the package {name!r}; needed are {', '.join(sorted(known))}")
        given[name] = deb
    return given


def _check_missing(names: Sequence[str], given: dict[str, Path]) -> None:
    missing = [name for name in names if name not in given]
    if missing and not has_apt():
        raise LearnpropError(
            f"missing {', '.join(missing)}, and there is no apt-get here to get them: download each from "
            "https://packages.debian.org/bookworm/NAME (all, .deb) and give all of them with --deb FILE"
        )


def _read(name: str, deb: Path | None, wanted: Sequence[Wanted], new: Path, temporary: Path, say: Say) -> _Package:
    """Takes the wanted files out of one package, which is fetched unless the user has it."""
    fetched = deb is None
    if deb is None:
        say(f"downloading {name} (about {MEGABYTES[name]} MB, {LICENCES[name]})")
        deb = _download(name, temporary)
    say(f"unpacking {deb.name if fetched else deb} ({LICENCES[name]})")
    copyright_file = f"usr/share/doc/{name}/copyright"
    by_path = {f"usr/share/{each.path}": each for each in wanted if each.package == name}
    found = []
    for path, content in read_files(deb, {*by_path, copyright_file}):
        if path == copyright_file:
            write_bytes(new / LICENCES_FOLDER / f"{name}.txt", content)
        else:
            write_bytes(new / by_path[path].place, content)
            found.append(by_path[path])
    if not found:
        raise LearnpropError(f"{deb} holds none of the files that are used: give the package of Debian 12 (bookworm)")
    package = _Package(name, facts_of(deb).get("Version", ""), _sha256(deb), tuple(found))
    if fetched:
        deb.unlink()  # all of them together would fill a small disk
    return package


def _download(name: str, folder: Path) -> Path:
    with tqdm(total=MEGABYTES[name], unit="MB", desc=name, disable=None) as bar:

        def show(size: int) -> None:
            bar.update(min(size // 10**6, MEGABYTES[name]) - bar.n)

        return fetch(name, folder, show)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _describe(folder: Path, packages: Sequence[_Package]) -> None:
    """Writes the table of classes, and where everything comes from."""
    found = sorted((each for package in packages for each in package.found), key=lambda each: each.place)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file", "imagenet_class"])
    rows.writerows([each.place.removeprefix(f"{CUTOUTS}/"), each.target] for each in found if each.target is not None)
    write_text(folder / LABELS, table.getvalue())
    sources = {
        "packages": [
            {"name": each.name, "version": each.version, "sha256": each.sha256, "licence": LICENCES[each.name]}
            for each in packages
        ],
        "files": [each.place for each in found],
    }
    write_text(folder / SOURCES, json.dumps(sources, indent=2) + "\n")


def _replace(folder: Path, new: Path, old: Path) -> None:
    """Moves the finished folder to its place, in one go; what was there goes to ``old``."""
    if folder.exists():
        folder.replace(old)
    new.replace(folder)


def _say_absent(wanted: Sequence[Wanted], found: Sequence[Wanted], say: Say) -> None:
    absent = [each for each in wanted if each not in found]
    if absent:
        say(
            f"{len(absent)} of {len(wanted)} files are not in these versions of the packages, such as "
            f"{absent[0].path} of {absent[0].package}: scenes differ from those of Debian 12"
        )
