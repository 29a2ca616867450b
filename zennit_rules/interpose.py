"""Put code around a module's ``forward`` and take it away again, in any order.

Forward hooks cannot replace an in-place computation without a copy, and are skipped on ``KeyboardInterrupt``; an
instance-level ``forward`` can do both. Several callers may interpose on the same module: they share one
dispatcher, so that the order of removal does not matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Around = Callable[..., Any]  # (call_next, *args, **kwargs) -> output


class _Dispatcher:
    """Stands in ``module.__dict__["forward"]``; the layer added last is the outermost."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.own = module.__dict__.get("forward")
        self.forward = module.forward
        self.layers: list[Around] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(len(self.layers), args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module made meanwhile is a plain one: nobody could take the layers off it again."""
        return copy.deepcopy(self.forward, memo)

    def _run(self, depth: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if depth == 0:
            return self.forward(*args, **kwargs)

        def call_next(*a: Any, **k: Any) -> Any:
            return self._run(depth - 1, a, k)

        return self.layers[depth - 1](call_next, *args, **kwargs)


class Interposed:
    """Handle of one interposed layer; ``remove()`` may be called more than once."""

    def __init__(self, module: torch.nn.Module, around: Around) -> None:
        self.module: torch.nn.Module | None = module
        self.around = around

    def remove(self) -> None:
        """Take the layer away; the last one restores the module's own ``forward``."""
        if self.module is None:
            return
        module, self.module = self.module, None
        dispatcher = module.__dict__.get("forward")
        if not isinstance(dispatcher, _Dispatcher):
            return
        at = next((i for i, layer in enumerate(dispatcher.layers) if layer is self.around), None)
        if at is not None:
            del dispatcher.layers[at]
        if dispatcher.layers:
            return
        if dispatcher.own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = dispatcher.own


def is_interposed(module: torch.nn.Module) -> bool:
    """Whether something is interposed on the module right now."""
    return isinstance(module.__dict__.get("forward"), _Dispatcher)


def has_own_forward(module: torch.nn.Module) -> bool:
    """Whether someone else gave this instance a ``forward`` that its class does not have."""
    found = module.__dict__.get("forward")
    return found is not None and not (isinstance(found, _Dispatcher) and found.own is None)


def interpose(module: torch.nn.Module, around: Around) -> Interposed:
    """Run ``around(call_next, *args, **kwargs)`` whenever ``module.forward`` is called.

    Args:
        module: Module whose instance gets the layer; its class is not touched.
        around: Called instead of ``forward``; ``call_next`` is what was there before.

    Returns:
        A handle with ``remove()``.
    """
    dispatcher = module.__dict__.get("forward")
    if not isinstance(dispatcher, _Dispatcher):
        dispatcher = _Dispatcher(module)
        module.__dict__["forward"] = dispatcher
    dispatcher.layers.append(around)
    return Interposed(module, around)


@contextmanager
def interposed(modules: Iterable[torch.nn.Module], around: Callable[[torch.nn.Module], Around]) -> Iterator[None]:
    """Run ``around(module)`` whenever one of the modules is called, and take it away at the end.

    Args:
        modules: each once.
        around: makes what is run, see `interpose`.
    """
    handles: list[Interposed] = []
    try:
        for module in modules:
            handles.append(interpose(module, around(module)))
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()
