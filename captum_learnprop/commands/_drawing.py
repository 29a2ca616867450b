"""How the map that is drawn is made of an attribution: what is drawn is what was trained."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.hand_made import HAND_MADE
from captum_learnprop.maps import postprocess
from captum_learnprop.plot import overlay
from captum_learnprop.training.defaults import TrainingDefaults, training_defaults
from zennit_rules import RuleSet

THUMBNAIL = 128
"""The longer side of a thumbnail, in pixels."""

UNSIGNED = {
    "saliency", "guided_backprop", "deconvolution", "rect_grad", "learned_guided_backprop", "SmoothGrad",
    "guided backprop", "Deconvnet", "guided Grad-CAM", "SmoothGrad x Grad-CAM",
}  # fmt: skip
"""Methods whose sign says how a pixel should change, and not whether it speaks for the class."""


@dataclass(frozen=True)
class Drawing:
    """How attributions are drawn.

    Attributes:
        sign: One of `captum_learnprop.maps.SIGNS`.
        smoothing: Gaussian smoothing, as a fraction of the sides.
        outlines: Radius of the smoothing that follows the image, as a fraction of the sides; 0 for none.
    """

    sign: str
    smoothing: float
    outlines: float = 0.0

    def maps(self, attribution: Tensor, inputs: Tensor) -> Tensor:
        """Returns maps ``(B, H, W)`` of attributions ``(B, C, H', W')`` of inputs ``(B, 3, H, W)``.

        They are those of `LearnedPropagation.maps`; a coarse attribution is brought to the size of the inputs first.
        """
        if attribution.shape[-2:] != inputs.shape[-2:]:
            attribution = F.interpolate(attribution, inputs.shape[-2:], mode="bilinear")
        return postprocess(attribution, self.sign, self.smoothing, self.outlines, inputs)


def drawing_of(name: str, method: Any, rules: RuleSet | None) -> Drawing:
    """Returns how the maps of a method are drawn where nothing else is asked for.

    Trained rules are drawn as they were trained. The others have no such record: plain gradients are drawn without
    their sign and smoothed, as rules are by default; relevance is drawn as it is, and all else signed and smoothed.

    Args:
        name: Name of the method.
        method: What it made; None for hand-made ones.
        rules: The rules it propagates by, if it was given some.
    """
    trained = {} if rules is None else rules.training
    if isinstance(method, LearnedPropagation):
        usual = training_defaults(method.composite)
    elif name in UNSIGNED:
        usual = TrainingDefaults()
    elif name in HAND_MADE and HAND_MADE[name].family == "lrp":
        usual = TrainingDefaults("signed", 0.0)
    else:
        usual = TrainingDefaults("signed")
    sign, smoothing = trained.get("sign", usual.sign), trained.get("smoothing", usual.smoothing)
    return Drawing(sign, smoothing, trained.get("outlines", 0.0))


def drawn(pixels: Tensor, shown: Tensor) -> npt.NDArray[np.uint8]:
    """Returns a map ``(H, W)`` laid over its image ``(3, H, W)`` in [0, 1]: ``(H, W, 3)``."""
    return np.rint(np.clip(overlay(pixels, shown), 0, 1) * 255).astype(np.uint8)


def thumbnail(picture: npt.NDArray[np.uint8]) -> bytes:
    """Returns a picture ``(H, W, 3)`` as a small JPEG of some kilobytes."""
    image = Image.fromarray(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
