"""Nets, scenes and families of rules that ``learnprop evaluate`` lets one choose from."""

from __future__ import annotations

MODELS = ("vgg", "resnet", "inception")
SCENES = ("digits", "pairs", "grid", "patch", "parts")
OWN_SCENES = ("cutouts", "photos", "mosaics", "masks")
"""Scenes of photographs, for any net."""

COMPOSITES = ("learned_gradient", "learned_guided_backprop", "learned_deeplift", "learned_epsilon_gamma_box")
TRANSFORMER_COMPOSITES = ("learned_transformer", "learned_attnlrp")
