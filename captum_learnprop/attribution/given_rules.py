"""A rule set that a method is given, checked against the method and its model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zennit_rules import LearnedComposite, RuleError, RuleSet, composite_class


def given_rules(
    rules: RuleSet | str | Path, model: nn.Module, method: str, *composites: type[LearnedComposite]
) -> RuleSet:
    """The rule set, read if it is a path.

    Args:
        rules: A `RuleSet`, or the path of a saved one.
        model: What the method explains.
        method: Name of the method, for the error.
        composites: Whose rules it takes; none for all.

    Raises:
        RuleError: For a rule set of another model, or of another composite.
    """
    if isinstance(rules, RuleSet):
        rules.check_model(model)
    else:
        rules = RuleSet.load(rules, model)
    if composites and not issubclass(composite_class(rules.composite_name), composites):
        wanted = " or ".join(repr(one.name) for one in composites)
        raise RuleError(
            f"{method} takes rules of the composite {wanted}, got {rules.composite_name!r}; "
            "use LearnedPropagation(model, rules=rules)"
        )
    return rules
