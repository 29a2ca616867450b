"""Images and masks of a user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_files import write_table
from PIL import Image

from captum_learnprop.errors import LearnpropError, SceneWarning
from captum_learnprop.scenes import SceneSource, SegmentedSource
from captum_learnprop.scenes.scenes import SPLITS

SIZE = 32


def draw(folder: Path, name: str, place: tuple[int, int] = (40, 20), size: tuple[int, int] = (96, 64)) -> None:
    """An image whose red square is the object, and its mask."""
    image, mask = Image.new("RGB", size, (0, 0, 90)), Image.new("L", size)
    frame = (*place, place[0] + 20, place[1] + 20)
    image.paste((255, 0, 0), frame)
    mask.paste(1, frame)
    (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / "images" / f"{name}.jpg", quality=100, subsampling=0)
    mask.save(folder / "masks" / f"{name}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(8):
        draw(tmp_path, f"sub/{index}" if index % 2 else str(index), (20 + 4 * index, 10 + 3 * index))
    return tmp_path


@pytest.fixture
def source(folder: Path) -> SegmentedSource:
    return SegmentedSource(folder / "images", folder / "masks")


class TestScenes:
    def test_shapes(self, source: SegmentedSource) -> None:
        drawn = source.draw(3, size=SIZE)
        assert drawn.images.shape == (3, 3, SIZE, SIZE)
        assert drawn.masks.shape == (3, 1, SIZE, SIZE)
        assert drawn.masks.dtype == torch.bool
        assert drawn.targets.tolist() == [[-1]] * 3
        assert drawn.labels.shape == (3, 0)
        assert len(drawn.questions()) == 3

    def test_it_is_a_source(self, source: SegmentedSource) -> None:
        assert isinstance(source, SceneSource)
        assert (source.name, source.kind, source.questions_per_scene) == ("masks", "digits", 1)
        assert source.class_range() is None
        source.check(SIZE)

    def test_a_mask_has_the_geometry_of_its_image(self, source: SegmentedSource) -> None:
        for split in SPLITS:
            drawn = source.draw(9, split=split, size=SIZE)
            red = drawn.images[:, 0]
            clear = (red - 0.5).abs() > 0.05  # JPEG rounds, and some pixels are half of the object
            assert torch.equal(drawn.masks[:, 0][clear], red[clear] > 0.5)
            assert clear.float().mean() > 0.9

    def test_a_mask_of_another_resolution(self, source: SegmentedSource, folder: Path) -> None:
        before = source.draw(9, size=SIZE)
        for path in (folder / "masks").rglob("*.png"):
            mask = Image.open(path)
            mask.resize((192, 128), Image.Resampling.NEAREST).save(path)
        after = source.draw(9, size=SIZE)
        assert (before.masks != after.masks).float().mean() < 0.005

    def test_classes_of_a_table(self, folder: Path) -> None:
        names = [path.relative_to(folder / "images").as_posix() for path in sorted((folder / "images").rglob("*.jpg"))]
        write_table(folder / "labels.csv", [(name, index) for index, name in enumerate(names)])
        source = SegmentedSource(folder / "images", folder / "masks", folder / "labels.csv")
        drawn = source.draw(9, size=SIZE)
        assert source.class_range() == 8
        assert drawn.labels.shape == (4, 8)
        assert drawn.labels.argmax(1).tolist() == drawn.targets.flatten().tolist()
        assert source.identity()["classes"] == {name: index for index, name in enumerate(names)}


class TestSplits:
    def test_share_no_image(self, source: SegmentedSource) -> None:
        parts = [{each.image.id for each in source._shares[0][split]} for split in SPLITS]
        assert [len(part) for part in parts] == [4, 2, 2]
        assert len(set.union(*parts)) == 8
        assert source.caveats(SIZE) == ()

    def test_return_no_more_than_there_is(self, source: SegmentedSource) -> None:
        assert len(source.draw(100, split="test", size=SIZE)) == 2

    def test_the_seed_is_the_order(self, source: SegmentedSource) -> None:
        first, again = source.draw(4, seed=1, size=SIZE), source.draw(2, seed=1, size=SIZE)
        assert torch.equal(first.images[:2], again.images)
        orders = {tuple(source.draw(4, seed=seed, size=SIZE).images.mean((1, 2, 3)).tolist()) for seed in range(6)}
        assert len(orders) > 1

    def test_images_without_mask_are_for_training(self, source: SegmentedSource, folder: Path) -> None:
        Image.new("RGB", (64, 64)).save(folder / "images" / "lone.png")
        drawn = source.draw(9, size=SIZE)
        assert len(drawn) == 5
        assert drawn.masks.flatten(1).any(1).sum() == 4
        assert len(source.draw(9, split="test", size=SIZE)) == 2

    def test_of_two_images_share_all(self, tmp_path: Path) -> None:
        draw(tmp_path, "a")
        draw(tmp_path, "b")
        source = SegmentedSource(tmp_path / "images", tmp_path / "masks")
        with pytest.warns(SceneWarning, match="share their images: 2 with a mask are too few"):
            assert len(source.draw(5, split="test", size=SIZE)) == 2

    def test_a_mask_without_image_is_told(self, source: SegmentedSource, folder: Path) -> None:
        Image.new("L", (64, 64), 1).save(folder / "masks" / "lone.png")
        assert source.caveats(SIZE) == ("1 mask(s) belong to no image: lone.png",)

    def test_masks_may_lie_inside_of_the_images(self, folder: Path) -> None:
        (folder / "masks").rename(folder / "images" / "masks")
        source = SegmentedSource(folder / "images", folder / "images" / "masks")
        assert len(source._images[0]) == 8


class TestErrors:
    def says(self, folder: Path, *words: str, labels: Path | None = None) -> None:
        with pytest.raises(LearnpropError) as error:
            SegmentedSource(folder / "images", folder / "masks", labels).check(SIZE)
        for word in words:
            assert word in str(error.value)

    def test_no_image_has_a_mask(self, folder: Path) -> None:
        for path in (folder / "masks").rglob("*.png"):
            path.rename(path.with_name(f"x{path.name}"))
        self.says(folder, "no image in", "the name of its image")

    def test_no_masks(self, folder: Path) -> None:
        with pytest.raises(LearnpropError, match="no such folder"):
            SegmentedSource(folder / "images", folder / "nowhere").check(SIZE)

    def test_one_folder(self, folder: Path) -> None:
        with pytest.raises(LearnpropError, match="folder of their own"):
            SegmentedSource(folder / "images", folder / "images" / ".." / "images")

    def test_an_empty_mask(self, folder: Path) -> None:
        Image.new("L", (96, 64)).save(folder / "masks" / "0.png")
        self.says(folder, "the mask 0.png is empty", "mark the object")

    def test_a_mask_outside_of_the_centre(self, folder: Path) -> None:
        mask = Image.fromarray(np.eye(64, 96, dtype=np.uint8)[:, :] * (np.arange(96) < 8))
        mask.save(folder / "masks" / "0.png")
        self.says(folder, "the object of the mask 0.png lies outside", "crop the image")

    def test_a_mask_that_covers_all(self, folder: Path) -> None:
        Image.new("L", (96, 64), 255).save(folder / "masks" / "0.png")
        self.says(folder, "the mask 0.png covers all", "remove the mask")

    def test_a_mask_of_another_shape(self, folder: Path) -> None:
        Image.new("L", (64, 96), 255).save(folder / "masks" / "0.png")
        self.says(folder, "the mask 0.png has 64 x 96 pixels, its image 0.jpg 96 x 64")

    def test_an_unreadable_mask(self, folder: Path) -> None:
        (folder / "masks" / "0.png").write_text("no")
        self.says(folder, "cannot read image 0.png")

    def test_two_images_of_one_name(self, folder: Path) -> None:
        Image.new("RGB", (96, 64)).save(folder / "images" / "0.png")
        self.says(folder, "0.jpg and 0.png have one name", "rename one")

    def test_a_masked_image_that_the_table_does_not_name(self, folder: Path) -> None:
        write_table(folder / "labels.csv", [("0.jpg", 1)])
        self.says(folder, "labels.csv does not name 2.jpg, which has a mask", labels=folder / "labels.csv")
