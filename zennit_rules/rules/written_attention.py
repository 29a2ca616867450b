"""Attention written out: torch's functions that attend in one call, in steps that can be looked at and changed.

``F.scaled_dot_product_attention`` and ``F.multi_head_attention_forward`` hide the attention weights
``softmax(q k^T / sqrt(d) + mask)``, and their kernels have no second derivative. Here they are computed in the open,
and whoever asks gets the weights on their way to the product with the values.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.functions import ATTENTION, SOFTMAX
from ..errors import RuleError

Weights = Callable[[Tensor], Tensor]
"""A function from attention weights ``(..., queries, keys)`` to what takes their place."""

Product = Callable[[Tensor, Tensor], Tensor]

_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def attention_of(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    softmax: Weights = lambda scores: scores.softmax(-1),
    product: Product = torch.matmul,
) -> Any:
    """Returns the value of one of the functions in `ATTENTION`, written out.

    Args:
        func: the function.
        args: its arguments.
        kwargs: its named arguments.
        softmax: from the scores ``(..., queries, keys)`` to the weights.
        product: of queries and keys, and of weights and values.

    Raises:
        RuleError: For options that are not written out here: biases of keys and values, zero attention, static keys.
    """
    if func is F.scaled_dot_product_attention:
        return _scaled_dot_product(softmax, product, *args, **kwargs)
    return _multi_head(softmax, product, _MULTI_HEAD.bind(*args, **kwargs))


def _scaled_dot_product(
    softmax: Weights,
    product: Product,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = product(query * scale, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    weights = softmax(scores)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    return product(weights, value)


def _multi_head(softmax: Weights, product: Product, bound: inspect.BoundArguments) -> tuple[Tensor, Tensor | None]:
    bound.apply_defaults()
    given = bound.arguments
    for name in ("bias_k", "bias_v", "static_k", "static_v"):
        if given[name] is not None:
            raise RuleError(f"multi-head attention with {name} cannot be written out; make the module without it")
    if given["add_zero_attn"]:
        raise RuleError("multi-head attention with add_zero_attn cannot be written out; make the module without it")
    tensors = [given["query"], given["key"], given["value"]]
    flat = tensors[0].dim() == 2
    if flat:
        tensors = [x[:, None] for x in tensors]
    if given["use_separate_proj_weight"]:
        matrices = [given[f"{name}_proj_weight"] for name in "qkv"]
    else:
        matrices = list(given["in_proj_weight"].chunk(3))
    biases = [None] * 3 if given["in_proj_bias"] is None else list(given["in_proj_bias"].chunk(3))
    heads, (length, batch, _) = given["num_heads"], tensors[0].shape
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip(tensors, matrices, biases, strict=True)
    )
    kept: list[Tensor] = []

    def seen(scores: Tensor) -> Tensor:
        kept.append(softmax(scores))
        return kept[0]

    dropout = given["dropout_p"] if given["training"] else 0.0
    out = _scaled_dot_product(seen, product, q, k, v, _mask(given, batch, heads, q.dtype), dropout)
    out = F.linear(out.permute(2, 0, 1, 3).reshape(length, batch, -1), given["out_proj_weight"], given["out_proj_bias"])
    weights = None
    if given["need_weights"]:
        weights = kept[0].mean(1) if given["average_attn_weights"] else kept[0]
    if flat:
        out, weights = out[:, 0], None if weights is None else weights[0]
    return out, weights


def _mask(given: dict[str, Any], batch: int, heads: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores ``(B, heads, queries, keys)``; True forbids, in both masks."""
    total: Tensor | None = None
    for name in ("attn_mask", "key_padding_mask"):
        mask = given[name]
        if mask is None:
            continue
        if mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -torch.inf)
        if name == "key_padding_mask":
            mask = (mask if mask.dim() == 2 else mask[None])[:, None, None]
        elif mask.dim() == 3:
            mask = mask.unflatten(0, (batch, heads))
        total = mask if total is None else total + mask
    return total


__all__ = ["ATTENTION", "SOFTMAX", "attention_of"]
