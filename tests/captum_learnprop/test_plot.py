"""Figures: arrays are what the docstrings say, odd maps do not break them, files appear whole or not at all."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from matplotlib._pylab_helpers import Gcf
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import WriteError
from captum_learnprop.plot import (
    CostQuality,
    NotebookFigure,
    area_curves,
    compare,
    cost_quality,
    normalize_map,
    overlay,
    save_figure,
    to_hwc,
    training_curves,
)


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
    with pytest.raises(LearnpropError, match=r"\(2, 4, 4\)"):
        to_hwc(torch.rand(2, 4, 4))
    with pytest.raises(LearnpropError, match="NaN or infinite"):
        to_hwc(image * float("nan"))
    with pytest.raises(LearnpropError, match="the map has 16 NaN"):
        normalize_map(torch.full((4, 4), float("nan")))
    with pytest.raises(LearnpropError, match="percentile"):
        normalize_map(image, percentile=0)
    with pytest.raises(LearnpropError, match="differ in height"):
        overlay(image, torch.rand(5, 4))
    with pytest.raises(LearnpropError, match="'m' has 2 maps for 1 images"):
        compare({"m": torch.rand(2, 4, 4)}, image[None])
    with pytest.raises(LearnpropError, match="outlines has 2"):
        compare({"m": torch.rand(1, 4, 4)}, image[None], outlines=torch.rand(2, 4, 4))
    with pytest.raises(LearnpropError, match="nothing to draw"):
        compare({}, image[None])
    with pytest.raises(LearnpropError, match="suffix"):
        save_figure(Figure(), "figure")


def names_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


def crowded(named: int, count: int) -> list[CostQuality]:
    """Points so near to each other that names beside them would lie on each other."""
    return [CostQuality(f"m{i}", "lrp", 10 + i, 0.85 + 0.001 * i, 0.01, labelled=i < named) for i in range(count)]


@pytest.mark.parametrize("nets", [1, 3])
def test_names_in_cost_quality_do_not_overlap(nets: int) -> None:
    outlier = CostQuality("far below", "cam", 1.0, 0.1, labelled=False)
    figure = cost_quality({f"net {i}": [*crowded(10, 40), outlier] for i in range(nets)}, cost="ms", quality="AP")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = []
    for axes in figure.axes:
        assert names_of(axes) == [f"m{i}  {0.85 + 0.001 * i:.2f}" for i in range(10)]  # the labelled ones only
        boxes += [text.get_window_extent(renderer) for text in axes.texts if text.get_text()]
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        assert axes.get_ylim()[0] > 0.8  # what is not named does not squeeze what is
        assert [line.get_marker() for line in axes.lines if line.get_ydata()[0] == axes.get_ylim()[0]] == ["v"]
    for first, second in combinations(boxes, 2):
        assert not first.overlaps(second)
    page = figure.bbox
    for box in boxes:
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1


def test_cost_quality_names_every_point_once_and_in_order() -> None:
    panels = {
        "vgg": [CostQuality(f"m{i}", "gradient", 10.0**i, 0.7 + 0.001 * i, 0.01) for i in range(25)],
        "resnet": [CostQuality("ours", "learned", 3.0, 0.9, highlighted=True), CostQuality("old", "cam", 1.0, 0.2)],
    }
    figure = cost_quality(panels, cost="ms", quality="average precision", title="a title " * 20)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["vgg", "resnet"]
    assert all(axes.get_xscale() == "log" for axes in figure.axes)
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    assert [text.get_text().split()[0] for text in texts] == [f"m{i}" for i in range(25)]
    heights = np.array([text.xyann[1] for text in texts])
    assert (np.diff(heights) >= 0.985 / 25 - 1e-9).all()
    assert heights.min() >= -1e-9
    assert heights.max() <= 1
    bold = [text.get_text() for text in figure.axes[1].texts if text.get_fontweight() == "bold"]
    assert bold == ["ours  0.90"]


def test_cost_quality_refuses_what_has_no_place() -> None:
    point = CostQuality("m", "g", 1.0, 0.5)
    with pytest.raises(LearnpropError, match="nothing to draw"):
        cost_quality({}, cost="ms", quality="AP")
    with pytest.raises(LearnpropError, match="every panel needs a point"):
        cost_quality({"a": [point], "b": []}, cost="ms", quality="AP")
    for wrong in (CostQuality("m", "g", 0.0, 0.5), CostQuality("m", "g", 1.0, float("nan"))):
        with pytest.raises(LearnpropError, match="'m' has cost"):
            cost_quality({"a": [wrong]}, cost="ms", quality="AP")
    assert cost_quality({"a": [point]}, cost="ms", quality="AP").axes[0].get_ylabel() == "AP"


ROWS: list[dict[str, float]] = [
    {"step": 0.0, "validation loss": 0.9, "validation Area": 0.4},
    {"step": 1.0, "lr": 0.03, "loss": 0.8, "OcclusionRegression": 0.6, "Area": 0.4, "gradient norm": 2.0},
    {"step": 2.0, "lr": 0.01, "loss": float("nan"), "OcclusionRegression": 0.5, "Area": 0.3, "validation loss": 0.5},
    {"step": 3.0, "lr": 0.0, "loss": 0.4, "OcclusionRegression": 0.2, "Area": 0.4},
]


def curves(rows: list[dict[str, float]], axes: int = 0) -> dict[str, list[list[float]]]:
    lines = training_curves(rows).axes[axes].lines
    return {str(line.get_label()): np.column_stack([line.get_xdata(), line.get_ydata()]).tolist() for line in lines}


def test_training_curves_show_losses_and_the_learning_rate() -> None:
    assert curves(ROWS) == {
        "loss": [[1.0, 0.8], [3.0, 0.4]],  # what is not finite leaves a gap
        "OcclusionRegression": [[1.0, 0.6], [2.0, 0.5], [3.0, 0.2]],
        "Area": [[1.0, 0.4], [2.0, 0.3], [3.0, 0.4]],
        "validation loss": [[0.0, 0.9], [2.0, 0.5]],
    }
    assert curves(ROWS, axes=1) == {"lr": [[1.0, 0.03], [2.0, 0.01], [3.0, 0.0]]}
    upper, lower = training_curves(ROWS).axes
    assert [text.get_text() for text in upper.get_legend().get_texts()] == list(curves(ROWS))
    assert upper.get_position().height > 2 * lower.get_position().height
    assert lower.get_xlabel() == "step"


def test_training_curves_draw_an_only_term_once() -> None:
    rows = [{name: value for name, value in row.items() if name != "Area"} for row in ROWS[1:]]
    assert list(curves(rows)) == ["loss", "validation loss"]


def test_training_curves_of_short_logs(tmp_path: Path) -> None:
    assert list(curves(ROWS[:1])) == ["validation loss"]
    assert curves([{"step": 1.0}]) == {}
    assert save_figure(training_curves(ROWS[1:2]), tmp_path / "a.png").stat().st_size > 0
    for rows in ([], [{"loss": 1.0}]):
        with pytest.raises(LearnpropError, match="nothing to draw: a training log"):
            training_curves(rows)


FIGURES: dict[str, Callable[[], Figure]] = {
    "compare": lambda: compare({"a": torch.rand(1, 4, 4)}, torch.rand(1, 3, 4, 4)),
    "cost_quality": lambda: cost_quality({"vgg": crowded(2, 4)}, cost="ms", quality="AP"),
    "area_curves": lambda: area_curves(torch.tensor([[0.1, 0.5]]), torch.tensor([[0.2, 0.9]])),
    "training_curves": lambda: training_curves(ROWS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_itself_once_in_a_notebook(name: str) -> None:
    figure = FIGURES[name]()
    assert isinstance(figure, NotebookFigure)
    png = Image.open(io.BytesIO(figure._repr_png_()))
    assert png.format == "PNG"
    assert np.asarray(png.convert("L")).std() > 0  # something is drawn
    assert Gcf.get_all_fig_managers() == []  # pyplot knows of no figure, and draws none at the end of the cell


@pytest.mark.parametrize("inline", [False, True], ids=["bare", "inline backend"])
def test_a_notebook_without_and_with_the_inline_backend_gets_one_picture(inline: bool) -> None:
    shell = InteractiveShell()
    if inline:
        select_figure_formats(shell, {"png"})
    data, _ = shell.display_formatter.format(FIGURES["area_curves"]())
    assert sorted(data) == ["image/png", "text/plain"]
    assert data["image/png"]


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(LearnpropError, match=r"unknown format '\.pgn', known: .*; did you mean '\.png'"):
        save_figure(Figure(), tmp_path / "a.pgn")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"cannot write .*a\.PNG: No space left on device"):
        save_figure(Figure(), tmp_path / "a.PNG")
    assert list(tmp_path.iterdir()) == []
