"""A rule set that a method is given, checked against the method and its model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zennit_rules import LearnedComposite, RuleError, RuleSet, composite_class


def built_at(rules: RuleSet | None) -> str:
    """What a rule set knows of the shape that its model took when it was built; nothing without rules."""
    if rules is None or not rules.sites:
        return ""
    site = rules.sites[0]
    return f"its rules were built where {site.name!r} had the shape {tuple(site.shape)}"


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
