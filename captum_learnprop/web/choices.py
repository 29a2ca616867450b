"""Which methods the page offers for a model: a few that are worth comparing at hand, all others on request."""

from __future__ import annotations

from dataclasses import dataclass

from captum_learnprop.benchmark.hand_made_tokens import TOKEN_METHODS
from captum_learnprop.explanation import method_names
from captum_learnprop.explanation.methods import FOR_OTHERS, FOR_TRANSFORMERS
from captum_learnprop.web.offered import OfferedModel

MOST_METHODS = 8
"""Methods that lie side by side at most."""

_NETS = ("Grad-CAM", "guided backprop", "LRP epsilon plus", "DeepLift", "saliency", "occlusion")
"""At hand for any net, after the one that `explain` takes: a method of each kind."""

_TRANSFORMERS = ("CDAM", "AttentionRollout", "TokenAblation", "saliency")
"""At hand for a vision transformer."""

_CONTROLS = ("random", "centre prior", "intensity", "intensity x Grad-CAM")
"""Controls of the comparisons, which explain nothing."""


@dataclass(frozen=True)
class MethodChoices:
    """Methods that may be chosen.

    Attributes:
        at_hand: A few, the first of which `explain` prefers.
        others: All others that make sense for the net.
    """

    at_hand: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Both."""
        return self.at_hand + self.others


def method_choices(model: OfferedModel) -> MethodChoices:
    """Returns the methods that are offered for a model."""
    if model.anatomy is None:
        at_hand = [*model.ready, FOR_OTHERS[0], *_NETS]
        left_out = {*_CONTROLS, *TOKEN_METHODS, "integrated_cdam"}
    else:
        at_hand = [*model.ready, *FOR_TRANSFORMERS, *_TRANSFORMERS]
        left_out = set(_CONTROLS)
    others = [name for name in method_names() if name not in left_out and name not in at_hand]
    return MethodChoices(tuple(dict.fromkeys(at_hand)), tuple(others))
