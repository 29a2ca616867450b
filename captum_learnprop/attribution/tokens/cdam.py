"""CDAM: class-discriminative attention maps of vision transformers.

With ``T (N, D)`` the input of the last attention (the output of the norm before it) and ``f_c`` a logit, the score of a
token is ``S_i = sum_j T_ij df_c/dT_ij``: the attention it gets, times what the head makes of what it sends. Positive
is evidence for the class, negative is evidence against it.

Source: Brocki, Binda and Chung, "Class-Discriminative Attention Maps for Vision Transformers" (TMLR,
https://arxiv.org/abs/2312.02364), from formulas. Vanilla CDAM is layer gradient x activation at the last block's first
norm (a signed HiResCAM). `averaged_cdam` has the forms with noise and paths.
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from zennit_rules._moved import renamed
from zennit_rules.core.interpose import interposed

from ...errors import LearnpropError
from .layout import Anatomy
from .token_attribution import ResultForm, TokenAttribution, dot
from .token_swap import TokenSwap


class CDAM(TokenAttribution, GradientAttribution):
    """Class-discriminative attention map: ``S_i = sum_j T_ij df_c/dT_ij`` at the input of the last attention.

    One forward pass, of which only what follows the last attention's input is differentiated. A model may be frozen.

    With a class token as head, a patch that the class token does not attend to has score 0. A head that pools patches
    also reads them past the attention, which the map does not see; a `PatchReadingWarning` says so once.

    Args:
        model: The vision transformer; returned untouched from every call.
        layer: A block, or an attention module; the last one by default.
        num_prefix_tokens: Number of tokens before the patches; found by default.
        grid_size: Rows and columns of patches; found by default.

    Example:
        >>> import torch, torchvision, captum_learnprop as cl
        >>> model = torchvision.models.vit_b_32(weights=None).eval()
        >>> cl.CDAM(model).attribute(torch.rand(2, 3, 224, 224), target=[3, 5]).shape
        torch.Size([2, 1, 7, 7])
    """

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: scores are contributions."""
        return True

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
        """Scores of the patches.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: Class by captum's conventions, or a function ``output (B, ...) -> (B,)``, such as a `Concept`.
            additional_forward_args: Passed on to the model after the images.
            output: ``"patches"`` or ``"input"``, brought to the size of the images.
            mode: How: ``"nearest"`` or ``"bilinear"``.
            prefix_scores: Return the scores of the prefix tokens as well.

        Returns:
            ``(B, 1, rows, columns)`` or ``(B, 1, H, W)``, signed; with ``prefix_scores`` also ``(B, prefix)``.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: If the model is no plain vision transformer.
        """
        result_form = ResultForm(output, mode, prefix_scores)
        with self._opened(inputs, additional_forward_args) as (given, anatomy, place):
            tokens = self._scores(given, anatomy, place, target)
        return result_form.of(tokens, given[0], anatomy)

    def _scores(self, given: tuple[Any, ...], anatomy: Anatomy, place: int, target: Any) -> Tensor:
        """Scores of all tokens, ``(B, N)``."""
        run = TokenSwap(lambda tokens: tokens.detach().requires_grad_(), enable_grad=True)
        attention = anatomy.attentions[place]
        with torch.no_grad(), interposed([attention], run.around):
            value = self._tensor_model(*given)
            tokens, attended = run.made(attention)
            with torch.enable_grad():
                score = self._selected(value, target)
        return dot(tokens.detach(), self._gradient(score, tokens, attended, anatomy, place))

    def _gradient(self, score: Tensor, tokens: Tensor, attended: Tensor, anatomy: Anatomy, place: int) -> Tensor:
        """Derivative of scores to tokens; warns if the head reads patches of what the last attention gave."""
        looks = place == len(anatomy.attentions) - 1 and attended.shape == tokens.shape and not self._warned
        wanted = (tokens, attended) if looks else (tokens,)
        gradients = _gradients(score, wanted, anatomy.attentions[place])
        if looks:
            self._warn_of_patches(gradients[1][:, anatomy.prefix :])
        return gradients[0]


def _gradients(score: Tensor, wanted: tuple[Tensor, ...], attention: nn.Module) -> tuple[Tensor, ...]:
    found: tuple[Tensor | None, ...] = (None,)
    if score.requires_grad:
        found = torch.autograd.grad(score, wanted, torch.ones_like(score), allow_unused=True)
    if found[0] is None:
        raise LearnpropError(
            f"the explained output does not depend on the input of {type(attention).__name__}; choose another layer, "
            "or a target and a model that do not detach their tokens"
        )
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True))


_TOKENS = "captum_learnprop.attribution.tokens"

__getattr__ = renamed(
    __name__,
    {
        "first_rows": f"{_TOKENS}.token_swap.first_rows",
        **{name: f"{_TOKENS}.averaged_cdam.{name}" for name in ("FORMS", "IntegratedCDAM", "SmoothCDAM")},
    },
)
