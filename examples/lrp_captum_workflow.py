"""Captum's LRP with trained rules: one line changes.

The net is made of layers that ``captum.attr.LRP`` takes, and learns to tell where a bright square is. Rules are trained
for a moment; more steps are better:

    python examples/lrp_captum_workflow.py --steps 80
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import click
import torch
from captum.attr import LRP
from torch import Tensor, nn

from captum_learnprop import LearnedLRP, RuleTrainer, attach_rules

SIZE, SQUARE = 24, 6


class Net(nn.Module):
    """A small classifier without a layer that captum has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(12 * 36, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 3)`` of images ``(B, 3, 24, 24)``."""
        return self.classifier(self.features(images).flatten(1))


def squares(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a square in one of three colours: images, colours ``(B,)`` and where the squares are ``(B, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.rand(count, 3, SIZE, SIZE, generator=generator)
    colours = torch.randint(0, 3, (count,), generator=generator)
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    corners = torch.randint(0, SIZE - SQUARE + 1, (count, 2), generator=generator)
    for image, colour, mask, (row, column) in zip(images, colours, masks, corners.tolist(), strict=True):
        mask[row : row + SQUARE, column : column + SQUARE] = True
        image[colour, mask] += 0.5
    return images, colours, masks


def fitted(steps: int = 60) -> Net:
    """The net, trained to name the square's colour."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    images, colours, _ = squares(240, seed=1)
    for step in range(steps):
        rows = torch.arange(40) + 40 * (step % 6)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), colours[rows]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def before(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """LRP as people compute it today: relevance ``(B, 3, H, W)`` and the convergence delta ``(B,)``."""
    lrp = LRP(model)
    relevance, delta = lrp.attribute(images, target=targets, return_convergence_delta=True)
    return relevance.detach(), delta.detach()


def after(model: nn.Module, images: Tensor, targets: Tensor, rules: Path) -> tuple[Tensor, Tensor]:
    """The same by trained rules."""
    lrp = LearnedLRP(model, rules)  # the changed line
    relevance, delta = lrp.attribute(images, target=targets, return_convergence_delta=True)
    return relevance.detach(), delta.detach()


def attached(model: nn.Module, images: Tensor, targets: Tensor, rules: Path) -> tuple[Tensor, Tensor]:
    """The same inside captum's own object, for code that is given one."""
    lrp = attach_rules(LRP(model), rules)  # the changed line
    relevance, delta = lrp.attribute(images, target=targets, return_convergence_delta=True)
    return relevance.detach(), delta.detach()


@click.command()
@click.option("--steps", default=10, help="Training steps of the rules.")
def main(steps: int) -> None:
    """Print how much of the relevance is on the square, before and after."""
    warnings.filterwarnings("ignore", "Input Tensor")  # captum's, on each call
    torch.manual_seed(0)
    model = fitted()
    images, targets, masks = squares(24, seed=2)

    trainer = RuleTrainer(model, "learned_epsilon_gamma_box", gate="none", steps=steps)
    rules = trainer.fit(squares(48, seed=3)[0])
    with tempfile.TemporaryDirectory() as folder:
        path = rules.save(Path(folder) / "rules.safetensors", model)
        results = {
            "captum.attr.LRP": before(model, images, targets),
            "LearnedLRP": after(model, images, targets, path),
            "LRP with attached rules": attached(model, images, targets, path),
        }
    click.echo(f"{'':24} {'on the square':>14} {'output - sum':>14}")
    for name, (relevance, delta) in results.items():
        amount = relevance.abs().sum(1)
        share = ((amount * masks).sum((1, 2)) / amount.sum((1, 2))).mean()
        click.echo(f"{name:24} {float(share):14.3f} {float(delta.abs().mean()):14.3f}")


if __name__ == "__main__":
    main()
