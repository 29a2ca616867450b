"""Composites: which trainable rule goes to which layer, registered by name with zennit."""

from ..core.registry import composite_class, register_composite
from .base import LearnedComposite
from .deep_lift import LearnedDeepLift
from .deep_taylor import DeepTaylor
from .gradient import LearnedGradient, LearnedGuidedBackprop
from .lrp import LearnedEpsilonGammaBox
from .rect_grad import RectGradComposite
from .trained import register_trained
from .transformer import LearnedAttnLRP, LearnedTransformer

__all__ = [
    "DeepTaylor",
    "LearnedAttnLRP",
    "LearnedComposite",
    "LearnedDeepLift",
    "LearnedEpsilonGammaBox",
    "LearnedGradient",
    "LearnedGuidedBackprop",
    "LearnedTransformer",
    "RectGradComposite",
    "composite_class",
    "register_composite",
    "register_trained",
]
