"""Patches clicked away: what a vision transformer says without some of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captum_learnprop.attribution.tokens.ablation import TokenAblation
from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation import Guess
from captum_learnprop.explanation.asking import chances_of, guesses_of
from captum_learnprop.web.concepts import require_transformer
from captum_learnprop.web.visit import Visit


@dataclass(frozen=True)
class Without:
    """What a model says without some patches.

    Attributes:
        target: Number of the class that is looked at.
        whole: Its probability with all patches.
        left: Its probability without those that are gone.
        guesses: The highest classes without them.
        gone: How many patches are gone.
        patches: How many there are.
    """

    target: int
    whole: float
    left: float
    guesses: tuple[Guess, ...]
    gone: int
    patches: int


def said_without(visit: Visit, gone: Sequence[int]) -> Without:
    """Returns what the model says of the picture without some patches, which leave before the first block.

    Args:
        visit: What is looked at; of no chosen class the highest is taken.
        gone: Numbers of the patches, row by row from 0.

    Raises:
        LearnpropError: The model is no vision transformer, cannot do without, or there are no such patches.
    """
    require_transformer(visit, "patches")
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in gone):
        raise LearnpropError("patches are numbers")
    known, inputs = visit.model.known, visit.input
    with visit.model.busy:
        method = TokenAblation(known.net)
        whole, left = (method.output_without(inputs, part)[0].float() for part in ((), list(gone)))
    target = int(whole.argmax()) if visit.target is None else visit.target
    rows, columns = visit.model.anatomy.grid if visit.model.anatomy is not None else (0, 0)
    return Without(
        target,
        float(chances_of(known, whole)[target]),
        float(chances_of(known, left)[target]),
        guesses_of(known, left),
        len(set(gone)),
        rows * columns,
    )
