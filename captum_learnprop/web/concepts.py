"""Concepts from a few pictures: what in the picture makes a vision transformer see what these share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from captum_learnprop.attribution.tokens.concepts import SIMILARITIES, Concept, Embedding
from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation import Explanation, explain
from captum_learnprop.explanation.framing import framed
from captum_learnprop.web.visit import Shot, Visit

MOST_PICTURES = 30
"""Pictures of one concept at most."""

METHOD = "CDAM"
"""The method that explains concepts."""


def explain_concept(visit: Visit, shots: Sequence[Shot], similarity: str) -> Explanation:
    """Returns the map of the visitor's picture towards the concept that some pictures share.

    Args:
        visit: What is looked at.
        shots: The pictures of the concept.
        similarity: ``"dot"`` or ``"cosine"``, see `Concept`.

    Raises:
        LearnpropError: The model is no vision transformer, or there are no pictures or too many.
    """
    model = visit.model
    require_transformer(visit, "concepts")
    if similarity not in SIMILARITIES:
        raise LearnpropError(f"there is no similarity {similarity!r}: choose {' or '.join(SIMILARITIES)}")
    if not 1 <= len(shots) <= MOST_PICTURES:
        raise LearnpropError(f"a concept takes 1 to {MOST_PICTURES} pictures, there are {len(shots)}: choose some")
    known = model.known
    inputs = torch.cat([framed(shot.image, known.prepare).input for shot in shots]).to(known.device, known.dtype)
    with model.busy:
        embedding = Embedding(known.net)
        concept = Concept.of(embedding, inputs, similarity)
        found: Explanation = explain(
            embedding, visit.seen.image, concept, METHOD, preprocessing=known.prepare, sign=visit.sign
        )
    return replace(
        found, target=f"what {len(shots)} pictures share", title=visit.seen.name, method=f"CDAM, {similarity}"
    )


def require_transformer(visit: Visit, what: str) -> None:
    """Refuses a net that has no tokens.

    Raises:
        LearnpropError: It is no plain vision transformer.
    """
    if visit.model.anatomy is None:
        raise LearnpropError(
            f"{what} are for vision transformers, and {visit.model.choice.spec} is none that is known: choose another "
            "model"
        )
