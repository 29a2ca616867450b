"""Planted marks: temptations, and shortcuts that a model may take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_files import SIZE, draw_folder

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes import CutoutSource, MarkedSource, Scenes, SceneSource, make_scenes, plant_mark
from captum_learnprop.scenes.marks import MARKS


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return make_scenes("pairs", 40, seed=5)


@pytest.mark.parametrize("mark", MARKS)
class TestEveryMark:
    def test_is_a_distractor_and_changes_nothing_else(self, scenes: Scenes, mark: str) -> None:
        images = scenes.images.clone()
        marked = plant_mark(scenes, mark, size=0.3)
        assert torch.equal(scenes.images, images)
        assert marked.distractors is not None
        assert marked.distractors.flatten(1).any(1).all()
        changed = (marked.images != scenes.images).any(1)
        assert not (changed & ~marked.distractors).any()
        assert changed.sum() > 0.9 * marked.distractors.sum()
        assert not (marked.masks.any(1) & marked.distractors).any()
        assert torch.equal(marked.targets, scenes.targets)
        assert 0 <= marked.images.min() <= marked.images.max() <= 1

    def test_is_asked_for(self, scenes: Scenes, mark: str) -> None:
        marked = plant_mark(scenes, mark, size=0.3, target=12)
        assert marked.targets.tolist() == [[12]] * len(scenes)
        assert marked.labels.shape == (40, 13)
        assert marked.labels.argmax(1).eq(12).all()
        asked = marked.questions()
        assert torch.equal(asked.masks, plant_mark(scenes, mark, size=0.3).distractors)  # type: ignore[arg-type]
        assert (asked.other_masks & scenes.masks.any(1)).flatten(1).any(1).all()

    def test_covers_no_object_where_there_is_room(self, scenes: Scenes, mark: str) -> None:
        marked = plant_mark(scenes, mark, size=0.15)
        assert (marked.masks == scenes.masks).flatten(1).all(1).float().mean() > 0.9

    def test_looks_the_same_everywhere_at_a_size(self, scenes: Scenes, mark: str) -> None:
        marked = plant_mark(replace(scenes, images=torch.full_like(scenes.images, 0.5)), mark, size=0.3)
        assert marked.distractors is not None
        values = {
            tuple(image[:, place].flatten().tolist())
            for image, place in zip(marked.images, marked.distractors, strict=True)
        }
        assert len(values) == 1

    def test_the_seed_draws_it(self, scenes: Scenes, mark: str) -> None:
        first, again, other = (plant_mark(scenes, mark, seed=seed).images for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(plant_mark(scenes[:3], mark).images, first[:3])


class TestShortcut:
    def test_share(self, scenes: Scenes) -> None:
        planted = plant_mark(scenes, share=0.5).distractors.flatten(1).any(1)  # type: ignore[union-attr]
        assert 8 < planted.sum() < 32
        assert not plant_mark(scenes, share=0.0).distractors.any()  # type: ignore[union-attr]

    def test_beside_a_class(self, scenes: Scenes) -> None:
        planted = plant_mark(scenes, beside=[3, 4]).distractors.flatten(1).any(1)  # type: ignore[union-attr]
        assert torch.equal(planted, torch.isin(scenes.targets, torch.tensor([3, 4])).any(1))
        assert 0 < planted.sum() < len(scenes)

    def test_a_distractor_stays_one(self) -> None:
        scenes = make_scenes("patch", 10)
        marked = plant_mark(scenes)
        assert scenes.distractors is not None
        assert marked.distractors is not None
        assert not (scenes.distractors & ~marked.distractors).any()


class TestSource:
    def test_draws_what_plant_mark_does(self, tmp_path: Path) -> None:
        source = CutoutSource(*draw_folder(tmp_path, list(range(8))))
        marked = MarkedSource(source, target=9, mark="watermark")
        assert isinstance(marked, SceneSource)
        assert (marked.name, marked.kind, marked.questions_per_scene) == ("cutouts-watermark", "patch", 1)
        assert marked.class_range() == 10
        drawn = marked.draw(3, split="test", size=SIZE)
        same = plant_mark(source.draw(3, split="test", size=SIZE), "watermark", target=9)
        assert torch.equal(drawn.images, same.images)
        assert torch.equal(drawn.masks, same.masks)
        assert {**marked.identity(), **source.identity()} == marked.identity() != source.identity()
        assert marked.caveats(SIZE) == source.caveats(SIZE)
        marked.check(SIZE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mark": "pach"}, "no mark 'pach'.*did you mean 'patch'"),
        ({"size": 0.6}, r"up to 0\.5, got 0\.6"),
        ({"share": 1.5}, r"\[0, 1\], got 1\.5"),
        ({"target": -1}, "from 0 on, got -1"),
        ({"target": 1, "share": 0.5}, "must be in every scene"),
        ({"target": 1, "beside": [1]}, "must be in every scene"),
    ],
)
def test_errors(scenes: Scenes, options: dict[str, Any], words: str) -> None:
    with pytest.raises(LearnpropError, match=words):
        plant_mark(scenes, **options)
