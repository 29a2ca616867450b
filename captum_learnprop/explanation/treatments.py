"""How the attribution of each hand-made method becomes the map that is drawn: fixed, by what the tables chose.

In the comparisons of this project every hand-made method has the sign and the smoothing that are best on validation
scenes. What is written here are these choices on photographs (``docs/evaluation/photographs.md``): of the three
nets the sign that most of them have, and the median of the smoothings. Methods that were not run there have those of
drawn scenes (``docs/evaluation/pairs.md``); methods that are in no table show what they are. A test reads the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.maps import postprocess
from captum_learnprop.training.defaults import training_defaults
from zennit_rules import RuleSet


@dataclass(frozen=True)
class MapTreatment:
    """How an attribution becomes a map, see `captum_learnprop.maps.postprocess`.

    Attributes:
        sign: One of `captum_learnprop.maps.SIGNS`.
        smoothing: Sigma of the smoothing, as a fraction of the sides.
        outlines: Radius of the smoothing that follows the picture, as a fraction of the sides.
    """

    sign: str = "absolute"
    smoothing: float = 0.0
    outlines: float = 0.0

    @classmethod
    def of_rules(cls, rules: RuleSet) -> MapTreatment:
        """Returns that of the training of rules, or what trainings of their composite have by default."""
        usual, kept = training_defaults(rules.composite_name), rules.training
        return cls(kept.get("sign", usual.sign), kept.get("smoothing", usual.smoothing), kept.get("outlines", 0.0))

    def maps(self, attribution: Tensor, inputs: Tensor) -> Tensor:
        """Returns the maps of attributions, as `LearnedPropagation.maps` gives them: ``(B, *spatial)``, or ``(B, F)``.

        Args:
            attribution: What the method gave, ``(B, C, *spatial)`` or ``(B, F)``; a coarse one is brought to the
                size of the inputs first.
            inputs: What the model took, whose outlines the maps may follow.
        """
        if attribution.shape[2:] != inputs.shape[2:]:
            mode = {3: "linear", 4: "bilinear"}[inputs.ndim]
            attribution = F.interpolate(attribution, inputs.shape[2:], mode=mode)
        return postprocess(attribution, self.sign, self.smoothing, self.outlines, inputs)


PLUGIN_TREATMENTS = {
    "learned_lrp": "LRP epsilon plus", "learned_deeplift": "DeepLift", "learned_guided_backprop": "guided backprop",
    "deconvolution": "Deconvnet", "guided_backprop": "guided backprop", "integrated_cdam": "IntegratedCDAM",
}  # fmt: skip
"""Methods of plugins whose maps are treated as those of a hand-made one."""

TREATMENTS: dict[str, MapTreatment] = {
    name: MapTreatment(sign, smoothing)
    for name, sign, smoothing in (
        ("saliency", "absolute", 8 / 64),
        ("input x gradient", "absolute", 8 / 64),
        ("integrated gradients", "absolute", 8 / 64),
        ("SmoothGrad", "absolute", 4 / 64),
        ("DeepLift", "absolute", 6 / 64),
        ("guided backprop", "absolute", 8 / 64),
        ("Deconvnet", "absolute", 4 / 64),
        ("Grad-CAM", "absolute", 8 / 64),
        ("Grad-CAM, mid layer", "absolute", 4 / 64),
        ("LayerCAM, mid layer", "absolute", 3 / 64),
        ("LayerCAM, early layer", "absolute", 2 / 64),
        ("guided Grad-CAM", "absolute", 6 / 64),
        ("LRP epsilon plus", "signed", 2 / 64),
        ("LRP epsilon plus, flat", "positive", 2 / 64),
        ("LRP z+, box", "signed", 2 / 64),
        ("LRP epsilon gamma, box", "positive", 1 / 64),
        ("LRP gamma", "absolute", 6 / 64),
        ("LRP epsilon alpha2 beta1", "positive", 1 / 64),
        ("LRP z+ throughout, box", "absolute", 1 / 64),
        ("excitation backprop", "absolute", 1 / 64),
        ("LRP z+, box x Grad-CAM", "absolute", 1 / 64),
        ("LRP gamma x Grad-CAM", "absolute", 2 / 64),
        ("SmoothGrad x Grad-CAM", "absolute", 4 / 64),
        ("DeepLift x Grad-CAM", "signed", 4 / 64),
        ("intensity x Grad-CAM", "absolute", 0.0),
        ("occlusion", "positive", 1 / 64),
        ("RISE", "positive", 0.0),
        ("extremal perturbation x input", "absolute", 0.0),
        ("CDAM", "signed", 0.0),
        ("SmoothCDAM", "signed", 0.0),
        ("IntegratedCDAM", "signed", 0.0),
        ("GenericAttention", "signed", 0.0),
        ("TokenAblation", "signed", 0.0),
    )
}
"""Treatments by the name of a method; any other shows the sum of absolute values over channels, not smoothed."""


def treatment_for(name: str) -> MapTreatment:
    """Returns the treatment of a method's maps.

    Args:
        name: As in the tables, or that of a plugin's method.
    """
    if name == "learned_propagation":
        usual = training_defaults("learned_gradient")
        return MapTreatment(usual.sign, usual.smoothing)
    return TREATMENTS.get(PLUGIN_TREATMENTS.get(name, name), MapTreatment())
