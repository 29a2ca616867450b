"""Figures: arrays are what the docstrings say, odd maps do not break them, files appear whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from captum_learnprop.plot import PlotError, compare, normalize_map, overlay, save_figure, to_hwc


@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 3, 5, 4), (1, 5, 4), (5, 4)])
def test_to_hwc_takes_every_layout(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    array = to_hwc(image)
    assert array.shape == (5, 4, 3)
    np.testing.assert_allclose(array[..., 0], image.reshape(-1, 5, 4)[0], atol=1e-7)


def test_to_hwc_rescales_only_what_is_out_of_range() -> None:
    inside = torch.tensor([[0.2, 0.4]])
    np.testing.assert_allclose(to_hwc(inside)[..., 0], [[0.2, 0.4]], atol=1e-7)
    np.testing.assert_allclose(to_hwc(torch.tensor([[-2.0, 0.0, 2.0]]))[..., 0], [[0.0, 0.5, 1.0]])
    assert np.isfinite(to_hwc(torch.full((1, 2), 7.0))).all()


def test_normalize_map_keeps_zero_and_sign_and_clips_outliers() -> None:
    map_ = torch.arange(-50.0, 50.0).reshape(10, 10) / 100
    map_[0, 0] = -1e6
    scaled = normalize_map(map_, percentile=98)
    assert scaled.min() == -1.0
    assert scaled.max() > 0.9
    assert scaled[5, 0] == 0.0
    np.testing.assert_array_equal(np.sign(scaled), np.sign(map_.numpy()))


def test_normalize_map_of_zeros_of_one_pixel_and_of_tiny_values() -> None:
    assert (normalize_map(torch.zeros(6, 6)) == 0).all()
    point = torch.zeros(20, 20)
    point[3, 4] = -0.5  # the percentile is 0: the maximum is the scale
    assert normalize_map(point)[3, 4] == -1.0
    assert normalize_map(torch.tensor([[1e-30, 0.0]])).max() == 1.0
    np.testing.assert_allclose(normalize_map(torch.ones(3, 4, 4)), 1.0)


def test_overlay_shows_grey_where_the_map_is_zero_and_colour_by_sign() -> None:
    image = torch.rand(3, 4, 4)
    map_ = torch.zeros(4, 4)
    map_[0, 0], map_[3, 3] = 1.0, -1.0
    picture = overlay(image, map_, strength=1.0)
    assert picture.shape == (4, 4, 3)
    np.testing.assert_allclose(picture[1, 1], image[:, 1, 1].mean().item(), atol=1e-6)
    assert picture[0, 0, 0] > picture[0, 0, 2]  # red speaks for the target
    assert picture[3, 3, 2] > picture[3, 3, 0]
    np.testing.assert_allclose(overlay(image, torch.zeros(4, 4)).std(2), 0, atol=1e-12)


def test_compare_has_a_row_per_image_and_a_column_per_method() -> None:
    maps = {"signed": torch.randn(2, 3, 8, 8), "positive": torch.rand(2, 8, 8)}
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, 2:5, 2:5] = True
    figure = compare(
        maps, torch.rand(2, 3, 8, 8), row_titles=["a 3", "a 7"], outlines=masks, captions={"signed": "0.5"}, title="t"
    )
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "signed\n0.5", "positive"]
    assert [figure.axes[row].get_ylabel() for row in (0, 3)] == ["a 3", "a 7"]
    assert all(axes.collections for axes in figure.axes)  # the outline is on every picture


def test_a_column_shares_one_colour_map() -> None:
    maps = torch.rand(2, 4, 4)
    maps[1] = -maps[1]
    figure = compare({"m": maps}, torch.rand(2, 3, 4, 4))
    first = np.asarray(figure.axes[1].images[0].get_array())
    peak = np.unravel_index(int(maps[0].argmax()), (4, 4))
    assert first[peak][0] > first[peak][2]  # red, not the pale yellow of the unsigned map


def test_figures_leave_pyplot_alone(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    save_figure(compare({"m": torch.rand(1, 4, 4)}, torch.rand(1, 3, 4, 4)), tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_saved_file_is_an_image_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = save_figure(compare({"m": torch.rand(1, 4, 4)}, torch.rand(1, 3, 4, 4)), tmp_path / "new" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_a_failing_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    class Broken(Figure):
        def savefig(self, fname, **options) -> None:  # type: ignore[no-untyped-def]
            Path(fname).write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_figure(Broken(), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_what_cannot_be_drawn_is_refused() -> None:
    image = torch.rand(3, 4, 4)
    with pytest.raises(PlotError, match=r"\(2, 4, 4\)"):
        to_hwc(torch.rand(2, 4, 4))
    with pytest.raises(PlotError, match="NaN or infinite"):
        to_hwc(image * float("nan"))
    with pytest.raises(PlotError, match="the map has 16 NaN"):
        normalize_map(torch.full((4, 4), float("nan")))
    with pytest.raises(PlotError, match="percentile"):
        normalize_map(image, percentile=0)
    with pytest.raises(PlotError, match="differ in height"):
        overlay(image, torch.rand(5, 4))
    with pytest.raises(PlotError, match="'m' has 2 maps for 1 images"):
        compare({"m": torch.rand(2, 4, 4)}, image[None])
    with pytest.raises(PlotError, match="outlines has 2"):
        compare({"m": torch.rand(1, 4, 4)}, image[None], outlines=torch.rand(2, 4, 4))
    with pytest.raises(PlotError, match="nothing to draw"):
        compare({}, image[None])
    with pytest.raises(PlotError, match="suffix"):
        save_figure(Figure(), "figure")
