"""The attention weights of a forward pass, whichever way a model computes them, as tensors the output depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zennit_rules.core.interpose import interposed
from zennit_rules.rules.written_attention import ATTENTION, SOFTMAX, attention_of

from ...errors import LearnpropError


def attention_weights(run: Callable[[], Any], attentions: tuple[nn.Module, ...]) -> tuple[Any, list[Tensor]]:
    """Run a model with its attention written out: no fused kernel hides the weights.

    The model's own settings (``fused_attn``, the attention implementation) are not touched.

    Args:
        run: A function that runs it.
        attentions: Modules whose weights are wanted.

    Returns:
        What ``run`` returns, and of each module the weights ``(B, heads, queries, keys)``. If gradients are recorded,
        the output depends on them, in a frozen model too.

    Raises:
        LearnpropError: If one of the modules does not attend, or attends more than once.
    """
    seen = _WeightRecorder(attentions)
    with interposed(attentions, seen.around), seen:
        output = run()
    for attention in attentions:
        found = len(seen.found[attention])
        if found != 1:
            raise LearnpropError(
                f"{type(attention).__name__} showed {found} attention maps in a forward pass; the maps of this "
                "method need one, from a softmax or an attention function of torch"
            )
    return output, [seen.found[attention][0] for attention in attentions]


class _WeightRecorder(TorchFunctionMode):
    """Writes torch's attention functions out inside some modules, and keeps the weights of each."""

    def __init__(self, attentions: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.found: dict[nn.Module, list[Tensor]] = {attention: [] for attention in attentions}
        self._inside: list[nn.Module] = []

    def around(self, module: nn.Module) -> Callable[..., Any]:
        """A wrapper of the module's calls, for `interposed`, that says which module is running."""

        def run(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self._inside.append(module)
            try:
                return call_next(*args, **kwargs)
            finally:
                self._inside.pop()

        return run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside and func in ATTENTION:
            return attention_of(func, tuple(args), kwargs, lambda scores: self._note(scores.softmax(-1)))
        value = func(*args, **kwargs)
        if self._inside and func in SOFTMAX and isinstance(value, Tensor) and value.dim() == 4:
            return self._note(value)
        return value

    def _note(self, weights: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights = weights.detach().requires_grad_()
        self.found[self._inside[-1]].append(weights)
        return weights
