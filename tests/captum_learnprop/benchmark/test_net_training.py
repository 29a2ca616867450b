"""How small nets learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_learnprop.benchmark.net_training import Schedule, lesson_of, places_of, score, train
from captum_learnprop.scenes.faces import FaceSource
from captum_learnprop.scenes.reference_nets import ViTLike
from captum_learnprop.scenes.scenes import Scenes, label_rows, make_scenes

SCHEDULE = Schedule(64, 6, batch_size=16, lr=0.05)


def halves(epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Series of two channels whose mean tells the class."""
    generator = torch.Generator().manual_seed(epoch)
    targets = torch.randint(2, (64,), generator=generator)
    images = targets[:, None, None] * 0.5 + 0.1 * torch.randn(64, 2, 8, generator=generator)
    return images, label_rows(targets[:, None], 2), torch.zeros(64, 2, 1, 1)


def test_a_net_learns_either_kind_of_output() -> None:
    for output in ("softmax", "sigmoid"):
        net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
        lines: list[str] = []
        seen: list[int] = []

        def lesson(epoch: int, seen: list[int] = seen) -> tuple[Tensor, Tensor, Tensor]:
            seen.append(epoch)
            return halves(epoch)

        train(net, lesson, SCHEDULE, output, lines.append)
        images, labels, _ = halves(99)
        assert score(net, images, labels.argmax(1, keepdim=True)) == 1.0
        assert not net.training
        assert seen == list(range(6))  # each drawn once
        assert len(lines) == 6


def test_tokens_of_a_transformer_are_helped_and_left_alone_after() -> None:
    net = ViTLike()
    scenes = make_scenes("pairs", 4)
    lines: list[str] = []
    train(net, lambda epoch: lesson_of(scenes), Schedule(4, 4, batch_size=4, lr=1e-4), "sigmoid", lines.append)
    assert ["of tokens" in line for line in lines] == [True, True, False, False]
    assert not net.transformer.encoder.ln._forward_hooks


def test_places_are_where_the_objects_are() -> None:
    scenes = FaceSource().draw(3)
    places = places_of(scenes)
    assert places.shape == (3, 4, 8, 8)
    for place, mask, target in zip(places, scenes.masks[:, 0], scenes.targets[:, 0], strict=True):
        assert place.sum() == place[target].sum()
        grown = place[target].repeat_interleave(8, 0).repeat_interleave(8, 1).bool()
        assert (mask & grown).sum() > 0.95 * mask.sum()


def test_pictures_lower_than_a_patch_have_no_places() -> None:
    masks = torch.ones(2, 1, 1, 32, dtype=torch.bool)
    labels = label_rows(torch.tensor([[0], [1]]), 3)
    scenes = Scenes(torch.rand(2, 1, 1, 32), labels, masks, torch.tensor([[0], [1]]))
    assert places_of(scenes).shape[2:] == (1, 1)


def test_score_is_the_share_of_scenes_that_are_wholly_right() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert score(nn.Identity(), logits, torch.tensor([[1, 0], [0, 2]])) == 0.5
