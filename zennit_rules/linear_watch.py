"""Looks on while a model calls linear functions, whatever else is registered on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._compat import DisableTorchFunction
from .dependence import depends_on_input, forward_pass
from .interpose import interpose
from .linear_map import LinearOperands, is_linear_function, linear_operands

OnLinear = Callable[[str, LinearOperands, Tensor], None]
"""Called with the path of the module that calls (``#k`` behind it for call k > 0), the call, and its value."""


@contextmanager
def linear_calls_watched(model: nn.Module, on_linear: OnLinear) -> Iterator[None]:
    """Call ``on_linear`` at each linear function that the model calls on something that depends on its input.

    Composites that are registered inside the context keep their rules: the call is looked at before they have it.

    Args:
        model: Run inside with inputs that require gradients.
        on_linear: See `OnLinear`.
    """
    functions = _Watched(on_linear)
    handles = [interpose(module, partial(functions.run_module, path)) for path, module in model.named_modules()]
    handles.append(interpose(model, functions.run_model))
    try:
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()


class _Watched(TorchFunctionMode):
    def __init__(self, on_linear: OnLinear) -> None:
        super().__init__()
        self._on_linear = on_linear
        self._stack: list[str] = []
        self._calls: Counter[str] = Counter()

    def run_model(self, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._stack:  # a model that calls itself
            return call_next(*args, **kwargs)
        self._calls.clear()
        with forward_pass((args, kwargs)), self:
            return call_next(*args, **kwargs)

    def run_module(self, path: str, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._stack.append(path)
        try:
            return call_next(*args, **kwargs)
        finally:
            self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if is_linear_function(func) and self._stack:
            with DisableTorchFunction():
                operands = linear_operands(func, args, kwargs, depends_on_input)
                if operands is not None:
                    path = self._stack[-1] or "model"
                    name = f"{path}#{self._calls[path]}" if self._calls[path] else path
                    self._calls[path] += 1
                    self._on_linear(name, operands, out)
        return out


__all__ = ["OnLinear", "linear_calls_watched"]
