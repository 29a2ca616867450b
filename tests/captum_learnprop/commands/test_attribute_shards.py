"""``learnprop attribute`` in several processes, and ``learnprop merge``."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from launched import FORKSERVER, _run, launch
from PIL import Image
from test_cli_attribute import Stubborn, attribute, attributions, check_error, images, parts, report

from captum_learnprop.attribution_shards import ShardStore
from captum_learnprop.cli import cli
from captum_learnprop.commands._processes import Process

__all__ = ["images", "parts"]  # fixtures


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "shards").rglob("*.safetensors")}


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def sharded(images: Path, out: Path, *options: str, **fixed: Any) -> Result:
    return attribute(images, out, "--layout", "shards", "--shard-size", "2", "--batch-size", "1", *options, **fixed)


def merge(out: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["merge", "--out", str(out), *options])


class TestOneProcess:
    def test_gives_what_files_give(self, images: Path, tmp_path: Path) -> None:
        (images / "broken.png").write_text("no image")
        assert attribute(images, tmp_path / "files", "--batch-size", "1").exit_code == 0
        result = sharded(images, tmp_path / "shards")
        assert result.exit_code == 0, result.output
        assert "5 of 6 images done, 1 skipped" in result.stdout
        merged = merge(tmp_path / "shards")
        assert merged.exit_code == 0, merged.output
        with (
            h5py.File(tmp_path / "shards" / "attributions.h5") as new,
            h5py.File(tmp_path / "files" / "attributions.h5") as old,
        ):
            assert set(new) == set(old)
            for name in old:
                np.testing.assert_array_equal(new[name][:], old[name][:])
        tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("files", "shards")]
        assert tables[0] == tables[1]
        pages = [(tmp_path / name / "index.html").read_text() for name in ("files", "shards")]
        assert [page.count("data:image/jpeg") for page in pages] == [5, 5]
        assert report(tmp_path / "shards")["skipped"][0]["id"] == "broken.png"

    def test_interrupted(self, images: Path, tmp_path: Path) -> None:
        sharded(images, tmp_path / "whole", method="stubborn")
        Stubborn.calls, Stubborn.interrupt_at = 0, 4
        stopped = sharded(images, tmp_path / "out", method="stubborn")
        assert stopped.exit_code == 130
        assert "stopped after 3 images; the same command resumes" in stopped.stderr
        assert "4 of" not in stopped.stdout
        check_error(merge(tmp_path / "out"), "2 of 3 shards are missing", "--partial")
        assert "2 of 5 images done" in merge(tmp_path / "out", "--partial", "--no-hdf5").stdout
        resumed = attribute(images, tmp_path / "out", "--batch-size", "1", method="stubborn")
        assert resumed.exit_code == 0, resumed.output
        assert Stubborn.calls == 6  # the interrupted one again
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_labels_of_a_csv_and_of_folders(self, images: Path, tmp_path: Path) -> None:
        (images / "some.csv").write_text("path,label\n3.png,4\n1.png,0\n2.png,\n")
        assert sharded(images / "some.csv", tmp_path / "out", "--target", "label").exit_code == 0
        with (tmp_path / "out" / "predictions.csv").open() as file:
            assert {row["id"]: row["target"] for row in csv.DictReader(file)} == {"1.png": "0", "3.png": "4"}
        for number in (1, 4):
            (images / str(number)).mkdir()
            (images / f"{number}.png").rename(images / str(number) / "a.png")
        check_error(sharded(images, tmp_path / "x", "--target", "label-from-folder"), "0.png lies in no sub-folder")
        for left in (0, 2, 3):
            (images / f"{left}.png").unlink()
        assert sharded(images, tmp_path / "y", "--target", "label-from-folder").exit_code == 0
        with (tmp_path / "y" / "predictions.csv").open() as file:
            assert {row["id"]: row["target"] for row in csv.DictReader(file)} == {"1/a.png": "1", "4/a.png": "4"}

    def test_layouts_do_not_mix(self, images: Path, tmp_path: Path) -> None:
        assert sharded(images, tmp_path / "shards").exit_code == 0
        assert attribute(images, tmp_path / "files").exit_code == 0
        check_error(attribute(images, tmp_path / "shards", "--layout", "files"), "holds a run in shards")
        check_error(sharded(images, tmp_path / "files"), "one file an image, and none in shards")
        check_error(merge(tmp_path / "files"), "one file an image, and none in shards")
        check_error(sharded(images, tmp_path / "other", "--dataset-file"), "--dataset-file is for one file an image")
        check_error(attribute(images, tmp_path / "other", "--shard-size", "3"), "--shard-size means nothing")
        assert attribute(images, tmp_path / "shards", "--layout", "files", "--overwrite").exit_code == 0
        assert len(attributions(tmp_path / "shards")) == 5
        assert not (tmp_path / "shards" / "shards").exists()

    def test_nothing_is_left_to_explain(self, images: Path, tmp_path: Path) -> None:
        for _ in range(2):
            assert sharded(images, tmp_path / "out", method="stubborn").exit_code == 0
        assert Stubborn.calls == 5


class TestSeveralProcesses:
    def test_one_after_the_other(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sharded(images, tmp_path / "whole")
        # What a process that died in the middle leaves is taken over, by whatever number of processes.
        Stubborn.interrupt_at = 2
        as_rank(monkeypatch, 1, 2)
        first = attribute(images, tmp_path / "out", "--shard-size", "2", "--batch-size", "1", method="stubborn")
        assert first.exit_code == 130
        as_rank(monkeypatch, 2, 3)
        second = attribute(images, tmp_path / "out", "--batch-size", "1", method="stubborn")
        assert second.exit_code == 0, second.output
        assert "5 of 5 images done" in second.stdout
        assert Stubborn.calls == 6
        tensors = [shard.tensor("attribution") for shard in ShardStore(tmp_path / "out").shards()]
        expected = [shard.tensor("attribution") for shard in ShardStore(tmp_path / "whole").shards()]
        torch.testing.assert_close(tensors, expected, rtol=0, atol=0)

    def test_mistakes(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        as_rank(monkeypatch, 0, 2)
        check_error(attribute(images, tmp_path / "out", "--layout", "files"), "2 processes write shards")
        check_error(attribute(images, tmp_path / "out", "--overwrite"), "each would delete what others wrote")
        monkeypatch.setenv("RANK", "2")
        check_error(attribute(images, tmp_path / "out"), "RANK=2 is none of 0 to 1")
        monkeypatch.delenv("RANK")
        check_error(attribute(images, tmp_path / "out"), "WORLD_SIZE=2 says that there are 2 processes")
        monkeypatch.delenv("WORLD_SIZE")
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
        assert Process.of_environment() == Process(1, 3, 1)
        assert not (tmp_path / "out").exists()

    def test_each_has_a_gpu(self) -> None:
        assert [Process(rank, 4, rank % 2).device("cuda", 2) for rank in range(4)] == ["cuda:0", "cuda:1"] * 2
        assert Process().device("cuda", 2) == "cuda"
        assert Process(1, 2, 1).device("cpu", 0) == "cpu"

    @pytest.mark.slow
    def test_torchrun(self, tmp_path: Path) -> None:
        pictures(tmp_path / "images", 24)
        launch(["-m", *command(tmp_path, "out")], 2, tmp_path, "torchrun")
        assert sorted(contents(tmp_path / "out")) == [f"shards/0000/{part:08d}.safetensors" for part in range(6)]
        assert json.loads((tmp_path / "out" / "report.json").read_text())["done"] == 24

    def test_a_killed_one(self, tmp_path: Path) -> None:
        count = 160
        pictures(tmp_path / "images", count)
        done = CliRunner().invoke(cli, [*command(tmp_path, "whole")[1:], "--layout", "shards"])
        assert done.exit_code == 0, done.output
        victims = [start(tmp_path, rank, 2) for rank in range(2)]
        shards = tmp_path / "out" / "shards" / "0000"
        end = time.monotonic() + 120
        while not list(shards.glob("*.safetensors")) and time.monotonic() < end:
            time.sleep(0.002)
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.join()
        left = len(contents(tmp_path / "out"))
        resumed = CliRunner().invoke(cli, command(tmp_path, "out")[1:])
        assert resumed.exit_code == 0, resumed.output
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert 1 <= left < count // 4  # they were killed in the middle
        numbers = [
            number for shard in ShardStore(tmp_path / "out").shards() for number in shard.tensor("number").tolist()
        ]
        assert numbers == list(range(count))


def pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def command(folder: Path, out: str) -> list[str]:
    method = ["--model", "digits_cnn", "--size", "64", "--method", "saliency", "--threads", "1"]
    where = ["--images", str(folder / "images"), "--out", str(folder / out), "--batch-size", "2", "--shard-size", "4"]
    return ["captum_learnprop.cli", "attribute", *method, *where]


def start(folder: Path, rank: int, world: int) -> Any:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    arguments = (["-m", *command(folder, "out")], environment, folder / f"killed-{rank}")
    process = FORKSERVER.Process(target=_run, args=arguments)
    process.start()
    return process
