"""Crosses of test cases: a small set in which every pair of values occurs by default, the others under ``slow``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations, product
from typing import Any

import pytest

Cell = tuple[tuple[int, int], ...]
"""Positions of values, each with that of its factor."""


def _cells(case: tuple[int, ...], strength: int) -> set[Cell]:
    return set(combinations(enumerate(case), strength))


def covering(sizes: Iterable[int], strength: int = 2) -> list[tuple[int, ...]]:
    """Returns positions of cases in which every combination of values of any ``strength`` factors occurs.

    Greedy: the next case is the first of those that show most combinations not yet seen. Deterministic.
    """
    cases = list(product(*(range(size) for size in sizes)))
    shown = {case: _cells(case, strength) for case in cases}
    missing = set().union(*shown.values())
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(shown[case] & missing))
        chosen.append(best)
        missing -= shown[best]
    return sorted(chosen)


def crossed(strength: int = 2, /, **factors: Iterable[Any] | Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrizes a test with all combinations of values; those that a covering set leaves out are ``slow``.

    Args:
        strength: 2 for a set in which every pair of values of two factors occurs, 1 for one in which every value does.
        factors: values by name of argument; a mapping gives them names to be shown in the place of pytest's own.
    """
    names, columns = list(factors), [list(_named(values)) for values in factors.values()]
    default = set(covering(map(len, columns), strength))
    params = []
    for case in product(*(range(len(column)) for column in columns)):
        chosen = [column[at] for column, at in zip(columns, case, strict=True)]
        marks = () if case in default else (pytest.mark.slow,)
        params.append(
            pytest.param(*(value for _, value in chosen), id="-".join(name for name, _ in chosen), marks=marks)
        )
    return pytest.mark.parametrize(names, params)


def _named(values: Iterable[Any] | Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    if isinstance(values, Mapping):
        return values.items()
    return ((getattr(value, "__name__", str(value)), value) for value in values)
