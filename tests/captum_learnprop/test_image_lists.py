"""Images named by folders, lists, CSV files and archives."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from captum_learnprop import images as images_module
from captum_learnprop.errors import LearnpropError
from captum_learnprop.image_lists import list_images, stream_images
from captum_learnprop.images import ImageFile, UnreadableImageError


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), colour).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def ids(images: list[ImageFile]) -> list[str]:
    return [image.id for image in images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a/x.png", "a-b.png", "a/sub/y.jpg", "ab.png", "note.md", ".hidden.png", "a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(png())
    return tmp_path / "in"


class TestFolder:
    @pytest.mark.parametrize("recursive", [True, False])
    def test_the_stream_has_the_images_and_the_order_of_the_list(self, folder: Path, recursive: bool) -> None:
        os.mkfifo(folder / "pipe.png")
        (folder / "lost.png").symlink_to("nowhere")
        (folder / "found.png").symlink_to("a.png")
        listed: dict[str, str] = {}
        streamed: dict[str, str] = {}
        expected = list_images(folder, recursive=recursive, left_out=listed)
        assert list(stream_images(folder, streamed, recursive=recursive)) == expected
        assert len(expected) == (7 if recursive else 5)
        assert streamed == listed
        assert len(listed) == 2

    def test_what_is_written_inside_does_not_count(self, folder: Path) -> None:
        found = list(stream_images(folder, {}, recursive=True, exclude=folder / "a"))
        assert ids(found) == ["a-b.png", "a.png", "ab.png", "b.png"]

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(LearnpropError, match="no image in"):
            list(stream_images(tmp_path, {}))
        with pytest.raises(LearnpropError, match="no such folder or file"):
            list_images(tmp_path / "missing")

    def test_one_image(self, folder: Path) -> None:
        assert ids(list_images(folder / "b.png")) == ids(list(stream_images(folder / "b.png", {}))) == ["b.png"]


class TestList:
    def test_paths_are_relative_to_the_list(self, folder: Path) -> None:
        absolute = str(folder / "ab.png")
        (folder / "some.txt").write_text(f"# mine\nb.png\n\n./a/x.png\n{absolute}\n../in/a.png\nb.png\n")
        faults: dict[str, str] = {}
        found = list_images(folder / "some.txt", left_out=faults)
        assert ids(found) == sorted(["b.png", "a/x.png", absolute.lstrip("/"), "in/a.png"])
        assert {image.image().size for image in found} == {(6, 5)}
        assert faults == {"b.png": "is listed twice"}
        assert len(list(stream_images(folder / "some.txt", {}))) == 4

    def test_an_id_never_leads_out(self, folder: Path) -> None:
        (folder / "some.lst").write_text("../../../../etc/a.png\n/../b.png\n")
        assert ids(list_images(folder / "some.lst")) == ["b.png", "etc/a.png"]

    def test_missing_files_are_told_when_they_are_read(self, folder: Path) -> None:
        (folder / "some.txt").write_text("gone.png\n")
        (image,) = list_images(folder / "some.txt")
        with pytest.raises(UnreadableImageError, match=r"cannot read image gone\.png"):
            image.image()

    @pytest.mark.parametrize(
        "text",
        ["b.png,3\na.png,cat\nab.png\n", "path,label\nb.png,3\na.png,cat\nab.png,\n", "label,size,image\n3,1,b.png\n"
         "cat,1,a.png\n,1,ab.png\n", "\ufefffile,label\r\nb.png,3\r\na.png, cat \r\nab.png,\r\n"],
    )  # fmt: skip
    def test_csv(self, folder: Path, text: str) -> None:
        (folder / "some.csv").write_text(text, encoding="utf-8")
        found = list_images(folder / "some.csv")
        assert {image.id: image.label for image in found} == {"a.png": "cat", "ab.png": None, "b.png": "3"}
        assert found[0].path == folder / "a.png"

    def test_a_row_without_a_path(self, folder: Path) -> None:
        (folder / "some.csv").write_text("path,label\n,3\n")
        with pytest.raises(LearnpropError, match="has a row without a path: ',3'"):
            list_images(folder / "some.csv")

    def test_nothing_listed(self, folder: Path) -> None:
        (folder / "some.txt").write_text("# nothing\n")
        with pytest.raises(LearnpropError, match="no image in"):
            list_images(folder / "some.txt")


MEMBERS = {
    "n1/0001.cls": b"7\n", "n1/0001.png": png("red"), "0002.jpg": png("lime"), "0002.cls": b"tabby",
    "0002.json": b"{}", "0003.png": png("blue"), "0004.cls": b"1",
}  # fmt: skip


class TestTar:
    def test_images_with_their_labels(self, tmp_path: Path) -> None:
        found = list_images(tar_of(tmp_path / "a.tar", MEMBERS))
        assert {image.id: image.label for image in found} == {"0002.jpg": "tabby", "0003.png": None, "n1/0001.png": "7"}
        colours = {image.id: image.image().getpixel((0, 0)) for image in found}
        assert colours == {"0002.jpg": (0, 255, 0), "0003.png": (0, 0, 255), "n1/0001.png": (255, 0, 0)}
        for image in found:
            copy = tmp_path / "copy.png"
            copy.write_bytes(image.content())
            assert ImageFile("copy.png", copy).sha256() == image.sha256()

    def test_in_a_list(self, tmp_path: Path) -> None:
        tar_of(tmp_path / "a.tar", MEMBERS)
        tar_of(tmp_path / "b.tar", {"0002.jpg": png()})
        (tmp_path / "all.txt").write_text("a.tar\nb.tar\n")
        assert ids(list_images(tmp_path / "all.txt")) == ["a/0002.jpg", "a/0003.png", "a/n1/0001.png", "b/0002.jpg"]

    def test_broken_members_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("captum_learnprop.image_lists.MAX_BYTES", 500)
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as archive:
            for name, content in (("ok.png", png()), ("large.png", bytes(501)), ("noise.png", b"noise")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            for name, kind in (("link.png", tarfile.SYMTYPE), ("pipe.png", tarfile.FIFOTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "/etc/passwd"
                archive.addfile(member)
        faults: dict[str, str] = {}
        found = list_images(path, left_out=faults)
        assert ids(found) == ["noise.png", "ok.png"]
        assert faults == {
            "large.png": "has 501 bytes, more than 500",
            "link.png": "is no regular member of the archive",
            "pipe.png": "is no regular member of the archive",
        }
        with pytest.raises(UnreadableImageError, match=r"cannot read image noise\.png: cannot identify image file"):
            found[0].image()

    @pytest.mark.parametrize("cut", ["header", "content", "noise"])
    def test_what_comes_before_damage_counts(self, tmp_path: Path, cut: str) -> None:
        path = tar_of(tmp_path / "a.tar", {"1.png": png(), "2.png": png(), "3.png": png()})
        data = bytearray(path.read_bytes())
        if cut == "noise":
            data[2048:2560] = b"?" * 512
        path.write_bytes(data[: {"header": 2048 + 100, "content": 1024 + 512 + 20, "noise": len(data)}[cut]])
        faults: dict[str, str] = {}
        found = list_images(path, left_out=faults)
        assert ids(found) == ["1.png", "2.png"]
        assert "damaged after" in faults["a.tar"]
        if cut == "content":
            with pytest.raises(UnreadableImageError, match=r"2\.png: a\.tar ends inside of it"):
                found[1].image()

    def test_compressed_archives_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar.gz").write_bytes(b"")
        with pytest.raises(LearnpropError, match=r"a\.tar\.gz is a compressed archive"):
            list_images(tmp_path / "a.tar.gz")

    def test_an_image_of_absurd_size(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images_module, "MAX_BYTES", 10)
        with pytest.raises(UnreadableImageError, match=r"b\.png: has \d+ bytes, more than 10"):
            ImageFile("b.png", folder / "b.png").image()
