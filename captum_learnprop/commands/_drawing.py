"""How the map that is drawn is made of an attribution: what is drawn is what was trained."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.explanation.treatments import MapTreatment, treatment_for
from captum_learnprop.plot import overlay
from captum_learnprop.training.defaults import training_defaults
from zennit_rules import RuleSet

THUMBNAIL = 128
"""The longer side of a thumbnail, in pixels."""


def drawing_of(name: str, method: Any, rules: RuleSet | None) -> MapTreatment:
    """Returns how the maps of a method are drawn where nothing else is asked for: as `captum_learnprop.explain` does.

    Args:
        name: Name of the method.
        method: What it made; None for hand-made ones.
        rules: The rules it propagates by, if it was given some.
    """
    if rules is not None:
        return MapTreatment.of_rules(rules)
    if isinstance(method, LearnedPropagation):
        usual = training_defaults(method.composite)
        return MapTreatment(usual.sign, usual.smoothing)
    return treatment_for(name)


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
