"""Writing whole files, and what is said when that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from captum_learnprop import files
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.files import WriteError, check_folder, printable, replacing, write_bytes, write_text
from zennit_rules import rule_file


def full(number: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestWriting:
    @pytest.mark.parametrize("name", ["a" * 255, "b" * 250 + ".json", "c." + "d" * 253, "é" * 127, "a\nb", "dot. "])
    def test_any_name_that_the_disk_takes(self, tmp_path: Path, name: str) -> None:
        assert write_text(tmp_path / name, "ä\udcff").read_bytes() == "ä".encode() + rb"\udcff"
        assert os.listdir(tmp_path) == [name]

    def test_a_full_disk_is_told_and_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_bytes(tmp_path / "a.json", b"old")
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(WriteError, match=r"cannot write .*a\.json: No space left on device$") as error:
            write_bytes(tmp_path / "a.json", b"new")
        assert error.value.errno == errno.ENOSPC
        assert isinstance(error.value, LearnpropError)
        assert (tmp_path / "a.json").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a.json"]

    def test_a_name_that_does_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(WriteError, match="File name too long"):
            write_bytes(tmp_path / ("a" * 256), b"")
        assert os.listdir(tmp_path) == []

    def test_an_error_of_the_content_is_left_alone(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), replacing(tmp_path / "a"):
            raise KeyError
        assert os.listdir(tmp_path) == []


class TestRuleFiles:
    """What zennit_rules writes: the same way, with the system's own error, and into folders that exist."""

    def test_a_full_disk_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.safetensors"
        rule_file.write(path, "key", {"a": 1}, {})
        before = path.read_bytes()
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            rule_file.write(path, "key", {"a": 2}, {})
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["a.safetensors"]

    def test_a_missing_folder_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            rule_file.write(tmp_path / "none" / "a.safetensors", "key", {}, {})
        assert os.listdir(tmp_path) == []


class TestCheckFolder:
    def test_makes_nothing(self, tmp_path: Path) -> None:
        check_folder(tmp_path / "new" / "folder")
        assert os.listdir(tmp_path) == []

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("")
        for path in (tmp_path / "a", tmp_path / "a" / "b"):
            with pytest.raises(LearnpropError, match=r"--out .*a is a file; name a folder"):
                check_folder(path)

    def test_a_folder_that_is_read_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files.os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
        with pytest.raises(LearnpropError, match=r"cannot write --out .*new: no permission to write to "):
            check_folder(tmp_path / "new")


def test_printable_is_one_line() -> None:
    assert printable("cät 1.png") == "cät 1.png"
    assert printable("a\n\x1b[31m\udcff") == r"a\n\x1b[31m\udcff"
    printable("\udcff\n").encode()


def test_did_you_mean() -> None:
    assert did_you_mean("salincy", ["saliency", "cdam"]) == "; did you mean 'saliency'?"
    assert did_you_mean("default", ["DEFAULT"]) == "; did you mean 'DEFAULT'?"
    assert did_you_mean("x", ["saliency"]) == did_you_mean("x", []) == ""
