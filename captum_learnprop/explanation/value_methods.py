"""Hand-made methods for rows, series and texts: those that need no picture, from a baseline of zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from captum.attr import FeatureAblation, IntegratedGradients
from torch import Tensor, nn

from captum_learnprop.attribution.rules.deep_lift import LearnedDeepLift
from captum_learnprop.benchmark.explain import Explain, tried
from captum_learnprop.benchmark.hand_made_gradients import (
    INTEGRATED_STEPS,
    deconvolution,
    guided_backprop,
    input_x_gradient,
    saliency,
)

FOR_VALUES = ("integrated gradients", "saliency")
"""What explains rows, series and texts without rules, the first that can. The first is complete: attributions add up to
what the output loses from the input to zeros. No table of this project chose it."""


@dataclass(frozen=True)
class ValueMethod:
    """A method for inputs ``(1, F)`` or ``(1, C, T)``.

    Attributes:
        build: Makes it for a model and an example; it gives signed attributions in the shape of the input.
        passes: Forward and backward passes; None where they depend on the input.
    """

    build: Callable[[nn.Module, Tensor], Explain]
    passes: int | None


def _integrated_gradients(model: nn.Module, example: Tensor) -> Explain:
    method = IntegratedGradients(model)

    def attribute(inputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(inputs, target=targets, n_steps=INTEGRATED_STEPS)
        return found.detach().to(inputs.dtype)

    return attribute


def _deep_lift(model: nn.Module, example: Tensor) -> Explain:
    method = LearnedDeepLift(model)
    return tried(lambda inputs, targets: method.attribute(inputs, 0, targets), example)


def _occlusion(model: nn.Module, example: Tensor) -> Explain:
    """Returns what the output loses where a feature, or all channels of one place, are 0."""
    method = FeatureAblation(model)
    places = torch.arange(example.shape[-1], device=example.device).expand(example.shape)

    def attribute(inputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(inputs, target=targets, feature_mask=places)
        # A place is one part of the input: its loss is shared by its channels, so that it is the sum over them.
        return found.detach().to(inputs.dtype) / (1 if inputs.ndim == 2 else inputs.shape[1])

    return attribute


VALUE_METHODS: dict[str, ValueMethod] = {
    "saliency": ValueMethod(saliency, 2),
    "input x gradient": ValueMethod(input_x_gradient, 2),
    "integrated gradients": ValueMethod(_integrated_gradients, 2 * INTEGRATED_STEPS),
    "DeepLift": ValueMethod(_deep_lift, 4),
    "guided backprop": ValueMethod(guided_backprop, 2),
    "Deconvnet": ValueMethod(deconvolution, 2),
    "occlusion": ValueMethod(_occlusion, None),
}
"""By the name that they have for pictures."""
