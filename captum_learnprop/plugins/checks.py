"""Whether a factory can be what its record says, as far as that can be told without running a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

from captum_learnprop.errors import PluginError
from captum_learnprop.plugins.containment import describe

__all__ = ["check"]

# As sites of convolutions, of dense layers and of tokens have them; sixteen channels can be grouped in many ways.
_SHAPES = ((1, 16, 16, 16), (1, 16), (1, 16, 16))


def check(kind: str, name: str, factory: Callable[..., Any]) -> None:
    """Refuses a factory that cannot be what its record says.

    Gates and composites are made once, which costs nothing; of the others only what they are and take is looked at,
    because making them may load weights.

    Args:
        kind: Kind of the record.
        name: Its name.
        factory: What it resolves to.

    Raises:
        PluginError: It says what is wrong, and what would be right.
    """
    _CHECKS[kind](name, factory)


def _gate(name: str, factory: Any) -> None:
    import torch

    from zennit_rules.gates import GATES, STARTS, Gate

    if not (isinstance(factory, type) and issubclass(factory, Gate)):
        raise PluginError(f"{_shown(factory)} is no gate; name a class derived from zennit_rules.gates.Gate")
    if factory.name and factory.name != name and GATES.get(factory.name) is not factory:
        raise PluginError(f"its class calls itself {factory.name!r}, and rules would look for that; make both alike")
    reason = ""
    with torch.random.fork_rng(devices=[]):
        for shape, start in product(_SHAPES, STARTS):
            try:
                made: Any = factory(shape, start=start)
            except Exception as error:
                reason = reason or describe(error)
                continue
            if not isinstance(made, Gate):
                raise PluginError(f"it makes no gate but {_shown(made)}")
            return
    raise PluginError(f"it cannot be made for any of the shapes {_SHAPES}: {reason}")


def _composite(name: str, factory: Any) -> None:
    from zennit.composites import COMPOSITES
    from zennit.core import Composite

    if not (isinstance(factory, type) and issubclass(factory, Composite)):
        raise PluginError(f"{_shown(factory)} is no composite; name a class derived from zennit.core.Composite")
    if COMPOSITES.get(name, factory) is not factory:
        raise PluginError(f"zennit.composites.COMPOSITES has another composite {name!r}; choose another name")
    _takes(factory, 0, "a composite is made without arguments")
    try:
        made: Any = factory()
    except Exception as error:
        raise PluginError(f"it cannot be made without arguments: {describe(error)}") from error
    if not isinstance(made, Composite):
        raise PluginError(f"it makes no composite but {_shown(made)}")


def _method(name: str, factory: Any) -> None:
    _takes(factory, 1, "a method is made from the model")
    if not isinstance(factory, type):
        return
    attribute = getattr(factory, "attribute", None)
    if not callable(attribute):
        raise PluginError(f"{_shown(factory)} has no attribute(); name a class derived from captum.attr.Attribution")
    parameters = _parameters(attribute)
    if parameters is not None and not any(
        each.name == "target" or each.kind is each.VAR_KEYWORD for each in parameters
    ):
        raise PluginError(f"attribute() of {_shown(factory)} takes no target=")


def _metric(name: str, factory: Any) -> None:
    parameters = _parameters(factory)
    if parameters is not None and not parameters:
        raise PluginError(f"{_shown(factory)} takes no argument, so it cannot judge anything")


def _model(name: str, factory: Any) -> None:
    _takes(factory, 3, "a model is made by factory(argument, weights, checkpoint)")


def _objective(name: str, factory: Any) -> None:
    if not isinstance(factory, type) or hasattr(factory, "needs_deletions"):  # which every term of training has
        return
    lacking = [name for name in ("__call__", "apply") if not any(name in vars(base) for base in factory.__mro__)]
    if lacking:
        raise PluginError(f"{_shown(factory)} is no term, nor an objective like Agreement: it has no {lacking[0]}")


def _takes(factory: Any, count: int, rule: str) -> None:
    parameters = _parameters(factory)
    if parameters is None:
        return
    try:
        inspect.Signature(parameters).bind(*(None,) * count)
    except TypeError as error:
        raise PluginError(f"{_shown(factory)} does not fit: {error}; {rule}") from error


def _parameters(function: Any) -> list[inspect.Parameter] | None:
    """The parameters; None where they cannot be told, as of some functions in C."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return None


def _shown(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None)
    return f"{thing.__module__}.{name}" if isinstance(name, str) else repr(thing)[:80]


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "gate": _gate, "composite": _composite, "method": _method, "metric": _metric, "model": _model,
    "objective": _objective,
}  # fmt: skip
