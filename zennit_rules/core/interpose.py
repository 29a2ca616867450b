"""Put code around a module's ``forward`` and take it away again, in any order.

Forward hooks cannot replace an in-place computation without a copy, and are skipped on ``KeyboardInterrupt``; an
instance-level ``forward`` can do both. Several callers may interpose on the same module: they share one
dispatcher, so that the order of removal does not matter.

What is interposed serves the thread that did it; other threads run the module as if nothing were there. Copies and
pickles of the module are made of the plain one (see `plain_copies`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any

import torch

from .._compat import on_autograd_thread
from ..errors import RuleWarning
from .plain_copies import plain_copies

Around = Callable[..., Any]  # (call_next, *args, **kwargs) -> output

_lock = RLock()
"""Two threads that register on one module at a time must not lose each other's layers."""


class _Dispatcher:
    """Stands in ``module.__dict__["forward"]``; the layer added last is the outermost."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.own = module.__dict__.get("forward")
        self.forward = module.forward
        self.layers: tuple[Interposed, ...] = ()  # replaced, never changed: other threads may be running through it
        self.copies = plain_copies(module, self._undo)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(tuple([layer for layer in self.layers if layer.serves()]), args, kwargs)

    def _undo(self, state: dict[str, Any]) -> None:
        """Attributes of a plain copy: nobody could take the layers off it again."""
        if state.get("forward") is not self:  # someone replaced it meanwhile
            return
        if self.own is None:
            del state["forward"]
        else:
            state["forward"] = self.own

    def _run(self, layers: tuple[Interposed, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not layers:
            return self.forward(*args, **kwargs)

        def call_next(*a: Any, **k: Any) -> Any:
            return self._run(layers[:-1], a, k)

        return layers[-1].around(call_next, *args, **kwargs)


class Interposed:
    """Handle of one interposed layer; ``remove()`` may be called more than once.

    Attributes:
        served: Whether the layer has been run.
        passed_by: Whether a thread that the layer does not serve has run the module, with gradients.
    """

    def __init__(self, module: torch.nn.Module, around: Around) -> None:
        self.module: torch.nn.Module | None = module
        self.around = around
        self.served = self.passed_by = False
        self._thread = get_ident()

    def mine(self) -> bool:
        """Whether this thread put the layer there; on the threads of autograd, layers of all threads count.

        There is no Python thread behind a backward pass on an accelerator, where activation checkpointing runs a part
        of the model again.
        """
        return self._thread == get_ident() or on_autograd_thread()

    def serves(self) -> bool:
        """Whether the call that is being made goes through the layer; notes that it was made."""
        mine = self.mine()
        self.served |= mine
        self.passed_by |= not mine and torch.is_grad_enabled()
        return mine

    def remove(self) -> None:
        """Take the layer away; the last one restores the module's own ``forward``."""
        with _lock:
            if self.module is None:
                return
            module, self.module = self.module, None
            dispatcher = module.__dict__.get("forward")
            if not isinstance(dispatcher, _Dispatcher) or self not in dispatcher.layers:
                return
            dispatcher.layers = tuple(layer for layer in dispatcher.layers if layer is not self)
            if dispatcher.layers:
                return
            dispatcher.copies.remove()
            if dispatcher.own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = dispatcher.own


def is_interposed(module: torch.nn.Module) -> bool:
    """Whether something is interposed on the module right now, for this thread."""
    dispatcher = module.__dict__.get("forward")
    return isinstance(dispatcher, _Dispatcher) and any(layer.mine() for layer in dispatcher.layers)


def has_own_forward(module: torch.nn.Module) -> bool:
    """Whether someone else gave this instance a ``forward`` that its class does not have."""
    found = module.__dict__.get("forward")
    return found is not None and not (isinstance(found, _Dispatcher) and found.own is None)


def interpose(module: torch.nn.Module, around: Around) -> Interposed:
    """Run ``around(call_next, *args, **kwargs)`` whenever this thread calls ``module.forward``.

    Args:
        module: Module whose instance gets the layer; its class is not touched.
        around: Called instead of ``forward``; ``call_next`` is what was there before.

    Returns:
        A handle with ``remove()``.
    """
    with _lock:
        dispatcher = module.__dict__.get("forward")
        if not isinstance(dispatcher, _Dispatcher):
            dispatcher = _Dispatcher(module)
            module.__dict__["forward"] = dispatcher
        handle = Interposed(module, around)
        dispatcher.layers = (*dispatcher.layers, handle)
    return handle


@contextmanager
def interposed(modules: Iterable[torch.nn.Module], around: Callable[[torch.nn.Module], Around]) -> Iterator[None]:
    """Run ``around(module)`` whenever this thread calls one of the modules, and take it away at the end.

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


def warn_of_other_threads(handles: Iterable[Any]) -> None:
    """Say so if the thread that interposed never ran the modules, but others did: they were meant, it seems."""
    layers = [handle for handle in handles if isinstance(handle, Interposed)]
    if any(layer.passed_by for layer in layers) and not any(layer.served for layer in layers):
        warnings.warn(
            f"rules were applied to {type(layers[-1].module).__name__} in one thread, and other threads alone ran it: "
            "they got plain gradients. Apply rules in the thread that explains",
            RuleWarning,
            stacklevel=4,
        )


__all__ = ["Interposed", "has_own_forward", "interpose", "interposed", "is_interposed", "warn_of_other_threads"]
