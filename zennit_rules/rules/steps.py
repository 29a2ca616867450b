"""Functions that stand for several calls, written out so that each of them has its rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.dependence import depends_on_input
from ..core.linear_calls import WITH_SUMMANDS, in_steps
from .relevance import SUMS_OF_PRODUCTS, in_parts
from .written_attention import ATTENTION, attention_of


def steps_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """The calls that one call of a torch function stands for; None if it has a rule, or none, as it is.

    Those are attention in one call, matrix products with a summand that depends on the input, chains of products, and
    ``addcmul`` and its like.
    """
    if func not in _STEPPED:
        return None
    if func in ATTENTION:
        return partial(attention_of, func, args, kwargs)
    return in_steps(func, args, kwargs, depends_on_input) or in_parts(func, args, kwargs)


_STEPPED = ATTENTION | WITH_SUMMANDS | SUMS_OF_PRODUCTS

__all__ = ["steps_of"]
