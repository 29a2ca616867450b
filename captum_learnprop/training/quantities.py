"""Explained quantities: which number of the model's output an explanation is about.

All are differentiable, stable for logits of any finite size, and see one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from zennit_rules._moved import renamed

Quantity = Callable[[Tensor, Tensor], Tensor]
"""A function ``(outputs (B, classes), targets (B,)) -> (B,)``."""


def logit(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns ``z_t``: the target's output as it is, ``(B,)``."""
    return _of_target(outputs, targets)


def softmax(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns ``exp(z_t) / sum_c exp(z_c)``, ``(B,)`` in [0, 1]: for classes that exclude each other."""
    return _of_target(_several("softmax", outputs).softmax(1), targets)


def log_probability(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns ``log softmax(z)_t``, ``(B,)``, at most 0."""
    return _of_target(_several("log_probability", outputs).log_softmax(1), targets)


def sigmoid(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns ``1 / (1 + exp(-z_t))``, ``(B,)`` in [0, 1]: for classes that do not exclude each other."""
    return _of_target(outputs, targets).sigmoid()


def log_sigmoid(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns ``-log(1 + exp(-z_t))``, ``(B,)``, at most 0."""
    return F.logsigmoid(_of_target(outputs, targets))


def contrastive_logit(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns ``z_t - log sum_{c != t} exp(z_c)``, ``(B,)``: the log-odds of the softmax probability never saturate."""
    own = _of_target(_several("contrastive_logit", outputs), targets)
    is_target = torch.arange(outputs.shape[1], device=outputs.device) == targets[:, None]
    return own - outputs.masked_fill(is_target, -torch.inf).logsumexp(1)


QUANTITIES: dict[str, Quantity] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "logit": logit,
    "log_probability": log_probability,
    "log_sigmoid": log_sigmoid,
    "contrastive_logit": contrastive_logit,
}
"""The quantities by their names; ``softmax``, ``log_probability`` and ``contrastive_logit`` need two classes."""


def quantity(name: str) -> Quantity:
    """Returns the quantity of a name in `QUANTITIES`.

    The function takes outputs ``(B, classes)`` and int64 targets ``(B,)`` in ``[0, classes)`` and gives ``(B,)``; it
    raises a `LearnpropError` where they are not.

    Raises:
        LearnpropError: The name is not known.
    """
    if name in QUANTITIES:
        return QUANTITIES[name]
    which = (
        "say which one, 'softmax' or 'sigmoid'" if name == "probability" else f"choose one of {', '.join(QUANTITIES)}"
    )
    raise LearnpropError(f"unknown quantity {name!r}; {which}")


def _several(name: str, outputs: Tensor) -> Tensor:
    if outputs.dim() == 2 and outputs.shape[1] < 2:
        raise LearnpropError(
            f"{name} compares classes, but the outputs are {tuple(outputs.shape)}; use 'sigmoid' or 'logit'"
        )
    return _checked(outputs)


def _checked(outputs: Tensor) -> Tensor:
    if outputs.dim() != 2 or not outputs.is_floating_point():
        raise LearnpropError(f"outputs must be real numbers (B, classes), got {outputs.dtype} {tuple(outputs.shape)}")
    return outputs


def _of_target(outputs: Tensor, targets: Tensor) -> Tensor:
    count, classes = _checked(outputs).shape
    if targets.shape != (count,) or targets.dtype != torch.int64:
        raise LearnpropError(f"targets must be int64 of shape ({count},), got {targets.dtype} {tuple(targets.shape)}")
    if count and not 0 <= (bad := _farthest(targets)) < classes:
        raise LearnpropError(f"target {bad} does not exist: the outputs have {classes} classes, 0 to {classes - 1}")
    return outputs.gather(1, targets[:, None])[:, 0]


def _farthest(targets: Tensor) -> int:
    """Returns the lowest target if that is negative, else the highest."""
    low, high = (int(value) for value in targets.aminmax())
    return low if low < 0 else high


__getattr__ = renamed(__name__, {"QuantityError": "LearnpropError"})
