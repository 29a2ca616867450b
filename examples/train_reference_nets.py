"""Train the small nets that benchmarks, `learnprop demo` and the tests explain, and write their weights.

    python examples/train_reference_nets.py --architecture resnet --task digits --out weights

Without ``--architecture`` or ``--task`` it trains all of them, one after the other. Needs the extra ``[demo]``
(scikit-learn bundles the digits). A net sees new scenes in every epoch, made from the training digits only; the
accuracies it prints are those of scenes made from digits it has never seen.

The vision transformer learns next to nothing from labels of whole scenes alone. In the first part of its training its
patch tokens therefore learn the digits they lie on as well (as in *token labelling*, Jiang et al., NeurIPS 2021); what
predicts them is thrown away.

With ``--start`` it goes on from weights written before:

    python examples/train_reference_nets.py --architecture vgg --task digits --start FIRST --epochs 10 --lr 2e-3
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.scenes.reference_nets import (
    ARCHITECTURES,
    FORMAT_VERSION,
    OUTPUT_OF_TASK,
    TASK_OF_FAMILY,
    TRANSFORMER_TASK,
    TRANSFORMERS,
    WIDTH_OF_TASK,
    ViTLike,
    load,
    weights_metadata,
)
from captum_learnprop.scenes.scenes import NUM_CLASSES, Scenes, make_scenes

NETS: dict[str, Callable[[float], nn.Module]] = {**ARCHITECTURES, **TRANSFORMERS}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a net learns: scenes of each family per epoch, epochs, batch size, peak rate."""

    scenes: int
    epochs: int
    batch_size: int = 32
    lr: float = 4e-3


SCHEDULE_OF_TASK = {"digits": Schedule(1100, 18), "patch": Schedule(2000, 10), "parts": Schedule(2000, 12)}
SCHEDULE_OF_NET = {
    ("vgg", "digits"): Schedule(1400, 30, batch_size=64, lr=3e-3),
    ("vit", "digits"): Schedule(1400, 70, batch_size=32, lr=8e-4),
}
"""Schedules of nets that learn nothing by the schedule of their task."""

HELPED = 0.5
"""Share of the epochs in which a transformer's tokens learn what lies on them."""

HELP_WEIGHT = 5.0
"""Weight of their loss, which is small because most tokens see no digit."""


def main() -> None:
    """Train, measure, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    for task in options.task or OUTPUT_OF_TASK:
        for architecture in options.architecture or NETS:
            if architecture in TRANSFORMERS and task != TRANSFORMER_TASK:
                continue
            default = SCHEDULE_OF_NET.get((architecture, task), SCHEDULE_OF_TASK[task])
            given = {name: getattr(options, name) for name in ("scenes", "epochs", "batch_size", "lr")}
            schedule = replace(default, **{name: value for name, value in given.items() if value is not None})
            train_and_write(architecture, task, schedule, options)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=NETS, action="append", help="may be repeated")
    parser.add_argument("--task", choices=OUTPUT_OF_TASK, action="append", help="may be repeated")
    parser.add_argument("--start", type=Path, help="weights of the same net to go on from, instead of random ones")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder")
    parser.add_argument("--scenes", type=int, help="new scenes of each family per epoch")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--test-scenes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def train_and_write(architecture: str, task: str, schedule: Schedule, options: argparse.Namespace) -> None:
    """One net: train it, measure what will be stored, store it."""
    print(f"{architecture}-{task}", flush=True)
    torch.manual_seed(options.seed)
    net = NETS[architecture](WIDTH_OF_TASK[task])
    if options.start is not None:
        net.load_state_dict(load(architecture, task, path=options.start).state_dict())
    train(net, task, schedule, options.seed)
    # Half precision halves the file; the accuracies are those of the rounded parameters.
    net.load_state_dict({name: value.float() for name, value in rounded(net).items()})
    accuracy = {
        f"{split}_{family}": score(net, make_scenes(family, options.test_scenes, split=split, seed=options.seed))
        for split in ("validation", "test")
        for family in families(task)
    }
    parameters = sum(parameter.numel() for parameter in net.parameters())
    print(f"  {parameters:,} parameters, right:", {name: round(value, 4) for name, value in accuracy.items()})
    metadata = {"architecture": architecture, "task": task, "width": WIDTH_OF_TASK[task], "seed": options.seed}
    if options.start is not None:
        metadata["start"] = json.dumps(weights_metadata(architecture, task, options.start))
    path = options.out / f"{architecture}_{task}.safetensors"
    write(net, path, {**metadata, **vars(schedule), **{name: f"{value:.4f}" for name, value in accuracy.items()}})
    print(f"  wrote {path}", flush=True)


def train(net: nn.Module, task: str, schedule: Schedule, seed: int) -> None:
    """AdamW with one cycle of the learning rate; binary cross-entropy where classes do not exclude each other."""
    loss_function: Callable[[Tensor, Tensor], Tensor] = (
        F.binary_cross_entropy_with_logits if OUTPUT_OF_TASK[task] == "sigmoid" else F.cross_entropy
    )
    net.train().to(memory_format=torch.channels_last)
    helper = TokenLabels(net) if isinstance(net, ViTLike) else None
    parameters = [*net.parameters(), *(helper.parameters() if helper else [])]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=1e-2)
    steps = schedule.epochs * -(-schedule.scenes * len(families(task)) // schedule.batch_size)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=schedule.lr, total_steps=steps, pct_start=0.15)
    start = time.perf_counter()
    for epoch in range(schedule.epochs):
        images, labels, places = epoch_data(task, schedule.scenes, seed=seed + 1000 * epoch)
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
        print(f"  epoch {epoch + 1:2d}  loss {total / len(images):.4f}{beside}  {seconds:.0f} s", flush=True)
    if helper is not None:
        helper.remove()
    net.eval()


class TokenLabels(nn.Module):
    """Predicts from each patch token of a transformer which digits lie on it."""

    def __init__(self, net: ViTLike) -> None:
        super().__init__()
        encoder = net.transformer.encoder
        self.predict = nn.Linear(net.transformer.hidden_dim, NUM_CLASSES)
        self.tokens = torch.empty(0)
        self._handle = encoder.ln.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.tokens = output[:, 1:]

    def loss(self, places: Tensor) -> Tensor:
        """Binary cross-entropy against ``places (B, 10, 8, 8)``, of the tokens of the last forward pass."""
        return F.binary_cross_entropy_with_logits(self.predict(self.tokens), places.flatten(2).transpose(1, 2))

    def remove(self) -> None:
        """Leave the transformer as it was."""
        self._handle.remove()


def families(task: str) -> list[str]:
    """The scene families that a task's net must know."""
    return [family for family, known in TASK_OF_FAMILY.items() if known == task]


def epoch_data(task: str, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images ``(n, 3, 64, 64)``, labels ``(n, 10)`` and places ``(n, 10, 8, 8)`` of classes, as many of each family.

    Every second figure lacks a part, so that the net knows figures with a part removed, as in *FunnyBirds*.
    """
    drawn = [make_scenes(family, count, seed=seed, counterfactuals=task == "parts") for family in families(task)]
    if task == "parts":
        rows = torch.arange(1, count, 2)
        missing = torch.randint(drawn[0].masks.shape[1], (len(rows),))
        assert drawn[0].without is not None
        drawn[0].images[rows] = drawn[0].without[rows, missing]
    images = torch.cat([scenes.images for scenes in drawn]).contiguous(memory_format=torch.channels_last)
    return images, torch.cat([scenes.labels for scenes in drawn]), torch.cat([places_of(scenes) for scenes in drawn])


def places_of(scenes: Scenes) -> Tensor:
    """Which classes cover at least a tenth of a patch of 8 x 8 pixels, ``(n, 10, 8, 8)``."""
    covered = F.avg_pool2d(scenes.masks.float(), 8)
    places = covered.new_zeros(len(covered), NUM_CLASSES, 8, 8)
    if covered.shape[1] == scenes.targets.shape[1]:
        places.scatter_reduce_(1, scenes.targets[:, :, None, None].expand_as(covered), covered, "amax")
    return (places > 0.1).float()


@torch.no_grad()
def score(net: nn.Module, scenes: Scenes) -> float:
    """Share of scenes whose ``K`` classes are exactly the ``K`` highest logits."""
    logits = torch.cat([net(images) for images in scenes.images.split(250)])
    named = logits.topk(scenes.targets.shape[1], 1).indices.sort(1).values
    return (named == scenes.targets.sort(1).values).all(1).float().mean().item()


def rounded(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and statistics in half precision, in the default memory format."""
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in net.state_dict().items()
    }


def write(net: nn.Module, path: Path, metadata: dict[str, object]) -> None:
    """Write to a temporary name, then move: an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    text = {name: str(value) for name, value in metadata.items()}
    text |= {"format_version": FORMAT_VERSION, "made_by": "examples/train_reference_nets.py"}
    save_file(rounded(net), temporary, metadata=text)
    # safetensors makes files that only their owner can read; these are to be packaged.
    temporary.chmod(0o644)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
