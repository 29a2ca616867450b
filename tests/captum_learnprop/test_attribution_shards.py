"""Many maps in a file, by processes that may die: nothing twice, nothing missing, the same files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from safetensors.torch import load_file

from captum_learnprop import attribution_shards, claims
from captum_learnprop.attribution_shards import Part, Result, ShardStore
from captum_learnprop.attribution_store import StoredMap
from captum_learnprop.claims import claim, locks_work
from captum_learnprop.errors import LearnpropError
from captum_learnprop.images import ImageFile

COUNT, SIZE = 21, 4


def listed(count: int = COUNT) -> Iterator[ImageFile]:
    for number in range(count):
        yield ImageFile(
            f"{number:02d}\udcff.png".encode("utf-8", "backslashreplace").decode(), Path(f"/x/{number}\udcff")
        )


def begin(folder: Path, options: Mapping[str, Any] | None = None, **changed: Any) -> ShardStore:
    given: dict[str, Any] = {
        "about": lambda: {"class_names": ["hen", "cock"], "labels": None, "about": ""}, "images": listed(),
        "left_out": {}, "shard_size": SIZE, "batch_size": 2, "processes": 1, "first": True, **changed,
    }  # fmt: skip
    return ShardStore.begin(folder, options or {"method": "m", "model": "n"}, **given)


def result(part: Part, image: ImageFile) -> Result:
    number = part.numbers[image.id]
    stored = StoredMap(
        torch.full((1, 2, 3), float(number)), torch.tensor([1.0, number]), number % 2, b"\xff" * (number % 3)
    )
    return Result(number, image.id, f"digest{number}", stored)


def work(part: Part, batch: int = 2, stop: Callable[[int], bool] = lambda number: False) -> list[int]:
    """Does a part, in batches; stands for a process that dies where it is told to stop."""
    found = []
    for start in range(0, len(part.images), batch):
        images = [image for image in part.images[start : start + batch] if not part.has(image)]
        if any(stop(part.numbers[image.id]) for image in images):
            part.release()
            return found
        skipped = {image.id: "odd" for image in images if part.numbers[image.id] == 7}
        part.write([result(part, image) for image in images if image.id not in skipped], skipped)
        found += [part.numbers[image.id] for image in images]
    part.close()
    return found


def run(store: ShardStore, rank: int, world: int, **how: Any) -> list[int]:
    parts = (store.open_part(number) for number in store.to_do(rank, world))
    return [number for part in parts if part is not None for number in work(part, **how)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    assert run(begin(tmp_path / "whole"), 0, 1) == list(range(COUNT))
    return contents(tmp_path / "whole")


class TestShards:
    def test_what_is_in_one(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        assert sorted(whole) == [f"shards/0000/{part:08d}.safetensors" for part in range(6)]
        tensors = load_file(tmp_path / "whole" / "shards" / "0000" / "00000001.safetensors")
        assert tensors["attribution"][:, 0, 0, 0].tolist() == [4, 5, 6]
        assert tensors["number"].tolist() == [4, 5, 6]
        assert tensors["target"].tolist() == [0, 1, 0]
        shards = list(ShardStore(tmp_path / "whole").shards())
        assert [len(shard) for shard in shards] == [4, 3, 4, 4, 4, 1]
        assert shards[1].skipped == {"07\\udcff.png": "odd"}
        assert [picture for shard in shards for picture in shard.thumbnails()][:3] == [b"", b"\xff", b"\xff\xff"]
        (card, *_) = shards[0].cards(["hen", "cock"], thumbnails=True)
        assert (card.id, card.prediction.predicted_name) == ("00\\udcff.png", "hen")

    def test_paths_come_back_to_the_last_byte(self, tmp_path: Path) -> None:
        part = begin(tmp_path / "out").open_part(5)
        assert part is not None
        assert [os.fsencode(image.path) for image in part.images] == [b"/x/20\xff"]

    def test_hdf5(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        with h5py.File(ShardStore(tmp_path / "whole").write_hdf5()) as file:
            numbers = [number for number in range(COUNT) if number != 7]
            assert file["attribution"][:, 0, 1, 2].tolist() == numbers
            assert file["label"][:].tolist() == [number % 2 for number in numbers]
            assert file["prediction"][:, 1].tolist() == numbers
            assert len(file["id"]) == 20

    def test_a_part_of_nothing_but_faults(self, tmp_path: Path) -> None:
        part = begin(tmp_path / "out").open_part(0)
        assert part is not None
        part.write([], {image.id: "gone" for image in part.images})
        part.close()
        (shard,) = ShardStore(tmp_path / "out").shards()
        assert (len(shard), len(shard.skipped), list(shard.cards([], thumbnails=True))) == (0, 4, [])

    @pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
    def test_rows_are_in_the_order_of_the_list(self, tmp_path: Path, whole: dict[str, bytes], order: list[int]) -> None:
        part = begin(tmp_path / "out").open_part(0)
        assert part is not None
        for place in order:
            part.write([result(part, part.images[place])], {})
        part.close()
        name = "shards/0000/00000000.safetensors"
        assert contents(tmp_path / "out")[name] == whole[name]

    def test_default_size(self) -> None:
        size = attribution_shards._default_size
        assert size(10**7, 32, 8) == 256
        assert size(500, 8, 2) == 24
        assert size(5, 8, 2) == 8
        assert size(10**7, 96, 8) == 192


class TestDeath:
    @pytest.mark.parametrize("at", range(0, COUNT, 3))
    @pytest.mark.parametrize("world", [1, 2, 5])
    def test_costs_what_was_not_written_and_no_more(
        self, tmp_path: Path, whole: dict[str, bytes], at: int, world: int
    ) -> None:
        store = begin(tmp_path / "out")
        first = run(store, 0, 2, stop=lambda number: number == at)
        then = [number for rank in range(world) for number in run(ShardStore(tmp_path / "out"), rank, world)]
        assert sorted(first + then) == list(range(COUNT))
        assert contents(tmp_path / "out") == whole

    def test_another_batch_size(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        first = run(begin(tmp_path / "out"), 0, 1, batch=3, stop=lambda number: number in (3, 9))
        then = run(begin(tmp_path / "out"), 0, 1, batch=1)
        assert sorted(first + then) == list(range(COUNT))
        assert contents(tmp_path / "out") == whole

    def test_between_the_shard_and_its_pieces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attribution_shards.shutil, "rmtree", lambda *_, **__: None)
        store = begin(tmp_path / "out")
        run(store, 0, 1)
        monkeypatch.undo()
        assert len(list((tmp_path / "out").rglob("*.part"))) == 6
        (tmp_path / "out" / "shards" / "0000" / ".0f.safetensors").write_bytes(b"half")
        assert run(store, 0, 1) == []
        store.clean()
        assert len(list((tmp_path / "out" / "shards" / "0000").iterdir())) == 6

    def test_a_damaged_shard_is_named(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        (tmp_path / "whole" / "shards" / "0000" / "00000002.safetensors").write_bytes(b"half")
        with pytest.raises(LearnpropError, match=r"cannot read the shard .*00000002\.safetensors"):
            list(ShardStore(tmp_path / "whole").shards())


class TestSharing:
    def test_at_once_nothing_is_done_twice(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        stores = [begin(tmp_path / "out", processes=3, first=not rank) for rank in range(3)]
        lines = [iter(store.to_do(rank, 3)) for rank, store in enumerate(stores)]
        found: list[int] = []
        opened: list[Part] = []
        while lines:
            for store, line in zip(stores, list(lines), strict=False):
                number = next(line, None)
                if number is None:
                    lines.remove(line)
                    continue
                part = store.open_part(number)
                if part is not None:
                    opened.append(part)
                if len(opened) > 2 or part is None:
                    found += [each for one in opened for each in work(one)]
                    opened.clear()
        found += [each for one in opened for each in work(one)]
        assert sorted(found) == list(range(COUNT))
        assert contents(tmp_path / "out") == whole

    def test_a_part_is_one_process_s(self, tmp_path: Path) -> None:
        store, other = begin(tmp_path / "out"), begin(tmp_path / "out")
        part = store.open_part(3)
        assert part is not None
        assert other.open_part(3) is None
        part.release()
        assert other.open_part(3) is not None

    def test_without_locks_each_does_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("no locks available")

        for module in (claims, attribution_shards):
            monkeypatch.setattr(module, "claim", refuse)
        store = begin(tmp_path / "out")
        second = begin(tmp_path / "out", first=False)
        assert run(store, 0, 2) == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
        assert run(second, 1, 2) == [4, 5, 6, 7, 12, 13, 14, 15, 20]
        assert store.finishing() is not None
        monkeypatch.setattr(attribution_shards, "PATIENCE", 0.3)
        with pytest.raises(LearnpropError, match="is the process of rank 0 at work"):
            begin(tmp_path / "late", first=False)

    def test_a_lock_ends_with_its_process(self, tmp_path: Path) -> None:
        child = os.fork()
        if not child:
            claim(tmp_path / "lock")
            os._exit(0)
        os.waitpid(child, 0)
        assert claim(tmp_path / "lock") is not None
        assert locks_work(tmp_path)


class TestManifest:
    def test_the_list_is_that_of_the_first(self, tmp_path: Path) -> None:
        begin(tmp_path / "out")
        assert begin(tmp_path / "out", images=listed(3), shard_size=9).count == COUNT
        assert ShardStore(tmp_path / "out").size == SIZE

    def test_other_options(self, tmp_path: Path) -> None:
        begin(tmp_path / "out")
        with pytest.raises(LearnpropError, match="method: 'm' there, 'other' now"):
            begin(tmp_path / "out", {"method": "other", "model": "n"})

    def test_a_folder_of_somebody_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(LearnpropError, match="was not written by `learnprop attribute`"):
            begin(tmp_path)
        with pytest.raises(LearnpropError, match="holds no run"):
            ShardStore(tmp_path)
        (tmp_path / "manifest.json").write_text(json.dumps({"options": {}, "format": 2}))
        with pytest.raises(LearnpropError, match="none in shards"):
            ShardStore(tmp_path)

    def test_an_error_while_listing_leaves_no_run(self, tmp_path: Path) -> None:
        def broken() -> Iterator[ImageFile]:
            yield from listed(2)
            raise LearnpropError("no more")

        with pytest.raises(LearnpropError, match="no more"):
            begin(tmp_path / "out", images=broken())
        assert begin(tmp_path / "out").count == COUNT

    def test_a_list_that_was_changed(self, tmp_path: Path) -> None:
        store = begin(tmp_path / "out")
        path = tmp_path / "out" / "images.jsonl"
        path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:-1]) + b"\n")
        with pytest.raises(LearnpropError, match="has 20 lines in place of 21"):
            store.open_part(0)
