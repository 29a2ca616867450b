"""Measuring attributions: scenes with known ground truth, localisation and faithfulness scores."""

from captum_learnprop.evaluation.digits_net import DigitsNet
from captum_learnprop.evaluation.faithfulness import deletion, deletion_curve, insertion, insertion_curve
from captum_learnprop.evaluation.localization import (
    average_precision,
    class_auc,
    pointing_game,
    relevance_mass,
)
from captum_learnprop.evaluation.maps import MapError, reduce_channels, smooth
from captum_learnprop.evaluation.scenes import Questions, SceneError, Scenes, make_scenes

__all__ = [
    "DigitsNet",
    "MapError",
    "Questions",
    "SceneError",
    "Scenes",
    "average_precision",
    "class_auc",
    "deletion",
    "deletion_curve",
    "insertion",
    "insertion_curve",
    "make_scenes",
    "pointing_game",
    "reduce_channels",
    "relevance_mass",
    "smooth",
]
