"""Debian packages without root: getting them by ``apt-get``, and reading single files out of them.

A ``.deb`` is an ``ar`` archive of two compressed tar archives: ``control`` with facts, ``data`` with the files.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from captum_learnprop.errors import LearnpropError

_MAGIC = b"!<arch>\n"

_HEADER = 60
"""Bytes before each member of an ``ar`` archive: the name in the first 16, the size in 10 from the 49th on."""


class _Part(io.RawIOBase):
    """A part of a file from where it stands, as a file of its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        content = self._file.read(min(len(view), self._left))
        view[: len(content)] = content
        self._left -= len(content)
        return len(content)


def facts_of(deb: Path) -> dict[str, str]:
    """Returns what a package says of itself, such as its ``Package`` and ``Version``.

    Raises:
        LearnpropError: The file is missing, damaged or no package.
    """
    with _archive(deb, "control") as archive:
        for member in archive:
            if member.name.removeprefix("./") == "control" and member.isfile():
                text = _content(archive, member).decode("utf-8", "replace")
                pairs = (line.partition(":") for line in text.splitlines() if line[:1].strip())
                return {name: value.strip() for name, _, value in pairs}
    raise LearnpropError(f"{deb} is no Debian package: it does not say which")


def read_files(deb: Path, paths: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yields those regular files of a package that have one of the given paths, and their content.

    Nothing is written, so that neither a path nor a link in the package can lead anywhere.

    Args:
        deb: The package.
        paths: Paths from the root on, without a slash in front.

    Raises:
        LearnpropError: The file is missing, damaged or no package.
    """
    with _archive(deb, "data") as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if path in paths and member.isfile():
                yield path, _content(archive, member)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


@contextmanager
def _archive(deb: Path, part: str) -> Iterator[tarfile.TarFile]:
    """Opens one of the two tar archives of a package."""
    try:
        with deb.open("rb") as file:
            name, size = _find(file, f"{part}.tar", deb)
            # Python reads it from 3.14 on; dpkg-deb always could where packages have it.
            if name.endswith(".zst") and not hasattr(tarfile.TarFile, "zstopen"):
                with _by_dpkg(deb, part) as archive:
                    yield archive
                return
            with tarfile.open(fileobj=io.BufferedReader(_Part(file, size)), mode="r|*") as archive:
                yield archive
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise LearnpropError(f"cannot read the package {deb}: {reason}; get it anew") from error


def _find(file: BinaryIO, beginning: str, deb: Path) -> tuple[str, int]:
    """Goes to the content of a member; returns its name and size."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise LearnpropError(f"{deb} is no Debian package: it does not begin like an ar archive")
    while len(header := file.read(_HEADER)) == _HEADER:
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
        if not size.isdigit():
            break
        if name.startswith(beginning):
            return name, int(size)
        file.seek(int(size) + int(size) % 2, io.SEEK_CUR)  # members begin at even places
    raise LearnpropError(f"{deb} is no Debian package, or cut short: it has no {beginning}")


@contextmanager
def _by_dpkg(deb: Path, part: str) -> Iterator[tarfile.TarFile]:
    dpkg = shutil.which("dpkg-deb")
    if dpkg is None:
        raise LearnpropError(
            f"{deb} is compressed by zstd, which needs Python 3.14 or the program dpkg-deb: take Debian's own package"
        )
    option = "--fsys-tarfile" if part == "data" else "--ctrl-tarfile"
    found = subprocess.run([dpkg, option, str(deb)], capture_output=True, check=False)
    if found.returncode:
        raise LearnpropError(f"cannot read the package {deb}: {_last_line(found.stderr)}")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        yield archive


def has_apt() -> bool:
    """Returns whether packages can be fetched here."""
    return shutil.which("apt-get") is not None


def fetch(package: str, folder: Path, progress: Callable[[int], None]) -> Path:
    """Fetches a package into a folder by ``apt-get download``, which needs no root and installs nothing.

    Args:
        package: Its name.
        folder: An empty folder, or one with other packages.
        progress: Is told, about twice a second, how many bytes are there.

    Raises:
        LearnpropError: apt-get does not know it, or cannot get it.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(["apt-get", "download", package], cwd=folder, stdout=said, stderr=said)
        except OSError as error:
            raise LearnpropError(f"cannot run apt-get: {error.strerror}") from error
        try:
            while _runs(process):
                progress(sum(file.stat().st_size for file in folder.glob(f"{package}_*")))
        finally:
            process.kill()  # nothing where it has ended
            process.wait()
        said.seek(0)
        output = said.read()
    debs = sorted(folder.glob(f"{package}_*.deb"))
    if process.returncode or not debs:
        raise LearnpropError(
            f"apt-get cannot get {package}: {_last_line(output)}; run 'apt-get update' as root, or give the "
            f"package's file with --deb (it is on https://packages.debian.org/{package})"
        )
    return debs[-1]


def _runs(process: subprocess.Popen[bytes]) -> bool:
    """Waits a moment for a program, and returns whether it still runs."""
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return True
    return False


def _last_line(output: bytes) -> str:
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.startswith("E:")]
    everything = output.decode("utf-8", "replace").strip().splitlines()
    return (lines or everything or ["it says nothing"])[-1].removeprefix("E:").strip()
