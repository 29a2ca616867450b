"""Measuring attributions: scores of localisation, faithfulness, sanity and alignment, as plain functions."""

from __future__ import annotations

import warnings
from typing import Any

from captum_learnprop import scenes as _scenes
from captum_learnprop.errors import LearnpropError as LearnpropError
from captum_learnprop.evaluation.active_span import retained_energy
from captum_learnprop.evaluation.alignment import (
    class_alignment,
    direction_convergence,
    input_alignment,
    negative_filtering,
    proportion_sweep,
)
from captum_learnprop.evaluation.backward_rules import BackwardRule, backward_rule
from captum_learnprop.evaluation.box_sensitivity import box_sensitivity, compactness
from captum_learnprop.evaluation.conservation import Conservation, conservation, measure_conservation
from captum_learnprop.evaluation.difull import DiFull, difull_score, mosaic
from captum_learnprop.evaluation.faithfulness import (
    deletion,
    deletion_curve,
    insertion,
    insertion_curve,
    lerf_curve,
    morf_curve,
    morf_lerf_area,
)
from captum_learnprop.evaluation.localization import (
    average_precision,
    class_auc,
    grid_pointing,
    pointing_game,
    relevance_mass,
    relevance_rank_accuracy,
)
from captum_learnprop.evaluation.metrics import METRICS, Metric, UnknownMetricError, find_metric
from captum_learnprop.evaluation.part_importance import part_correlation, part_drops
from captum_learnprop.evaluation.quantus import as_quantus_explain_func
from captum_learnprop.evaluation.randomization import (
    ParameterRandomization,
    complexity_rise,
    full_randomization,
    layers_top_down,
    parameter_randomization,
    random_logit,
    randomized,
)
from captum_learnprop.evaluation.road import road, road_curve
from captum_learnprop.evaluation.similarity import spearman, ssim
from captum_learnprop.maps import reduce_channels, smooth
from zennit_rules._moved import keep_old_names

__all__ = [
    "METRICS",
    "BackwardRule",
    "Conservation",
    "DiFull",
    "Metric",
    "ParameterRandomization",
    "UnknownMetricError",
    "as_quantus_explain_func",
    "average_precision",
    "backward_rule",
    "box_sensitivity",
    "class_alignment",
    "class_auc",
    "compactness",
    "complexity_rise",
    "conservation",
    "deletion",
    "deletion_curve",
    "difull_score",
    "direction_convergence",
    "find_metric",
    "full_randomization",
    "grid_pointing",
    "input_alignment",
    "insertion",
    "insertion_curve",
    "layers_top_down",
    "lerf_curve",
    "measure_conservation",
    "morf_curve",
    "morf_lerf_area",
    "mosaic",
    "negative_filtering",
    "parameter_randomization",
    "part_correlation",
    "part_drops",
    "pointing_game",
    "proportion_sweep",
    "random_logit",
    "randomized",
    "reduce_channels",
    "relevance_mass",
    "relevance_rank_accuracy",
    "retained_energy",
    "road",
    "road_curve",
    "smooth",
    "spearman",
    "ssim",
]

keep_old_names(
    __name__,
    {
        "benchmark": "captum_learnprop.benchmark.suite",
        "comparison": "captum_learnprop.benchmark.comparison",
        "digits_net": "captum_learnprop.scenes.digits_net",
        "gamma_grid": "captum_learnprop.benchmark.gamma_grid",
        "hand_made": "captum_learnprop.benchmark.hand_made",
        "maps": "captum_learnprop.maps",
        "reference_nets": "captum_learnprop.scenes.reference_nets",
        "reinitialization": "captum_learnprop.reinitialization",
        "reparametrized": "captum_learnprop.reparametrized",
        "rule_families": "captum_learnprop.benchmark.rule_families",
        "scene_drawing": "captum_learnprop.scenes.drawing",
        "scene_objects": "captum_learnprop.scenes.objects",
        "scenes": "captum_learnprop.scenes.scenes",
        "scorecard": "captum_learnprop.benchmark.scorecard",
        "summary": "captum_learnprop.benchmark.summary",
    },
)


def __getattr__(name: str) -> Any:
    """Scenes and their nets, which were here before they had a room of their own."""
    if name in ("MapError", "SceneError"):
        message = f"{__name__}.{name} is LearnpropError now; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return LearnpropError
    if name not in _scenes.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"{__name__}.{name} is captum_learnprop.scenes.{name} now; the old name goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(_scenes, name)
