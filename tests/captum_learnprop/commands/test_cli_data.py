"""``learnprop data photos``, on packages made here, without network, apt-get or dpkg."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from captum_learnprop.cli import cli
from captum_learnprop.commands import _debian_package
from captum_learnprop.commands._debian_package import facts_of, read_files
from captum_learnprop.commands._photographs import LICENCES
from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.photographs import Wanted, wanted_files

STAMPS = "tuxpaint-stamps-default"


def member(name: str, content: bytes) -> bytes:
    """One member of an ar archive: sixty bytes of header, and an even number of bytes."""
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    return header + content + b"\n" * (len(content) % 2)


def packed(files: dict[str, bytes], mode: str = "xz", links: dict[str, str] | None = None) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=f"w:{mode}") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return whole.getvalue()


def write_deb(
    path: Path, package: str, files: dict[str, bytes], mode: str = "xz", links: dict[str, str] | None = None
) -> Path:
    control = packed({"./control": f"Package: {package}\nVersion: 1:2-3\nDescription: x\n more\n".encode()}, mode)
    data = packed({f"./{name}": content for name, content in files.items()}, mode, links)
    ending = f".{mode}" if mode else ""
    parts = [("debian-binary", b"2.0\n"), (f"control.tar{ending}", control), (f"data.tar{ending}", data)]
    path.write_bytes(b"!<arch>\n" + b"".join(member(name, content) for name, content in parts))
    return path


def picture(mode: str, size: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, "red").save(content, "PNG" if mode == "RGBA" else "JPEG")
    return content.getvalue()


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The four packages, with everything that is used in them and something that is not."""
    folder = tmp_path_factory.mktemp("debs")
    made = []
    for package in LICENCES:
        files = {f"usr/share/doc/{package}/copyright": f"licence of {package}".encode()}
        for each in wanted_files():
            if each.package == package:
                files[f"usr/share/{each.path}"] = picture(
                    *(("RGB", (9, 9)) if each.target is None else ("RGBA", (4, 4)))
                )
        files["usr/share/other.png"] = b"not used"
        made.append(write_deb(folder / f"{package}_2-3_all.deb", package, files))
    return made


@pytest.fixture
def without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of apt-get."""

    def put(script: str) -> None:
        program = tmp_path / "bin" / "apt-get"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")

    return put


def photos(*options: object) -> Result:
    return CliRunner().invoke(cli, ["data", "photos", *map(str, options)], prog_name="learnprop")


def given(debs: list[Path]) -> list[object]:
    return [word for deb in debs for word in ("--deb", deb)]


@pytest.mark.usefixtures("without_apt")
class TestFromFiles:
    def test_everything_in_its_place(self, debs: list[Path], tmp_path: Path) -> None:
        result = photos(*given(debs), "--cache", tmp_path / "cache")
        folder = tmp_path / "cache" / "photos"
        assert result.exit_code == 0, result.output
        assert f"40 cut-outs and 36 backgrounds in {folder}" in result.output
        assert "GPL-2" in result.output
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        licences = {f"licences/{package}.txt" for package in LICENCES}
        assert files == {each.place for each in wanted_files()} | licences | {"labels.csv", "sources.json"}
        assert (folder / "licences" / f"{STAMPS}.txt").read_text() == f"licence of {STAMPS}"
        lines = (folder / "labels.csv").read_text().splitlines()
        assert lines[0] == "file,imagenet_class"
        assert "food/vegetables/broccoli.png,937" in lines
        sources = json.loads((folder / "sources.json").read_text())
        assert [each["version"] for each in sources["packages"]] == ["1:2-3"] * 4
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["photos"], "nothing else is left"

    def test_a_second_call_says_what_is_there(self, debs: list[Path], tmp_path: Path) -> None:
        photos(*given(debs), "--cache", tmp_path)
        result = photos("--cache", tmp_path)
        assert result.exit_code == 0
        assert "they are there already: 40 cut-outs and 36 backgrounds" in result.output

    def test_what_was_deleted_is_made_anew(self, debs: list[Path], tmp_path: Path) -> None:
        photos(*given(debs), "--cache", tmp_path)
        lost = tmp_path / "photos" / "backgrounds" / "Path.jpg"
        lost.unlink()
        assert photos("--cache", tmp_path).exit_code == 1, "there are no packages"
        assert photos(*given(debs), "--cache", tmp_path).exit_code == 0
        assert lost.is_file()

    def test_overwrite(self, debs: list[Path], tmp_path: Path) -> None:
        photos(*given(debs), "--cache", tmp_path)
        mark = tmp_path / "photos" / "mark"
        mark.touch()
        assert "unpacking" in photos(*given(debs), "--cache", tmp_path, "--overwrite").output
        assert not mark.exists()

    def test_missing_packages_are_named(self, debs: list[Path], tmp_path: Path) -> None:
        result = photos(*given(debs[:1]), "--cache", tmp_path)
        assert result.exit_code == 1
        assert "missing lomiri-wallpapers-16.04, mate-backgrounds, plasma-workspace-wallpapers" in result.output
        assert "packages.debian.org" in result.output
        assert "--deb" in result.output

    def test_another_package(self, tmp_path: Path) -> None:
        other = write_deb(tmp_path / "x.deb", "cowsay", {"usr/share/x": b"1"})
        assert "is the package 'cowsay'; needed are" in photos("--deb", other, "--cache", tmp_path).output

    def test_another_version(self, debs: list[Path], tmp_path: Path) -> None:
        found = [each for each in wanted_files() if each.package == STAMPS][:3]
        old = write_deb(tmp_path / "old.deb", STAMPS, {f"usr/share/{each.path}": b"x" for each in found})
        result = photos(*given([old, *debs[1:]]), "--cache", tmp_path)
        assert "3 cut-outs and 36 backgrounds" in result.output
        assert "37 of 76 files are not in these versions" in result.output
        empty = write_deb(tmp_path / "empty.deb", STAMPS, {})
        result = photos(*given([empty, *debs[1:]]), "--cache", tmp_path / "b")
        assert "holds none of the files that are used" in result.output
        assert list((tmp_path / "b").iterdir()) == []


class TestFromApt:
    def test_what_is_not_given_is_fetched(self, debs: list[Path], tmp_path: Path, apt: Callable[[str], None]) -> None:
        apt(f'echo "$@" >> {tmp_path}/asked; cp {debs[0].parent}/$2_* .')
        result = photos(*given(debs[:2]), "--cache", tmp_path / "cache")
        assert result.exit_code == 0, result.output
        asked = (tmp_path / "asked").read_text().splitlines()
        assert asked == ["download mate-backgrounds", "download plasma-workspace-wallpapers"]
        assert "downloading mate-backgrounds (about 47 MB, GPL-2 or later)" in result.output

    def test_a_package_that_apt_does_not_know(self, tmp_path: Path, apt: Callable[[str], None]) -> None:
        apt("echo 'W: sandbox' >&2; echo 'E: Unable to locate package' >&2; exit 100")
        result = photos("--cache", tmp_path / "cache")
        assert result.exit_code == 1
        assert f"apt-get cannot get {STAMPS}: Unable to locate package; run 'apt-get update'" in result.output
        assert list((tmp_path / "cache").iterdir()) == []


class TestPackage:
    @pytest.mark.parametrize("mode", ["xz", "gz", "bz2", ""])
    def test_kinds_of_compression(self, tmp_path: Path, mode: str) -> None:
        deb = write_deb(tmp_path / "a.deb", "a", {"usr/x": b"1", "usr/y": b"2"}, mode)
        assert facts_of(deb) == {"Package": "a", "Version": "1:2-3", "Description": "x"}
        assert list(read_files(deb, {"usr/y", "usr/z"})) == [("usr/y", b"2")]

    def test_paths_and_links_that_lead_out(self, tmp_path: Path) -> None:
        links = {"usr/x": "/etc/passwd", "usr/share": "/"}
        deb = write_deb(tmp_path / "a.deb", "a", {"../evil": b"1", "usr/y": b"2"}, links=links)
        before = sorted(tmp_path.parent.iterdir())
        assert list(read_files(deb, {"usr/x", "usr/y"})) == [("usr/y", b"2")]
        assert sorted(tmp_path.parent.iterdir()) == before

    def test_damaged_files(self, tmp_path: Path) -> None:
        deb = write_deb(tmp_path / "a.deb", "a", {"usr/x": bytes(range(256)) * 99})
        whole = deb.read_bytes()
        for content, message in (
            (b"PK", "no Debian package: it does not begin like an ar archive"),
            (whole[:8], r"cut short: it has no data\.tar"),
            (whole[:-40], r"cannot read the package .*a\.deb"),
            (whole[:-200] + b"\0" * 200, r"cannot read the package .*a\.deb"),
        ):
            deb.write_bytes(content)
            with pytest.raises(LearnpropError, match=message):
                list(read_files(deb, {"usr/x"}))
        with pytest.raises(LearnpropError, match=r"cannot read the package .*b\.deb: No such file"):
            facts_of(tmp_path / "b.deb")

    @pytest.mark.usefixtures("without_apt")
    def test_zstd_without_a_reader(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        deb = write_deb(tmp_path / "a.deb", "a", {"usr/x": b"1"})
        deb.write_bytes(deb.read_bytes().replace(b"data.tar.xz ", b"data.tar.zst"))
        monkeypatch.delattr(tarfile.TarFile, "zstopen", raising=False)
        with pytest.raises(LearnpropError, match=r"needs Python 3\.14 or the program dpkg-deb"):
            list(read_files(deb, {"usr/x"}))

    def test_zstd_by_dpkg(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        deb = write_deb(tmp_path / "a.deb", "a", {"usr/x": b"1"})
        deb.write_bytes(deb.read_bytes().replace(b"data.tar.xz ", b"data.tar.zst"))
        (tmp_path / "content.tar").write_bytes(packed({"./usr/x": b"7"}, ""))
        program = tmp_path / "dpkg-deb"
        program.write_text(f'#!/bin/sh\n[ "$1" = --fsys-tarfile ] && cat {tmp_path}/content.tar\n')
        program.chmod(0o755)
        monkeypatch.delattr(tarfile.TarFile, "zstopen", raising=False)
        monkeypatch.setattr(_debian_package.shutil, "which", lambda name: str(program))
        assert list(read_files(deb, {"usr/x"})) == [("usr/x", b"7")]


def test_the_lists_are_whole() -> None:
    wanted = wanted_files()
    assert len({each.place for each in wanted}) == len(wanted) == 76
    assert {each.package for each in wanted} == set(LICENCES)
    assert all(0 <= each.target < 1000 for each in wanted if each.target is not None)
    assert Wanted(STAMPS, "tuxpaint/stamps/sports/basketball.png", "cutouts/sports/basketball.png", 430) in wanted


def test_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in photos().output
