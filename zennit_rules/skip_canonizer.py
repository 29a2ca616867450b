"""SkipCanonizer: the functions called in forward passes pass relevance on, so that skip connections conserve it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ._compat import Canonizer, Hook, zennit_hooks
from .core.dependence import forward_pass
from .core.interpose import Interposed, interpose
from .errors import RuleError
from .linear_canonizer import refuse_unsupported
from .rules.relevance import relevance_call
from .rules.steps import steps_of


class SkipCanonizer(Canonizer):
    """Zennit canonizer: functions called in forward passes pass relevance on by the rules of `relevance`.

    Sums of branches, products with gates, means, pools, normalisations and activations; as functions, operators, or
    modules that no rule of the composite is registered on. What happens inside a layer with a rule is left to the
    rule. A pass recorded under the canonizer propagates the plain gradient once it is removed, or while all hooks of
    the composite are inactive.

    Args:
        stabilizer: What keeps the denominators of sums away from 0.
    """

    def __init__(self, stabilizer: float = 1e-6) -> None:
        if not stabilizer >= 0:
            raise RuleError(f"stabilizer must be a number of at least 0, got {stabilizer!r}")
        self.stabilizer = stabilizer
        self._registration: _Registration | None = None

    def apply(self, root_module: nn.Module) -> list[SkipCanonizer]:
        """Register a copy on ``root_module``; zennit calls this when a composite is registered."""
        applied = self.copy()
        applied.register(root_module)
        return [applied]

    def copy(self) -> SkipCanonizer:
        """A canonizer of its own, not registered anywhere."""
        return type(self)(self.stabilizer)

    def register(self, root_module: nn.Module) -> None:
        """Watch the forward passes of ``root_module`` and of its parts.

        Raises:
            RuleError: For compiled or scripted models.
        """
        self.remove()
        refuse_unsupported(root_module)
        self._registration = _Registration(root_module, self.stabilizer)

    def remove(self) -> None:
        """Undo it; harmless when nothing is registered."""
        if self._registration is not None:
            self._registration.end()
            self._registration = None


class _Registration:
    """One canonizer on one model, from ``register`` to ``remove``."""

    def __init__(self, root: nn.Module, stabilizer: float) -> None:
        self.stabilizer = stabilizer
        self.on = True
        self.hooks: weakref.WeakSet[Hook] = weakref.WeakSet()
        self._root = weakref.ref(root)
        self._handles: list[Interposed] = [interpose(m, partial(self._around, m)) for m in root.modules()]

    def end(self) -> None:
        """Give the modules back; what was recorded propagates the gradient."""
        self.on = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def active(self) -> bool:
        """Whether relevance flows: not in ``composite.inactive()``, which knows hooks only."""
        return self.on and (not self.hooks or any(hook.active for hook in self.hooks))

    def _around(self, module: nn.Module, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        functions = _running.get().get(self)
        if functions is None:
            with self._running(), forward_pass((args, kwargs), within=True):
                return self._around(module, call_next, *args, **kwargs)
        if next(module.children(), None) is not None or not zennit_hooks(module):
            return call_next(*args, **kwargs)
        with functions.paused():
            return call_next(*args, **kwargs)

    @contextmanager
    def _running(self) -> Iterator[None]:
        root = self._root()
        if root is not None:  # hooks are registered after canonizers
            self.hooks.update(hook for module in root.modules() for hook in zennit_hooks(module))
        functions = _Functions(self)
        token = _running.set({**_running.get(), self: functions})
        try:
            with functions:
                yield
        finally:
            _running.reset(token)


_running: ContextVar[dict[_Registration, _Functions]] = ContextVar("_running", default={})  # noqa: B039 (never written)


class _Functions(TorchFunctionMode):
    """Gives the functions called in one forward pass their rules."""

    def __init__(self, registration: _Registration) -> None:
        super().__init__()
        self._registration = registration
        self._paused = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = NotImplemented
        steps = steps_of(func, tuple(args), kwargs or {}) if not self._paused and torch.is_grad_enabled() else None
        if steps is not None:
            with self:
                return steps()
        if not self._paused:
            out = relevance_call(func, args, kwargs, self._registration.active, self._registration.stabilizer)
        return func(*args, **(kwargs or {})) if out is NotImplemented else out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves functions that are called inside alone: their layer has a rule already."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1


__all__ = ["SkipCanonizer"]
