"""Captum methods with trainable propagation rules, the tools to train and judge them, plugins and a command line.

Names are imported on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import evaluation as evaluation
    from . import plugins as plugins
    from . import training as training
    from .attribution.attention_maps import AttentionMap as AttentionMap
    from .attribution.attention_maps import AttentionRollout as AttentionRollout
    from .attribution.attention_maps import GenericAttention as GenericAttention
    from .attribution.cdam import CDAM as CDAM
    from .attribution.cdam import IntegratedCDAM as IntegratedCDAM
    from .attribution.cdam import SmoothCDAM as SmoothCDAM
    from .attribution.concepts import Concept as Concept
    from .attribution.concepts import Embedding as Embedding
    from .attribution.deep_lift import LearnedDeepLift as LearnedDeepLift
    from .attribution.extremal import ExtremalArea as ExtremalArea
    from .attribution.extremal import ExtremalPerturbation as ExtremalPerturbation
    from .attribution.extremal_rows import ExtremalMasks as ExtremalMasks
    from .attribution.extremal_rows import NeutralMaskWarning as NeutralMaskWarning
    from .attribution.guided_backprop import LearnedGuidedBackprop as LearnedGuidedBackprop
    from .attribution.layer_extremal import LayerExtremalPerturbation as LayerExtremalPerturbation
    from .attribution.learned import LearnedPropagation as LearnedPropagation
    from .attribution.lrp import LearnedLRP as LearnedLRP
    from .attribution.rect_grad import RectGrad as RectGrad
    from .attribution.stock_lrp import attach_rules as attach_rules
    from .attribution.stock_lrp import detach_rules as detach_rules
    from .attribution.token_ablation import TokenAblation as TokenAblation
    from .attribution.token_attribution import PatchReadingWarning as PatchReadingWarning
    from .errors import LearnpropError as LearnpropError
    from .training.masks import AreaMask as AreaMask
    from .training.masks import MaxMask as MaxMask
    from .training.objectives import Agreement as Agreement
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
    "AttentionMap": "attribution.attention_maps",
    "AttentionRollout": "attribution.attention_maps",
    "CDAM": "attribution.cdam",
    "ClassContrast": "training.terms",
    "Concept": "attribution.concepts",
    "Embedding": "attribution.concepts",
    "ExtremalArea": "attribution.extremal",
    "ExtremalMasks": "attribution.extremal_rows",
    "ExtremalPerturbation": "attribution.extremal",
    "GenericAttention": "attribution.attention_maps",
    "IntegratedCDAM": "attribution.cdam",
    "LayerExtremalPerturbation": "attribution.layer_extremal",
    "LearnedDeepLift": "attribution.deep_lift",
    "LearnedGuidedBackprop": "attribution.guided_backprop",
    "LearnedLRP": "attribution.lrp",
    "LearnedPropagation": "attribution.learned",
    "LearnpropError": "errors",
    "MaxMask": "training.masks",
    "Necessity": "training.terms",
    "NeutralMaskWarning": "attribution.extremal_rows",
    "OcclusionRegression": "training.terms",
    "PatchReadingWarning": "attribution.token_attribution",
    "RandomizationContrast": "training.terms",
    "RectGrad": "attribution.rect_grad",
    "RuleTrainer": "training.trainer",
    "SmoothCDAM": "attribution.cdam",
    "Sufficiency": "training.terms",
    "TokenAblation": "attribution.token_ablation",
    "TotalVariation": "training.terms",
    "attach_rules": "attribution.stock_lrp",
    "detach_rules": "attribution.stock_lrp",
}
_ROOMS = ("evaluation", "plugins", "training")

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
    "PatchReadingWarning",
    "RandomizationContrast",
    "RectGrad",
    "RuleTrainer",
    "SmoothCDAM",
    "Sufficiency",
    "TokenAblation",
    "TotalVariation",
    "attach_rules",
    "detach_rules",
    "evaluation",
    "plugins",
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
