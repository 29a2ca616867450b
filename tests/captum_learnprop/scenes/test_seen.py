"""What a model sees in scenes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes import Scenes, asked_of, seen_by
from captum_learnprop.scenes.seen import BATCH


class Reader(nn.Module):
    """Reads its output from the first row of the image: class ``c`` has the value of column ``c``."""

    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.classes = classes
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return images[:, 0, 0, : self.classes]


def scenes_of(highest: list[list[int]], targets: list[list[int]]) -> Scenes:
    """Scenes whose image holds the order of the classes, highest first."""
    images = torch.zeros(len(highest), 3, 16, 16)
    for image, order in zip(images, highest, strict=True):
        for place, target in enumerate(order):
            image[0, 0, target] = 1 - place / 10
    asked = torch.tensor(targets)
    labels = torch.zeros(len(asked), 16).scatter_(1, asked.clamp(min=0), 1.0)
    masks = torch.ones(*asked.shape, 16, 16, dtype=torch.bool)
    return Scenes(images, labels, masks, asked)


class TestSeenBy:
    def test_keeps_scenes_with_all_classes_among_the_highest(self) -> None:
        scenes = scenes_of([[1, 2, 3], [1, 2, 3], [3, 1, 2], [5, 6, 7]], [[1, 2], [1, 3], [1, 3], [1, 2]])
        model = Reader().eval()
        assert seen_by(model, scenes, top=2).targets.tolist() == [[1, 2], [1, 3]]
        assert torch.equal(seen_by(model, scenes, top=2).images, scenes.images[[0, 2]])
        assert len(seen_by(model, scenes, top=3)) == 3
        assert len(seen_by(model, scenes, top=100)) == 4

    def test_runs_in_batches_without_gradients(self) -> None:
        scenes = scenes_of([[1]] * (BATCH + 3), [[1]] * (BATCH + 3))
        model = Reader().eval()
        assert len(seen_by(model, scenes, top=1)) == BATCH + 3
        assert model.batches == [BATCH, 3]

    def test_follows_the_dtype_of_the_model(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).double().eval()
        assert len(seen_by(model, scenes_of([[1]], [[1]]), top=4)) == 1

    def test_a_model_in_training_mode_is_told(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(768, 4))
        with pytest.warns(UserWarning, match="training mode"):
            seen_by(model, scenes_of([[1]], [[1]]), top=4)
        assert model.training

    def test_a_class_out_of_range(self) -> None:
        with pytest.raises(LearnpropError, match="ask for class 9, but the model's classes are 0 to 7"):
            seen_by(Reader(), scenes_of([[1]], [[9]]))

    def test_no_scene_that_the_model_sees(self) -> None:
        with pytest.raises(LearnpropError, match=r"no scene that the model sees: of 1 scenes.*raise top"):
            seen_by(Reader(), scenes_of([[1, 2]], [[2, 4]]), top=3)

    def test_classes_that_are_not_known(self) -> None:
        with pytest.raises(LearnpropError, match=r"use asked_of\(model, scenes\) first"):
            seen_by(Reader(), scenes_of([[1]], [[-1]]))

    def test_top_below_one(self) -> None:
        with pytest.raises(LearnpropError, match="top must be at least 1, got 0"):
            seen_by(Reader(), scenes_of([[1]], [[1]]), top=0)

    def test_a_model_of_maps(self) -> None:
        with pytest.raises(LearnpropError, match=r"\(B, classes\)"):
            seen_by(nn.Identity().eval(), scenes_of([[1]], [[1]]))


class TestAskedOf:
    def test_fills_unknown_classes_with_the_prediction(self) -> None:
        scenes = scenes_of([[1, 2], [2, 1], [3, 1]], [[-1], [1], [-1]])
        filled = asked_of(Reader(), scenes)
        assert filled.targets.tolist() == [[1], [1], [3]]
        assert filled.labels.shape == (3, 8)
        assert filled.labels.argmax(1).tolist() == [1, 1, 3]
        assert scenes.targets.tolist() == [[-1], [1], [-1]]
        assert len(seen_by(Reader(), filled, top=1)) == 2

    def test_a_class_out_of_range(self) -> None:
        with pytest.raises(LearnpropError, match="ask for class 9"):
            asked_of(Reader(), replace(scenes_of([[1]], [[1]]), targets=torch.tensor([[9]])))
