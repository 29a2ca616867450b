"""Captum methods as Quantus' ``explain_func``. Quantus itself (LGPL, ``pip install quantus``) is not needed here.

Hedström et al.: *Quantus: An Explainable AI Toolkit for Responsible Evaluation*, JMLR 24 (2023). Example::

    explain = as_quantus_explain_func(Saliency, sign="absolute")
    quantus.MPRT()(model, x_batch, y_batch, explain_func=explain)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import reduce_channels


class _Method(Protocol):
    """What of ``captum.attr.Attribution`` is used."""

    def attribute(self, inputs: Tensor, **options: Any) -> Any: ...


def as_quantus_explain_func(
    method_factory: Callable[[nn.Module], _Method], *, sign: str | None = None, **kwargs: Any
) -> Callable[..., np.ndarray]:
    """Returns ``(model, inputs (B, C, H, W), targets (B,), **options) -> attributions``, all arrays, for Quantus.

    It calls ``method_factory(model).attribute(inputs, target=targets, **kwargs, **options)`` anew each time, because
    Quantus hands over other models (randomised copies). Arrays become tensors of the model's type and device; the
    attributions come back in the type of the inputs.

    Args:
        method_factory: a ``captum.attr.Attribution`` class, or a function of the model that makes one.
        sign: None leaves attributions in the shape of the inputs; else `reduce_channels` makes them
            ``(B, 1, H, W)``. Quantus' ROAD needs that.
        **kwargs: for ``attribute``. Options that Quantus passes (``explain_func_kwargs``) override them; its ``device``
            is where the inputs go, the model's device without it.

    Raises:
        LearnpropError: inputs and targets do not fit, or the method does not give one attribution of their shape.

    Example:
        >>> from captum.attr import Saliency
        >>> explain = as_quantus_explain_func(Saliency, abs=False)
        >>> model = nn.Linear(2, 2, bias=False).eval()
        >>> _ = nn.init.eye_(model.weight)
        >>> explain(model, np.ones((1, 2), np.float32), np.array([1]))
        array([[0., 1.]], dtype=float32)
    """

    def explain(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **options: Any) -> np.ndarray:
        like = next(model.parameters(), torch.zeros(()))
        device = options.pop("device", None) or like.device
        x = torch.tensor(np.asarray(inputs), dtype=like.dtype, device=device, requires_grad=True)
        y = torch.tensor(np.asarray(targets), dtype=torch.int64, device=device).reshape(-1)
        if len(y) != len(x):
            raise LearnpropError(f"{len(x)} inputs need {len(x)} targets, got {len(y)}")
        attribution = method_factory(model).attribute(x, target=y, **{**kwargs, **options})
        if not isinstance(attribution, Tensor) or attribution.shape != x.shape:
            raise LearnpropError(
                f"the method must give one attribution of shape {tuple(x.shape)}, got {attribution!r:.80}"
            )
        if sign is not None:
            attribution = reduce_channels(attribution, sign)[:, None]
        return attribution.detach().cpu().numpy().astype(np.asarray(inputs).dtype, copy=False)

    return explain
