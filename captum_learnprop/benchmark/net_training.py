"""How the small nets learn that are explained: labels of whole scenes, new scenes in every epoch, one cycle of AdamW.

A vision transformer learns next to nothing from labels of whole scenes alone. In the first part of its training its
patch tokens therefore learn the objects they lie on as well (as in *token labelling*, Jiang et al., NeurIPS 2021); what
predicts them is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.scenes.reference_nets import ViTLike
from captum_learnprop.scenes.scenes import Scenes

HELPED = 0.5
"""Share of the epochs in which a transformer's tokens learn what lies on them."""

HELP_WEIGHT = 5.0
"""Weight of their loss, which is small because most tokens see no object."""

PATCH = 8
"""Side of a transformer's patches in pixels."""

Lesson = tuple[Tensor, Tensor, Tensor]
"""Images ``(N, C, ...)``, labels ``(N, classes)`` and, for transformers, places ``(N, classes, rows, columns)``."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a net learns: scenes of each family per epoch, epochs, batch size, peak rate."""

    scenes: int
    epochs: int
    batch_size: int = 32
    lr: float = 4e-3


def train(
    net: nn.Module,
    lesson: Callable[[int], Lesson],
    schedule: Schedule,
    output: str,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Trains a net in place by AdamW with one cycle of the learning rate, and leaves it in evaluation mode.

    Args:
        net: The net; the global random state of torch decides the order of scenes.
        lesson: A function of the epoch, from 0, that gives what is learned in it.
        schedule: Epochs, batch size and peak rate; it says of how many scenes a lesson is.
        output: ``"sigmoid"`` for the binary cross-entropy of every class, ``"softmax"`` for classes that exclude each
            other.
        say: Is given a line for every epoch.
    """
    loss_function = F.binary_cross_entropy_with_logits if output == "sigmoid" else F.cross_entropy
    net.train().to(memory_format=torch.channels_last)
    first = lesson(0)
    helper = TokenLabels(net, first[1].shape[1]) if isinstance(net, ViTLike) else None
    parameters = [*net.parameters(), *(helper.parameters() if helper else [])]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=1e-2)
    steps = schedule.epochs * -(-len(first[0]) // schedule.batch_size)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=schedule.lr, total_steps=steps, pct_start=0.15)
    start = time.perf_counter()
    for epoch in range(schedule.epochs):
        images, labels, places = first if epoch == 0 else lesson(epoch)
        helps = helper is not None and epoch < HELPED * schedule.epochs
        total = helped = 0.0
        for batch in torch.randperm(len(images)).split(schedule.batch_size):
            loss = loss_function(net(images[batch]), labels[batch])
            total += loss.item() * len(batch)
            if helper is not None and helps:
                help_loss = helper.loss(places[batch])
                loss = loss + HELP_WEIGHT * help_loss
                helped += help_loss.item() * len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        beside = f"  of tokens {helped / len(images):.4f}" if helps else ""
        seconds = time.perf_counter() - start
        say(f"  epoch {epoch + 1:2d}  loss {total / len(images):.4f}{beside}  {seconds:.0f} s")
    if helper is not None:
        helper.remove()
    net.eval()


class TokenLabels(nn.Module):
    """Predicts from each patch token of a transformer which objects lie on it.

    Args:
        net: The transformer; it is watched until `remove`.
        classes: Number of classes.
    """

    def __init__(self, net: ViTLike, classes: int) -> None:
        super().__init__()
        encoder = net.transformer.encoder
        self.predict = nn.Linear(net.transformer.hidden_dim, classes)
        self.tokens = torch.empty(0)
        self._handle = encoder.ln.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.tokens = output[:, 1:]

    def loss(self, places: Tensor) -> Tensor:
        """Returns the binary cross-entropy against ``places (B, classes, 8, 8)``, of the last forward pass's tokens."""
        return F.binary_cross_entropy_with_logits(self.predict(self.tokens), places.flatten(2).transpose(1, 2))

    def remove(self) -> None:
        """Leaves the transformer as it was."""
        self._handle.remove()


def lesson_of(scenes: Scenes) -> Lesson:
    """Returns what a net learns from scenes, images in the memory format of convolutions."""
    images = scenes.images
    if images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, scenes.labels, places_of(scenes)


def places_of(scenes: Scenes) -> Tensor:
    """Returns which classes cover at least a tenth of a patch of 8 x 8 pixels, ``(N, classes, H / 8, W / 8)``.

    Nothing covers a patch of figures, of which masks are parts, and of pictures that are lower than a patch.
    """
    if scenes.masks.shape[-2] < PATCH:
        return scenes.labels[:, :, None, None]
    covered = F.avg_pool2d(scenes.masks.float(), PATCH)
    places = covered.new_zeros(len(covered), scenes.labels.shape[1], *covered.shape[2:])
    if covered.shape[1] == scenes.targets.shape[1]:
        places.scatter_reduce_(1, scenes.targets[:, :, None, None].expand_as(covered), covered, "amax")
    return (places > 0.1).float()


@torch.no_grad()
def score(net: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Returns the share of scenes whose ``K`` classes are exactly the ``K`` highest logits.

    Args:
        net: A net in evaluation mode.
        images: ``(N, C, ...)``.
        targets: ``(N, K)``.
    """
    logits = torch.cat([net(some) for some in images.split(250)])
    named = logits.topk(targets.shape[1], 1).indices.sort(1).values
    return (named == targets.sort(1).values).all(1).float().mean().item()
