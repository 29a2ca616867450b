"""What a training says of its cost, against what it then does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import captum_learnprop as cl
from captum_learnprop.training.announcement import image_count, peak_memory


class Counting(nn.Module):
    """A small net that counts the images it is given, by whether gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        self.forward_passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forward_passes += 0 if torch.is_grad_enabled() else len(x)
        out: Tensor = self.net(x)
        return out


def fitted(model: nn.Module, data: Any, **options: Any) -> cl.RuleTrainer:
    trainer = cl.RuleTrainer(model, steps=3, deletions=5, batch_size=4, **options)
    trainer.fit(data, show_progress=True)
    return trainer


def test_passes_are_said_before_and_are_those_that_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    model, images = Counting().eval(), torch.randn(20, 3, 8, 8)
    fitted(model, images)
    said = capsys.readouterr().err.splitlines()
    # 16 rows train, 4 are held out: 20 x (2 + 5), and 4 x (1 + 96) for the smoothing.
    assert said[0] == "training on 20 images with 5 deletions each: 528 forward passes, 32 attribution passes"
    assert said[1].startswith("that takes about ")
    assert said[2].startswith("2 more steps take about ")
    assert said[2].endswith(" GiB of memory at most")
    assert model.forward_passes == 528


def test_nothing_is_said_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    cl.RuleTrainer(Counting().eval(), steps=1, deletions=5).fit(torch.randn(8, 3, 8, 8))
    assert capsys.readouterr().err == ""


def test_images_that_nobody_counts(capsys: pytest.CaptureFixture[str]) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(torch.randn(10, 3, 8, 8))

    fitted(Counting().eval(), Stream())
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "training: 7 forward passes for each image, then attribution passes"
    assert said[1].startswith("2 more steps")


def test_counts_of_images() -> None:
    images = torch.zeros(6, 3, 4, 4)
    pairs = TensorDataset(images, torch.zeros(6))
    assert [image_count(data) for data in (images, (images, images), pairs, DataLoader(pairs, 4))] == [6] * 4
    assert image_count(iter(())) is None


def test_memory_is_that_of_the_process() -> None:
    peak = peak_memory(torch.device("cpu"))
    assert peak is not None
    assert 2**26 < peak < 2**38
