"""What users pass to a method, checked before the model sees it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import _format_additional_forward_args, _format_tensor_into_tuples
from ..errors import LearnpropError
from ..forward import warn_of_bytes, warn_of_training


def checked_inputs(
    model: nn.Module | Callable[..., Any], inputs: Any, additional_forward_args: Any
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Inputs and further arguments of a model, as tuples.

    Args:
        model: What takes them.
        inputs: ``(B, ...)`` floating-point tensor or tuple of them.
        additional_forward_args: Anything, a tuple of anything, or None.

    Warns:
        UserWarning: For a model in training mode, see `captum_learnprop.forward.training_mode`.
        InputWarning: For pixels that are bytes, 0 to 255.

    Raises:
        LearnpropError: For inputs that are empty, not finite, no floating-point tensors or of several batch sizes, for
            arguments that the model does not take, and in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise LearnpropError("attributions need autograd: leave torch.inference_mode() (no_grad() is fine)")
    if not isinstance(inputs, (Tensor, tuple)):
        raise LearnpropError(f"inputs must be a tensor or a tuple of tensors, got {type(inputs).__name__}")
    tensors = _format_tensor_into_tuples(inputs)
    additional = _format_additional_forward_args(additional_forward_args) or ()
    for i, x in enumerate(tensors):
        where = f"inputs[{i}]" if len(tensors) > 1 else "inputs"
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise LearnpropError(
                f"{where} must be a floating-point tensor, got {kind}; attribute embeddings, not indices"
            )
        if x.ndim == 0 or x.numel() == 0:
            raise LearnpropError(f"{where} is empty: shape {tuple(x.shape)}; the batch needs at least one sample")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise LearnpropError(f"{where} has {bad} values that are NaN or infinite; clean the input first")
    warn_of_training(model)
    warn_of_bytes(tensors)
    sizes = sorted({x.shape[0] for x in tensors})
    if len(sizes) > 1:
        raise LearnpropError(f"inputs have batches of {sizes} samples; dimension 0 must be the same in all")
    try:
        signature = inspect.signature(getattr(model, "forward", model))
    except ValueError:  # scripted code has none; whether rules reach it is checked later
        return tensors, additional
    try:
        signature.bind(*tensors, *additional)
    except TypeError as error:
        raise LearnpropError(
            f"{_name(model)} does not take {len(tensors)} inputs and {len(additional)} additional_forward_args: {error}"
        ) from error
    return tensors, additional


def _name(model: nn.Module | Callable[..., Any]) -> str:
    return f"{type(model).__name__}.forward" if isinstance(model, nn.Module) else "the model"
