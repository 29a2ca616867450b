"""Saved rule sets as composites of their own, for scripts that know composites by name."""

from __future__ import annotations

from pathlib import Path

from .._compat import COMPOSITES
from ..core.registry import composite_class, register_composite
from ..ruleset import RuleSet
from .base import LearnedComposite


def register_trained(name: str, path: str | Path, *, overwrite: bool = False) -> type[LearnedComposite]:
    """Make a saved rule set a composite of its own, so that scripts which know ``COMPOSITES[name]`` use it.

    Args:
        name: New name in ``zennit.composites.COMPOSITES``.
        path: A file written by ``RuleSet.save``.
        overwrite: Replace an earlier trained composite of that name.

    Returns:
        The class; ``COMPOSITES[name](canonizers=...)`` makes instances that share the rules.

    Raises:
        RuleError: For an unreadable file or a name that is taken.
    """
    rules = RuleSet.load(path)
    base = composite_class(rules.composite_name)
    trained = type(
        f"Trained_{name}", (base,), {"__doc__": f"{base.__name__} with the rules of {path}.", "default_rules": rules}
    )
    if overwrite and getattr(COMPOSITES.get(name), "default_rules", None) is not None:
        del COMPOSITES[name]
    register_composite(name, trained)
    return trained
