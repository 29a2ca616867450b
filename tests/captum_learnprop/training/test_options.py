"""Options of a training, and the parts of its examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.examples import Examples
from captum_learnprop.training.options import FitOptions, TrainingOptions
from captum_learnprop.training.parts import Part, held_out_images, split


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": 0.0}, r"lr and clip must be positive, got lr=0\.0"),
        ({"outlines": -0.1}, r"outlines must be at least 0, got -0\.1"),
        ({"smoothing": float("nan")}, "smoothing must be at least 0, got nan"),
        ({"schedule": "sine"}, "unknown schedule 'sine'; choose one of cosine, linear, constant"),
        ({"deletions": 2}, "deletions must be at least 3"),
        ({"patience": 0}, "patience must be at least 1 validation"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        TrainingOptions(**options)


def test_the_rate_rises_and_falls() -> None:
    options = TrainingOptions(steps=6, warmup=2, lr=0.3, schedule="linear")
    assert [options.rate(step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.225, 0.15, 0.075])


def test_folders_are_made_or_refused(tmp_path: Path) -> None:
    FitOptions(examples_dir=tmp_path / "a" / "b", log_dir=tmp_path / "c").make_folders()
    assert (tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "c").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(LearnpropError, match=r"cannot make the folder .*file"):
        FitOptions(log_dir=tmp_path / "file" / "log").make_folders()
    with pytest.raises(LearnpropError, match=r"cannot write the checkpoint .*: the folder .*none does not exist"):
        FitOptions(checkpoint=tmp_path / "none" / "run").make_folders()


def examples(images: int = 10, targets: int = 2) -> Examples:
    """Examples whose rows say which image and target they are."""
    tensors = {
        "images": torch.arange(images)[:, None].float(),
        "targets": torch.arange(images * targets).reshape(images, targets),
    }
    return Examples([tensors], [images], targets, classes=images * targets)


class TestParts:
    def test_a_split_keeps_images_together(self) -> None:
        training, held_out = split(examples(), 0.3, seed=0)
        assert (len(training), len(held_out)) == (14, 6)
        seen = [set((part.targets() // 2).tolist()) for part in (training, held_out)]
        assert seen[0] | seen[1] == set(range(10))
        assert not seen[0] & seen[1]
        assert split(examples(), 0.0, seed=0)[0].index.sort().values.tolist() == list(range(20))

    def test_the_first_images_come_once_each(self) -> None:
        training, _ = split(examples(), 0.3, seed=0)
        first = training.first_images(5).flatten().tolist()
        assert first == (training.targets()[::2] // 2)[:5].tolist()
        assert len(training.first_images(100)) == 7

    def test_each_row_is_used_once_before_any_is_used_again(self) -> None:
        part = Part.whole(examples(5, 1))
        used = torch.cat([part.batch(step, 2, seed=1) for step in range(5)]).tolist()
        assert sorted(used[:5]) == sorted(used[5:]) == list(range(5))
        assert len(part.batch(0, 12, seed=1)) == 5

    @pytest.mark.parametrize(("images", "share", "count"), [(10, 0, 0), (10, 0.01, 1), (10, 0.99, 9), (10, 0.25, 2)])
    def test_how_many_are_held_out(self, images: int, share: float, count: int) -> None:
        assert held_out_images(images, share) == count
