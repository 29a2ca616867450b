"""Nets, scenes and families of rules that ``learnprop evaluate`` lets one choose from."""

from __future__ import annotations

MODELS = ("vgg", "resnet", "inception")
SCENES = ("digits", "pairs", "grid", "patch", "parts")
COMPOSITES = ("learned_gradient", "learned_guided_backprop", "learned_deeplift", "learned_epsilon_gamma_box")
