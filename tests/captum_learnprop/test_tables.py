"""Tables as text: what is in the cells comes out as it was given."""

from __future__ import annotations

import doctest

from captum_learnprop import tables
from captum_learnprop.tables import columns, markdown


def test_examples() -> None:
    assert doctest.testmod(tables).failed == 0


def test_numbers_and_words_are_left_as_they_are() -> None:
    rows = [["0.50", "1e3"], ["007", "True"], ["**0.5** ± 0.1", ""]]
    assert [line.split("|")[1:-1] for line in markdown(["a", "b"], rows).splitlines()[2:]] == [
        [f" {cell} " for cell in row] for row in rows
    ]
    assert columns(["a", "b"], rows).splitlines() == [
        "a              b", "0.50           1e3", "007            True", "**0.5** ± 0.1",
    ]  # fmt: skip


def test_a_table_without_rows_has_a_head() -> None:
    assert markdown(["method", "score"], []).splitlines()[0] == "| method | score |"
    assert columns(["method", "score"], []) == "method  score"
