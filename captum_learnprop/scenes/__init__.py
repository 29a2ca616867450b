"""Scenes with exact ground truth, made offline from a seed, and small trained nets for those that are drawn.

Drawn scenes (`make_scenes`) need nothing; scenes of photographs are made of files that the user gives.
"""

from captum_learnprop.errors import LearnpropError as LearnpropError
from captum_learnprop.scenes import digits_net, reference_nets
from captum_learnprop.scenes.conv_next import ConvNeXtLike
from captum_learnprop.scenes.cutouts import CutoutSource, make_cutout_scenes
from captum_learnprop.scenes.digits_net import DigitsNet
from captum_learnprop.scenes.faces import FaceSource
from captum_learnprop.scenes.marks import MarkedSource, plant_mark
from captum_learnprop.scenes.mobile_net import MobileNetLike
from captum_learnprop.scenes.mosaics import MosaicSource, make_mosaics
from captum_learnprop.scenes.pair_source import PairSource, digit_pairs, mnist_pairs
from captum_learnprop.scenes.reference_nets import InceptionLike, ResNetLike, VggLike, ViTLike
from captum_learnprop.scenes.scenes import Questions, Scenes, make_scenes
from captum_learnprop.scenes.seen import asked_of, seen_by
from captum_learnprop.scenes.segmented import SegmentedSource
from captum_learnprop.scenes.shapelets import ShapeletSource
from captum_learnprop.scenes.source import SceneSource
from zennit_rules._moved import renamed

__all__ = [
    "ConvNeXtLike",
    "CutoutSource",
    "DigitsNet",
    "FaceSource",
    "InceptionLike",
    "MarkedSource",
    "MobileNetLike",
    "MosaicSource",
    "PairSource",
    "Questions",
    "ResNetLike",
    "SceneSource",
    "Scenes",
    "SegmentedSource",
    "ShapeletSource",
    "VggLike",
    "ViTLike",
    "asked_of",
    "digit_pairs",
    "digits_net",
    "make_cutout_scenes",
    "make_mosaics",
    "make_scenes",
    "mnist_pairs",
    "plant_mark",
    "reference_nets",
    "seen_by",
]


__getattr__ = renamed(__name__, {"SceneError": "LearnpropError"})
