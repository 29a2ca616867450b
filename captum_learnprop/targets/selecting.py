"""Choosing and checking the explained entry of an output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_learnprop._compat import _select_targets
from captum_learnprop.errors import LearnpropError, TargetError
from captum_learnprop.forward import tensor_of
from zennit_rules.core.scalars import plain


def select_target(output: Any, target: Any) -> Tensor:
    """The explained entry of each sample, ``(B,)``, by captum's conventions.

    Raises:
        TargetError: If the output holds no tensor, or the target does not fit it.
    """
    output, target = tensor_of(output, None), plain(target)
    try:
        selected = _select_targets(output, target)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        said = str(error).rstrip(".! ") or "out of range"
        raise TargetError(
            f"target {target!r} does not fit the model's output of shape {tuple(output.shape)}: "
            f"{said}. Pass a class index, a list or 1-D tensor with one index per sample, "
            "or tuples for outputs of more dimensions"
        ) from error
    if target is None and selected.numel() != selected.shape[:1].numel():
        raise TargetError(f"the output has shape {tuple(output.shape)}: pass target= to say which entry is explained")
    if selected.ndim == 0 or selected.numel() != selected.shape[0]:
        raise TargetError(
            f"target {target!r} leaves {tuple(selected.shape)} of the output {tuple(output.shape)}: "
            "name one entry per sample"
        )
    return selected.reshape(-1)


def require_finite(selected: Tensor) -> Tensor:
    """The explained entries, if they are numbers.

    Raises:
        LearnpropError: If one is NaN or infinite.
    """
    if not bool(torch.isfinite(selected).all()):
        bad = torch.nonzero(~torch.isfinite(selected)).flatten().tolist()
        raise LearnpropError(
            f"the model's output is NaN or infinite for samples {bad[:8]}: check its weights and the input's range"
        )
    return selected
