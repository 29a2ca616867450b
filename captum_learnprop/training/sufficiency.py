"""Sufficiency, bounded: what a smooth mask keeps must give the explained class its probability back.

A sharp mask on a black image leaves an input that no model has seen, and an unbounded loss there teaches
the rules to fool the model. A low-pass mask over a blurred image, and a loss that ends where the
probability is back, leave less room.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.maps import reduce_channels, smooth
from captum_learnprop.training.objectives import MaskedPass


@dataclass(frozen=True)
class LowPassMask:
    """Smoothed strength of the attribution, divided by its largest value in the sample.

    ``m = r / max(r)`` with ``r`` the sum over channels of ``|a|``, smoothed by a Gaussian. A sample without
    any attribution gets the mask 0.

    Attributes:
        sigma: of the Gaussian, in pixels.
    """

    sigma: float = 4.0

    def __call__(self, attribution: Tensor) -> Tensor:
        """Mask ``(B, 1, H, W)`` of a signed attribution ``(B, C, H, W)``."""
        strength = smooth(reduce_channels(attribution), self.sigma)[:, None]
        top = strength.amax((1, 2, 3), keepdim=True)
        return strength / torch.where(top > 0, top, torch.ones_like(top))


@dataclass(frozen=True)
class KeepProbability:
    """``4 (p(m * x + (1 - m) * blur(x)) - p(x))^2 + area * mean(m)``, for models whose classes do not
    exclude each other.

    ``p`` is the sigmoid of the explained logit. The first term is at most 4, and 1 for a change of one half.

    Attributes:
        area: weight of the mean of the mask.
        blur: sigma of the Gaussian that makes the baseline, in pixels.

    Raises:
        LearnpropError: a negative weight or width.
    """

    area: float = 1.0
    blur: float = 5.0

    def __post_init__(self) -> None:
        if self.area < 0 or self.blur < 0:
            raise LearnpropError(f"KeepProbability: area={self.area} and blur={self.blur} must not be negative")

    def apply(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """The masked input, in the shape of ``inputs`` ``(B, C, H, W)``."""
        blurred = smooth(inputs.flatten(0, 1), self.blur).reshape(inputs.shape)
        return blurred + mask * (inputs - blurred)

    def __call__(self, result: MaskedPass) -> Tensor:
        """Loss of each sample, ``(B,)``."""
        change = result.selected_masked.sigmoid() - result.selected_original.sigmoid()
        loss = 4.0 * change.square()
        for mask in result.masks:
            loss = loss + self.area * mask.flatten(1).mean(1)
        return loss
