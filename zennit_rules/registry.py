"""Composites by name, in zennit's own table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._compat import COMPOSITES, Composite
from .errors import RuleError

if TYPE_CHECKING:
    from .composites import LearnedComposite


def register_composite(name: str, composite: type[Composite]) -> None:
    """Make a composite class known to zennit by name; unlike zennit's own, it never overwrites.

    Raises:
        RuleError: If the name belongs to another class; registering the same class again does nothing.
    """
    if not (isinstance(composite, type) and issubclass(composite, Composite)):
        raise RuleError(f"composite {name!r} must be a zennit Composite class, got {composite!r}")
    known = COMPOSITES.setdefault(name, composite)
    if known is not composite:
        raise RuleError(
            f"the composite name {name!r} belongs to {known.__module__}.{known.__qualname__}; choose another, "
            "or pass overwrite=True to register_trained"
        )


def composite_class(name: str) -> type[LearnedComposite]:
    """Look a trainable composite up by name.

    Raises:
        RuleError: If there is none of that name, or it has no trainable rules.
    """
    found = COMPOSITES.get(name)
    if found is None or not _trainable(found):
        learned = sorted(n for n, c in COMPOSITES.items() if _trainable(c))
        what = "has no trainable rules" if found is not None else "is unknown"
        raise RuleError(f"the composite {name!r} {what}; trainable ones: {', '.join(learned)}")
    trainable: type[LearnedComposite] = found
    return trainable


def _trainable(composite: type[Composite]) -> bool:
    return hasattr(composite, "make_gate")
