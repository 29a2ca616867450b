"""Scenes with exact ground truth, made offline from a seed, and small trained nets that know their classes."""

from captum_learnprop.scenes import digits_net, reference_nets
from captum_learnprop.scenes.digits_net import DigitsNet
from captum_learnprop.scenes.reference_nets import InceptionLike, ResNetLike, VggLike, ViTLike
from captum_learnprop.scenes.scenes import Questions, SceneError, Scenes, make_scenes

__all__ = [
    "DigitsNet",
    "InceptionLike",
    "Questions",
    "ResNetLike",
    "SceneError",
    "Scenes",
    "VggLike",
    "ViTLike",
    "digits_net",
    "make_scenes",
    "reference_nets",
]
