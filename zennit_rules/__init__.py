"""Trainable propagation rules for Zennit: gates, rules, composites and rule sets."""

from .activation import LearnedActivation
from .attention import LearnedSecant, MixedGate, ProductGate
from .canonizers import MergeBatchNormPairs, SkipCanonizer, batch_norm_pairs, canonizers_for
from .composites import (
    LearnedComposite,
    LearnedGradient,
    LearnedGuidedBackprop,
    register_trained,
)
from .coverage import Coverage
from .deep_lift import LearnedDeepLift
from .deep_taylor import DeepTaylor
from .dependence import explaining
from .epsilon_gamma_box import LearnedEpsilonGammaBox
from .errors import RuleError, RuleWarning
from .gates import ChannelGate, ElementGate, FeatureGate, Gate, PositionGate, QuadrantGate, register_gate
from .linear import LearnedAlphaBeta, LearnedBox, LearnedEpsilon, LearnedGamma
from .pooling import LearnedMaxPool, PoolGate
from .rect_grad import ProportionalPool, RectGate, RectGrad, RectGradComposite
from .registry import composite_class, composite_name, register_composite
from .relevance import unkept_nodes
from .rescale import LearnedRescale, RescaleMaxPool, RescaleSoftmax, reference_pass
from .ruleset import RuleSet
from .sites import Site, SiteTracker
from .streams import Fusion, attribute
from .transformer import LearnedAttnLRP, LearnedTransformer

__all__ = [
    "ChannelGate",
    "Coverage",
    "DeepTaylor",
    "ElementGate",
    "FeatureGate",
    "Fusion",
    "Gate",
    "LearnedActivation",
    "LearnedAlphaBeta",
    "LearnedAttnLRP",
    "LearnedBox",
    "LearnedComposite",
    "LearnedDeepLift",
    "LearnedEpsilon",
    "LearnedEpsilonGammaBox",
    "LearnedGamma",
    "LearnedGradient",
    "LearnedGuidedBackprop",
    "LearnedMaxPool",
    "LearnedRescale",
    "LearnedSecant",
    "LearnedTransformer",
    "MergeBatchNormPairs",
    "MixedGate",
    "PoolGate",
    "PositionGate",
    "ProductGate",
    "ProportionalPool",
    "QuadrantGate",
    "RectGate",
    "RectGrad",
    "RectGradComposite",
    "RescaleMaxPool",
    "RescaleSoftmax",
    "RuleError",
    "RuleSet",
    "RuleWarning",
    "Site",
    "SiteTracker",
    "SkipCanonizer",
    "attribute",
    "batch_norm_pairs",
    "canonizers_for",
    "composite_class",
    "composite_name",
    "explaining",
    "reference_pass",
    "register_composite",
    "register_gate",
    "register_trained",
    "unkept_nodes",
]
