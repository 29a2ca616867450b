"""Scenes from the cache of photographs, and whole photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes import photographs
from captum_learnprop.scenes.photographs import cache_folder, photograph_source, whole


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as ``learnprop data photos`` fills it, with six discs and three grounds."""
    folder = tmp_path / "photos"
    (folder / "cutouts" / "sports").mkdir(parents=True)
    (folder / "backgrounds").mkdir()
    rows, columns = np.mgrid[:20, :20]
    disc = ((rows - 10) ** 2 + (columns - 10) ** 2 < 80)[..., None] * np.array([255, 0, 0, 255])
    for number in range(6):
        Image.fromarray(disc.astype(np.uint8)).save(folder / "cutouts" / "sports" / f"{number}.png")
    for number in range(3):
        Image.new("RGB", (64, 48), (0, 60 * number, 200)).save(folder / "backgrounds" / f"{number}.png")
    lines = "".join(f"sports/{number}.png,{400 + number}\n" for number in range(6))
    (folder / "labels.csv").write_text(f"file,imagenet_class\n{lines}")
    monkeypatch.setenv("LEARNPROP_CACHE", str(tmp_path))
    return tmp_path


class TestSource:
    def test_scenes(self, cache: Path) -> None:
        source = photograph_source()
        scenes = source.draw(2, split="test", seed=0, size=32)
        assert scenes.images.shape == (2, 3, 32, 32)
        assert (source.name, source.kind, source.class_range()) == ("photos", "pairs", 406)
        assert source.identity()["source"] == "photos"
        assert photograph_source(1, cache).kind == "digits"

    def test_where_the_cache_is(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("LEARNPROP_CACHE", str(tmp_path / "x"))
        assert cache_folder() == tmp_path / "x"
        monkeypatch.delenv("LEARNPROP_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder() == tmp_path / ".cache" / "captum-learnprop"

    def test_what_is_missing(self, cache: Path) -> None:
        (cache / "photos" / "labels.csv").unlink()
        with pytest.raises(LearnpropError, match=r"\(labels\.csv is missing\): run 'learnprop data photos' first"):
            photograph_source()
        with pytest.raises(
            LearnpropError, match=r"\(cutouts is missing\): run 'learnprop data photos --cache /x' first"
        ):
            photograph_source(cache=Path("/x"))


class TestWhole:
    def test_they_lie_in_the_package(self) -> None:
        for each in whole():
            assert each.path.parent == Path(skimage.data.__file__).parent
            assert each.image().mode == "RGB"
            assert min(each.image().size) >= 300

    def test_without_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(photographs._WHOLE, "no_cat.png", 285)
        with pytest.raises(LearnpropError, match=r"this scikit-image has no no_cat\.png"):
            whole()
