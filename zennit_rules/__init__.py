"""Trainable propagation rules for Zennit: gates, rules, composites and rule sets."""

from .activation import LearnedActivation
from .composites import (
    LearnedComposite,
    LearnedGradient,
    LearnedGuidedBackprop,
    register_trained,
)
from .coverage import Coverage
from .epsilon_gamma_box import LearnedEpsilonGammaBox
from .errors import RuleError, RuleWarning
from .gates import ChannelGate, ElementGate, FeatureGate, Gate, PositionGate, QuadrantGate, register_gate
from .linear import LearnedAlphaBeta, LearnedBox, LearnedEpsilon, LearnedGamma
from .pooling import LearnedMaxPool, PoolGate
from .registry import composite_class, register_composite
from .ruleset import RuleSet
from .sites import Site, SiteTracker
from .streams import Fusion, attribute

__all__ = [
    "ChannelGate",
    "Coverage",
    "ElementGate",
    "FeatureGate",
    "Fusion",
    "Gate",
    "LearnedActivation",
    "LearnedAlphaBeta",
    "LearnedBox",
    "LearnedComposite",
    "LearnedEpsilon",
    "LearnedEpsilonGammaBox",
    "LearnedGamma",
    "LearnedGradient",
    "LearnedGuidedBackprop",
    "LearnedMaxPool",
    "PoolGate",
    "PositionGate",
    "QuadrantGate",
    "RuleError",
    "RuleSet",
    "RuleWarning",
    "Site",
    "SiteTracker",
    "attribute",
    "composite_class",
    "register_composite",
    "register_gate",
    "register_trained",
]
