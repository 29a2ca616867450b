"""Everything that leans on non-public names of captum or torch; each has a test of its own."""

from __future__ import annotations

from typing import Any

from captum._utils.common import (
    _format_additional_forward_args,
    _format_output,
    _format_tensor_into_tuples,
    _select_targets,
)
from captum._utils.gradient import compute_gradients
from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
from captum.attr._utils.common import _call_custom_attribution_func
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule, PropagationRule
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class IdleRule(PropagationRule):
    """A rule of captum's LRP that leaves its module alone, for modules through which something else propagates.

    Args:
        text: What captum prints when it is verbose.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Second pass: nothing to hook."""

    def forward_hook_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """First pass: no weights to change, so no inputs to remember; the module may be called again."""

    def forward_pre_hook_activations(self, module: nn.Module, inputs: Any) -> None:
        """Second pass: inputs are what they were."""

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """None."""


__all__ = [
    "SUPPORTED_LAYERS_WITH_RULES",
    "SUPPORTED_NON_LINEAR_LAYERS",
    "Alpha1_Beta0_Rule",
    "EpsilonRule",
    "GammaRule",
    "IdentityRule",
    "IdleRule",
    "PropagationRule",
    "SpectralNorm",
    "WeightNorm",
    "_call_custom_attribution_func",
    "_format_additional_forward_args",
    "_format_output",
    "_format_tensor_into_tuples",
    "_select_targets",
    "compute_gradients",
]
