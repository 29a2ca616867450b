"""Other tokens in the place of those that an attention gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LearnpropError
from .layout import tokens_of, with_tokens


class TokenSwap:
    """Puts other tokens before an attention.

    Args:
        change: Makes, of the attention's input ``(R, N, D)``, what takes its place.
        enable_grad: Whether gradients are recorded from there on, to the end of the caller's ``no_grad``.
        rows: Number of first tokens whose output is needed; all by default.
    """

    def __init__(
        self, change: Callable[[Tensor], Tensor], *, enable_grad: bool = False, rows: int | None = None
    ) -> None:
        self.change, self.enable_grad, self.rows = change, enable_grad, rows
        self._made: tuple[Tensor, Tensor] | None = None

    def around(self, module: nn.Module) -> Callable[..., Any]:
        """A wrapper of the attention's calls, for `interposed`, that swaps the tokens."""

        def run(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            old = tokens_of(args, kwargs)
            assert old is not None
            if self.enable_grad:
                torch.set_grad_enabled(True)
            new = self.change(old)
            args, kwargs = with_tokens(old, new, args, kwargs)
            if self.rows is not None and type(module) is nn.MultiheadAttention and module.batch_first and args:
                args = (args[0][:, : self.rows], *args[1:])  # queries beyond those are nobody's
            result = call_next(*args, **kwargs)
            if self.rows is not None:
                result = first_rows(result, self.rows)
            if self._made is None:
                self._made = new, result[0] if isinstance(result, (tuple, list)) else result
            return result

        return run

    def made(self, attention: nn.Module) -> tuple[Tensor, Tensor]:
        """What the attention got and gave when it was called first.

        Raises:
            LearnpropError: If it was not called.
        """
        if self._made is None:
            raise LearnpropError(
                f"{type(attention).__name__} was not called in this forward pass, but in one before; make the method "
                "anew if the model has changed"
            )
        return self._made


def first_rows(result: Any, rows: int) -> Any:
    """The first tokens of what an attention gave."""
    if isinstance(result, (tuple, list)):
        return type(result)((result[0][:, :rows], *result[1:]))
    return result[:, :rows]
