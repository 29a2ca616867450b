"""Series with planted shapelets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes import SceneSource, shapelets
from captum_learnprop.scenes.scenes import SPLITS
from captum_learnprop.scenes.shapelets import CLASSES, LENGTH, SPAN, ShapeletSource, read_ts, records

from fake_packages import fake_aeon  # isort: skip


def test_are_a_source_of_series_of_height_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ShapeletSource()
    assert isinstance(source, SceneSource)
    with fake_aeon(tmp_path, monkeypatch):
        scenes = source.draw(40, split="validation")
        again = source.draw(2, split="validation")
    assert scenes.images.shape == (40, 1, 1, LENGTH)
    assert scenes.masks.shape == (40, 2, 1, LENGTH)
    assert not scenes.masks.all(1).any()  # apart
    lengths = scenes.masks.sum((2, 3))
    assert ((lengths >= int(SPAN[0])) & (lengths <= SPAN[1] + 1)).all()
    assert (scenes.targets[:, 0] != scenes.targets[:, 1]).all()
    assert set(scenes.targets.unique().tolist()) == set(range(len(CLASSES)))
    assert scenes.images.min() >= 0
    assert scenes.images.max() <= 1
    assert torch.equal(scenes.images[:2], again.images)


def test_shapelets_lie_where_the_masks_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GROUND", 0.0), ("NOISE", 0.0), ("PIECES", 0)):
        monkeypatch.setattr(shapelets, name, value)
    with fake_aeon(tmp_path, monkeypatch):
        scenes = ShapeletSource().draw(32)
    moved = (scenes.images[:, 0] - 0.5).abs() > 1e-6
    assert not (moved & ~scenes.masks.any(1)).any()
    assert moved.sum() > 0.9 * scenes.masks.sum()  # a wave passes through 0


def test_every_shapelet_is_another_and_begins_and_ends_at_nothing() -> None:
    t = torch.linspace(0, 1, 101)
    shapes = torch.stack([wave(t) for wave in shapelets._WAVES.values()])
    assert shapes[:, [0, -1]].abs().max() < 1e-5
    assert ((shapes.abs().amax(1) > 0.85) & (shapes.abs().amax(1) <= 1.0001)).all()
    apart = torch.cdist(shapes, shapes) / len(t) ** 0.5
    assert apart[~torch.eye(len(CLASSES), dtype=torch.bool)].min() > 0.2


def test_splits_share_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_aeon(tmp_path, monkeypatch):
        shares = [records(split) for split in SPLITS]
        assert "aeon" not in sys.modules  # which would load a compiler
    assert [len(share) for share in shares] == [28, 6, 6]
    assert len({tuple(row.tolist()) for share in shares for row in share}) == 40
    assert torch.cat(shares).mean(1).abs().max() < 1e-5


def test_names_the_extra_where_aeon_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    shapelets._load_records.cache_clear()
    monkeypatch.setattr(shapelets, "find_spec", lambda name: None)
    with pytest.raises(LearnpropError, match=r"aeon.*captum-learnprop\[grid\]"):
        ShapeletSource().check(LENGTH)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.ts"
    with pytest.raises(LearnpropError, match="cannot read"):
        read_ts(path)
    for text in ("@data\n1,2:a\n1,2,3:b\n", "@data\n1,?:a\n", "1,2:a\n"):
        path.write_text(text)
        with pytest.raises(LearnpropError, match="no series of one length"):
            read_ts(path)
    path.write_text("# about\n@data\n1,2:a\n\n3,4:b\n")
    assert read_ts(path).tolist() == [[1, 2], [3, 4]]
