"""The data sets of the grid and the nets that are trained for them, on little."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_packages import fake_aeon

from captum_learnprop.benchmark.grid_data import GRID_DATA, grid_data, is_trained, ships, train_net, trained_net
from captum_learnprop.benchmark.net_training import Schedule
from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.grid_nets import ARCHITECTURES, build, net_file, read_net

LITTLE = Schedule(8, 1, batch_size=8, lr=1e-4)


def test_the_grid_has_six_architectures_of_images_and_five_of_series() -> None:
    assert list(GRID_DATA) == ["mnist", "digits", "faces", "series"]
    for name, data in GRID_DATA.items():
        assert data.name == name
        assert set(data.architectures) == set(ARCHITECTURES) - ({"vit"} if name == "series" else set())
        assert data.source.class_range() == data.form.classes
        assert data.output == ("softmax" if data.source.questions_per_scene == 1 else "sigmoid")
        assert data.schedule_of("vgg") == data.schedule
    assert GRID_DATA["mnist"].schedule_of("vit").lr < GRID_DATA["mnist"].schedule.lr
    with pytest.raises(LearnpropError, match="unknown data set"):
        grid_data("photos")


def test_nets_of_digits_ship(tmp_path: Path) -> None:
    digits = grid_data("digits")
    shipped = [name for name in ARCHITECTURES if ships(name, digits)]
    assert shipped == ["vgg", "resnet", "inception", "vit"]
    assert is_trained("vgg", digits, tmp_path)
    assert not is_trained("convnext", digits, tmp_path)
    assert not is_trained("vgg", grid_data("faces"), tmp_path)
    assert trained_net("vgg", digits, tmp_path)(torch.rand(1, 3, 64, 64)).shape == (1, 10)


def test_a_net_of_series_is_trained_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = grid_data("series")
    lines: list[str] = []
    with fake_aeon(tmp_path, monkeypatch):
        facts = train_net("vgg", series, tmp_path, seed=2, schedule=LITTLE, tested=16, say=lines.append)
    kept = read_net(net_file("vgg", "series", tmp_path), "vgg", "series", series.form)[1]
    assert {name: str(value) for name, value in facts.items()}.items() <= kept.items()
    assert kept["start"] == "random"
    assert 0 <= float(kept["test"]) <= 1
    assert trained_net("vgg", series, tmp_path)(torch.rand(2, 1, 128)).shape == (2, 8)
    assert "vgg for series" in lines


def test_a_net_of_faces_starts_from_that_of_digits(tmp_path: Path) -> None:
    faces = grid_data("faces")
    still = Schedule(8, 1, batch_size=8, lr=0.0)
    facts = train_net("resnet", faces, tmp_path, schedule=still, tested=8)
    assert facts["start"] == "resnet for digits"
    found = dict(trained_net("resnet", faces, tmp_path).named_parameters())
    digits = dict(trained_net("resnet", grid_data("digits"), tmp_path).named_parameters())
    torch.manual_seed(0)
    fresh = dict(build("resnet", faces.form).named_parameters())
    for name, value in found.items():
        start = digits[name] if digits[name].shape == value.shape else fresh[name]
        torch.testing.assert_close(value, start, rtol=1e-3, atol=1e-4)
    assert found["classifier.weight"].shape == (4, 80)


def test_series_have_no_height_for_nets() -> None:
    images = torch.rand(3, 1, 1, 128)
    assert torch.equal(grid_data("series").inputs(images), images[:, :, 0])
    assert grid_data("faces").inputs(images) is images
