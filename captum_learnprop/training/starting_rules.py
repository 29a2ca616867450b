"""The rules that a training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from zennit_rules import RuleSet

SHOWN = 32
"""The number of images that rules see when they are made: some read the range of the inputs there, as the box rule
does."""

_SHOWN_PER_ROW = 4
"""The most images that are shown for each of ``internal_batch_size``: training holds about as many times a forward
pass."""


def shown_images(internal_batch_size: int) -> int:
    """Returns how many images rules see when they are made, for the rows that go through the model together."""
    return min(SHOWN, _SHOWN_PER_ROW * internal_batch_size)


def starting_rules(model: nn.Module, examples: Tensor, build_options: Mapping[str, Any]) -> RuleSet:
    """Returns the rules that training starts from.

    Args:
        model: What they are for; run once.
        examples: Training images ``(B, C, *spatial)``: the first `SHOWN` in a training.
        build_options: ``RuleTrainer.build_options``, arguments of `RuleSet.build`.

    Raises:
        LearnpropError: The gates have nothing to learn that samples share.
        RuleError: A name is unknown, or the model has no sites.
    """
    rules = RuleSet.build(model, examples, **build_options)
    if not rules.parameters() or any(_per_sample(rules.gate(site.name)) for site in rules.sites):
        raise LearnpropError(
            f"nothing to share: the gate {build_options['gate']!r} has parameters for each sample, or none; "
            "choose 'feature', 'quadrant' or 'channel'"
        )
    return rules


def _per_sample(gate: nn.Module) -> bool:
    return bool(getattr(gate, "per_sample", False)) or getattr(gate, "samples", None) is not None
