"""AttentionMap, AttentionRollout and GenericAttention: maps made of attention weights.

The weights are read off whatever computes them (fused kernels are written out for the time of the call, see
`attention_weights`), so models need no setting, and none is changed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from ...errors import LearnpropError
from .attention_weights import attention_weights
from .layout import Anatomy
from .token_attribution import ResultForm, TokenAttribution

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


class _HeadsFused(_AttentionBased):
    """A map of attention weights alone, fused over heads: it says nothing of the class."""

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
            output: ``"patches"`` or ``"input"``, brought to the size of the images.
            mode: How it is brought there: ``"nearest"`` or ``"bilinear"``.
            prefix_scores: Return the scores of the prefix tokens as well.

        Returns:
            ``(B, 1, rows, columns)`` or ``(B, 1, H, W)``; with ``prefix_scores`` also ``(B, prefix)``.

        Raises:
            LearnpropError: If the model is no plain vision transformer, or for options that are not known.
        """
        result_form = ResultForm(output, mode, prefix_scores)
        if heads not in FUSIONS:
            raise LearnpropError(f"unknown heads {heads!r}; choose {', '.join(map(repr, FUSIONS))}")
        with self._opened(inputs, additional_forward_args) as (given, anatomy, place), torch.no_grad():
            _, weights = attention_weights(lambda: self.model(*given), self._layers(anatomy, place))
            fused = self._over_layers(weights, lambda each: _fused(each, heads))
        return result_form.of(self._read(fused, anatomy), given[0], anatomy)

    @abstractmethod
    def _layers(self, anatomy: Anatomy, place: int) -> tuple[nn.Module, ...]:
        """The attentions whose weights count, up to the place of the layer."""

    @abstractmethod
    def _over_layers(self, weights: list[Tensor], fuse: Callable[[Tensor], Tensor]) -> Tensor:
        """``(B, queries, keys)`` from the weights of each layer ``(B, heads, queries, keys)``."""


class AttentionMap(_HeadsFused):
    """What the class token attends to in one layer, the last by default: mean of its attention weights over heads.

    Says nothing of the class. Without prefix tokens it is the mean over the queries of all patches.

    Args:
        model: The vision transformer; returned untouched from every call.
        layer: A block, or an attention module; the last one by default.
        num_prefix_tokens: Number of tokens before the patches; found by default.
        grid_size: Rows and columns of patches; found by default.

    Raises:
        LearnpropError: If ``model`` or ``layer`` is no module.
    """

    def _layers(self, anatomy: Anatomy, place: int) -> tuple[nn.Module, ...]:
        return anatomy.attentions[place : place + 1]

    def _over_layers(self, weights: list[Tensor], fuse: Callable[[Tensor], Tensor]) -> Tensor:
        return fuse(weights[0])


class AttentionRollout(_HeadsFused):
    """Attention, multiplied over layers, with half of the identity for the residual stream.

    Says nothing of the class. Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020.

    Args:
        model: The vision transformer; returned untouched from every call.
        layer: The last layer that counts, as a block or an attention module; the last one by default.
        num_prefix_tokens: Number of tokens before the patches; found by default.
        grid_size: Rows and columns of patches; found by default.

    Raises:
        LearnpropError: If ``model`` or ``layer`` is no module.
    """

    def _layers(self, anatomy: Anatomy, place: int) -> tuple[nn.Module, ...]:
        return anatomy.attentions[: place + 1]

    def _over_layers(self, weights: list[Tensor], fuse: Callable[[Tensor], Tensor]) -> Tensor:
        total: Tensor | None = None
        for each in self._square(weights):
            layer = fuse(each) + torch.eye(each.shape[-1]).to(each)
            layer = layer / layer.sum(-1, keepdim=True)
            total = layer if total is None else layer @ total
        assert total is not None
        return total


class GenericAttention(_AttentionBased, GradientAttribution):
    """Relevance propagated through attention weights: ``R <- R + mean_h (dA * A)^+ R`` over all layers, from ``R = I``.

    Not negative. Source: rules 5 and 6 of Chefer, Gur and Wolf, ICCV 2021 (https://arxiv.org/abs/2103.15679), for
    self-attention alone.

    Args:
        model: The vision transformer; returned untouched from every call.
        layer: The last layer that counts, as a block or an attention module; the last one by default.
        num_prefix_tokens: Number of tokens before the patches; found by default.
        grid_size: Rows and columns of patches; found by default.
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
        """Relevance of the patches, not negative.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: Class by captum's conventions, or a function ``output (B, ...) -> (B,)``.
            additional_forward_args: Passed on to the model after the images.
            output: ``"patches"`` or ``"input"``, brought to the size of the images.
            mode: How it is brought there: ``"nearest"`` or ``"bilinear"``.
            prefix_scores: Return the scores of the prefix tokens as well.

        Returns:
            ``(B, 1, rows, columns)`` or ``(B, 1, H, W)``; with ``prefix_scores`` also ``(B, prefix)``.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: If the model is no plain vision transformer, or for options that are not known.
        """
        result_form = ResultForm(output, mode, prefix_scores)
        with self._opened(inputs, additional_forward_args) as (given, anatomy, place):
            with torch.enable_grad():
                value, weights = attention_weights(lambda: self._tensor_model(*given), anatomy.attentions[: place + 1])
                weights = self._square(weights)
                score = self._selected(value, target)
            gradients = torch.autograd.grad(score, weights, torch.ones_like(score), materialize_grads=True)
            relevance = torch.eye(weights[0].shape[-1]).to(weights[0]).expand(len(value), -1, -1)
            for each, gradient in zip(weights, gradients, strict=True):
                relevance = relevance + (gradient * each.detach()).clamp(min=0).mean(1) @ relevance
        return result_form.of(self._read(relevance, anatomy), given[0], anatomy)


def _fused(weights: Tensor, heads: str) -> Tensor:
    """``(B, heads, queries, keys)`` to ``(B, queries, keys)``."""
    return weights.mean(1) if heads == "mean" else getattr(weights, f"a{heads}")(1)
