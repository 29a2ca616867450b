"""Composites by name, in zennit's own table."""

from __future__ import annotations

from .._compat import COMPOSITES, Composite
from ..errors import RuleError
from .names import did_you_mean
from .protocols import TrainableComposite

SHORT_NAMES = {
    "gates": "learned_gradient",
    "guided_backprop": "learned_guided_backprop",
    "lrp": "learned_epsilon_gamma_box",
    "deeplift": "learned_deeplift",
    "transformer": "learned_transformer",
    "attnlrp": "learned_attnlrp",
}
"""Accepted wherever a trainable composite is named; a composite that is registered under one of these comes first."""


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


def composite_name(name: str) -> str:
    """The full name of a trainable composite, which rule files keep, of that or of a short one.

    Raises:
        RuleError: If there is none of that name, or it has no trainable rules.
    """
    if not isinstance(name, str):
        raise RuleError(f"a composite is given by its name, such as 'learned_gradient', not as {name!r}")
    # Zennit has a guided_backprop of its own, without trainable rules, which keeps its name in zennit's table.
    for full in (name, SHORT_NAMES.get(name, name)):
        if _trainable(COMPOSITES.get(full)):
            return full
    learned = sorted(n for n, c in COMPOSITES.items() if _trainable(c))
    what = "has no trainable rules" if name in COMPOSITES else "is unknown"
    raise RuleError(
        f"the composite {name!r} {what}; trainable ones: {', '.join(learned)}; for short: "
        f"{', '.join(SHORT_NAMES)}{did_you_mean(name, [*SHORT_NAMES, *learned])}"
    )


def composite_class(name: str) -> type[TrainableComposite]:
    """Look a trainable composite up by its name or a short one, see `SHORT_NAMES`.

    Raises:
        RuleError: If there is none of that name, or it has no trainable rules.
    """
    trainable: type[TrainableComposite] = COMPOSITES[composite_name(name)]
    return trainable


def _trainable(composite: type[Composite] | None) -> bool:
    return hasattr(composite, "make_gate")
