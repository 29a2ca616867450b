"""Descent with one step size for all gates of a sample together: gates that matter move most."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_learnprop.training.per_sample import Momentum

LENGTH = 2.0
"""The length of a step from a rule of the textbook, where none is given. On validation photographs .6 and 1 were worse,
on 64-pixel digits 1 was as good."""

REFINING_LENGTH = 0.3
"""The length of a step from trained rules: they are near the best that deletions can tell."""

PULL = 0.3
"""The share of the way from the start that each step takes back."""

STEEP = 0.25
"""The length of a gradient from which on steps are of full length. On photographs that of plain gradients is about .3,
that of trained rules .03 to .15; a correlation is minimised, so the number needs no unit."""


class JointDescent:
    """Momentum with steps of one length per sample, over all gates: blind to other samples.

    `per_sample.Descent` lets every gate make steps of one size. That suits an objective that needs all of them; where
    few numbers are to be fitted, gates that have nothing to say would move by their noise. For the same reason each
    step first takes back a share of the way from the start, so that the parameters of a sample stay within ``lr /
    pull`` of it: what few deletions say of many parameters is little more than a direction.

    Where the gradient is short there is little to learn, and steps are shorter (see `STEEP`).

    Args:
        lr: Greatest length of a step in the space of all raw parameters of a sample. It does not grow with their
            number: the same length suits a small net and a large one.
        samples: Number B of samples.
        momentum: Weight of the past.
        pull: Share of the way from the start that each step takes back, in [0, 1].

    Attributes:
        noise: Size below which the gradient of a gate is rounding noise, ``(B,)``.
    """

    def __init__(self, lr: float, samples: int, momentum: float = 0.8, pull: float = PULL) -> None:
        self.lr, self.samples, self.pull = lr, samples, pull
        self.noise = torch.zeros(samples)
        self._moving = Momentum(momentum)
        self._starts: dict[tuple[str, str], Tensor] = {}
        self._due: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def note(self, site: str, gate: nn.Module, gradients: dict[str, Tensor]) -> None:
        """Take down the gradients of a gate's parameters, for the next `step`."""
        for name, gradient in gradients.items():
            moving, size = self._moving.add((site, name), gradient, getattr(gate, "sample_dim", 0))
            parameter = gate.get_parameter(name)
            if (site, name) not in self._starts:
                self._starts[site, name] = parameter.detach().clone()
            self._due.append((parameter, self._starts[site, name], moving, size))

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that gradients were noted of against them."""
        squares = torch.zeros_like(self.noise, dtype=torch.float64)
        for _, _, _, size in self._due:
            heard = torch.where(size > self._by_row(self.noise, size), size, torch.zeros_like(size))
            rows = heard.double().square().flatten().to(squares.device)
            # Rows of a sample follow each other; where rows are no samples, all samples share them.
            squares += rows.sum() if len(rows) % self.samples else rows.reshape(self.samples, -1).sum(1)
        scale = self.lr / squares.sqrt().clamp(min=STEEP)
        for parameter, start, moving, size in self._due:
            heard = size > self._by_row(self.noise, size)
            own = torch.where(heard, self._by_row(scale, size), torch.zeros_like(size))
            parameter.lerp_(start, self.pull).addcmul_(moving, own, value=-1)
        self._due.clear()

    def _by_row(self, values: Tensor, size: Tensor) -> Tensor:
        """Returns values of samples ``(B,)`` in the shape of ``size``; their mean where its rows are no samples."""
        rows, rest = divmod(size.numel(), self.samples)
        if rest:
            return torch.full_like(size, float(values.mean()))
        return values.to(size).repeat_interleave(rows).reshape(size.shape)
