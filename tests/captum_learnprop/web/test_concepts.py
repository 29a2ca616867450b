from __future__ import annotations

import pytest
import torch

import captum_learnprop as cl
from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation.framing import framed
from captum_learnprop.web.concepts import explain_concept
from captum_learnprop.web.examples import example_picture
from captum_learnprop.web.visit import Shot, Visit

SHOTS = [Shot(f"digits {number}", example_picture(f"digits {number}")) for number in (1, 3)]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_map_is_cdam_of_the_similarity(visit_to_transformer: Visit, similarity: str) -> None:
    visit = visit_to_transformer
    net, prepare = visit.model.known.net, visit.model.known.prepare
    inputs = torch.cat([framed(shot.image, prepare).input for shot in SHOTS])
    embedding = cl.Embedding(net)
    concept = cl.Concept.of(embedding, inputs, similarity)
    expected = cl.CDAM(embedding).attribute(visit.input, concept, output="input", mode="bilinear")
    found = explain_concept(visit, SHOTS, similarity)
    torch.testing.assert_close(found.attribution, expected[0])
    assert (found.method, found.target) == (f"CDAM, {similarity}", "what 2 pictures share")
    assert found.map.shape == (64, 64)
    assert found.sign == "signed"


def test_the_two_similarities_differ(visit_to_transformer: Visit) -> None:
    maps = [explain_concept(visit_to_transformer, SHOTS, kind).map for kind in ("dot", "cosine")]
    first, second = (one / one.abs().max() for one in maps)
    assert float((first - second).abs().max()) > 1e-3


def test_what_cannot_be_explained(visit: Visit, visit_to_transformer: Visit) -> None:
    with pytest.raises(LearnpropError, match="concepts are for vision transformers, and reference:resnet-digits"):
        explain_concept(visit, SHOTS, "dot")
    with pytest.raises(LearnpropError, match="takes 1 to 30 pictures, there are 0"):
        explain_concept(visit_to_transformer, [], "dot")
    with pytest.raises(LearnpropError, match="takes 1 to 30 pictures, there are 31"):
        explain_concept(visit_to_transformer, SHOTS[:1] * 31, "dot")
    with pytest.raises(LearnpropError, match="no similarity 'angle'"):
        explain_concept(visit_to_transformer, SHOTS, "angle")
