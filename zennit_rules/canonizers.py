"""Canonizers: zennit's LRP composites conserve relevance in models with skip connections, without code per model.

``EpsilonPlus(canonizers=canonizers_for(model, inputs))`` is all it takes for ResNet, DenseNet, MobileNet, EfficientNet,
ConvNeXt and others: sums, products, means, pools, normalisations and activations in the forward passes of the model's
own modules get the rules of `relevance`, and batch norms are merged into the layers they follow in the computation, in
whatever order the model defines them.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._compat import (
    Canonizer,
    Hook,
    LayerMapComposite,
    NamedMergeBatchNorm,
    RemovableHandle,
    RemovableHandleList,
    unsupported_model,
    zennit_hooks,
)
from .core.buffers import buffers_kept
from .core.dependence import current, forward_pass, tensors_in
from .core.interpose import Interposed, interpose
from .core.linear_calls import is_linear_function
from .core.plain_copies import PlainCopies, plain_copies
from .errors import RuleError, RuleWarning
from .linear_canonizer import LINEAR_TYPES, LinearCanonizer, linear_functions, own_parameter
from .rules.relevance import relevance_call
from .rules.relevance_nodes import node_name, nodes_without_rule
from .rules.steps import steps_of

Pairs = list[tuple[list[str], str]]

_TRANSPOSED_TYPES = LINEAR_TYPES[4:]
_NORM_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def canonizers_for(model: nn.Module, example_inputs: Tensor | tuple[Any, ...]) -> list[Canonizer]:
    """Canonizers with which any LRP composite of zennit conserves relevance in ``model``.

    Args:
        model: Model in evaluation mode; returned untouched.
        example_inputs: What its forward takes, one sample is enough.

    Returns:
        A `LinearCanonizer` if the model calls linear functions by itself, a `SkipCanonizer`, and a
        `MergeBatchNormPairs` if there are batch norms to merge; for the ``canonizers`` argument of a composite.

    Warns:
        RuleWarning: Of what zennit's rules do not reach even so: layers that make their weights of others, and
            functions without a rule.

    Raises:
        RuleError: For compiled or scripted models, which hooks cannot reach.
    """
    pairs = batch_norm_pairs(model, example_inputs)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    training = any(module.training for module in model.modules())
    with buffers_kept(model), torch.random.fork_rng(enabled=training):
        calls, wrong = linear_functions(model, inputs)
        found: list[Canonizer] = [*([LinearCanonizer(calls)] if calls else []), SkipCanonizer()]
        _warn_of_unreached(model, found, inputs, wrong)
    return [*found, *([MergeBatchNormPairs(pairs)] if pairs else [])]


def _warn_of_unreached(
    model: nn.Module, canonizers: list[Canonizer], inputs: tuple[Any, ...], wrong: dict[str, str]
) -> None:
    leaves = [x.detach().clone().requires_grad_() if _is_float(x) else x for x in inputs]
    # Any rule on the layers that zennit knows: what matters is which functions have none.
    rules = LayerMapComposite([(LINEAR_TYPES, _AnyRule())], canonizers=canonizers)
    with forward_pass(leaves) as depends, rules.context(model), torch.enable_grad():
        missed = nodes_without_rule(model(*leaves), depends)
    counts = Counter(node_name(node) for node in missed)
    said = [f"{path!r}: {reason}" for path, reason in wrong.items()]
    said += [f"{count} x {name}: relevance passes by the plain gradient" for name, count in counts.items()]
    if said:
        warnings.warn(
            f"zennit's rules do not reach everything in {type(model).__name__}: {'; '.join(said[:6])}"
            f"{'; ...' if len(said) > 6 else ''}. The composite 'learned_epsilon_gamma_box' goes by what is computed",
            RuleWarning,
            stacklevel=3,
        )


class _AnyRule(Hook):
    """Stands for any rule of a layer: a custom autograd Function on the way out."""

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Puts itself around the whole module, so that nothing in it is looked at."""
        handle = interpose(module, partial(self._around, module))
        return RemovableHandleList([RemovableHandle(self), module.register_forward_pre_hook(self.pre_forward), handle])

    def pre_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Marks the module as one that has a rule."""

    def copy(self) -> _AnyRule:
        """Returns another one."""
        return type(self)()

    @staticmethod
    def _around(module: nn.Module, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = call_next(*args, **kwargs)
        current().cover(out, (args, kwargs))
        return out


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


# -- skip connections and other functions ----------------------------------------------------------------------------


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
        _refuse_unsupported(root_module)
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


# -- batch norms -----------------------------------------------------------------------------------------------------


class MergeBatchNormPairs(NamedMergeBatchNorm):
    """Zennit's ``NamedMergeBatchNorm``, which gives every parameter back as the object it was.

    Zennit 0.5.1 leaves the ``eps`` of a merged norm in place, so that it still scales by ``1 / sqrt(1 + eps)``; 1.0.0
    leaves merged weights in ``state_dict()``, and a bias that the layer did not have. Both stay as they were here.

    Args:
        name_map: Pairs of names ``([linear layer, ...], batch norm)``, as `batch_norm_pairs` finds them.
    """

    def __init__(self, name_map: Pairs) -> None:
        super().__init__(name_map)
        self._kept: list[tuple[nn.Module, dict[str, Tensor | None]]] = []
        self._eps = 0.0
        self._copies: list[PlainCopies] = []

    def apply(self, root_module: nn.Module) -> list[MergeBatchNormPairs]:
        """Merge all pairs, or none if that fails.

        Raises:
            RuleError: If the model has no module of a name.
        """
        modules = dict(root_module.named_modules())
        for name in (name for linears, norm in self.name_map for name in (*linears, norm)):
            if name not in modules:
                raise RuleError(
                    f"{type(root_module).__name__} has no module {name!r} to merge: find the pairs of this model with "
                    "batch_norm_pairs(model, inputs)"
                )
        applied: list[MergeBatchNormPairs] = []
        try:
            for linears, norm in self.name_map:
                applied.append(self.copy())
                applied[-1].register([modules[name] for name in linears], modules[norm])
        except BaseException:
            for instance in applied:
                instance.remove()
            raise
        return applied

    def register(self, linears: list[nn.Module], batch_norm: nn.Module) -> None:
        """Merge one norm."""
        self._kept = [(module, _own_tensors(module)) for module in (*linears, batch_norm)]
        self._eps = float(vars(batch_norm)["eps"])
        for module, tensors in self._kept:
            plain = {"eps": self._eps} if module is batch_norm else {}
            self._copies.append(plain_copies(module, partial(_unmerge, _kept_values(tensors), plain)))
        super().register(linears, batch_norm)
        vars(batch_norm)["eps"] = 0.0

    def remove(self) -> None:
        """Undo it; harmless when nothing is merged."""
        if not self._kept:
            return
        kept, self._kept = self._kept, []
        for copies in self._copies:
            copies.remove()
        self._copies.clear()
        if self.batch_norm_params is not None:
            super().remove()
        for module, tensors in kept:
            for name, tensor in tensors.items():
                module.__dict__.pop(name, None)
                if tensor is None or isinstance(tensor, nn.Parameter):
                    module.register_parameter(name, tensor)
        vars(kept[-1][0])["eps"] = self._eps


def _own_tensors(module: nn.Module) -> dict[str, Tensor | None]:
    tensors: dict[str, Tensor | None] = {"weight": None, "bias": None}
    return {**tensors, **dict(module.named_buffers(recurse=False)), **dict(module.named_parameters(recurse=False))}


def _kept_values(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Returns tensors of their own that keep the values of a module's, since zennit may give its tensors others."""
    return {
        name: nn.Parameter(tensor.data, tensor.requires_grad) if isinstance(tensor, nn.Parameter)
        else None if tensor is None else tensor.data
        for name, tensor in tensors.items()
    }  # fmt: skip


def _unmerge(tensors: dict[str, Tensor | None], plain: dict[str, Any], state: dict[str, Any]) -> None:
    """Give the attributes of a copy the values from before the merge."""
    state.update(plain)
    for kind in ("_parameters", "_buffers"):
        state[kind] = {name: tensors.get(name, tensor) for name, tensor in state[kind].items()}
    for name in tensors:
        state.pop(name, None)  # zennit 1.0.0 puts merged weights there


def batch_norm_pairs(model: nn.Module, example_inputs: Tensor | tuple[Any, ...]) -> Pairs:
    """Finds the batch norms that can be merged into the layer before them, by one forward pass.

    A pair is a linear layer or convolution and a norm whose input is that layer's output, if nothing else uses the
    output, both are called once, and neither shares parameters. Norms that use the statistics of the batch, and layers
    that compute something of their own, are left out.

    Args:
        model: Returned untouched, running statistics included.
        example_inputs: What its forward takes.

    Returns:
        Names ``([linear layer], batch norm)``, for `MergeBatchNormPairs`.

    Raises:
        RuleError: For compiled or scripted models.
    """
    _refuse_unsupported(model)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    training = any(module.training for module in model.modules())
    watch = _CallWatch(model)
    try:
        with buffers_kept(model), torch.random.fork_rng(enabled=training), torch.no_grad(), watch:
            output = model(*inputs)
    finally:
        watch.end()
    return watch.pairs(output)


class _CallWatch(TorchFunctionMode):
    """A watch over who uses the outputs of linear layers in a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
        self._modules = dict(model.named_modules())
        self._calls: Counter[str] = Counter()
        self._made: dict[int, tuple[str, Tensor]] = {}
        self._users: dict[str, list[str | None]] = {}
        self._norm: str | None = None
        self._computed: list[tuple[Any, Any]] = []
        self._handles: list[Any] = []
        for name, module in self._modules.items():
            if any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
                continue
            if _is_mergeable_linear(module):
                self._handles.append(module.register_forward_hook(partial(self._linear, name)))
            elif _is_mergeable_norm(module):
                self._handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
                self._handles.append(module.register_forward_hook(self._leave))

    def end(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def pairs(self, output: Any) -> Pairs:
        """What was found, given the model's output."""
        self._note(output, None)
        found = []
        for linear, users in self._users.items():
            norm = users[0] if len(users) == 1 else None
            if norm is not None and self._calls[linear] == 1 and self._calls[norm] == 1:
                found.append(([linear], norm))
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if is_linear_function(func):
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            self._computed.append((given.get("weight"), given.get("bias")))
        if tensors_in(out):  # what returns none (dim(), size()) uses no values
            self._note((args, kwargs), self._norm)
        return out

    def _note(self, values: Any, user: str | None) -> None:
        for tensor in tensors_in(values):
            name, made = self._made.get(id(tensor), ("", None))
            if made is tensor:
                self._users[name].append(user)

    def _linear(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self._calls[name] += 1
        used, self._computed = self._computed[-1:], []
        if not used or any(x is not own_parameter(module, n) for n, x in zip(("weight", "bias"), used[0], strict=True)):
            return  # a forward of its own makes other weights of them
        if not isinstance(module, nn.Linear) or output.ndim == 2:  # a norm's channels are dimension 1
            self._made[id(output)] = (name, output)
            self._users[name] = []

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._calls[name] += 1
        self._norm = name

    def _leave(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._norm = None


def _is_mergeable_linear(module: Any) -> bool:
    """Whether the module is a layer of torch with a weight of its own, which zennit can scale."""
    if not isinstance(module, LINEAR_TYPES):
        return False
    if isinstance(module, _TRANSPOSED_TYPES) and module.groups > 1:  # zennit scales the wrong channels
        return False
    parameters = dict(module.named_parameters(recurse=False))
    return "weight" in parameters and (module.bias is None or "bias" in parameters)  # not made of others


def _is_mergeable_norm(module: nn.Module) -> bool:
    """Whether the module is a batch norm that scales by what it has stored."""
    if not isinstance(module, _NORM_TYPES) or module.training or not module.affine or module.running_mean is None:
        return False
    return any(type(module).forward is cls.forward for cls in _NORM_TYPES)


def _refuse_unsupported(model: nn.Module) -> None:
    reason = unsupported_model(model)
    if reason is not None:
        raise RuleError(f"canonizers cannot be applied to {type(model).__name__}: {reason}")


__all__ = ["MergeBatchNormPairs", "SkipCanonizer", "batch_norm_pairs", "canonizers_for"]
