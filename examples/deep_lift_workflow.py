"""Captum's DeepLift with complete and with trained rules: one line changes.

The net has max-pools right after activations, where captum's DeepLift does not add up to the difference of the outputs.
Rules are trained here for a moment; with more steps and scenes they get better:

    python examples/deep_lift_workflow.py --steps 80 --scenes 200
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import click
import torch
from captum.attr import DeepLift
from torch import Tensor, nn

from captum_learnprop import LearnedDeepLift, RuleTrainer
from captum_learnprop.evaluation import average_precision
from captum_learnprop.maps import postprocess
from captum_learnprop.scenes import make_scenes, reference_nets

GREY = 0.5


def before(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Contributions ``(B, 3, H, W)`` and the convergence delta ``(B,)``, as people compute them today."""
    method = DeepLift(model)
    return method.attribute(images, baselines=GREY, target=targets, return_convergence_delta=True)


def after(model: nn.Module, images: Tensor, targets: Tensor, rules: Path | None) -> tuple[Tensor, Tensor]:
    """The same by trained rules; without any it is DeepLIFT, complete at every layer."""
    method = LearnedDeepLift(model, rules=rules)  # the changed line
    return method.attribute(images, baselines=GREY, target=targets, return_convergence_delta=True)


def normalized(model: nn.Module, images: Tensor, targets: Tensor, rules: Path) -> tuple[Tensor, Tensor]:
    """Contributions by trained rules that add up again."""
    method = LearnedDeepLift(model, rules=rules)
    return method.attribute(images, baselines=GREY, target=targets, return_convergence_delta=True, normalize=True)


@click.command()
@click.option("--steps", default=8, help="Training steps.")
@click.option("--scenes", default=16, help="Training images.")
def main(steps: int, scenes: int) -> None:
    """Print how well the maps find the object that is asked for, and how far they are from adding up."""
    warnings.filterwarnings("ignore", "Input Tensor|\\s*Setting forward, backward hooks")  # captum's, on each call
    model = reference_nets.load("vgg", "digits")
    questions = make_scenes("pairs", 12, split="test").questions()

    trainer = RuleTrainer(model, "learned_deeplift", rule_options={"baseline": GREY}, steps=steps)
    rules = trainer.fit(make_scenes("pairs", scenes, split="train").images, targets_per_image=2)
    asked = questions.images, questions.targets
    with tempfile.TemporaryDirectory() as folder:
        path = rules.save(Path(folder) / "rules.safetensors", model)
        results = {
            "before": before(model, *asked),
            "untrained": after(model, *asked, None),
            "after": after(model, *asked, path),
            "after, normalized": normalized(model, *asked, path),
        }
    click.echo("precision: average precision of finding the digit that is asked for, higher is better")
    click.echo("delta: how far contributions are from adding up to f(image) - f(grey). Trained rules weigh them, which")
    click.echo("ranks pixels better; only normalize=True makes them add up again")
    click.echo(f"{'':18} {'precision':>10} {'delta':>10}")
    for when, (maps, delta) in results.items():
        score = average_precision(postprocess(maps.detach(), "absolute", 0.025), questions.masks).mean()
        click.echo(f"{when:18} {float(score):10.3f} {float(delta.abs().mean()):10.3f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
