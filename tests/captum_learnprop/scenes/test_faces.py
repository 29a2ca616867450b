"""Scenes of a face among other crops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes import SceneSource, faces
from captum_learnprop.scenes.faces import CROP_PIXELS, CROPS, ELLIPSE, TURNS, FaceSource, _draw, face_crops
from captum_learnprop.scenes.scenes import SPLITS


def test_are_a_source_of_scenes_with_a_face_and_what_tempts() -> None:
    source = FaceSource()
    assert isinstance(source, SceneSource)
    scenes = source.draw(40, split="test")
    assert scenes.images.shape == (40, 3, 64, 64)
    assert scenes.masks.shape == (40, 1, 64, 64)
    assert scenes.targets.unique().tolist() == list(range(len(TURNS)))
    assert torch.equal(scenes.labels.argmax(1), scenes.targets[:, 0])
    assert scenes.distractors is not None
    assert not (scenes.masks[:, 0] & scenes.distractors).any()
    questions = scenes.questions()
    assert len(questions) == 40
    assert torch.equal(questions.other_masks, scenes.distractors)


def test_masks_are_ellipses_of_the_sizes_of_crops() -> None:
    scenes = FaceSource().draw(32)
    low, high = (3.1416 * ELLIPSE[0] * ELLIPSE[1] * side**2 for side in CROP_PIXELS)
    sizes = scenes.masks.sum((1, 2, 3))
    assert ((sizes > 0.93 * low) & (sizes < 1.07 * high)).all()
    assert scenes.distractors is not None
    others = scenes.distractors.sum((1, 2)) / (CROPS - 1)
    assert ((others > 0.93 * low) & (others < 1.07 * high)).all()


def test_the_face_stands_on_its_turn() -> None:
    """A crop whose upper half is white: where the white is tells the class."""
    face = torch.zeros(1, 25, 25)
    face[:, :12] = 1.0
    scenes = _draw(32, face, torch.full((1, 25, 25), 0.5), torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for image, mask, target in zip(scenes.images.mean(1), scenes.masks[:, 0], scenes.targets[:, 0], strict=True):
        light = image * mask
        down, right = (
            ((light * axis).sum() / light.sum() - axis[mask].mean()).item() for axis in (rows, columns)
        )  # fmt: skip
        found = [(-1, 0), (0, 1), (1, 0), (0, -1)][int(target)]  # white is up, right, down, left
        assert down * found[0] + right * found[1] > 2 * abs(down * found[1] + right * found[0])


def test_splits_share_no_crop() -> None:
    shares = [face_crops(split) for split in SPLITS]
    assert [len(own) for own, _ in shares] == [70, 15, 15]
    rows = [tuple(crop.flatten().tolist()) for pair in shares for crops in pair for crop in crops]
    assert len(set(rows)) == len(rows) == 200


def test_a_scene_does_not_depend_on_how_many_are_drawn() -> None:
    many, few = FaceSource().draw(33, seed=2), FaceSource().draw(2, seed=2)
    assert torch.equal(many.images[:2], few.images)


def test_a_scikit_image_without_the_crops_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skimage.data.__file__", str(tmp_path / "__init__.py"))
    faces._load_crops.cache_clear()
    with pytest.raises(LearnpropError, match=r"this scikit-image has no lfw_subset\.npy in .*: pip install --upgrade"):
        FaceSource().draw(1)
