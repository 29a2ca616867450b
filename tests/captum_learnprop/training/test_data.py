"""read_batches: whatever data come as, images and labels are the same, in order; bad data are told of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from captum_learnprop.errors import InputWarning, LearnpropError
from captum_learnprop.training.data import read_batches, repeats_its_order

IMAGES = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([3, 1, 2, 0, 1, 1, 3])


class Stream(IterableDataset[Any]):
    """Items one after the other, their number unknown."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Mapped(Dataset[Any]):
    """A map-style data set of numbers as labels, as in ImageFolder."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(IMAGES):
            raise IndexError
        return IMAGES[index], int(LABELS[index])

    def __len__(self) -> int:
        return len(IMAGES)


def read(data: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """All images and labels."""
    batches = list(read_batches(data, **options))
    labels = [labels for _, labels in batches]
    found = None if labels[0] is None else torch.cat([each for each in labels if each is not None])
    return torch.cat([images for images, _ in batches]), found


@pytest.mark.parametrize(
    "data",
    [
        IMAGES,
        list(IMAGES),
        TensorDataset(IMAGES),
        [(image,) for image in IMAGES],
        [(image, None) for image in IMAGES],
        Stream(list(IMAGES)),
        DataLoader(TensorDataset(IMAGES), batch_size=3),
        DataLoader(list(IMAGES), batch_size=3),  # type: ignore[arg-type]
    ],
    ids=["tensor", "list", "data set", "tuples", "no label", "stream", "loader of tuples", "loader of tensors"],
)
def test_images(data: Any) -> None:
    images, labels = read(data)
    assert torch.equal(images, IMAGES)
    assert labels is None


@pytest.mark.parametrize(
    "data",
    [
        (IMAGES, LABELS),
        TensorDataset(IMAGES, LABELS),
        list(zip(IMAGES, LABELS.tolist(), strict=True)),
        [(image, label, "name") for image, label in zip(IMAGES, LABELS, strict=True)],
        Mapped(),
        Stream(list(zip(IMAGES, LABELS.tolist(), strict=True))),
        DataLoader(Mapped(), batch_size=2),
    ],
    ids=["pair", "data set", "list", "extra", "map-style", "stream", "loader"],
)
def test_images_with_labels(data: Any) -> None:
    images, labels = read(data)
    assert torch.equal(images, IMAGES)
    assert labels is not None
    assert torch.equal(labels, LABELS)


def test_several_labels_per_image() -> None:
    several = torch.stack([LABELS, LABELS.flip(0)], 1)
    for data in ((IMAGES, several), TensorDataset(IMAGES, several)):
        assert torch.equal(read(data)[1], several)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [IMAGES, (IMAGES, LABELS), Mapped(), Stream(list(IMAGES))], ids=lambda d: str(type(d)))
def test_batch_size(data: Any) -> None:
    assert [len(images) for images, _ in read_batches(data, batch_size=3)] == [3, 3, 1]


def test_a_loader_keeps_its_own_batch_size() -> None:
    batches = read_batches(DataLoader(Mapped(), batch_size=4), batch_size=2)
    assert [len(images) for images, _ in batches] == [4, 3]


def test_images_are_read_when_they_are_asked_for() -> None:
    asked = []

    class Counting(Mapped):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            asked.append(index)
            return super().__getitem__(index)

    batches = read_batches(Counting(), batch_size=2)
    assert asked == []
    next(batches)
    assert asked == [0, 1]


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_one_to_three_dimensions(spatial: tuple[int, ...]) -> None:
    data = torch.rand(3, 2, *spatial)
    assert torch.equal(read(data)[0], data)


def test_order() -> None:
    assert repeats_its_order(IMAGES)
    assert repeats_its_order(Mapped())
    assert repeats_its_order(DataLoader(Mapped()))
    assert not repeats_its_order(DataLoader(Mapped(), shuffle=True))


def other(index: int, image: Tensor) -> list[Tensor]:
    """The images with one of them replaced."""
    return [image if place == index else each for place, each in enumerate(IMAGES)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGES[:0], "data are empty"),
        (torch.tensor(1.0), "data are empty"),
        ([], "data are empty"),
        (Stream([]), "data are empty"),
        (IMAGES.long(), r"floating-point \(B, C, \*spatial\), got torch.int64"),
        (torch.rand(4), r"floating-point .* got torch.float32 \(2,\); tables \(B, F\)"),
        (other(5, IMAGES[5, :, :3]), r"image 5 is \(3, 3, 4\), the first \(3, 4, 4\); resize"),
        (Stream(other(6, IMAGES[6, :1])), r"image 6 is \(1, 4, 4\), the first"),
        (DataLoader(other(5, IMAGES[5, :, :3]), batch_size=3), "images of the loader differ in size"),  # type: ignore[arg-type]
        (DataLoader(other(6, IMAGES[6, :, :3]), batch_size=3), r"image 6 is \(3, 3, 4\)"),  # type: ignore[arg-type]
        (torch.stack(other(4, IMAGES[4] * torch.nan)), "image 4 has NaN or infinite values"),
        (Stream(other(6, IMAGES[6] * torch.inf)), "image 6 has NaN or infinite values"),
        ([IMAGES[0], "b"], "item 1 of the data set holds a str"),
        (DataLoader(["a", "b"]), "a batch of the loader is a list"),  # type: ignore[arg-type]
        ((IMAGES, LABELS[:-1]), "7 images and 6 labels"),
        ([(IMAGES[0], 1), (IMAGES[1], [1, 2])], "labels of the data set do not stack"),
        ([(IMAGES[0], "cat")], "labels of the data set do not stack"),
        (7, "must be a tensor, .* got int"),
    ],
)
def test_errors(data: Any, message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        list(read_batches(data, batch_size=2))


def test_a_table_is_read_row_by_row() -> None:
    table = torch.rand(5, 3)
    assert torch.equal(torch.cat([rows for rows, _ in read_batches(table, batch_size=2)]), table)
    assert torch.equal(torch.cat([rows for rows, _ in read_batches(list(table), batch_size=2)]), table)


def test_images_of_bytes_are_named_once() -> None:
    data = torch.randint(0, 256, (6, 3, 9, 9)).float()
    with pytest.warns(InputWarning, match="divide by 255") as caught:
        list(read_batches(data, batch_size=2))
    assert len(caught) == 1


def test_other_errors_of_a_loader_are_its_own() -> None:
    class Broken(Mapped):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="disk is gone"):
        list(read_batches(DataLoader(Broken())))
