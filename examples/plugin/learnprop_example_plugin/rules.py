"""A gate with two weights per layer, and a composite that uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zennit_rules.composites import LearnedGradient
from zennit_rules.gates import Gate, Weight, start_weights


class BlendGate(Gate):
    """Two weights for a whole layer: of the true gradient, and of the incoming signal.

    ``a = a_start + tanh(raw_0)`` and ``b = b_start + tanh(raw_1)``: started at the gradient, a layer can
    learn how much of the signal to let through where its activation is off.
    """

    name = "blend"

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """Two raw values per layer, or per layer and sample."""
        rows = 1 if self.samples is None else shape[0]
        self.raw = nn.Parameter(torch.zeros(2, rows, *(1 for _ in shape[1:])))

    def forward(self, z: Tensor, g: Tensor) -> tuple[Weight, Weight]:
        """Weights of the true gradient and of the incoming signal."""
        a, b = start_weights(self.start, g)
        deviation = torch.tanh(self.raw).to(g.dtype)
        return a + deviation[0], b + deviation[1]


class BlendedGradient(LearnedGradient):
    """`LearnedGradient` with a `BlendGate` at every activation, unless another gate is asked for."""

    name = "blended_gradient"
    default_gate = BlendGate
