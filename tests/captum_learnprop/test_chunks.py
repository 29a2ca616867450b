"""How many rows go through a model together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captum_learnprop.chunks import rows_together
from captum_learnprop.evaluation import deletion, insertion, morf_lerf_area, road
from captum_learnprop.training.trainer import RuleTrainer

CPU, OTHER = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("most", "shape", "rows"),
    [(64, (3, 64, 64), 64), (64, (3, 32, 32), 64), (64, (3, 224, 224), 5), (3, (3, 224, 224), 3),
     (64, (3, 2000, 2000), 1), (64, (17,), 64), (64, (1, 5000), 52)],
)  # fmt: skip
def test_rows_of_large_images_are_fewer_on_a_processor(most: int, shape: tuple[int, ...], rows: int) -> None:
    assert rows_together(most, shape, CPU) == rows
    assert rows_together(most, shape, OTHER) == most


def test_no_pass_of_a_training_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captum_learnprop.chunks.PROCESSOR_PIXELS", 3 * 16 * 16)
    passed: list[int] = []
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)).eval()

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        passed.append(len(args[0]))

    images = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    handle = model.register_forward_pre_hook(watch)
    whole = RuleTrainer(model, steps=2, deletions=12, batch_size=6, fill="colours").fit(images)
    handle.remove()
    assert [count for count in passed if count > 3] == [8]  # what rules are built on, once and without gradients
    monkeypatch.undo()
    other = RuleTrainer(model, steps=2, deletions=12, batch_size=6, fill="colours").fit(images)
    for (name, first), (_, second) in zip(whole.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("metric", [deletion, insertion, morf_lerf_area, road])
def test_no_pass_of_a_metric_is_larger(metric: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model.register_forward_pre_hook(lambda module, args: passed.append(len(args[0])) and None)
    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand(4, 3, 16, 16, generator=generator), torch.rand(4, 16, 16, generator=generator)
    whole = metric(model, images, maps, torch.tensor([0, 1, 0, 1]))
    assert max(passed) > 3
    passed.clear()
    monkeypatch.setattr("captum_learnprop.chunks.PROCESSOR_PIXELS", 3 * 16 * 16)
    torch.testing.assert_close(metric(model, images, maps, torch.tensor([0, 1, 0, 1])), whole)
    assert max(passed) == 3
