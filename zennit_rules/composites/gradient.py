"""Gates at every activation, and nothing else."""

from __future__ import annotations

from ..core.registry import register_composite
from .base import LearnedComposite


class LearnedGradient(LearnedComposite):
    """Gates that start at the plain gradient; "learned_gradient" in ``COMPOSITES``."""

    name = "learned_gradient"


class LearnedGuidedBackprop(LearnedComposite):
    """Gates that start at guided backprop; "learned_guided_backprop" in ``COMPOSITES``."""

    name = "learned_guided_backprop"
    default_start = "guided_backprop"


for _composite in (LearnedGradient, LearnedGuidedBackprop):
    register_composite(_composite.name, _composite)
