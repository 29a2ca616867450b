"""What the model says of an input, and which of it is explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.attribution.tokens.concepts import Embedding
from captum_learnprop.errors import LearnpropError, TargetError
from captum_learnprop.explanation.known_model import KnownModel, require_names_fit
from captum_learnprop.explanation.result import Guess
from captum_learnprop.forward import shapes_told, tensor_of, with_batch
from captum_learnprop.targets import Called, TargetFunction, Value, label_number

_GUESSES = 5


@dataclass(frozen=True)
class Asked:
    """What is explained.

    Attributes:
        name: Its name, for figures.
        index: Number of the output; 0 where there is a function.
        function: What is explained in place of one output, or None.
    """

    name: str
    index: int
    function: TargetFunction | None = None


@dataclass(frozen=True)
class Said:
    """What a model returned for an input.

    Attributes:
        output: Whatever it returned.
        rows: The output as ``(1, N)``; None where it has another shape.
        guesses: The highest classes, highest first; none where there are no classes, as in an `Embedding`.
    """

    output: Any
    rows: Tensor | None
    guesses: tuple[Guess, ...]


def said_of(known: KnownModel, inputs: Tensor, hint: str = "give size=, or preprocessing=") -> Said:
    """Returns what a model says of an input ``(1, C, h, w)``, ``(1, C, T)`` or ``(1, F)``.

    Args:
        known: The model.
        inputs: The input.
        hint: What errors say about inputs that it does not take.

    Raises:
        LearnpropError: It does not take such an input, its output is not finite, or names do not fit.
    """
    with torch.no_grad(), shapes_told(known.net, (inputs,), hint):
        output = known.net(inputs)
    rows = _rows_of(output)
    if rows is None:
        return Said(output, None, ())
    if not bool(rows.isfinite().all()):
        raise LearnpropError(f"the output of {known.name} is NaN or infinite: check its weights and the input's range")
    require_names_fit(known, rows)
    are_classes = rows.shape[1] > 1 and not isinstance(known.net, Embedding)
    return Said(output, rows, guesses_of(known, rows[0]) if are_classes else ())


def _rows_of(output: Any) -> Tensor | None:
    try:
        rows = with_batch(tensor_of(output, None), 1)
    except TargetError:
        return None
    if rows.ndim == 1:
        rows = rows[:, None]
    return rows.detach().float() if rows.ndim == 2 else None


def chances_of(known: KnownModel, row: Tensor) -> Tensor:
    """Returns the probabilities ``(N,)`` of outputs ``(N,)``: softmax, or sigmoid where classes are not exclusive."""
    return row.sigmoid() if known.multi_label else row.softmax(0)


def guesses_of(known: KnownModel, row: Tensor) -> tuple[Guess, ...]:
    """Returns the highest classes of outputs ``(N,)``, highest first."""
    chances = chances_of(known, row)
    best = chances.topk(min(_GUESSES, len(row)))
    return tuple(
        Guess(int(number), name_of_class(known, int(number)), float(chance))
        for number, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )


def name_of_class(known: KnownModel, number: int) -> str:
    """Returns the name of a class, its number where none is known."""
    return str(number) if known.class_names is None else known.class_names[number]


def asked_of(known: KnownModel, said: Said, target: Any) -> list[Asked]:
    """Returns what is explained of one picture.

    Args:
        known: The model.
        said: What it returned for the picture.
        target: A number or a name of a class, a `TargetFunction` or any function of the output, None for the highest
            class; or a list of these.

    Raises:
        TargetError: There is no such class, or the model's output is none that a target is of.
    """
    wanted = list(target) if isinstance(target, (list, tuple)) else [target]
    if not wanted:
        raise TargetError("there is nothing to explain: the list of targets is empty")
    return [_asked(known, said, one) for one in wanted]


def _asked(known: KnownModel, said: Said, target: Any) -> Asked:
    if callable(target) and not isinstance(target, TargetFunction):
        target = Called(target)
    if isinstance(target, TargetFunction):
        function = target.with_names(known.class_names).at(said.output)
        function(said.output)  # what does not fit raises here
        return Asked(target.name, 0, function)
    if said.rows is None:
        raise TargetError(
            f"{known.name} is no classifier, it returned {_described(said.output)}: say what of it is explained by a "
            "function of captum_learnprop.targets, such as Region or Detection, as target="
        )
    if target is None:
        index = int(said.rows[0].argmax())
    else:
        index = label_number(target, known.class_names)
    classes = said.rows.shape[1]
    if not 0 <= index < classes:
        raise TargetError(f"target {index} is out of range: {known.name} has {classes} classes, 0 to {classes - 1}")
    if isinstance(said.output, Tensor) and said.output.ndim < 2:  # one number per sample has no column to choose
        return Asked("output", index, Value())
    return Asked(name_of_class(known, index) if classes > 1 else "output", index)


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, dict):
        return f"{type(output).__name__} with {', '.join(map(repr, output))}"
    return f"a {type(output).__name__}"
