"""TokenAblation: how much the output falls when a patch is taken out of the sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor, nn

from zennit_rules.core.interpose import interposed
from zennit_rules.core.scalars import plain

from ...errors import LearnpropError
from ..rewards import rows_of_target
from ..suffix import Suffix
from .attention_weights import attention_weights
from .layout import Anatomy, tokens_of, with_tokens
from .token_attribution import ResultForm, TokenAttribution


class TokenAblation(TokenAttribution, PerturbationAttribution):
    """``f_c(x) - f_c(x without token i)``: each patch in turn leaves before a block, after the position embedding.

    The sequence gets shorter by one token, nothing takes its place. One forward pass per patch of what follows.
    Models whose attention needs a fixed number of tokens (relative or rotary positions per token) cannot do without
    one.

    Args:
        model: The vision transformer; returned untouched from every call.
        layer: The block before which tokens leave; the first by default.
        num_prefix_tokens: Number of tokens before the patches; found by default.
        grid_size: Rows and columns of patches; found by default.
    """

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: scores are differences of the output."""
        return True

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        internal_batch_size: int | None = 256,
        output: str = "patches",
        mode: str = "nearest",
        prefix_scores: bool = False,
    ) -> Any:
        """Falls of the output when each patch leaves.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: Class by captum's conventions, or a function ``output (B, ...) -> (B,)``.
            additional_forward_args: Passed on to the model after the images.
            internal_batch_size: Most rows (samples times tokens) at once; None for all.
            output: ``"patches"`` or ``"input"``, brought to the size of the images.
            mode: How it is brought there: ``"nearest"`` or ``"bilinear"``.
            prefix_scores: Take out prefix tokens too; the head may read one by its place.

        Returns:
            ``(B, 1, rows, columns)`` or ``(B, 1, H, W)``, signed; with ``prefix_scores`` also ``(B, prefix)``.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: If the model cannot do without a token.
        """
        result_form = ResultForm(output, mode, prefix_scores)
        internal_batch_size = plain(internal_batch_size)
        if internal_batch_size is not None and internal_batch_size < 1:
            raise LearnpropError(f"internal_batch_size must be at least 1, got {internal_batch_size!r}")
        with self._opened(inputs, additional_forward_args) as (given, anatomy, place), torch.no_grad():
            scores = self._falls(
                given, anatomy, 0 if self.layer is None else place, target, internal_batch_size, prefix_scores
            )
        return result_form.of(scores, given[0], anatomy)

    def output_without(self, inputs: Tensor, patches: Sequence[int], additional_forward_args: Any = None) -> Tensor:
        """The model's output when several patches leave together.

        Args:
            inputs: Images ``(B, C, H, W)``.
            patches: Numbers of the patches that leave, row by row from 0; none gives the whole output.
            additional_forward_args: Passed on to the model after the images.

        Returns:
            ``(B, classes)``.

        Raises:
            LearnpropError: If there is no such patch, none is left, or the model cannot do without a token.
        """
        with self._opened(inputs, additional_forward_args) as (given, anatomy, place), torch.no_grad():
            count = anatomy.grid[0] * anatomy.grid[1]
            wrong = [one for one in patches if not 0 <= one < count]
            if wrong:
                raise LearnpropError(f"there is no patch {wrong[0]}: they are 0 to {count - 1}")
            kept = sorted(set(range(count)) - set(patches))
            if not kept:
                raise LearnpropError(f"no patch is left of {count}: keep one at least")
            suffix, block = self._suffix(given, anatomy, 0 if self.layer is None else place)
            if len(kept) == count:
                return suffix.output
            samples = torch.arange(len(given[0]), device=given[0].device)
            tokens = [*range(anatomy.prefix), *(anatomy.prefix + one for one in kept)]
            others = torch.tensor(tokens, device=samples.device).expand(len(samples), -1)
            return _with_only(suffix, block, samples, others)

    def _suffix(self, given: tuple[Any, ...], anatomy: Anatomy, place: int) -> tuple[Suffix, nn.Module]:
        """What follows the tokens of a block, and the block; the model can do without one of them."""
        block, source = anatomy.blocks[place], anatomy.block_sources[place]
        if source is None:
            raise LearnpropError(
                f"no module is finished before {type(block).__name__} gets its tokens; choose a later block as layer"
            )
        suffix = Suffix(self._tensor_model, source, given)
        _check_positions(suffix, anatomy, place, anatomy.prefix + anatomy.grid[0] * anatomy.grid[1])
        return suffix, block

    def _falls(
        self,
        given: tuple[Any, ...],
        anatomy: Anatomy,
        place: int,
        target: Any,
        rows_at_once: int | None,
        prefix_scores: bool,
    ) -> Tensor:
        suffix, block = self._suffix(given, anatomy, place)
        batch, first = len(given[0]), 0 if prefix_scores else anatomy.prefix
        size = anatomy.prefix + anatomy.grid[0] * anatomy.grid[1]
        device = given[0].device
        left = torch.arange(first, size, device=device)
        whole = self._selected(suffix.output, target)
        scores = whole.new_zeros(batch, size)
        for rows in torch.arange(batch * len(left), device=device).split(rows_at_once or batch * len(left)):
            samples, gone = rows % batch, left[rows // batch]
            value = _without(suffix, block, samples, gone, size)
            chosen = target if callable(target) else rows_of_target(target, samples)
            scores[samples, gone] = whole[samples] - self._selected(value, chosen)
        return scores


def _check_positions(suffix: Suffix, anatomy: Anatomy, place: int, size: int) -> None:
    """Make sure that what is left attends as before: its weights are the old ones, with the one that left shared out.

    Raises:
        LearnpropError: If tokens change their positions when one leaves, as rotary ones can.
    """
    attention, block = anatomy.attentions[place : place + 1], anatomy.blocks[place]
    device = suffix.activation.device
    samples, left = torch.zeros(1, dtype=torch.long, device=device), torch.tensor([anatomy.prefix], device=device)
    _, (before,) = attention_weights(lambda: suffix.run(lambda activation: activation, samples), attention)
    _, (after,) = attention_weights(lambda: _without(suffix, block, samples, left, size), attention)
    rest = [i for i in range(size) if i != anatomy.prefix]
    expected = before[:, :, rest][..., rest] if before.shape[-2] == size else before[..., rest]
    expected = expected / expected.sum(-1, keepdim=True)
    if after.shape != expected.shape or not torch.allclose(after, expected, rtol=1e-2, atol=1e-4):
        raise LearnpropError(
            f"the other tokens' positions change when one leaves before {type(block).__name__}, so the fall of the "
            "output would not be that token's; use CDAM, or occlude patches of the image"
        )


def _without(suffix: Suffix, block: nn.Module, samples: Tensor, gone: Tensor, size: int) -> Tensor:
    """Output for some samples ``(R,)``, each without one token."""
    others = torch.arange(size - 1, device=gone.device)
    return _with_only(suffix, block, samples, others + (others >= gone[:, None]).long())


def _with_only(suffix: Suffix, block: nn.Module, samples: Tensor, others: Tensor) -> Tensor:
    """Output for some samples ``(R,)``, each with only some tokens ``(R, n)`` before a block."""

    def around(_: nn.Module) -> Any:
        def run(call_next: Any, *args: Any, **kwargs: Any) -> Any:
            tokens = tokens_of(args, kwargs)
            assert tokens is not None
            fewer = tokens.gather(1, others[:, :, None].expand(-1, -1, tokens.shape[2]))
            args, kwargs = with_tokens(tokens, fewer, args, kwargs)
            return call_next(*args, **kwargs)

        return run

    try:
        with interposed([block], around):
            return suffix.run(lambda activation: activation, samples)
    except (RuntimeError, IndexError, ValueError) as error:
        if isinstance(error, LearnpropError):
            raise
        said = str(error).splitlines()[0]
        raise LearnpropError(
            f"the model cannot do without a token before {type(block).__name__}: {said}; use CDAM, or occlude patches "
            "of the image"
        ) from error
