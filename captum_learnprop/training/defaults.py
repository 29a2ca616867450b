"""How rules of each composite are trained where nothing else is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from captum_learnprop.training.terms import OcclusionRegression
from zennit_rules import LearnedEpsilonGammaBox, composite_class

HELD_OUT = 0.2
"""The share of the images that is held out by default."""

FEATURE_OPTIONS = {"position": True}
"""The options of feature gates that none are given for: weighing positions raised average precision on validation
scenes (.82 to .84)."""


@dataclass(frozen=True)
class TrainingDefaults:
    """How rules of a composite are trained where nothing else is asked for; chosen on validation scenes.

    Attributes:
        sign: How an attribution becomes a map, one of `maps.SIGNS`.
        smoothing: Width of the smoothing of maps in training, as a fraction of the sides (see `maps.per_axis`); that of
            finished maps is chosen, see `smoothing_choice`.
        outlines: Radius of the smoothing that follows the images, as a fraction of the sides.
        lr: First learning rate.
        density: How much of the loss of the occlusion regression compares densities, in [0, 1]. Its default was chosen
            against 0: equal average precision, lower deletion. At 224 pixels 1 is noise.
    """

    sign: str = "absolute"
    smoothing: float = 0.025
    lr: float = 0.03
    density: float = 0.5
    outlines: float = 0.0

    @property
    def term(self) -> OcclusionRegression:
        """The objective."""
        return OcclusionRegression(density=self.density)


_DEFAULTS = {LearnedEpsilonGammaBox: TrainingDefaults("signed", 0.0)}
"""Relevance says what speaks against a class as well. Average precision on validation scenes
of the VGG-like net: .88 from positive maps, .90 from signed ones."""


def training_defaults(composite: str) -> TrainingDefaults:
    """Returns how rules of a composite are trained by default.

    Args:
        composite: Name of a composite, as `RuleTrainer` takes it.

    Raises:
        RuleError: The composite is unknown.
    """
    known = composite_class(composite)
    return next((options for base, options in _DEFAULTS.items() if issubclass(known, base)), TrainingDefaults())
