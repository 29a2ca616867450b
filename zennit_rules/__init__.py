"""Trainable propagation rules for Zennit: gates, rules, composites and rule sets."""

from ._moved import keep_old_names
from .canonizers import MergeBatchNormPairs, SkipCanonizer, batch_norm_pairs, canonizers_for
from .composites import (
    DeepTaylor,
    LearnedAttnLRP,
    LearnedComposite,
    LearnedDeepLift,
    LearnedEpsilonGammaBox,
    LearnedGradient,
    LearnedGuidedBackprop,
    LearnedTransformer,
    RectGradComposite,
    register_trained,
)
from .core.coverage import Coverage
from .core.dependence import explaining
from .core.fusion import Fusion
from .core.registry import composite_class, composite_name, register_composite
from .core.sites import Site, SiteTracker
from .errors import RuleError, RuleWarning
from .gates import ChannelGate, ElementGate, FeatureGate, Gate, PositionGate, QuadrantGate, register_gate
from .ready import ready_rules
from .rules.activation import LearnedActivation
from .rules.attention import LearnedSecant, MixedGate, ProductGate
from .rules.linear import LearnedAlphaBeta, LearnedBox, LearnedEpsilon, LearnedGamma
from .rules.pooling import LearnedMaxPool, PoolGate
from .rules.rect_grad import ProportionalPool, RectGate, RectGrad
from .rules.relevance_nodes import unkept_nodes
from .rules.rescale import LearnedRescale, RescaleMaxPool, RescaleSoftmax, reference_pass
from .ruleset import RuleSet

attribute = LearnedComposite.attribute

keep_old_names(
    __name__,
    {
        "activation": "zennit_rules.rules.activation",
        "attention": "zennit_rules.rules.attention",
        "buffers": "zennit_rules.core.buffers",
        "changes": "zennit_rules.rules.changes",
        "completeness": "zennit_rules.rules.completeness",
        "contributions": "zennit_rules.rules.contributions",
        "coverage": "zennit_rules.core.coverage",
        "deep_lift": "zennit_rules.composites.deep_lift",
        "deep_taylor": "zennit_rules.composites.deep_taylor",
        "dependence": "zennit_rules.core.dependence",
        "draws": "zennit_rules.core.draws",
        "epsilon_gamma_box": "zennit_rules.composites.lrp",
        "fingerprint": "zennit_rules.core.fingerprint",
        "hook": "zennit_rules.core.hook",
        "interpose": "zennit_rules.core.interpose",
        "linear": "zennit_rules.rules.linear",
        "linear_map": "zennit_rules.core.linear_map",
        "linear_watch": "zennit_rules.core.linear_watch",
        "names": "zennit_rules.core.names",
        "plain_copies": "zennit_rules.core.plain_copies",
        "pooling": "zennit_rules.rules.pooling",
        "rect_grad": "zennit_rules.rules.rect_grad",
        "registry": "zennit_rules.core.registry",
        "relevance": "zennit_rules.rules.relevance",
        "rescale": "zennit_rules.rules.rescale",
        "rescale_functions": "zennit_rules.rules.rescale_functions",
        "scalars": "zennit_rules.core.scalars",
        "sites": "zennit_rules.core.sites",
        "spellings": "zennit_rules.core.functions",
        "steps": "zennit_rules.rules.steps",
        "streams": "zennit_rules.core.streams",
        "tangent": "zennit_rules.core.tangent",
        "transformer": "zennit_rules.composites.transformer",
        "work": "zennit_rules.rules.work",
        "written_attention": "zennit_rules.rules.written_attention",
    },
)

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
    "ready_rules",
    "reference_pass",
    "register_composite",
    "register_gate",
    "register_trained",
    "unkept_nodes",
]
