"""SmoothCDAM and IntegratedCDAM: class-discriminative attention maps averaged over many points of the tokens' space.

Source: Brocki, Binda and Chung (TMLR, https://arxiv.org/abs/2312.02364), from formulas. The forms with noise and paths
are ours where theirs are not published, see each class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.log import log_usage
from torch import Tensor, nn

from zennit_rules.core.interpose import interposed
from zennit_rules.core.scalars import plain

from ...errors import LearnpropError
from ..rewards import rows_of_target
from ..suffix import Suffix
from .cdam import CDAM
from .layout import Anatomy, tokens_of, with_tokens
from .token_attribution import ResultForm, dot
from .token_swap import TokenSwap

FORMS = ("integrated", "average")


@dataclass(frozen=True)
class _GradientPoints:
    """The points at which gradients are taken, for each sample of a batch.

    Attributes:
        at: A function ``(T of some rows (R, N, D), number of the point of each row (R,)) -> (R, N, D)``.
        weights: Weight of each point, ``(n,)``.
    """

    at: Callable[[Tensor, Tensor], Tensor]
    weights: Tensor


class _AveragedCDAM(CDAM):
    """A CDAM at many points of the tokens' space: what precedes the attention's block is run once."""

    def _averaged(
        self,
        given: tuple[Any, ...],
        anatomy: Anatomy,
        place: int,
        target: Any,
        points: Callable[[Tensor], _GradientPoints],
        times: Callable[[Tensor, Tensor], Tensor],
        rows_at_once: int | None,
    ) -> tuple[Tensor, _AfterAttention]:
        """``sum_k w_k sum_j times(T, T^k)_ij df/dT^k_ij``, ``(B, N)``, and what follows the tokens ``T``."""
        tail = _AfterAttention(self._tensor_model, anatomy, place, given)
        tokens = tail.tokens
        chosen = points(tokens)
        batch, count = len(tokens), len(chosen.weights)
        total = tokens.new_zeros(tokens.shape[:2], dtype=torch.promote_types(tokens.dtype, torch.float32))
        weights = chosen.weights.to(total)
        for rows in torch.arange(batch * count, device=tokens.device).split(rows_at_once or batch * count):
            samples, which = rows % batch, rows // batch
            leaf = chosen.at(tokens[samples], which).detach().requires_grad_()
            with torch.enable_grad():
                value, attended = tail.run(leaf, samples)
                score = self._selected(value, _target_of(target, samples))
            gradient = self._gradient(score, leaf, attended, anatomy, place)
            part = dot(times(tokens[samples], leaf.detach()), gradient) * weights[which, None]
            total.index_add_(0, samples, part)
        return total, tail


class _AfterAttention:
    """What follows the input of an attention.

    If the head reads prefix tokens only, what the last attention gives to patches is nobody's: then the rest of the
    block is run for the prefix alone, which is found out by trying.

    Attributes:
        tokens: The input of the attention, ``(B, N, D)``.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, place: int, given: tuple[Any, ...]) -> None:
        self.attention, self.block = anatomy.attentions[place], anatomy.blocks[place]
        seen, source = TokenSwap(lambda tokens: tokens), anatomy.sources[place]
        if source is None:
            raise LearnpropError(
                f"no module is finished before {type(self.attention).__name__} gets its tokens; choose a later layer"
            )
        with interposed([self.attention], seen.around):
            self.suffix = Suffix(model, source, given)
        self.tokens = seen.made(self.attention)[0].detach()
        self.rows: int | None = anatomy.prefix or None
        last = place == len(anatomy.attentions) - 1
        if not (last and self.block is not self.attention and self._rows_suffice()):
            self.rows = None

    def _rows_suffice(self) -> bool:
        first = torch.zeros(1, dtype=torch.long, device=self.tokens.device)
        try:
            with torch.no_grad():
                short = self.run(self.tokens[:1], first)[0]
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        whole = self.suffix.output[:1]
        return short.shape == whole.shape and torch.allclose(
            short, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max())
        )

    def run(self, tokens: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the model and the attention for some samples ``(R,)`` with other tokens ``(R, N, D)``."""
        insert = TokenSwap(lambda _: tokens, rows=self.rows)
        short = [] if self.rows is None else [self.block]
        with interposed([self.attention], insert.around), interposed(short, self._shorten):
            return self.suffix.run(lambda activation: activation, samples), insert.made(self.attention)[1]

    def _shorten(self, block: nn.Module) -> Callable[..., Any]:
        def run(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            stream = tokens_of(args, kwargs)
            if stream is not None:
                args, kwargs = with_tokens(stream, stream[:, : self.rows], args, kwargs)
            return call_next(*args, **kwargs)

        return run


def _target_of(target: Any, samples: Tensor) -> Any:
    return target if callable(target) else rows_of_target(target, samples)


class SmoothCDAM(_AveragedCDAM):
    """Mean of CDAMs at noisy tokens: ``1/n sum_k sum_j T^k_ij df_c/dT^k_ij`` with ``T^k = T + e_k``.

    The noise is on the tokens, which captum's NoiseTunnel cannot reach; its standard deviation is a share of the range
    of each sample's own tokens. All samples of a batch get the same draws.
    """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        n_samples: int = 50,
        noise_level: float = 0.05,
        seed: int = 0,
        internal_batch_size: int | None = None,
        output: str = "patches",
        mode: str = "nearest",
        prefix_scores: bool = False,
    ) -> Any:
        """Scores of the patches of images ``(B, C, H, W)``.

        Arguments that are not listed are those of `CDAM.attribute`.

        Args:
            n_samples: Number of noisy copies of the tokens.
            noise_level: Standard deviation, as a share of ``max T - min T`` of the sample.
            seed: Where the noise begins.
            internal_batch_size: Most rows (samples times copies) at once; all by default.

        Returns:
            ``(B, 1, rows, columns)`` or ``(B, 1, H, W)``, signed; with ``prefix_scores`` also ``(B, prefix)``.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: If the model is no plain vision transformer, or for options out of range.
        """
        result_form = ResultForm(output, mode, prefix_scores)
        n_samples, noise_level, seed = plain(n_samples), plain(noise_level), plain(seed)
        internal_batch_size = plain(internal_batch_size)
        _at_least_one(n_samples=n_samples, internal_batch_size=internal_batch_size)
        if noise_level < 0:
            raise LearnpropError(f"noise_level is a share of the tokens' range, at least 0, got {noise_level!r}")

        def points(tokens: Tensor) -> _GradientPoints:
            noise = _noise(n_samples, tokens, seed)

            def at(own: Tensor, which: Tensor) -> Tensor:
                return own + noise[which] * noise_level * _range(own)

            return _GradientPoints(at, torch.full((n_samples,), 1 / n_samples, dtype=torch.float64))

        with self._opened(inputs, additional_forward_args) as (given, anatomy, place):
            scores, _ = self._averaged(
                given, anatomy, place, target, points, lambda tokens, point: point, internal_batch_size
            )
        return result_form.of(scores, given[0], anatomy)


class IntegratedCDAM(_AveragedCDAM):
    """Integrated gradients in the space of tokens, from the zero token: ``T_ij int_0^1 df_c/dT_ij(a T) da``, summed.

    Scores of all tokens, prefix included, add up to ``f(T) - f(0)``, where the residual stream stays what it is
    (Sundararajan et al., ICML 2017). ``form="average"`` is the mean CDAM along the same path instead,
    ``1/(n+1) sum_k sum_j T^k_ij df_c/dT^k_ij`` with ``T^k = k/n T``, which does not add up to a difference.
    """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        n_steps: int = 50,
        form: str = "integrated",
        noise_level: float = 0.0,
        seed: int = 0,
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        output: str = "patches",
        mode: str = "nearest",
        prefix_scores: bool = False,
    ) -> Any:
        """Scores of the patches of images ``(B, C, H, W)``.

        Arguments that are not listed are those of `CDAM.attribute`.

        Args:
            n_steps: Points on the path: Gauss-Legendre, or ``n + 1`` even ones of the average.
            form: ``"integrated"`` or ``"average"``.
            noise_level: Standard deviation of noise at every point, as a share of ``max T - min T`` of the sample; with
                noise, scores do not add up.
            seed: Where the noise begins.
            internal_batch_size: Most rows (samples times points) at once; all by default.
            return_convergence_delta: Also return the sum of all scores minus ``f(T) - f(0)``, ``(B,)``.

        Returns:
            ``(B, 1, rows, columns)`` or ``(B, 1, H, W)``, signed; with ``prefix_scores`` also ``(B, prefix)``.
            With ``return_convergence_delta`` the delta ``(B,)`` comes last.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: If the model is no plain vision transformer, or for options out of range.
        """
        result_form = ResultForm(output, mode, prefix_scores)
        n_steps, noise_level, seed = plain(n_steps), plain(noise_level), plain(seed)
        internal_batch_size = plain(internal_batch_size)
        _at_least_one(n_steps=n_steps, internal_batch_size=internal_batch_size)
        if form not in FORMS:
            raise LearnpropError(f"unknown form {form!r}; choose 'integrated' or 'average'")
        if return_convergence_delta and form != "integrated":
            raise LearnpropError("form='average' does not add up to a difference of outputs: it has no delta")
        integrated = form == "integrated"
        alphas, weights = _gauss_legendre(n_steps) if integrated else _even(n_steps)

        def points(tokens: Tensor) -> _GradientPoints:
            noise = _noise(len(alphas), tokens, seed) if noise_level else None

            def at(own: Tensor, which: Tensor) -> Tensor:
                point = own * alphas.to(own)[which, None, None]
                return point if noise is None else point + noise[which] * noise_level * _range(own)

            return _GradientPoints(at, weights)

        with self._opened(inputs, additional_forward_args) as (given, anatomy, place):
            scores, tail = self._averaged(
                given, anatomy, place, target, points,
                lambda tokens, point: tokens if integrated else point, internal_batch_size,
            )  # fmt: skip
            delta = scores.sum(1) - self._difference(tail, target) if return_convergence_delta else None
        shown = result_form.of(scores, given[0], anatomy)
        if delta is None:
            return shown
        return (*shown, delta) if prefix_scores else (shown, delta)

    @torch.no_grad()
    def _difference(self, tail: _AfterAttention, target: Any) -> Tensor:
        """``f(T) - f(0)``."""
        tokens = tail.tokens
        samples = torch.arange(len(tokens), device=tokens.device)
        ends = [self._selected(tail.run(each, samples)[0], target) for each in (tokens, torch.zeros_like(tokens))]
        return (ends[0] - ends[1]).detach()


def _noise(count: int, tokens: Tensor, seed: int) -> Tensor:
    """Standard normal ``(count, N, D)``, the same for all samples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *tokens.shape[1:], generator=generator).to(tokens)


def _range(tokens: Tensor) -> Tensor:
    """``max T - min T`` of each sample, ``(R, 1, 1)``."""
    return tokens.amax((1, 2), keepdim=True) - tokens.amin((1, 2), keepdim=True)


def _gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def _even(count: int) -> tuple[Tensor, Tensor]:
    alphas = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    return alphas, torch.full_like(alphas, 1 / len(alphas))


def _at_least_one(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise LearnpropError(f"{name} must be a whole number of at least 1, got {value!r}")
