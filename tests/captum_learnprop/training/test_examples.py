"""Examples: measured once, the same in memory and on disk, and measured again when anything they depend on differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import CLASSES, images, net
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.training import examples
from captum_learnprop.training.data import read_batches
from captum_learnprop.training.distributed import Processes
from captum_learnprop.training.examples import Collection, Examples, collect
from captum_learnprop.training.occlusion import DeletionFills, generator_of, measure_drops
from captum_learnprop.training.quantities import softmax
from captum_learnprop.training.regions import random_regions, unpacked

WHAT: dict[str, Any] = {"quantity": softmax, "name": "softmax", "deletions": 4}


class Counting(nn.Module):
    """A net that counts the images it sees, and is interrupted when they are many."""

    def __init__(self, model: nn.Module, stop_at: float = float("inf")) -> None:
        super().__init__()
        self.model, self.seen, self.stop_at = model, 0, stop_at

    def forward(self, inputs: Tensor) -> Tensor:
        if self.seen >= self.stop_at:
            raise KeyboardInterrupt
        self.seen += len(inputs)
        output: Tensor = self.model(inputs)
        return output


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "SHARD", 5)


def gather(
    data: Any = None, model: nn.Module | None = None, *, folder: Path | None = None, batch_size: int = 32,
    limit: int = 1 << 30, progress: Any = None, **what: Any,
) -> Examples:  # fmt: skip
    """Examples of 12 images in three shards, 5 + 5 + 2."""
    batches = read_batches(images() if data is None else data, batch_size=batch_size)
    return collect(
        Counting(net()) if model is None else model, batches, Collection(**{**WHAT, **what}), processes=Processes(),
        folder=folder, memory_limit=limit, progress=progress,
    )  # fmt: skip


def rows(found: Examples, index: Tensor | None = None) -> dict[str, Tensor]:
    return found.rows(torch.arange(len(found)) if index is None else index)


def assert_same(first: Examples, second: Examples, index: Tensor | None = None) -> None:
    left, right = rows(first, index), rows(second, index)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0)


class TestRows:
    def test_by_hand(self) -> None:
        model, data = net(), images()
        found = rows(gather(data, model, targets_per_image=2, seed=3))
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
            "inputs": (24, 3, 16, 16), "targets": (24,), "regions": (24, 4, 32), "drops": (24, 4),
        }  # fmt: skip
        assert torch.equal(found["inputs"], data.repeat_interleave(2, 0))
        with torch.no_grad():
            assert torch.equal(found["targets"], model(data).topk(2, 1).indices.flatten())
        fills = DeletionFills("images", data[:5])  # of the first shard
        for image in (0, 6, 11):
            generator = generator_of(3, image)
            regions = random_regions(data[image], 4, generator)
            targets = found["targets"][2 * image : 2 * image + 2]
            drops = measure_drops(model, data[image], targets, regions, fills.draw(4, image, generator), softmax)
            for row in (2 * image, 2 * image + 1):  # targets of an image share its deletions
                assert torch.equal(unpacked(found["regions"][row], (3, 16, 16)), regions)
            assert torch.equal(found["drops"][2 * image : 2 * image + 2], drops)
        assert not torch.equal(found["drops"][0], found["drops"][1])

    def test_any_order(self) -> None:
        found = gather(targets_per_image=2)
        order = torch.tensor([23, 0, 9, 10, 10])
        some, everything = found.rows(order), rows(found)
        for name in some:
            assert torch.equal(some[name], everything[name][order])
        assert found.images == 12
        assert torch.equal(found.targets(), everything["targets"])

    def test_labels(self) -> None:
        labels = torch.arange(12) % CLASSES
        found = gather((images(), labels), targets="labels")
        assert torch.equal(found.targets(), labels)
        several = torch.stack([labels, labels.flip(0)], 1)
        assert torch.equal(
            gather((images(), several), targets="labels", targets_per_image=2).targets(), several.flatten()
        )

    def test_without_deletions(self) -> None:
        model = Counting(net())
        assert rows(gather(model=model, deletions=0)).keys() == {"inputs", "targets"}
        assert model.seen == 12

    def test_cost(self) -> None:
        model = Counting(net())
        gather(model=model, targets_per_image=3)
        assert model.seen == 12 * (1 + 1 + 4)  # prediction, and whole and changed images once for all targets

    def test_progress(self) -> None:
        done: list[int] = []
        gather(progress=done.append)
        assert done == list(range(1, 13))


class TestSameRows:
    @pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
    def test_batches_of_the_data(self, batch_size: int) -> None:
        assert_same(gather(batch_size=batch_size), gather())

    def test_other_images_change_nothing(self) -> None:
        """An image in other company, with fills of the same range of colours, loses what it lost before."""
        data = images().clamp(0.01, 0.99)
        data[1, :, 0, 0], data[1, :, 0, 1] = 0.0, 1.0  # the range
        changed = data.clone()
        changed[[0, 2, 4, 7, 11]] = data[[4, 11, 0, 2, 7]]
        kept = torch.tensor([1, 3, 5, 6, 8, 9, 10])
        first, second = (rows(gather(each, fill="colours"), kept) for each in (data, changed))
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-6)
        assert not torch.equal(rows(gather(data))["drops"], rows(gather(changed))["drops"])

    def test_fills_of_other_images_count(self, tmp_path: Path) -> None:
        """What another image shows decides the drops: it must not be read as measured before."""
        data = images()
        changed = data.clone()
        changed[0] = 1 - data[0]
        first, second = (rows(gather(each, folder=tmp_path))["drops"] for each in (data, changed))
        assert not torch.equal(first[5:], second[5:])

    def test_in_memory_and_on_disk(self, tmp_path: Path) -> None:
        for options in ({}, {"deletions": 0}, {"targets_per_image": 3}):
            folder = tmp_path / f"{options}"
            assert_same(gather(folder=folder, **options), gather(**options))
            assert [path.name[:15] for path in sorted(folder.iterdir())] == [
                f"examples-0000{number}-" for number in range(3)
            ]

    def test_seed(self) -> None:
        first, second = rows(gather(seed=1)), rows(gather(seed=2))
        assert not torch.equal(first["regions"], second["regions"])
        assert torch.equal(first["inputs"], second["inputs"])


class TestFolder:
    def test_nothing_is_measured_twice(self, tmp_path: Path) -> None:
        model = Counting(net())
        first = gather(model=model, folder=tmp_path)
        seen = model.seen
        assert_same(gather(model=model, folder=tmp_path), first)
        assert model.seen == seen

    @pytest.mark.parametrize(
        "other",
        [
            {"seed": 1},
            {"deletions": 5},
            {"targets_per_image": 2},
            {"name": "logit"},
            {"targets": "labels"},
            {"model": Counting(net(1))},
            {"model": Counting(nn.Sequential(*list(net())[:2], nn.SiLU(), *list(net())[3:]))},
            {"data": (images(12, seed=1), torch.zeros(12).long())},
        ],
        ids=["seed", "deletions", "targets", "quantity", "labels", "weights", "activation", "images"],
    )
    def test_anything_else_is_measured_again(self, tmp_path: Path, other: dict[str, Any]) -> None:
        data = images(), torch.zeros(12).long()
        gather(data, folder=tmp_path)
        files = {path: path.read_bytes() for path in tmp_path.iterdir()}
        first = gather(data, folder=tmp_path)
        again = gather(**{"data": data, "folder": tmp_path, **other})
        assert_same(again, gather(**{"data": data, **other}))
        assert len(list(tmp_path.iterdir())) == 2 * len(files)
        assert all(path.read_bytes() == content for path, content in files.items())
        assert_same(first, gather(data))  # what another run reads stays as it was

    def test_one_changed_image_costs_its_own_shard(self, tmp_path: Path) -> None:
        data = images()
        gather(data, folder=tmp_path)
        data[7, 0, 3, 3] += 0.125
        model = Counting(net())
        assert_same(gather(data, model, folder=tmp_path), gather(data))
        assert model.seen == 5 * 6

    def test_the_range_of_the_first_shard_is_that_of_all_fills(self, tmp_path: Path) -> None:
        data = images()
        gather(data, folder=tmp_path)
        data[2, 0, 0, 0] = 3.0
        model = Counting(net())
        gather(data, model, folder=tmp_path)
        assert model.seen == 12 * 6

    @pytest.mark.parametrize("kept", [0, 7, 300])
    def test_a_cut_file_is_measured_again(self, tmp_path: Path, kept: int) -> None:
        expected = gather(folder=tmp_path)
        (path,) = tmp_path.glob("examples-00001-*.safetensors")
        path.write_bytes(path.read_bytes()[:kept])
        model = Counting(net())
        assert_same(gather(model=model, folder=tmp_path), expected)
        assert model.seen == 5 * 6

    def test_an_interrupted_collection_goes_on(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            gather(model=Counting(net(), stop_at=40), folder=tmp_path)
        assert [path.name[:15] for path in tmp_path.iterdir()] == ["examples-00000-"]
        model = Counting(net())
        assert_same(gather(model=model, folder=tmp_path), gather())
        assert model.seen == 7 * 6

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.raises(LearnpropError, match=r"cannot write examples to .*examples-00000.*No space left"):
            gather(folder=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(LearnpropError, match=r"cannot make the folder .*file"):
            gather(folder=tmp_path / "file" / "examples")


class TestErrors:
    def test_memory(self, tmp_path: Path) -> None:
        size = 5 * (3 * 16 * 16 * 4 + 8 + 4 * 16 * 16 // 8 + 4 * 4)
        assert gather(limit=2 * size).temporary is None  # two whole shards fit, the rest is not counted
        assert gather(limit=0, folder=tmp_path).temporary is None
        for limit in (0, size, 2 * size - 1):
            spilled = gather(limit=limit)
            assert spilled.temporary is not None
            folder = Path(spilled.temporary.name)
            assert [path.name[:15] for path in sorted(folder.iterdir())] == [f"examples-0000{n}-" for n in range(3)]
            assert_same(spilled, gather())
            del spilled
            assert not folder.exists()

    def test_several_processes_need_a_folder_that_all_see(self) -> None:
        store = examples._Store(net(), Collection(**WHAT), Processes(rank=0, world=2), None)
        with pytest.raises(LearnpropError, match="a folder that all processes see"):
            store.spill()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"targets": "labels"}, "targets='labels', but the data have none"),
            ({"targets_per_image": CLASSES + 1}, f"targets_per_image=5, but the model has {CLASSES} classes"),
            ({"data": (images(), torch.full((12,), -1)), "targets": "labels"}, r"label \[-1\] of image 0"),
            (
                {"data": (images(), torch.tensor([0] * 7 + [4] * 5)), "targets": "labels"},
                r"label \[4\] of image 7 is out of range: the model has 4 classes",
            ),
            (
                {"data": (images(), torch.zeros(12)), "targets": "labels"},
                r"class indices, 1 per image .* torch.float32",
            ),
            (
                {"data": (images(), torch.zeros(12).long()), "targets": "labels", "targets_per_image": 2},
                "class indices, 2 per image",
            ),
            ({"model": nn.Conv2d(3, 2, 3)}, r"must return \(B, classes\), it returned \(5, 2, 14, 14\)"),
        ],
    )
    def test_what_cannot_be_measured(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(LearnpropError, match=message):
            gather(**options)

    def test_an_output_that_is_not_finite(self) -> None:
        class Odd(Counting):
            def forward(self, inputs: Tensor) -> Tensor:
                output = super().forward(inputs)
                return torch.where((inputs[:, 0, 0, 0] == 7)[:, None], torch.nan, output)

        data = images()
        data[8, 0, 0, 0] = 7
        with pytest.raises(LearnpropError, match="NaN or infinite for image 8"):
            gather(data, Odd(net()))
