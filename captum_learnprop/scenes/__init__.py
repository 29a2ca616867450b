"""Scenes with exact ground truth, made offline from a seed, and small trained nets that know their classes."""

from captum_learnprop.errors import LearnpropError as LearnpropError
from captum_learnprop.scenes import digits_net, reference_nets
from captum_learnprop.scenes.digits_net import DigitsNet
from captum_learnprop.scenes.reference_nets import InceptionLike, ResNetLike, VggLike, ViTLike
from captum_learnprop.scenes.scenes import Questions, Scenes, make_scenes
from zennit_rules._moved import renamed

__all__ = [
    "DigitsNet",
    "InceptionLike",
    "Questions",
    "ResNetLike",
    "Scenes",
    "VggLike",
    "ViTLike",
    "digits_net",
    "make_scenes",
    "reference_nets",
]


__getattr__ = renamed(__name__, {"SceneError": "LearnpropError"})
