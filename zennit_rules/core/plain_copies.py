"""Copies and pickles of a model in use are those of the plain model.

A model is copied while rules are registered on it by whoever keeps an average of its weights or writes a checkpoint.
What rules put on a module (a ``forward``, hooks, merged weights) belongs to that module: on the copy nobody could take
it off again. ``copy`` and ``pickle`` ask an instance for its ``__reduce_ex__`` and ``__deepcopy__``, so that is where
the plain one is handed out.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any

import torch

from .._compat import without_zennit_hooks

Undo = Callable[[dict[str, Any]], None]  # turns the attributes of a module in use into those of the plain one

_lock = RLock()
_NAMES = ("__reduce_ex__", "__deepcopy__")


class _Reduced:
    """Stands in ``module.__dict__["__reduce_ex__"]``: what the plain module would answer."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.undo: tuple[PlainCopies, ...] = ()

    def __call__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)

    def plain(self) -> torch.nn.Module:
        """A module of the same class with the attributes of the plain one, which it shares."""
        state = {name: value for name, value in vars(self.module).items() if name not in _NAMES}
        without_zennit_hooks(state)
        for each in reversed(self.undo):
            each.undo(state)
        plain: torch.nn.Module = object.__new__(type(self.module))
        vars(plain).update(state)
        return plain


class _Copied:
    """Stands in ``module.__dict__["__deepcopy__"]`` of a module whose class has a ``__deepcopy__`` of its own."""

    def __init__(self, reduced: _Reduced) -> None:
        self.reduced = reduced

    def __call__(self, memo: dict[int, Any]) -> Any:
        plain: Any = self.reduced.plain()
        return plain.__deepcopy__(memo)


class PlainCopies:
    """Handle of what `plain_copies` did; ``remove()`` may be called more than once."""

    def __init__(self, module: torch.nn.Module, undo: Undo) -> None:
        self.module: torch.nn.Module | None = module
        self.undo = undo

    def remove(self) -> None:
        """The module is a plain one again, as far as this handle knows."""
        with _lock:
            if self.module is None:
                return
            module, self.module = self.module, None
            reduced = vars(module).get("__reduce_ex__")
            if not isinstance(reduced, _Reduced):
                return
            reduced.undo = tuple(each for each in reduced.undo if each is not self)
            if not reduced.undo:
                for name in _NAMES:
                    vars(module).pop(name, None)


def plain_copies(module: torch.nn.Module, undo: Undo = lambda state: None) -> PlainCopies:
    """Let copies and pickles of a module be those of the plain one, until the handle is removed.

    Args:
        module: Module that something is put on; zennit's hooks are left out of its copies in any case.
        undo: Called with the attributes of a copy to be, which it turns into those of the plain module. Containers
            among them are shared with the module and must be replaced, not changed.

    Returns:
        A handle with ``remove()``.
    """
    with _lock:
        reduced = vars(module).get("__reduce_ex__")
        if not isinstance(reduced, _Reduced):
            reduced = vars(module)["__reduce_ex__"] = _Reduced(module)
            if hasattr(type(module), "__deepcopy__"):
                vars(module)["__deepcopy__"] = _Copied(reduced)
        handle = PlainCopies(module, undo)
        reduced.undo = (*reduced.undo, handle)
    return handle


__all__ = ["PlainCopies", "plain_copies"]
