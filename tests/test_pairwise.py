"""The covering sets that tests are crossed by."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from pairwise import covering, crossed


@pytest.mark.parametrize("strength", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(3, 2), (2, 2, 2), (5, 2, 2, 2), (3, 4, 1, 2, 2)])
def test_every_combination_of_values_occurs(sizes: tuple[int, ...], strength: int) -> None:
    strength = min(strength, len(sizes))
    chosen = covering(sizes, strength)
    assert len(set(chosen)) == len(chosen)
    for factors in combinations(range(len(sizes)), strength):
        shown = {tuple(case[factor] for factor in factors) for case in chosen}
        assert shown == set(product(*(range(sizes[factor]) for factor in factors)))


def test_sets_are_small_and_always_the_same() -> None:
    assert len(covering((5, 2, 2, 2))) == 10
    assert len(covering((5, 3), 1)) == 5
    assert len(covering((3, 3, 3, 3))) <= 11  # nine would do
    assert covering((4, 3, 2)) == covering((4, 3, 2))


def test_the_others_are_slow() -> None:
    mark = crossed(a=["x", "y"], b={"no": False, "yes": True}, c=[1, 2])
    names, params = mark.args
    assert names == ["a", "b", "c"]
    assert len(params) == 8
    default = [param for param in params if not param.marks]
    assert len(default) == 4
    assert params[0].id == "x-no-1"
    assert params[0].values == ("x", False, 1)
    assert {tuple(mark.name for mark in param.marks) for param in params if param.marks} == {("slow",)}
