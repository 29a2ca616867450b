"""Captum methods with trainable propagation rules, the tools to train and judge them, plugins and a command line.

Names are imported on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import evaluation as evaluation
    from . import explanation as explanation
    from . import models as models
    from . import plugins as plugins
    from . import scenes as scenes
    from . import targets as targets
    from . import training as training
    from .attribution.extremal.inputs import ExtremalArea as ExtremalArea
    from .attribution.extremal.inputs import ExtremalPerturbation as ExtremalPerturbation
    from .attribution.extremal.layers import LayerExtremalPerturbation as LayerExtremalPerturbation
    from .attribution.extremal.rows import ExtremalMasks as ExtremalMasks
    from .attribution.extremal.rows import NeutralMaskWarning as NeutralMaskWarning
    from .attribution.rules.attach import attach_rules as attach_rules
    from .attribution.rules.attach import detach_rules as detach_rules
    from .attribution.rules.deep_lift import LearnedDeepLift as LearnedDeepLift
    from .attribution.rules.guided_backprop import LearnedGuidedBackprop as LearnedGuidedBackprop
    from .attribution.rules.learned import LearnedPropagation as LearnedPropagation
    from .attribution.rules.lrp import LearnedLRP as LearnedLRP
    from .attribution.rules.rect_grad import RectGrad as RectGrad
    from .attribution.tokens.ablation import TokenAblation as TokenAblation
    from .attribution.tokens.attention_maps import AttentionMap as AttentionMap
    from .attribution.tokens.attention_maps import AttentionRollout as AttentionRollout
    from .attribution.tokens.attention_maps import GenericAttention as GenericAttention
    from .attribution.tokens.averaged_cdam import IntegratedCDAM as IntegratedCDAM
    from .attribution.tokens.averaged_cdam import SmoothCDAM as SmoothCDAM
    from .attribution.tokens.cdam import CDAM as CDAM
    from .attribution.tokens.concepts import Concept as Concept
    from .attribution.tokens.concepts import Embedding as Embedding
    from .attribution.tokens.token_attribution import PatchReadingWarning as PatchReadingWarning
    from .errors import LearnpropError as LearnpropError
    from .explanation.explain import explain as explain
    from .explanation.result import Explanation as Explanation
    from .models.text import OnEmbeddings as OnEmbeddings
    from .training.masks import AreaMask as AreaMask
    from .training.masks import MaxMask as MaxMask
    from .training.objectives import Agreement as Agreement
    from .training.sample_occlusion import SampleOcclusion as SampleOcclusion
    from .training.terms import Area as Area
    from .training.terms import ClassContrast as ClassContrast
    from .training.terms import Necessity as Necessity
    from .training.terms import OcclusionRegression as OcclusionRegression
    from .training.terms import RandomizationContrast as RandomizationContrast
    from .training.terms import Sufficiency as Sufficiency
    from .training.terms import TotalVariation as TotalVariation
    from .training.trainer import RuleTrainer as RuleTrainer

_HOMES = {
    "Agreement": "training.objectives",
    "Area": "training.terms",
    "AreaMask": "training.masks",
    "AttentionMap": "attribution.tokens.attention_maps",
    "AttentionRollout": "attribution.tokens.attention_maps",
    "CDAM": "attribution.tokens.cdam",
    "ClassContrast": "training.terms",
    "Concept": "attribution.tokens.concepts",
    "Embedding": "attribution.tokens.concepts",
    "Explanation": "explanation.result",
    "ExtremalArea": "attribution.extremal.inputs",
    "ExtremalMasks": "attribution.extremal.rows",
    "ExtremalPerturbation": "attribution.extremal.inputs",
    "GenericAttention": "attribution.tokens.attention_maps",
    "IntegratedCDAM": "attribution.tokens.averaged_cdam",
    "LayerExtremalPerturbation": "attribution.extremal.layers",
    "LearnedDeepLift": "attribution.rules.deep_lift",
    "LearnedGuidedBackprop": "attribution.rules.guided_backprop",
    "LearnedLRP": "attribution.rules.lrp",
    "LearnedPropagation": "attribution.rules.learned",
    "LearnpropError": "errors",
    "MaxMask": "training.masks",
    "Necessity": "training.terms",
    "NeutralMaskWarning": "attribution.extremal.rows",
    "OcclusionRegression": "training.terms",
    "OnEmbeddings": "models.text",
    "PatchReadingWarning": "attribution.tokens.token_attribution",
    "RandomizationContrast": "training.terms",
    "RectGrad": "attribution.rules.rect_grad",
    "RuleTrainer": "training.trainer",
    "SampleOcclusion": "training.sample_occlusion",
    "SmoothCDAM": "attribution.tokens.averaged_cdam",
    "Sufficiency": "training.terms",
    "TokenAblation": "attribution.tokens.ablation",
    "TotalVariation": "training.terms",
    "attach_rules": "attribution.rules.attach",
    "detach_rules": "attribution.rules.attach",
    "explain": "explanation.explain",
}
_ROOMS = ("evaluation", "explanation", "models", "plugins", "scenes", "targets", "training")

__all__ = [
    "CDAM",
    "Agreement",
    "Area",
    "AreaMask",
    "AttentionMap",
    "AttentionRollout",
    "ClassContrast",
    "Concept",
    "Embedding",
    "Explanation",
    "ExtremalArea",
    "ExtremalMasks",
    "ExtremalPerturbation",
    "GenericAttention",
    "IntegratedCDAM",
    "LayerExtremalPerturbation",
    "LearnedDeepLift",
    "LearnedGuidedBackprop",
    "LearnedLRP",
    "LearnedPropagation",
    "LearnpropError",
    "MaxMask",
    "Necessity",
    "NeutralMaskWarning",
    "OcclusionRegression",
    "OnEmbeddings",
    "PatchReadingWarning",
    "RandomizationContrast",
    "RectGrad",
    "RuleTrainer",
    "SampleOcclusion",
    "SmoothCDAM",
    "Sufficiency",
    "TokenAblation",
    "TotalVariation",
    "attach_rules",
    "detach_rules",
    "evaluation",
    "explain",
    "plugins",
    "scenes",
    "targets",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
