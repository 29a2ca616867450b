"""Nets, scenes and families of rules that ``learnprop evaluate`` lets one choose from."""

from __future__ import annotations

MODELS = ("vgg", "resnet", "inception")
SCENES = ("digits", "pairs", "grid", "patch", "parts")
DATA_SETS = ("mnist", "faces")
"""Scenes of 64 x 64 pixels of data sets that packages bring, for nets of one's own that know their classes."""

OWN_SCENES = ("cutouts", "photos", "mosaics", "masks", *DATA_SETS)
"""Scenes of photographs, for any net, and those of data sets."""

COMPOSITES = ("learned_gradient", "learned_guided_backprop", "learned_deeplift", "learned_epsilon_gamma_box")
TRANSFORMER_COMPOSITES = ("learned_transformer", "learned_attnlrp")
