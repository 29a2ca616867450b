"""Families of backward rules: which methods belong together, hand-made, found by search, and trained."""

from __future__ import annotations

from dataclasses import dataclass

from captum_learnprop.benchmark.gamma_grid import GRIDS
from captum_learnprop.benchmark.hand_made import HAND_MADE

GATES, GUIDED, DEEP_LIFT, LRP = (
    "learned_gradient", "learned_guided_backprop", "learned_deeplift", "learned_epsilon_gamma_box",
)  # fmt: skip
TRANSFORMER, ATTN_LRP = "learned_transformer", "learned_attnlrp"


@dataclass(frozen=True)
class RuleFamily:
    """Methods that propagate in the same way, but for numbers in their rules.

    Attributes:
        name: as in tables.
        composite: of its trained members.
        hand_made: names of the hand-made members.
        searched: names of those whose numbers a search finds.
    """

    name: str
    composite: str
    hand_made: tuple[str, ...]
    searched: tuple[str, ...] = ()


RULE_FAMILIES = (
    RuleFamily("gradient", GATES, ("saliency",)),
    RuleFamily("guided backprop", GUIDED, ("guided backprop",)),
    RuleFamily("DeepLIFT", DEEP_LIFT, ("DeepLift",)),
    RuleFamily(
        "LRP",
        LRP,
        tuple(one.name for one in HAND_MADE.values() if one.family == "lrp"),
        tuple(grid.name for grid in GRIDS),
    ),
)


def rule_family(composite: str | None) -> RuleFamily | None:
    """The family of a composite's trained rules; None for composites of others."""
    return next((family for family in RULE_FAMILIES if family.composite == composite), None)
