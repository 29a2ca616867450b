"""AttentionMap, AttentionRollout and GenericAttention: maps made of attention weights.

The weights are read off whatever computes them (fused kernels are written out for the time of the call, see
`attention_weights`), so models need no setting, and none is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from ...errors import LearnpropError
from .attention_weights import attention_weights
from .layout import Anatomy
from .token_attribution import TokenAttribution, check_output

FUSIONS = ("mean", "max", "min")


class _AttentionBased(TokenAttribution):
    """A map that the class token, or all patches together where there is none, reads off ``(B, queries, keys)``."""

    @staticmethod
    def _read(weights: Tensor, anatomy: Anatomy) -> Tensor:
        """``(B, keys)``: the row of the first token; the mean of all rows without prefix tokens."""
        return weights[:, 0] if anatomy.prefix or weights.shape[1] == 1 else weights.mean(1)

    def _square(self, weights: list[Tensor]) -> list[Tensor]:
        """Weights of self-attention among the same tokens, without the heads that pool in the end."""
        size = weights[0].shape[-1]
        square = [each for each in weights if each.shape[-2:] == (size, size)]
        if len(square) < len(weights) - 1:
            raise LearnpropError(
                f"{type(self).__name__} multiplies attention over layers, but they attend among different tokens: "
                f"{[tuple(each.shape[-2:]) for each in weights]}"
            )
        return square


class AttentionMap(_AttentionBased):
    """What the class token attends to in one layer, the last by default: mean of its attention weights over heads.

    Says nothing of the class. Without prefix tokens it is the mean over the queries of all patches.

    Args:
        model: See `TokenAttribution`.
        layer: See there.
        num_prefix_tokens: See there.
        grid_size: See there.
    """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        heads: str = "mean",
        output: str = "patches",
        mode: str = "nearest",
        prefix_scores: bool = False,
    ) -> Any:
        """Attention to the patches, not negative.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: Has no influence.
            additional_forward_args: Passed on to the model after the images.
            heads: ``"mean"``, ``"max"`` or ``"min"`` over heads.
            output: See `CDAM.attribute`.
            mode: See there.
            prefix_scores: See there.
        """
        check_output(output, mode)
        _check_heads(heads)
        with self._opened(inputs, additional_forward_args) as (given, anatomy, place), torch.no_grad():
            _, (weights,) = attention_weights(lambda: self.model(*given), anatomy.attentions[place : place + 1])
        return self._shown(self._read(_fused(weights, heads), anatomy), given[0], anatomy, output, mode, prefix_scores)


class AttentionRollout(_AttentionBased):
    """Attention, multiplied over layers, with half of the identity for the residual stream.

    Up to ``layer``, the last by default. Says nothing of the class. Source: Abnar and Zuidema, ACL 2020.

    Args:
        model: See `TokenAttribution`.
        layer: See there.
        num_prefix_tokens: See there.
        grid_size: See there.
    """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        heads: str = "mean",
        output: str = "patches",
        mode: str = "nearest",
        prefix_scores: bool = False,
    ) -> Any:
        """Attention to the patches, not negative; see `AttentionMap.attribute`."""
        check_output(output, mode)
        _check_heads(heads)
        with self._opened(inputs, additional_forward_args) as (given, anatomy, place), torch.no_grad():
            _, weights = attention_weights(lambda: self.model(*given), anatomy.attentions[: place + 1])
            total: Tensor | None = None
            for each in self._square(weights):
                layer = _fused(each, heads) + torch.eye(each.shape[-1]).to(each)
                layer = layer / layer.sum(-1, keepdim=True)
                total = layer if total is None else layer @ total
        assert total is not None
        return self._shown(self._read(total, anatomy), given[0], anatomy, output, mode, prefix_scores)


class GenericAttention(_AttentionBased, GradientAttribution):
    """Relevance propagated through attention weights: ``R <- R + mean_h (dA * A)^+ R`` over all layers, from ``R = I``.

    Not negative. Source: rules 5 and 6 of Chefer, Gur and Wolf, ICCV 2021 (https://arxiv.org/abs/2103.15679), for
    self-attention alone.

    Args:
        model: See `TokenAttribution`.
        layer: The last layer that counts, see there.
        num_prefix_tokens: See there.
        grid_size: See there.
    """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        output: str = "patches",
        mode: str = "nearest",
        prefix_scores: bool = False,
    ) -> Any:
        """Relevance of the patches, see `CDAM.attribute`."""
        check_output(output, mode)
        with self._opened(inputs, additional_forward_args) as (given, anatomy, place):
            with torch.enable_grad():
                value, weights = attention_weights(lambda: self._tensor_model(*given), anatomy.attentions[: place + 1])
                weights = self._square(weights)
                score = self._selected(value, target)
            gradients = torch.autograd.grad(score, weights, torch.ones_like(score), materialize_grads=True)
            relevance = torch.eye(weights[0].shape[-1]).to(weights[0]).expand(len(value), -1, -1)
            for each, gradient in zip(weights, gradients, strict=True):
                relevance = relevance + (gradient * each.detach()).clamp(min=0).mean(1) @ relevance
        return self._shown(self._read(relevance, anatomy), given[0], anatomy, output, mode, prefix_scores)


def _fused(weights: Tensor, heads: str) -> Tensor:
    """``(B, heads, queries, keys)`` to ``(B, queries, keys)``."""
    return weights.mean(1) if heads == "mean" else getattr(weights, f"a{heads}")(1)


def _check_heads(heads: str) -> None:
    if heads not in FUSIONS:
        raise LearnpropError(f"unknown heads {heads!r}; choose {', '.join(map(repr, FUSIONS))}")
