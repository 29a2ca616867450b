"""What a browser may send, and the sentence that everything else gets."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_learnprop.web import uploads
from captum_learnprop.web.uploads import UploadError, read_folder, read_upload, read_uploads


def picture(path: Path, size: tuple[int, int] = (12, 8)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few bytes whose header promises ``side * side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "ppm"])
def test_formats_that_are_taken(tmp_path: Path, suffix: str) -> None:
    found = read_upload(picture(tmp_path / f"a.{suffix}"))
    assert (found.mode, found.size) == ("RGB", (12, 8))


def test_the_orientation_of_a_camera_is_applied(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "a.jpg", exif=turned)
    assert read_upload(tmp_path / "a.jpg").size == (8, 12)


@pytest.mark.parametrize("side", [6_000, 60_000])
def test_a_bomb_is_never_decoded(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(UploadError, match="25 million"):
        read_upload(bomb(tmp_path / "bomb.png", side))


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(uploads.MAX_BYTES + 1)
    with pytest.raises(UploadError, match=r"a\.png has 20 MB; a picture may have 20 MB"):
        read_upload(tmp_path / "a.png")


def test_the_content_tells_the_format_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "code.png").write_text("import os")
    with pytest.raises(UploadError, match=r"code\.png is no picture, or of a format that is not taken here: use PNG"):
        read_upload(tmp_path / "code.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "eps.png")
    with pytest.raises(UploadError, match="format that is not taken"):
        read_upload(tmp_path / "eps.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(UploadError, match="format that is not taken"):
        read_upload(tmp_path / "a.tiff")


def test_a_damaged_picture(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png", (90, 80)).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UploadError, match=r"a\.png is damaged or cut short"):
        read_upload(tmp_path / "a.png")


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match=r"a\.png cannot be read: No such file"):
        read_upload(tmp_path / "a.png")


def test_several_leave_out_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"")
    found, said = read_uploads([picture(tmp_path / "a.png"), tmp_path / "b.png"])
    assert (len(found), len(said)) == (1, 1)
    assert said[0].startswith("b.png is no picture")
    found, said = read_folder(tmp_path)
    assert (len(found), len(said)) == (1, 1)


def test_several_of_which_none_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UploadError, match=r"b\.png is no picture"):
        read_uploads([tmp_path / "b.png"])
    with pytest.raises(UploadError, match="choose some files"):
        read_uploads([])
    with pytest.raises(UploadError, match="501 files are too many"):
        read_uploads([tmp_path / "a.png"] * 501)
