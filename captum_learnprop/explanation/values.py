"""Inputs that are no pictures: rows of a table, series and texts, as what the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import first_layer
from captum_learnprop.models.text import OnEmbeddings

PICTURE, ROW, SERIES, TEXT = "picture", "row", "series", "text"


@dataclass(frozen=True)
class Values:
    """An input that is no picture.

    Attributes:
        kind: ``"row"``, ``"series"`` or ``"text"``.
        input: What the model takes: ``(1, F)``, ``(1, C, T)``, or embeddings ``(1, D, T)``.
        shown: What is drawn: the row ``(F,)``, the series ``(C, T)``, or numbers of tokens ``(T,)``.
        names: Of features, of channels, or the tokens.
        title: What the input is called.
    """

    kind: str
    input: Tensor
    shown: Tensor
    names: tuple[str, ...]
    title: str


def values_given(net: nn.Module, given: Any, features: Sequence[str] | None = None) -> list[Values] | None:
    """Returns what was given in place of pictures, one by one; None where these are pictures.

    Of a text model (`OnEmbeddings`) they are texts. A tensor or an array of one axis is a row of a table; one of two
    axes holds rows if ``features`` or the net's first layer names as many features as it has columns; a net whose
    first layer is a convolution over one axis takes series ``(C, T)`` or ``(B, C, T)``. Any other floating-point
    tensor of two axes is a series, unless the net begins with a convolution over more axes.

    Args:
        net: The model.
        given: An input or several.
        features: Names of features, of channels, or of the tokens of one text.

    Raises:
        LearnpropError: Values are not finite, names do not fit, or a text model is not in an `OnEmbeddings`.
    """
    if isinstance(net, OnEmbeddings):
        return _texts(net, given, features)
    _refuse_bare_text_models(net)
    if features is None:
        columns = getattr(given, "columns", None) if hasattr(given, "to_numpy") else None
        columns = given.index if columns is None and hasattr(given, "to_numpy") else columns
        features = None if columns is None else [str(one) for one in columns]
    found = _arrays(net, given, features)
    if found is None:
        return None
    kind, inputs = found
    many = len(inputs) > 1
    return [_values(kind, one, features, f"{kind} {number}" if many else "") for number, one in enumerate(inputs)]


def _refuse_bare_text_models(net: nn.Module) -> None:
    find: Any = getattr(net, "get_input_embeddings", None)
    vision = hasattr(getattr(net, "config", None), "vision_config")
    try:
        table = find() if callable(find) and not vision else None
    except (NotImplementedError, AttributeError):  # what models without one raise
        return
    if isinstance(table, nn.Embedding):
        raise LearnpropError(
            f"{type(net).__name__} takes numbers of tokens, which have no gradient: explain OnEmbeddings(model, "
            "tokenizer), which takes texts"
        )


def _texts(net: OnEmbeddings, given: Any, features: Sequence[str] | None) -> list[Values]:
    batch = isinstance(given, (Tensor, np.ndarray)) and given.ndim == 2
    several = isinstance(given, (list, tuple)) and not all(isinstance(one, int) for one in given)
    found = []
    for number, text in enumerate(list(given) if batch or several else [given]):
        numbers = net.numbers_of(text)
        words = net.words_of(numbers) if features is None else _named(features, len(numbers), "tokens")
        title = f"text {number}" if batch or several else ""
        found.append(Values(TEXT, net.embed([numbers]), numbers, words, title))
    if not found:
        raise LearnpropError("there is no text: the list is empty")
    return found


def _arrays(net: nn.Module, given: Any, features: Sequence[str] | None) -> tuple[str, list[Tensor]] | None:
    """Returns the kind of values and their inputs, None for pictures."""
    values = _numbers(given)
    if values is None:
        return None
    layer = first_layer(net)[1]
    axes = len(getattr(layer, "kernel_size", ()))
    over_one_axis = axes == 1
    if values.ndim == 1:
        return ROW, [values]
    if values.ndim == 3:
        return (SERIES, list(values)) if over_one_axis else None
    if values.ndim != 2:
        return None
    columns = values.shape[1]
    if not over_one_axis and (
        getattr(layer, "in_features", None) == columns or (features is not None and len(features) == columns)
    ):
        return ROW, list(values)
    is_tensor = isinstance(given, Tensor) and given.is_floating_point() and not axes
    return (SERIES, [values]) if over_one_axis or is_tensor else None


def _numbers(given: Any) -> Tensor | None:
    """Returns numbers as a tensor; None for what are no numbers."""
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, (int, float)) for one in given):
        given = np.asarray(given, dtype=np.float64)
    if hasattr(given, "to_numpy"):
        given = given.to_numpy()
    if isinstance(given, np.ndarray) and given.dtype != object and given.size:
        return torch.from_numpy(np.ascontiguousarray(given))
    return given.detach() if isinstance(given, Tensor) else None


def _values(kind: str, values: Tensor, features: Sequence[str] | None, title: str) -> Values:
    what = "features" if kind == ROW else "channels"
    names = _named(features, len(values), what) if features is not None else _numbered(len(values), what)
    bad = ~values.double().isfinite().reshape(len(values), -1).all(1)
    if bool(bad.any()):
        raise LearnpropError(f"{names[int(bad.nonzero()[0])]!r} is NaN or infinite: fill it in, or leave the row out")
    return Values(kind, values[None], values, names, title)


def _numbered(count: int, what: str) -> tuple[str, ...]:
    return tuple(f"{what.removesuffix('s')} {number}" for number in range(count))


def _named(features: Sequence[str], count: int, what: str) -> tuple[str, ...]:
    if isinstance(features, str) or len(features) != count:
        given = "a single text" if isinstance(features, str) else f"{len(features)} names"
        raise LearnpropError(f"features= names {count} {what} here, and got {given}")
    return tuple(str(one) for one in features)
