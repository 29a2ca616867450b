"""MergeBatchNormPairs: batch norms merged into the layers that they follow in the computation."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._compat import NamedMergeBatchNorm
from .core.buffers import buffers_kept
from .core.dependence import tensors_in
from .core.linear_calls import is_linear_function
from .core.plain_copies import PlainCopies, plain_copies
from .errors import RuleError
from .linear_canonizer import LINEAR_TYPES, own_parameter, refuse_unsupported

Pairs = list[tuple[list[str], str]]

_TRANSPOSED_TYPES = LINEAR_TYPES[4:]
_NORM_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
    refuse_unsupported(model)
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


__all__ = ["MergeBatchNormPairs", "Pairs", "batch_norm_pairs"]
