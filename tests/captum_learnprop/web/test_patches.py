from __future__ import annotations

import pytest

import captum_learnprop as cl
from captum_learnprop.errors import LearnpropError
from captum_learnprop.web.patches import said_without
from captum_learnprop.web.visit import Visit


def test_what_is_left_is_the_probability_without_the_patches(visit_to_transformer: Visit) -> None:
    visit = visit_to_transformer
    assert visit.target is not None
    output = cl.TokenAblation(visit.model.known.net).output_without(visit.input, [0, 9, 63])
    found = said_without(visit, [63, 9, 0, 9])
    assert found.left == pytest.approx(float(output.sigmoid()[0, visit.target]), abs=1e-6)
    assert found.whole == pytest.approx(visit.prediction()[0].probability, abs=1e-5)
    assert (found.gone, found.patches, found.target) == (3, 64, visit.target)
    assert found.guesses[0].probability == pytest.approx(float(output.sigmoid().max()), abs=1e-6)


def test_nothing_gone_changes_nothing(visit_to_transformer: Visit) -> None:
    found = said_without(visit_to_transformer, [])
    assert found.left == found.whole
    assert [one.index for one in found.guesses] == [one.index for one in visit_to_transformer.prediction()]


def test_the_strongest_patches_matter_most(visit_to_transformer: Visit) -> None:
    visit = visit_to_transformer
    falls = cl.TokenAblation(visit.model.known.net).attribute(visit.input, visit.target).flatten()
    order = falls.argsort(descending=True).tolist()
    assert said_without(visit, order[:8]).left < said_without(visit, order[-8:]).left


def test_what_cannot_leave(visit: Visit, visit_to_transformer: Visit) -> None:
    with pytest.raises(LearnpropError, match="patches are for vision transformers"):
        said_without(visit, [0])
    with pytest.raises(LearnpropError, match="no patch 64"):
        said_without(visit_to_transformer, [64])
    with pytest.raises(LearnpropError, match="no patch is left"):
        said_without(visit_to_transformer, list(range(64)))
    for gone in (["1"], [None], [1.5], [True]):
        with pytest.raises(LearnpropError, match="patches are numbers"):
            said_without(visit_to_transformer, gone)  # type: ignore[arg-type]
