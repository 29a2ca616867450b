"""Train the small nets that benchmarks, `learnprop demo` and the tests explain, and write their weights.

    python examples/train_reference_nets.py --architecture resnet --task digits --out weights

Without ``--architecture`` or ``--task`` it trains all of them, one after the other. Needs the extra ``[demo]``
(scikit-learn bundles the digits). A net sees new scenes in every epoch, made from the training digits only; the
accuracies it prints are those of scenes made from digits it has never seen.

With ``--start`` it goes on from weights written before:

    python examples/train_reference_nets.py --architecture vgg --task digits --start FIRST --epochs 10 --lr 2e-3
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from captum_learnprop.benchmark.net_training import Lesson, Schedule, lesson_of, score, train
from captum_learnprop.scenes.grid_nets import rounded
from captum_learnprop.scenes.reference_nets import (
    ARCHITECTURES,
    FORMAT_VERSION,
    OUTPUT_OF_TASK,
    TASK_OF_FAMILY,
    TRANSFORMER_TASK,
    TRANSFORMERS,
    WIDTH_OF_TASK,
    load,
    weights_metadata,
)
from captum_learnprop.scenes.scenes import make_scenes

NETS: dict[str, Callable[[float], nn.Module]] = {**ARCHITECTURES, **TRANSFORMERS}


SCHEDULE_OF_TASK = {"digits": Schedule(1100, 18), "patch": Schedule(2000, 10), "parts": Schedule(2000, 12)}
SCHEDULE_OF_NET = {
    ("vgg", "digits"): Schedule(1400, 30, batch_size=64, lr=3e-3),
    ("vit", "digits"): Schedule(1400, 70, batch_size=32, lr=8e-4),
}
"""Schedules of nets that learn nothing by the schedule of their task."""


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
    train(
        net,
        lambda epoch: epoch_data(task, schedule.scenes, seed=options.seed + 1000 * epoch),
        schedule,
        OUTPUT_OF_TASK[task],
        lambda text: print(text, flush=True),
    )
    # Half precision halves the file; the accuracies are those of the rounded parameters.
    net.load_state_dict({name: value.float() for name, value in rounded(net).items()})
    accuracy = {
        f"{split}_{family}": score(net, scenes.images, scenes.targets)
        for split in ("validation", "test")
        for family in families(task)
        for scenes in [make_scenes(family, options.test_scenes, split=split, seed=options.seed)]
    }
    parameters = sum(parameter.numel() for parameter in net.parameters())
    print(f"  {parameters:,} parameters, right:", {name: round(value, 4) for name, value in accuracy.items()})
    metadata = {"architecture": architecture, "task": task, "width": WIDTH_OF_TASK[task], "seed": options.seed}
    if options.start is not None:
        metadata["start"] = json.dumps(weights_metadata(architecture, task, options.start))
    path = options.out / f"{architecture}_{task}.safetensors"
    write(net, path, {**metadata, **vars(schedule), **{name: f"{value:.4f}" for name, value in accuracy.items()}})
    print(f"  wrote {path}", flush=True)


def families(task: str) -> list[str]:
    """The scene families that a task's net must know."""
    return [family for family, known in TASK_OF_FAMILY.items() if known == task]


def epoch_data(task: str, count: int, seed: int) -> Lesson:
    """Images ``(n, 3, 64, 64)``, labels ``(n, 10)`` and places ``(n, 10, 8, 8)`` of classes, as many of each family.

    Every second figure lacks a part, so that the net knows figures with a part removed, as in *FunnyBirds*.
    """
    drawn = [make_scenes(family, count, seed=seed, counterfactuals=task == "parts") for family in families(task)]
    if task == "parts":
        rows = torch.arange(1, count, 2)
        missing = torch.randint(drawn[0].masks.shape[1], (len(rows),))
        assert drawn[0].without is not None
        drawn[0].images[rows] = drawn[0].without[rows, missing]
    images, labels, places = (torch.cat(each) for each in zip(*map(lesson_of, drawn), strict=True))
    return images.contiguous(memory_format=torch.channels_last), labels, places


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
