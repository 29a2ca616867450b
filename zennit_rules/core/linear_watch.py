"""Looks on while a model calls linear functions, whatever else is registered on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._compat import DisableTorchFunction
from .dependence import depends_on_input, forward_pass
from .interpose import interpose
from .linear_calls import is_linear_function, linear_operands
from .linear_map import LinearOperands

OnLinear = Callable[[str, nn.Module, LinearOperands, Callable[[], Tensor]], Tensor]
"""Called with the path of the module that calls (``#k`` behind it for call k > 0), the module, the call, and a function
that makes it; returns the value."""


@contextmanager
def linear_calls_watched(model: nn.Module, on_linear: OnLinear) -> Iterator[None]:
    """Let ``on_linear`` have each linear function that the model calls on something that depends on its input.

    Composites that are registered inside the context keep their rules: the call goes on to them.

    Args:
        model: Run inside with inputs that require gradients.
        on_linear: Called in the place of each linear function, see `OnLinear`; returns the value.
    """
    watch = LinearWatch(on_linear)
    watch.register(model)
    try:
        yield
    finally:
        watch.remove()


class LinearWatch(TorchFunctionMode):
    """A mode that gives each linear call to a function, from `register` to `remove`; see `linear_calls_watched`."""

    def __init__(self, on_linear: OnLinear) -> None:
        super().__init__()
        self._on_linear = on_linear
        self._stack: list[tuple[str, nn.Module]] = []
        self._calls: Counter[str] = Counter()
        self._handles: list[Any] = []

    def register(self, model: nn.Module) -> None:
        """Watch the forward passes of a model."""
        self._handles = [interpose(m, partial(self._run_module, path, m)) for path, m in model.named_modules()]
        self._handles.append(interpose(model, self._run_model))

    def remove(self) -> None:
        """Leaves the model alone again."""
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()

    def _run_model(self, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._stack:  # a model that calls itself
            return call_next(*args, **kwargs)
        self._calls.clear()
        with forward_pass((args, kwargs), within=True), self:
            return call_next(*args, **kwargs)

    def _run_module(
        self, path: str, module: nn.Module, call_next: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        self._stack.append((path, module))
        try:
            return call_next(*args, **kwargs)
        finally:
            self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = None
        if is_linear_function(func) and self._stack:
            with DisableTorchFunction():
                operands = linear_operands(func, args, kwargs, depends_on_input)
        if operands is None:
            return func(*args, **kwargs)
        path, module = self._stack[-1]
        path = path or "model"
        name = f"{path}#{self._calls[path]}" if self._calls[path] else path
        self._calls[path] += 1
        return self._on_linear(name, module, operands, lambda: func(*args, **kwargs))


__all__ = ["LinearWatch", "OnLinear", "linear_calls_watched"]
