"""Captum's GuidedBackprop and GuidedGradCam with trained rules: one line changes in each.

The net calls ReLU as a function in places, where captum's guided backprop silently takes the plain gradient. Rules are
trained here for a moment; with more steps and scenes they get better:

    python examples/guided_backprop_workflow.py --steps 80 --scenes 200
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import click
import torch
from captum.attr import GuidedBackprop, GuidedGradCam
from torch import Tensor, nn

from captum_learnprop import LearnedGuidedBackprop, RuleTrainer
from captum_learnprop.evaluation import average_precision
from captum_learnprop.maps import postprocess
from captum_learnprop.scenes import make_scenes, reference_nets


def before(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Guided backprop and Guided Grad-CAM ``(B, 3, H, W)``, as people compute them today."""
    method = GuidedBackprop(model)
    guided = method.attribute(images, target=targets)

    grad_cam = GuidedGradCam(model, model.get_submodule("blocks.3"))
    return guided, grad_cam.attribute(images, target=targets, interpolate_mode="bilinear")


def after(model: nn.Module, images: Tensor, targets: Tensor, rules: Path | None) -> tuple[Tensor, Tensor]:
    """The same by trained rules; without any it is guided backprop, but at functional calls too."""
    method = LearnedGuidedBackprop(model, rules)  # the changed line
    guided = method.attribute(images, target=targets)

    grad_cam = GuidedGradCam(model, model.get_submodule("blocks.3"))
    grad_cam.guided_backprop = LearnedGuidedBackprop(model, rules)  # the added line
    return guided, grad_cam.attribute(images, target=targets, interpolate_mode="bilinear")


@click.command()
@click.option("--steps", default=8, help="Training steps.")
@click.option("--scenes", default=16, help="Training images.")
def main(steps: int, scenes: int) -> None:
    """Print how well the maps find the object that is asked for, before and after."""
    warnings.filterwarnings("ignore", "Input Tensor|Setting backward hooks")  # captum's, on each call
    model = reference_nets.load("inception", "digits")
    questions = make_scenes("pairs", 12, split="test").questions()

    trainer = RuleTrainer(model, "learned_guided_backprop", steps=steps)
    rules = trainer.fit(make_scenes("pairs", scenes, split="train").images, targets_per_image=2)
    with tempfile.TemporaryDirectory() as folder:
        path = rules.save(Path(folder) / "rules.safetensors", model)
        maps = {
            "before": before(model, questions.images, questions.targets),
            "untrained": after(model, questions.images, questions.targets, None),
            "after": after(model, questions.images, questions.targets, path),
        }
    click.echo("average precision of finding the digit that is asked for:")
    for when, found in maps.items():
        for name, attribution in zip(("guided backprop", "Guided Grad-CAM"), found, strict=True):
            score = average_precision(postprocess(attribution.detach(), "absolute", 0.025), questions.masks).mean()
            click.echo(f"  {name:16} {when:10} {float(score):.3f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
