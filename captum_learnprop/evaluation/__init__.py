"""Measuring attributions: scenes with known ground truth, and scores of localisation, faithfulness and sanity."""

from captum_learnprop.evaluation.alignment import (
    class_alignment,
    direction_convergence,
    input_alignment,
    negative_filtering,
    proportion_sweep,
    retained_energy,
)
from captum_learnprop.evaluation.backward_rules import BackwardRule, backward_rule
from captum_learnprop.evaluation.box_sensitivity import box_sensitivity, compactness
from captum_learnprop.evaluation.conservation import Conservation, conservation, measure_conservation
from captum_learnprop.evaluation.difull import DiFull, difull_score, mosaic
from captum_learnprop.evaluation.digits_net import DigitsNet
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
from captum_learnprop.evaluation.maps import MapError, reduce_channels, smooth
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
from captum_learnprop.evaluation.reference_nets import InceptionLike, ResNetLike, VggLike, ViTLike
from captum_learnprop.evaluation.road import road, road_curve
from captum_learnprop.evaluation.scenes import Questions, SceneError, Scenes, make_scenes
from captum_learnprop.evaluation.similarity import spearman, ssim

__all__ = [
    "BackwardRule",
    "Conservation",
    "DiFull",
    "DigitsNet",
    "InceptionLike",
    "MapError",
    "ParameterRandomization",
    "Questions",
    "ResNetLike",
    "SceneError",
    "Scenes",
    "VggLike",
    "ViTLike",
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
    "full_randomization",
    "grid_pointing",
    "input_alignment",
    "insertion",
    "insertion_curve",
    "layers_top_down",
    "lerf_curve",
    "make_scenes",
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
