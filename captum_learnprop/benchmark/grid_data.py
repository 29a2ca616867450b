"""The data sets of the grid of nets: their scenes, what nets for them look like, and how these learn.

A net for 64 x 64 pixels starts from the net of the same architecture that knows the digits, but for its last layer
where the number of classes differs; that saves most of the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.benchmark.net_training import Lesson, Schedule, lesson_of, score, train
from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.faces import TURNS, FaceSource
from captum_learnprop.scenes.grid_nets import (
    ARCHITECTURES,
    IMAGES_ONLY,
    build,
    net_file,
    read_net,
    rounded,
    write_net,
)
from captum_learnprop.scenes.net_form import IMAGES, Form
from captum_learnprop.scenes.pair_source import digit_pairs, mnist_pairs
from captum_learnprop.scenes.scenes import Scenes
from captum_learnprop.scenes.shapelets import CLASSES, LENGTH, ShapeletSource
from captum_learnprop.scenes.source import SceneSource

TESTED = 1000
"""Scenes that accuracies are measured on."""

DIGITS = "digits"
"""The data set whose nets others start from; four of them ship."""

SHIPPED = (*reference_nets.ARCHITECTURES, *reference_nets.TRANSFORMERS)


@dataclass(frozen=True)
class GridData:
    """A data set of the grid.

    Attributes:
        source: Its scenes.
        form: What nets for it take and give.
        output: What becomes of their outputs: ``"sigmoid"`` where a scene holds several classes, else ``"softmax"``.
        schedule: How they learn.
        vit_lr: The peak rate of a transformer, which learns nothing by the others'.
    """

    source: SceneSource
    form: Form
    output: str
    schedule: Schedule
    vit_lr: float = 8e-4

    @property
    def name(self) -> str:
        """Its name, that of its scenes."""
        return self.source.name

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures that have such a form."""
        return tuple(one for one in ARCHITECTURES if self.form.dims == 2 or one not in IMAGES_ONLY)

    def scenes(self, count: int, split: str, seed: int) -> Scenes:
        """Returns scenes of the data set, as its source draws them."""
        return self.source.draw(count, split=split, seed=seed, size=self.form.size)

    def inputs(self, images: Tensor) -> Tensor:
        """Returns what nets take for images ``(N, C, H, W)``: these, or series ``(N, C, W)`` for those of height 1."""
        return images[:, :, 0] if self.form.dims == 1 else images

    def schedule_of(self, architecture: str) -> Schedule:
        """Returns how a net learns."""
        return replace(self.schedule, lr=self.vit_lr) if architecture in IMAGES_ONLY else self.schedule


GRID_DATA: dict[str, GridData] = {
    one.name: one
    for one in (
        GridData(mnist_pairs(), IMAGES, "sigmoid", Schedule(1280, 20, lr=2e-3)),
        GridData(digit_pairs(), IMAGES, "sigmoid", Schedule(1280, 40)),
        GridData(FaceSource(), Form(classes=len(TURNS)), "softmax", Schedule(640, 16, lr=2e-3)),
        GridData(ShapeletSource(), Form(len(CLASSES), 1, LENGTH, dims=1), "sigmoid", Schedule(2560, 24)),
    )
}
"""Data sets by name, but for the photographs, whose nets are trained by others."""


def grid_data(name: str) -> GridData:
    """Returns the data set of a name.

    Raises:
        LearnpropError: There is no such data set.
    """
    if name not in GRID_DATA:
        raise LearnpropError(f"unknown data set {name!r}; choose one of {', '.join(GRID_DATA)}")
    return GRID_DATA[name]


def ships(architecture: str, data: GridData) -> bool:
    """Returns whether a trained net ships with the package."""
    return data.name == DIGITS and architecture in SHIPPED


def trained_net(architecture: str, data: GridData, folder: Path) -> nn.Module:
    """Returns a trained net in evaluation mode, the shipped one or that of a folder.

    Args:
        architecture: A name in `grid_nets.ARCHITECTURES`.
        data: The data set.
        folder: Folder that `train_net` wrote to.

    Raises:
        FileNotFoundError: It is not there.
        LearnpropError: Its file is damaged or holds another net.
    """
    if ships(architecture, data):
        return reference_nets.load(architecture, DIGITS)
    return read_net(net_file(architecture, data.name, folder), architecture, data.name, data.form)[0]


def is_trained(architecture: str, data: GridData, folder: Path) -> bool:
    """Returns whether there is a trained net."""
    return ships(architecture, data) or net_file(architecture, data.name, folder).is_file()


def train_net(
    architecture: str,
    data: GridData,
    folder: Path,
    *,
    seed: int = 0,
    schedule: Schedule | None = None,
    tested: int = TESTED,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Trains a net and writes it; the one that it starts from is trained first where it is not there.

    Args:
        architecture: A name in ``data.architectures``.
        data: The data set.
        folder: Folder for nets.
        seed: Seed of the weights and of the training scenes.
        schedule: How it learns; the data set's own by default.
        tested: How many scenes accuracies are measured on.
        say: Is given lines of text about progress.

    Returns:
        What the file says of it: schedule, seconds, and the shares of validation and test scenes that are wholly right.
    """
    schedule = schedule or data.schedule_of(architecture)
    torch.manual_seed(seed)
    net = build(architecture, data.form)
    origin = _start(net, architecture, data, folder, seed, say)
    say(f"{architecture} for {data.name}")
    began = time.perf_counter()

    def lesson(epoch: int) -> Lesson:
        images, labels, places = lesson_of(data.scenes(schedule.scenes, "train", seed + 1000 * epoch))
        return data.inputs(images), labels, places

    train(net, lesson, schedule, data.output, say)
    seconds = time.perf_counter() - began
    # The accuracies are those of the parameters that are written.
    net.load_state_dict({name: value.float() for name, value in rounded(net).items()})
    accuracy = {}
    for split in ("validation", "test"):
        scenes = data.scenes(tested, split, seed)
        accuracy[split] = round(score(net, data.inputs(scenes.images), scenes.targets), 4)
    facts = {"architecture": architecture, "data": data.name, "seed": seed, "start": origin, **vars(schedule),
             "seconds": round(seconds), **accuracy}  # fmt: skip
    write_net(net, net_file(architecture, data.name, folder), facts)
    say(f"  right: validation {accuracy['validation']:.3f}, test {accuracy['test']:.3f}, {seconds:.0f} s")
    return facts


def _start(
    net: nn.Module, architecture: str, data: GridData, folder: Path, seed: int, say: Callable[[str], None]
) -> str:
    """Gives a net the parameters of the digits' net that fit, and returns where they come from."""
    digits = GRID_DATA[DIGITS]
    if data.form.dims != digits.form.dims or data.name == DIGITS:
        return "random"
    if not is_trained(architecture, digits, folder):
        train_net(architecture, digits, folder, seed=seed, say=say)
    own = net.state_dict()
    known = trained_net(architecture, digits, folder).state_dict()
    net.load_state_dict(
        {name: known[name] if known[name].shape == value.shape else value for name, value in own.items()}
    )
    return f"{architecture} for {DIGITS}"
