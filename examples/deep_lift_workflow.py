"""Captum's DeepLift with complete and with trained rules: one line changes.

The net has activations that captum's DeepLift knows and one that it does not know (GELU), where it silently takes the
gradient, and a max-pool right after an activation. Rules are trained here for a moment, on noise:

    python examples/deep_lift_workflow.py --steps 80
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


def net() -> nn.Module:
    """A small classifier ``(B, 3, 16, 16) -> (B, 4)``, with random weights."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(),
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 4),
    ).eval()  # fmt: skip


def before(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Contributions ``(B, 3, H, W)`` and the convergence delta ``(B,)``, as people compute them today."""
    method = DeepLift(model)
    return method.attribute(images, baselines=0.5, target=targets, return_convergence_delta=True)


def after(model: nn.Module, images: Tensor, targets: Tensor, rules: Path | None) -> tuple[Tensor, Tensor]:
    """The same by trained rules; without any it is DeepLIFT, at every activation."""
    method = LearnedDeepLift(model, rules=rules)  # the changed line
    return method.attribute(images, baselines=0.5, target=targets, return_convergence_delta=True)


@click.command()
@click.option("--steps", default=8, help="Training steps.")
def main(steps: int) -> None:
    """Print what contributions add up to, and what that lacks of the difference of the outputs."""
    warnings.filterwarnings("ignore", "Input Tensor|\\s*Setting forward, backward hooks")  # captum's, on each call
    model, images, targets = net(), torch.rand(16, 3, 16, 16), torch.arange(4)

    trainer = RuleTrainer(model, "learned_deeplift", rule_options={"baseline": 0.5}, steps=steps, deletions=8)
    rules = trainer.fit(images)
    with tempfile.TemporaryDirectory() as folder:
        path = rules.save(Path(folder) / "rules.safetensors", model)
        found = {
            "before": before(model, images[:4], targets),
            "untrained": after(model, images[:4], targets, None),
            "after": after(model, images[:4], targets, path),
        }
    for when, (maps, delta) in found.items():
        attribution = maps.detach()
        total = float(attribution.flatten(1).sum(dim=1).abs().mean())
        moved = float((attribution - found["before"][0].detach()).abs().mean() / attribution.abs().mean())
        click.echo(f"{when:10} sum {total:.4f}  delta {float(delta.abs().max()):.1e}  moved {moved:.3f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
