"""Mosaics of whole photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_files import SIZE, write_table
from PIL import Image

from captum_learnprop.errors import LearnpropError, SceneWarning
from captum_learnprop.scenes import MosaicSource, SceneSource, make_mosaics
from captum_learnprop.scenes.scenes import SPLITS

GREYS = [20 * index for index in range(12)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, grey in enumerate(GREYS):
        Image.new("RGB", (90, 60), (grey, grey, grey)).save(tmp_path / f"{index}.png")
    write_table(tmp_path / "labels.csv", [(f"{index}.png", index) for index in range(len(GREYS))])
    return tmp_path


@pytest.fixture
def source(folder: Path) -> MosaicSource:
    return MosaicSource(folder, folder / "labels.csv")


class TestScenes:
    @pytest.mark.parametrize("size", [SIZE, 33])
    def test_each_cell_holds_its_class(self, source: MosaicSource, size: int) -> None:
        drawn = source.draw(5, size=size)
        assert drawn.images.shape == (5, 3, size, size)
        assert drawn.masks.shape == (5, 4, size, size)
        assert torch.equal(drawn.masks, drawn.cells)  # type: ignore[arg-type]
        assert drawn.masks.sum(1).eq(1).all()
        assert drawn.labels.shape == (5, 12)
        for image, masks, targets in zip(drawn.images, drawn.masks, drawn.targets.tolist(), strict=True):
            assert len(set(targets)) == 4
            for mask, target in zip(masks, targets, strict=True):
                assert (image[:, mask] * 255).sub(GREYS[target]).abs().max() < 0.01

    def test_it_is_a_source(self, source: MosaicSource) -> None:
        assert isinstance(source, SceneSource)
        assert (source.name, source.kind, source.questions_per_scene) == ("mosaics", "grid", 4)
        assert source.class_range() == 12
        source.check(SIZE)

    def test_the_same_arguments_give_the_same_mosaics(self, source: MosaicSource) -> None:
        few, many = source.draw(2, seed=3, size=SIZE), source.draw(5, seed=3, size=SIZE)
        assert torch.equal(few.images, many.images[:2])
        assert source.draw(5, seed=4, size=SIZE).targets.tolist() != many.targets.tolist()

    def test_splits_share_no_class(self, source: MosaicSource) -> None:
        classes = [set(source.draw(9, split=split, size=SIZE).targets.flatten().tolist()) for split in SPLITS]
        assert [len(each) for each in classes] == [4, 4, 4]
        assert len(set.union(*classes)) == 12
        assert source.caveats(SIZE) == ()

    def test_five_photographs_are_shared(self, folder: Path) -> None:
        write_table(folder / "labels.csv", [(f"{index}.png", index) for index in range(5)])
        with pytest.warns(SceneWarning, match="share their photographs: 5 classes with 5 photographs"):
            make_mosaics(folder, folder / "labels.csv", 2, split="test", size=SIZE)

    def test_identity(self, source: MosaicSource, folder: Path) -> None:
        before = source.identity()
        Image.new("RGB", (90, 60)).save(folder / "3.png")
        assert source.identity() != before

    def test_squares_are_cut_and_mirrored(self) -> None:
        ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None], 100, 0)
        drawn = make_mosaics([ramp] * 4, [0, 1, 2, 3], 12, size=SIZE)
        first = drawn.images[:, 0, :, 0]
        last = drawn.images[:, 0, :, SIZE // 2 - 1]
        rising = (last > first).float().mean()
        assert 0.2 < rising < 0.8
        assert len(first.unique()) > 10


class TestInMemory:
    def test_photographs_of_all_kinds(self) -> None:
        grey = np.full((50, 70), 10, dtype=np.uint8)
        colour = np.full((50, 70, 3), 20, dtype=np.uint8)
        others = [Image.new("L", (60, 60), 30), Image.new("RGBA", (60, 60), (40, 40, 40, 255))]
        drawn = make_mosaics([grey, colour, *others], [4, 3, 2, 1], 3, size=SIZE)
        for image, masks, targets in zip(drawn.images, drawn.masks, drawn.targets.tolist(), strict=True):
            assert [round(float(image[:, mask].mean() * 255)) for mask in masks] == [50 - 10 * each for each in targets]

    def test_are_not_shared_out(self, recwarn: pytest.WarningsRecorder) -> None:
        photographs = [np.full((50, 50), 10 * index, dtype=np.uint8) for index in range(12)]
        drawn = make_mosaics(photographs, list(range(12)), 30, split="test", size=SIZE)
        assert len(drawn.targets.unique()) == 12
        assert not recwarn.list

    @pytest.mark.parametrize(
        ("photographs", "labels", "words"),
        [
            ([np.zeros((50, 50), dtype=np.uint8)] * 4, [0, 1, 2], "4 photographs need as many classes"),
            ([np.zeros((50, 50), dtype=np.uint8)] * 4, [0, 1, 2, 2], "need as many classes, the table has 3"),
            ([np.zeros((50, 50), dtype=np.uint8)] * 4, [0, 1, 2, -3], "from 0 on, got -3"),
            ([np.zeros((50, 50))] * 4, [0, 1, 2, 3], "uint8, got float64"),
            ([np.zeros((50, 50, 4), dtype=np.uint8)] * 4, [0, 1, 2, 3], r"\(50, 50, 4\)"),
            ([np.zeros((20, 50), dtype=np.uint8)] * 4, [0, 1, 2, 3], "photograph 0 has 50 x 20 pixels, a cell 32 x 32"),
        ],
    )
    def test_errors(self, photographs: Any, labels: list[int], words: str) -> None:
        with pytest.raises(LearnpropError, match=words):
            make_mosaics(photographs, labels, 2, size=SIZE)

    def test_a_folder_needs_a_table(self, folder: Path) -> None:
        with pytest.raises(LearnpropError, match="need a CSV file"):
            make_mosaics(folder, [1, 2], 2)


def test_a_photograph_smaller_than_a_cell(source: MosaicSource) -> None:
    with pytest.raises(LearnpropError, match=r"0\.png has 90 x 60 pixels, a cell 112 x 112: take it out"):
        source.check(224)
