from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captum_learnprop.errors import LearnpropError
from captum_learnprop.web.examples import example_picture, examples, many_pictures


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARNPROP_CACHE", str(tmp_path))


def test_photographs_and_digits_are_there_without_a_cache() -> None:
    found = examples()
    assert {"chelsea", "coffee", "motorcycle", "digits 1"} <= set(found)
    assert not any(name.startswith("two things") for name in found)
    assert [one.draws for one in found.values()] == ["digits" in name for name in found]


def test_a_name_gives_the_same_picture_again() -> None:
    first, again = (np.asarray(example_picture("digits 3")) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert (first == again).all()
    assert (first != np.asarray(example_picture("digits 4"))).any()


def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(LearnpropError, match=r"no example 'chelsee'; did you mean 'chelsea'"):
        example_picture("chelsee")


def test_pictures_to_train_on_are_none_of_the_examples() -> None:
    drawn = [np.asarray(one) for one in many_pictures(True)]
    assert len(drawn) == 24
    for name in ("digits 1", "digits 2"):
        shown = np.asarray(example_picture(name))
        assert not any((shown == one).all() for one in drawn)
    assert len(many_pictures(False)) == 5
