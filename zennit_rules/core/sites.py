"""Sites: every call in a forward pass of a layer that a rule may have, found, named and counted.

Those are activations and max-pools, and for composites that have rules for them linear functions and the softmax.

A site is named after the module that is called, ``<module path>``, and ``<module path>#k`` for call k > 0 of a module
that a forward pass uses more than once. A functional call (``F.relu(x)``, ``x.relu_()``, ``F.max_pool2d(x, 3)``)
inside the forward of module ``<path>`` is turned into a call of an equivalent module named
``<path>.functional_relu``, so that rules find it like any other; it is not added to the user's model. The first linear
function that a module without children calls *is* the layer, ``<path>``; others, and those that a module calls beside
its children, are named after the function, ``<path>.linear``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._compat import (
    Canonizer,
    DisableTorchFunction,
    RemovableHandleList,
    active_transform,
    in_backward,
    unsupported_model,
    zennit_hooks,
)
from .._moved import renamed
from ..errors import RuleError
from .dependence import current, depends_on_input, forward_pass
from .interpose import Interposed, has_own_forward, interpose, warn_of_other_threads
from .linear_calls import CONVOLUTION_FUNCTIONS, is_linear_function, linear_operands
from .linear_map import DenseMap
from .modules import named_modules
from .site_functions import as_module, is_site, is_site_function


@dataclass(frozen=True)
class Site:
    """One call of one layer.

    Attributes:
        name: ``<module path>`` or ``<module path>#k``.
        kind: ``"activation"``, ``"pooling"``, ``"linear"``, ``"first"`` (a linear layer with the box rule),
            ``"softmax"``, ``"norm"`` or ``"product"``.
        function: Module type, e.g. ``"ReLU"``.
        shape: Shape of the pre-activation when the rule set was built, batch first.
        channel_dim: Dimension of ``shape`` that counts channels.
    """

    name: str
    kind: str
    function: str
    shape: tuple[int, ...]
    channel_dim: int


def refuse_unsupported(model: nn.Module) -> None:
    """Refuse a model on which rules cannot work.

    Raises:
        RuleError: If it, or a module of it, is compiled, scripted, or spread over processes or threads.
    """
    reason = unsupported_model(model)
    if reason is not None:
        raise RuleError(f"rules cannot be applied to {type(model).__name__}: {reason}")


# -- functional calls ------------------------------------------------------------------------------------------------


_CHANNEL_KEEPING = {
    F.linear,
    F.dropout,
    torch.dropout,
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
}
_RESHAPING = {Tensor.view, Tensor.reshape, torch.reshape}


def _child_name(module: type[nn.Module], arguments: dict[str, Any]) -> str:
    detail = ",".join(f"{k}={v}" for k, v in sorted(arguments.items()))
    return f"functional_{module.__name__.lower()}" + (f"({detail})" if detail else "")


class _FunctionalCalls(TorchFunctionMode):
    """Redirects functional activations to the tracker's stand-in modules while the model runs."""

    def __init__(self, tracker: SiteTracker) -> None:
        super().__init__()
        self.tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_site_function(func) or self.tracker.inside_site:
            return self._call_no_site(func, args, kwargs)
        known = as_module(func, tuple(args[1:]), kwargs)
        if known is None:
            return self._call_no_site(func, args, kwargs)
        z = args[0] if args else kwargs["input"]
        if not isinstance(z, Tensor) or not z.is_floating_point():
            return self._call_no_site(func, args, kwargs)
        child, takes_inplace = self.tracker.stand_in(*known)
        if known[2] and not takes_inplace:  # beside, then written: a rule may need z itself
            return z.copy_(child(z.clone()))
        return child(z)

    def _call_no_site(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function that is no site."""
        out = NotImplemented
        if self.tracker.on_call is not None and not self.tracker.inside_site:
            out = self.tracker.on_call(func, tuple(args), kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        if func is F.embedding and current().starts_at_embeddings:
            current().add(out)
            self.tracker.embedded.append(out)
        if func in _RESHAPING and out.ndim > 1 and args and out.shape[-1:] == args[0].shape[-1:]:
            return self.tracker.follow_channels(func, out, args[:1])
        if is_linear_function(func):
            self.tracker.note_channels(func, out, args, kwargs)
        return self.tracker.follow_channels(func, out, args) if func in _CHANNEL_KEEPING else out


# -- tracking --------------------------------------------------------------------------------------------------------


# Leaves of torch that say where channels are.
_CHANNELS_LAST_TYPES = (nn.Linear, nn.LayerNorm)


def _is_tracked(module: nn.Module) -> bool:
    """Whether calls inside ``module`` can be sites, or its output says where the channels are."""
    if has_own_forward(module):
        return True
    return (
        not _is_torch_module(module)
        or isinstance(module, _CHANNELS_LAST_TYPES)
        or next(module.children(), None) is not None
    )


def _is_torch_module(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one layer; what makes its weights (``nn.utils.parametrize``) does not count."""
    return all(name == "parametrizations" for name, _ in module.named_children())


@dataclass
class _Frame:
    """A module that is being run.

    Attributes:
        path: Its path.
        module: The module.
        closed: Whether what it calls is no business of ours: it is a site itself, or has another rule.
        linear: Number of linear functions that it has called.
    """

    path: str
    module: nn.Module
    closed: bool = False
    linear: int = 0


class SiteTracker(Canonizer):
    """Knows, during a forward pass, which site is being called; a zennit canonizer, undone by ``remove()``.

    Args:
        on_functional: Called with each stand-in module of a functional call, and its path, when it first occurs:
            the place to register rules on it; the handle it returns is removed with the tracker.

    Attributes:
        on_call: Called with every other function of torch that the model's modules call, as ``(func, args, kwargs)``;
            it returns the value, or NotImplemented to leave it to torch.
        on_output: Called with the output of each forward pass.
        is_ours: Tells the hooks of the composite, whose modules call functions with rules of their own, from those of
            others, which have the whole module.
        embedded: What the last pass started at, if that was on whole numbers.
    """

    def __init__(self, on_functional: Callable[[nn.Module, str], RemovableHandleList | None] | None = None) -> None:
        self.on_functional = on_functional
        self.on_call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] | None = None
        self.on_output: Callable[[Any], None] | None = None
        self.is_ours: Callable[[Any], bool] = lambda hook: True
        self.embedded: list[Tensor] = []
        self.paths: dict[int, str] = {}
        self.root: weakref.ref[nn.Module] | None = None
        self._handles: list[Interposed | RemovableHandleList] = []
        self._stand_ins: dict[str, nn.Module] = {}
        self._calls: dict[str, int] = {}
        self._stack: list[_Frame] = []
        self._channel_last: dict[int, weakref.ref[Tensor]] = {}

    def apply(self, root_module: nn.Module) -> list[SiteTracker]:
        """Track ``root_module``; zennit calls this when a composite is registered."""
        self.register(root_module)
        return [self]

    def copy(self) -> SiteTracker:
        """A tracker of its own, not registered anywhere."""
        return type(self)(self.on_functional)

    def register(self, root: nn.Module) -> None:
        """Interpose on ``root`` and all its modules.

        Raises:
            RuleError: For models that `refuse_unsupported` refuses.
        """
        self.remove()
        refuse_unsupported(root)
        self.root = weakref.ref(root)
        for path, module in named_modules(root):
            self.paths[id(module)] = path
            site = is_site(module)
            if site or self.on_call is not None or _is_tracked(module):
                self._handles.append(interpose(module, partial(self._run_module, path, module, site)))
        self._handles.append(interpose(root, self._run_root))

    def remove(self) -> None:
        """Undo everything; harmless when nothing is registered."""
        warn_of_other_threads(self._handles)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stand_ins.clear()
        self.embedded.clear()
        self.paths.clear()
        self.root = None

    @property
    def inside_site(self) -> bool:
        """Whether what the innermost module being run calls is none of the composite's business."""
        return not self._stack or self._stack[-1].closed

    @property
    def module(self) -> nn.Module | None:
        """The innermost module being run."""
        return self._stack[-1].module if self._stack else None

    def call_site(self, module: nn.Module) -> str:
        """Name this call of ``module``, counting calls within the forward pass."""
        path = self.paths.get(id(module), f"unnamed {type(module).__name__}") or "model"
        if not self._stack:
            root = self.root() if self.root is not None else None
            if root not in (None, module) and not in_backward():  # in a backward pass, checkpointing runs a part again
                raise RuleError(
                    f"site {path!r} was called outside a forward pass of the {type(root).__name__} the rules are "
                    "applied to, so its call cannot be counted; call the model itself, or make the part you call a "
                    "module and build the rule set for that"
                )
            return path
        return self._numbered(path)

    def call_of(self, name: str, *types: type[nn.Module]) -> str:
        """Name this call of a function: after the module being run if it is one of some types, else inside it."""
        path = self._stack[-1].path if self._stack else ""
        if type(self.module) not in types:
            path = f"{path}.{name}".lstrip(".")
        return self._numbered(path)

    def linear_call(self, function: str) -> str:
        """Name this call of a linear function: the first of a module without children is the module's own."""
        if not self._stack:
            return self._numbered(function)
        frame = self._stack[-1]
        frame.linear += 1
        if frame.linear == 1 and is_leaf(frame.module) and (frame.path or _is_torch_module(frame.module)):
            return self._numbered(frame.path or "model")
        return self._numbered(f"{frame.path}.{function}".lstrip("."))

    def written_out(self) -> TorchFunctionMode:
        """Returns a mode in which functions that a handler of `on_call` calls have rules like the model's own calls."""
        return _FunctionalCalls(self)

    def _numbered(self, path: str) -> str:
        """Name of one more call in this forward pass."""
        k = self._calls.get(path, 0)
        self._calls[path] = k + 1
        return f"{path}#{k}" if k else path

    def called(self, site: str) -> bool:
        """Whether the last forward pass made the call of that name."""
        path, _, k = site.partition("#")
        return int(k or 0) < self._calls.get(path, 0)

    def channel_dim(self, z: Tensor) -> int:
        """Which dimension of ``z`` counts channels: the last if it comes from a linear map or LayerNorm, else 1."""
        return z.ndim - 1 if self._has_channels_last(z) and z.ndim > 1 else min(1, z.ndim - 1)

    def follow_channels(self, func: Any, out: Any, args: tuple[Any, ...]) -> Any:
        """Note where the output of a linear map has its channels, and what is made of it element by element."""
        if isinstance(out, Tensor) and (func is F.linear or any(self._has_channels_last(a) for a in args)):
            self._channel_last[id(out)] = weakref.ref(out)
        return out

    def note_channels(self, func: Any, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where a linear function but ``F.linear`` has its channels, if that is the last dimension."""
        if func is F.linear or func in CONVOLUTION_FUNCTIONS or not isinstance(out, Tensor) or out.ndim < 2:
            return
        with DisableTorchFunction():
            operands = linear_operands(func, args, kwargs, depends_on_input)
        if isinstance(operands and operands.map, DenseMap):
            self._channel_last[id(out)] = weakref.ref(out)

    def _has_channels_last(self, z: Any) -> bool:
        made = self._channel_last.get(id(z))
        return made is not None and made() is z

    def stand_in(self, kind: type[nn.Module], arguments: dict[str, Any], inplace: bool) -> tuple[nn.Module, bool]:
        """The module standing in for a functional call here, and whether it honours ``inplace`` itself."""
        weight = arguments.pop("weight", None)  # of F.prelu: the one of this call
        path = f"{self._stack[-1].path}.{_child_name(kind, arguments)}".lstrip(".")
        key = f"{path} in place" if inplace else path
        if key not in self._stand_ins:
            child = kind(**arguments)
            if hasattr(child, "inplace"):
                setattr(child, "inplace", inplace)  # noqa: B010 (not declared on Module)
            child.eval()
            self._stand_ins[key] = child
            self.paths[id(child)] = path
            handle = None if self.on_functional is None else self.on_functional(child, path)
            if handle is not None:
                self._handles.append(handle)
        child = self._stand_ins[key]
        if weight is not None:
            vars(child)["weight"] = weight
        return child, bool(getattr(child, "inplace", False))

    def _run_root(self, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._stack:  # a model that calls itself
            return call_next(*args, **kwargs)
        _refuse_transforms()
        self._calls.clear()
        self._channel_last.clear()
        self.embedded.clear()
        root = self.root() if self.root is not None else None
        assert root is not None
        served = _running_models.get()
        token = _running_models.set(served | {id(root)})
        try:
            # Of several composites on one model the one applied last has the modules, and so the functional calls.
            with self._frame(_Frame("", root)), forward_pass((args, kwargs)):
                with nullcontext() if id(root) in served else _FunctionalCalls(self):
                    out = call_next(*args, **kwargs)
                if self.on_output is not None:
                    self.on_output(out)
            return out
        finally:
            _running_models.reset(token)
            self._stack.clear()

    @contextmanager
    def _frame(self, frame: _Frame) -> Iterator[None]:
        self._stack.append(frame)
        try:
            yield
        finally:
            if self._stack:
                self._stack.pop()

    def _run_again(self, frame: _Frame, call_next: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """A part of the model that activation checkpointing runs again, in the backward pass: the same with its rules.

        Calls keep the rules of the forward pass, so the names that they get here do not count.
        """
        calls, self._calls = self._calls, {}
        try:
            with self._frame(frame), forward_pass((args, kwargs)), _FunctionalCalls(self):
                return call_next(*args, **kwargs)
        finally:
            self._calls = calls

    def _run_module(
        self, path: str, module: nn.Module, site: bool, call_next: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        other = self._has_other_rule(module)
        frame = _Frame(path, module, closed=site or other)
        if not self._stack:  # a part of the model run on its own
            if self.on_call is not None and in_backward() and torch.is_grad_enabled():
                return self._run_again(frame, call_next, args, kwargs)
            return call_next(*args, **kwargs)
        self._stack.append(frame)
        try:
            out = call_next(*args, **kwargs)
        finally:
            if self._stack:
                self._stack.pop()
        if other:
            current().cover(out, (args, kwargs))
        # Subclasses of LayerNorm exist that put channels first (torchvision's LayerNorm2d).
        if isinstance(out, Tensor) and (isinstance(module, nn.Linear) or type(module) is nn.LayerNorm):
            self._channel_last[id(out)] = weakref.ref(out)
        return out

    def _has_other_rule(self, module: nn.Module) -> bool:
        """Whether somebody else's hook has the whole module."""
        if not module._forward_pre_hooks:
            return False
        return is_leaf(module) and not all(map(self.is_ours, zennit_hooks(module)))


def _refuse_transforms() -> None:
    """Refuses transforms of functions: rules live in the backward pass of autograd, which those do not run as it is."""
    transform = active_transform() if torch.is_grad_enabled() else None
    if transform is not None:
        raise RuleError(
            f"rules do not work under {transform}: they need torch.autograd.grad or backward, outside of "
            "torch.func.grad, vmap, jacrev, jvp and the like (torch.autograd.functional.jacobian works, and so does "
            "is_grads_batched=True)"
        )


_running_models: ContextVar[frozenset[int]] = ContextVar("_running_models", default=frozenset())


class Recorder(Protocol):
    """Someone who wants to know of every site of a forward pass (the tangent pass does)."""

    def site(self, call: Any, z: Tensor, out: Tensor) -> None:
        """Note that ``call`` turned ``z`` into ``out``."""


recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


__getattr__ = renamed(
    __name__,
    {
        "ACTIVATION_TYPES": "zennit_rules.core.site_functions.ACTIVATION_TYPES",
        "PIECEWISE_LINEAR": "zennit_rules.core.site_functions.PIECEWISE_LINEAR",
        "POOLING_TYPES": "zennit_rules.core.site_functions.POOLING_TYPES",
        "UNREACHED_TYPES": "zennit_rules.core.site_functions.UNREACHED_TYPES",
        "ElementWise": "zennit_rules.core.site_functions.ElementWise",
        "activation_function": "zennit_rules.core.site_functions.activation_function",
        "is_pooling": "zennit_rules.core.site_functions.is_pooling",
    },
)

__all__ = ["Recorder", "Site", "SiteTracker", "is_leaf", "is_site", "recorder"]
