"""Zennit's ``Gradient(model, composite)`` with trained rules: the line that makes the composite changes.

The net is the ResNet-like one that ships with captum-learnprop. Its skip connections and batch norms, for which
zennit's own composites want canonizers, need none with the trainable one. Rules are trained for a moment; more steps
and scenes are better:

    python examples/lrp_zennit_workflow.py --steps 80 --scenes 200
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox

from captum_learnprop import RuleTrainer
from captum_learnprop.evaluation import average_precision
from captum_learnprop.maps import postprocess
from captum_learnprop.scenes import make_scenes, reference_nets
from zennit_rules import LearnedEpsilonGammaBox


def before(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Relevance ``(B, 3, H, W)`` as people compute it today."""
    composite = EpsilonGammaBox(low=-2.0, high=2.0)
    with Gradient(model, composite) as attributor:
        _, relevance = attributor(images, lambda output: output * torch.eye(output.shape[1])[targets])
    return relevance


def after(model: nn.Module, images: Tensor, targets: Tensor, rules: Path) -> Tensor:
    """The same by trained rules."""
    composite = LearnedEpsilonGammaBox(rules=rules)  # the changed line
    with Gradient(model, composite) as attributor:
        _, relevance = attributor(images, lambda output: output * torch.eye(output.shape[1])[targets])
    return relevance


@click.command()
@click.option("--steps", default=8, help="Training steps.")
@click.option("--scenes", default=16, help="Training images.")
def main(steps: int, scenes: int) -> None:
    """Print how well relevance finds the object that is asked for, before and after."""
    model = reference_nets.load("resnet", "digits")
    questions = make_scenes("pairs", 12, split="test").questions()

    trainer = RuleTrainer(model, "learned_epsilon_gamma_box", gate="none", steps=steps)
    rules = trainer.fit(make_scenes("pairs", scenes, split="train").images, targets_per_image=2)
    with tempfile.TemporaryDirectory() as folder:
        path = rules.save(Path(folder) / "rules.safetensors", model)
        results = {
            "EpsilonGammaBox": before(model, questions.images, questions.targets),
            "LearnedEpsilonGammaBox": after(model, questions.images, questions.targets, path),
        }
    click.echo("average precision of finding the digit that is asked for:")
    for name, relevance in results.items():
        score = average_precision(postprocess(relevance.detach(), "absolute", 0.025), questions.masks).mean()
        click.echo(f"  {name:24} {float(score):.3f}")


if __name__ == "__main__":
    main()
