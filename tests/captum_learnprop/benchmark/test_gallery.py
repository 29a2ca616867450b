"""Maps side by side: what is kept comes back, and figures name every method once in the same place."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from captum_learnprop import plot
from captum_learnprop.benchmark.gallery import (
    COLUMNS,
    ShownQuestions,
    draw_gallery,
    draw_question,
    keep_maps,
    keep_questions,
    read_maps,
    read_questions,
)
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import WriteError


def questions(count: int = 2) -> ShownQuestions:
    masks = torch.zeros(count, 16, 20, dtype=torch.bool)
    masks[:, 4:10, 5:12] = True
    images = (torch.rand(count, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    return ShownQuestions(images, masks, tuple(f"where is number {index}?" for index in range(count)))


def test_questions_come_back(tmp_path: Path) -> None:
    own = questions()
    path = keep_questions(tmp_path / "maps" / "q.safetensors", own.images / 255, own.masks, own.titles)
    found = read_questions(path)
    assert torch.equal(found.images, own.images)
    assert torch.equal(found.masks, own.masks)
    assert (found.titles, len(found)) == (own.titles, 2)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_maps_of_any_scale_come_back(tmp_path: Path, scale: float) -> None:
    maps = torch.randn(3, 7, 9, dtype=torch.float64) * scale
    maps[1] = 0.0
    before = maps.clone()
    name, found = read_maps(keep_maps(tmp_path / "m.safetensors", 'LRP z+, "box" <b>', maps))
    assert name == 'LRP z+, "box" <b>'
    wanted = maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)
    assert torch.allclose(found.double(), wanted, atol=1e-3)
    assert not found[1].any()
    assert torch.equal(maps, before)


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    for maps in (torch.rand(4, 4), torch.full((1, 2, 2), torch.nan), torch.rand(0, 2, 2)):
        with pytest.raises(LearnpropError, match="maps of 'saliency' must be finite"):
            keep_maps(tmp_path / "m.safetensors", "saliency", maps)
    own = questions()
    with pytest.raises(LearnpropError, match=r"and 1$"):
        keep_questions(tmp_path / "q.safetensors", own.images / 255, own.masks, ["one"])
    with pytest.raises(LearnpropError, match=r"\(2, 8, 20\)"):
        keep_questions(tmp_path / "q.safetensors", own.images / 255, own.masks[:, :8], own.titles)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    own = questions()
    path = keep_questions(tmp_path / "q.safetensors", own.images / 255, own.masks, own.titles)
    with pytest.raises(LearnpropError, match=r"q\.safetensors is damaged or missing .*delete it"):
        read_maps(path)  # other content
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LearnpropError, match=r"q\.safetensors is damaged or missing .*delete it"):
        read_questions(path)
    with pytest.raises(LearnpropError, match=r"none\.safetensors is damaged or missing"):
        read_maps(tmp_path / "none.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        keep_maps(tmp_path / "file" / "m.safetensors", "saliency", torch.rand(1, 2, 2))


def test_a_figure_has_every_method_in_its_place() -> None:
    own = questions()
    maps = {f"method {index}, $x_1$": torch.rand(2, 8, 10) for index in range(COLUMNS + 2)}
    maps["gates, learned"] = own.masks.double()
    figure = draw_question(own, 1, maps, highlighted={"gates, learned"})
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split("\n")[0] for title in titles] == ["image", *maps]
    assert titles[-1] == "gates, learned\nAP 1.00"
    assert len({axes.get_position().x0 for axes in figure.axes}) == COLUMNS
    assert figure.get_suptitle() == "where is number 1?"
    colours = {axes.get_title().split("\n")[0]: to_hex(axes.title.get_color()) for axes in figure.axes}
    assert colours["gates, learned"] == plot.HIGHLIGHT_COLOUR
    assert colours["method 0, $x_1$"] == "#000000"
    image = figure.axes[0].get_images()[0].get_array()
    assert image is not None
    assert torch.allclose(torch.as_tensor(image).permute(2, 0, 1), own.images[1].double() / 255)


def test_captions_take_the_place_of_the_average_precision() -> None:
    own = questions()
    figure = draw_question(own, 0, {"a": torch.rand(2, 16, 20), "b": torch.rand(2, 16, 20)}, {"a": "2 ms"}, title="?")
    assert [axes.get_title() for axes in figure.axes] == ["image", "a\n2 ms", "b\n"]


def test_there_is_a_picture_for_every_question() -> None:
    pictures = draw_gallery(questions(3), {"signed": torch.randn(3, 16, 20), "nothing": torch.zeros(3, 16, 20)})
    assert [title for title, _ in pictures] == [f"where is number {index}?" for index in range(3)]
    sizes = [Image.open(io.BytesIO(data)).size for _, data in pictures]
    assert len(set(sizes)) == 1
    assert len({data for _, data in pictures}) == 3


def test_maps_of_other_questions_are_refused() -> None:
    with pytest.raises(LearnpropError, match="'a' has 3 maps for 2 questions"):
        draw_gallery(questions(), {"a": torch.rand(3, 16, 20)})
    with pytest.raises(LearnpropError, match="no method has maps"):
        draw_question(questions(), 0, {})
