"""Backward rules by name, hand-made or trained, each as something that is put around a model for one pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.errors import LearnpropError
from zennit_rules import RuleSet
from zennit_rules.core.protocols import TrainableComposite


@dataclass(frozen=True)
class BackwardRule:
    """A rule set under a name.

    Attributes:
        name: as in tables.
        rules: what propagates.
    """

    name: str
    rules: RuleSet

    def __repr__(self) -> str:
        return f"BackwardRule({self.name!r}, {self.rules.composite_name})"

    def around(self, model: nn.Module) -> AbstractContextManager[TrainableComposite]:
        """Puts the rules around the model, or one of the same architecture with other weights."""
        return self.rules.applied(model)

    def seed(self, composite: TrainableComposite, output: Tensor, targets: Tensor) -> Tensor:
        """Returns what the backward pass starts with, in the shape of the output."""
        chosen = torch.zeros_like(output).scatter_(1, targets[:, None], 1.0)
        return composite.start_signal(output.detach(), chosen)

    def attribution(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the map ``(B, C, *spatial)``."""
        found: Tensor = LearnedPropagation(model, rules=self.rules).attribute(inputs, target=targets)
        return found


_RULES: dict[str, dict[str, Any]] = {
    "gradient": {"composite": "learned_gradient", "gate": "none"},
    "deconvnet": {"composite": "learned_gradient", "gate": "none", "start": "deconvnet"},
    "guided_backprop": {"composite": "learned_guided_backprop", "gate": "none"},
    "rect_grad": {"composite": "rect_grad"},
    "lrp": {"composite": "learned_epsilon_gamma_box"},
    "deep_taylor": {"composite": "deep_taylor"},
    "deeplift": {"composite": "learned_deeplift", "gate": "none"},
    "attnlrp": {"composite": "learned_attnlrp", "gate": "none"},
}
RULES: tuple[str, ...] = tuple(_RULES)
"""Hand-made rules that are known by name; "lrp" is z+ at convolutions, epsilon at dense layers and the box rule."""


def backward_rule(
    rule: str | RuleSet, model: nn.Module, example_inputs: Tensor, name: str | None = None
) -> BackwardRule:
    """Returns a rule for a model, by its name or from a trained rule set.

    Args:
        rule: of `RULES`, or a trained rule set of this model.
        model: in evaluation mode.
        example_inputs: ``(B, C, *spatial)``.
        name: in tables; by default the rule's, or "trained <composite>".

    Raises:
        LearnpropError: for an unknown name.
        RuleError: for a rule set of another model, or a model without a site.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
        >>> backward_rule("guided_backprop", model, torch.ones(1, 2))
        BackwardRule('guided_backprop', learned_guided_backprop)
    """
    if isinstance(rule, RuleSet):
        rule.check_model(model)
        return BackwardRule(name or f"trained {rule.composite_name}", rule)
    if rule not in _RULES:
        raise LearnpropError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}, or give a rule set")
    return BackwardRule(name or rule, RuleSet.build(model, example_inputs, **_RULES[rule]))
