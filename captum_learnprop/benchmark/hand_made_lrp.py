"""Layer-wise relevance propagation by zennit, as a hand-made method: its composites on a model's twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from zennit.composites import (
    Convolution,
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    Linear,
    SpecialFirstLayerMapComposite,
    layer_map_base,
)
from zennit.rules import ZBox, ZPlus

from captum_learnprop.benchmark.twin import Twin, twin_of

Explain = Callable[[Tensor, Tensor], Tensor]
"""``(images (B, C, H, W), targets (B,)) -> attribution (B, C, H, W) or map (B, 1, H, W)``."""


@dataclass(frozen=True)
class Lrp:
    """Layer-wise relevance propagation by a zennit composite on the twin.

    The relevance returned is that of the first convolution's input, which differs from the image by a normalisation:
    in zennit the gradient of the normalisation would weigh the channels.

    Attributes:
        make: the composite for a twin.
        seed: what the target's output starts with. The epsilon rule at the last layer gives unit i the share
            ``a_i w_i / z``, which flips its sign with the output ``z``: there the seed is ``"output"`` (``z``
            itself), and relevance is the contribution ``a_i w_i``. The z+ rule's shares are positive: ``"one"``.
    """

    make: Callable[[Twin], Any]
    seed: str = "output"

    def __call__(self, model: nn.Module) -> Explain:
        """Returns the method for a model, whose relevance is signed ``(B, C, H, W)``.

        Raises:
            LearnpropError: the net cannot be written in separate modules.
        """
        return self.on(twin_of(model))

    def on(self, twin: Twin) -> Explain:
        """Returns the method for the model of a twin that exists already; relevance is signed ``(B, C, H, W)``."""
        composite = self.make(twin)

        def attribute(images: Tensor, targets: Tensor) -> Tensor:
            leaf = images.detach().clone().requires_grad_()
            with composite.context(twin.network) as network, torch.enable_grad():
                output = network(leaf)
                start = torch.zeros_like(output)
                value = output.detach() if self.seed == "output" else torch.ones_like(output)
                start.scatter_(1, targets[:, None], value.gather(1, targets[:, None]))
                relevance: Tensor = torch.autograd.grad(output, leaf, start)[0]
            return relevance / (twin.white - twin.black)

        return attribute


def epsilon_plus(twin: Twin) -> Any:
    """Returns zennit's composite: z+ at convolutions, epsilon at linear layers."""
    return EpsilonPlus()


def epsilon_plus_box(twin: Twin) -> Any:
    """Returns `epsilon_plus` with the box rule at the first convolution."""
    return SpecialFirstLayerMapComposite(layer_map=EpsilonPlus().layer_map, first_map=[(Convolution, box_rule(twin))])


def epsilon_gamma_box(twin: Twin) -> Any:
    """Returns zennit's composite: gamma at convolutions, epsilon at linear layers, the box rule at the first."""
    low, high = torch.minimum(twin.black, twin.white), torch.maximum(twin.black, twin.white)
    return EpsilonGammaBox(low=low, high=high)


def epsilon_alpha_beta(twin: Twin) -> Any:
    """Returns zennit's composite: alpha 2, beta 1 at convolutions, epsilon at linear layers."""
    return EpsilonAlpha2Beta1()


def epsilon_plus_flat(twin: Twin) -> Any:
    """Returns zennit's composite: `epsilon_plus` with the flat rule at the first layer."""
    return EpsilonPlusFlat()


def excitation_backprop(twin: Twin) -> Any:
    """Returns zennit's composite: z+ everywhere (Zhang et al., ECCV 2016)."""
    return ExcitationBackprop()


def z_plus_box(twin: Twin) -> Any:
    """Returns z+ at all layers with weights, and the box rule at the first convolution."""
    return SpecialFirstLayerMapComposite(
        layer_map=[*layer_map_base(), (Linear, ZPlus())], first_map=[(Convolution, box_rule(twin))]
    )


def box_rule(twin: Twin) -> Any:
    """Returns the rule of a first layer whose inputs are images between black and white (Montavon et al., 2017)."""
    return ZBox(low=torch.minimum(twin.black, twin.white), high=torch.maximum(twin.black, twin.white))
