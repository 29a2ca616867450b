"""Deep Taylor decomposition as a composite: z+ at every linear layer, the box rule at the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from ..core.registry import register_composite
from .lrp import LearnedEpsilonGammaBox


class DeepTaylor(LearnedEpsilonGammaBox):
    """Deep Taylor decomposition (Montavon et al., Pattern Recognition 2017); "deep_taylor" in ``COMPOSITES``.

    Relevance starts at the output and is shared out by positive contributions alone, biases left out, at convolutions
    and dense layers; by the box rule at the first layer, whose bounds ``low`` and ``high`` are read from the inputs
    unless given. On any model, skip connections included, as `LearnedEpsilonGammaBox`, whose parameters it has.

    Args:
        rule_options: Options of the rules, those of `LearnedEpsilonGammaBox` with other defaults.
    """

    name = "deep_taylor"
    default_options: ClassVar[Mapping[str, Any]] = {
        **LearnedEpsilonGammaBox.default_options,
        "dense": "gamma",
        "gamma": math.inf,
        "negative": "z+",
        "bias": "zero",
    }


register_composite(DeepTaylor.name, DeepTaylor)

__all__ = ["DeepTaylor"]
