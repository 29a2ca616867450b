"""Linear layers that are functions become modules, so that zennit's composites find them.

Zennit gives rules to modules by their type. A call of ``F.conv2d``, ``F.linear`` or ``torch.addmm`` in a model's own
forward has none. `LinearCanonizer` gives each such call a module of torch that computes the same, for as long as a
composite is registered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._compat import Canonizer, unsupported_model
from .core.linear_map import ConvolutionMap, DenseMap, LinearOperands, TransposedConvolutionMap
from .core.linear_watch import LinearWatch, linear_calls_watched
from .errors import RuleError

LINEAR_TYPES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""Modules that zennit has rules for, which change the weights of the module and run it again."""
STAND_INS = "functional_linear_layers"
"""Name of the module that holds the others, in the model while the canonizer is registered."""


class LinearCanonizer(Canonizer):
    """Zennit canonizer: linear functions that a model calls by itself are called as modules.

    Args:
        calls: Of each, the name and a module of its type, as `linear_functions` finds them.
    """

    def __init__(self, calls: dict[str, nn.Module]) -> None:
        self.calls = calls
        self._root: nn.Module | None = None
        self._watch: LinearWatch | None = None

    def apply(self, root_module: nn.Module) -> list[LinearCanonizer]:
        """Register a copy on ``root_module``; zennit calls this when a composite is registered."""
        applied = self.copy()
        applied.register(root_module)
        return [applied]

    def copy(self) -> LinearCanonizer:
        """A canonizer of its own, not registered anywhere."""
        return type(self)(self.calls)

    def register(self, root_module: nn.Module) -> None:
        """Add the modules to ``root_module``, where composites find them.

        Raises:
            RuleError: If it has a module of that name.
        """
        self.remove()
        if hasattr(root_module, STAND_INS):
            raise RuleError(
                f"{type(root_module).__name__} has a {STAND_INS!r} already; remove the other composite first"
            )
        self._watch = LinearWatch(self._call)
        self._watch.register(root_module)
        self._root = root_module
        holder = nn.Module()
        for name, module in self.calls.items():
            holder.add_module(name.replace(".", "/"), module)
        root_module.add_module(STAND_INS, holder)

    def remove(self) -> None:
        """Take them away; harmless when nothing is registered."""
        if self._watch is not None and self._root is not None:
            self._watch.remove()
            delattr(self._root, STAND_INS)
            for module in self.calls.values():
                _with_parameters(module, None, None)
        self._watch = self._root = None

    def _call(self, name: str, module: nn.Module, operands: LinearOperands, call: Any) -> Tensor:
        stand_in = self.calls.get(name)
        if stand_in is None or not torch.is_grad_enabled():
            value: Tensor = call()
            return value
        bias = operands.bias
        inside = bias is not None and _is_per_channel(bias, operands)
        _with_parameters(stand_in, operands.weight, bias.flatten() if bias is not None and inside else None)
        out: Tensor = stand_in(operands.x)
        return out if bias is None or inside else out + bias


def linear_functions(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Finds the linear functions in a forward pass that zennit's rules do not find, or would get wrong.

    Args:
        model: The model; run once.
        inputs: What its forward takes.

    Returns:
        By name of the call, modules that can stand in for functions; and by path of the module, why zennit's rules are
        wrong on it.
    """
    calls: dict[str, nn.Module] = {}
    wrong: dict[str, str] = {}

    def look(name: str, module: nn.Module, operands: LinearOperands, call: Any) -> Tensor:
        value: Tensor = call()
        if not isinstance(module, LINEAR_TYPES):
            stand_in = stand_in_for(operands)
            if stand_in is not None:
                calls[name] = stand_in
        elif operands.weight is not own_parameter(module, "weight"):
            wrong[name.partition("#")[0]] = (
                f"{type(module).__name__} makes its weights of others, which zennit's rules change instead"
            )
        return value

    leaves = [x.detach().clone().requires_grad_() if _is_float(x) else x for x in inputs]
    with linear_calls_watched(model, look), torch.enable_grad():
        model(*leaves)
    return calls, wrong


def own_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """A parameter as the module's forward sees it, which zennit 1.0.0 leaves beside the registered one.

    None if it is made of others, or missing.
    """
    found = getattr(module, name, None)
    return found if isinstance(found, nn.Parameter) else None


def refuse_unsupported(model: nn.Module) -> None:
    """Refuses models that hooks cannot reach.

    Raises:
        RuleError: For compiled or scripted models.
    """
    reason = unsupported_model(model)
    if reason is not None:
        raise RuleError(f"canonizers cannot be applied to {type(model).__name__}: {reason}")


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _is_per_channel(bias: Tensor, operands: LinearOperands) -> bool:
    return bias.numel() == _channels(operands) and (bias.ndim == 1 or isinstance(operands.map, ConvolutionMap))


def _channels(operands: LinearOperands) -> int:
    linear, weight = operands.map, operands.weight
    if isinstance(linear, TransposedConvolutionMap):
        return weight.shape[1] * int(linear.options.get("groups", 1))
    return weight.shape[0]


def stand_in_for(operands: LinearOperands) -> nn.Module | None:
    """Returns a module of torch without weights that computes the call; None if there is none."""
    linear, weight = operands.map, operands.weight
    if isinstance(linear, DenseMap):
        return _with_parameters(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), None, None)
    if not isinstance(linear, ConvolutionMap):
        return None
    kind: Any = getattr(nn, linear.name)
    options = dict(linear.options)
    groups = int(options.get("groups", 1))
    sizes = (operands.x.shape[1], _channels(operands))
    return _with_parameters(
        kind(*sizes, tuple(weight.shape[2:]), **{**options, "groups": groups}, device="meta"), None, None
    )


def _with_parameters(module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    for name, value in (("weight", weight), ("bias", bias)):
        parameter = None if value is None else nn.Parameter(value.detach(), requires_grad=False)
        module.register_parameter(name, parameter)
    return module


__all__ = ["LINEAR_TYPES", "LinearCanonizer", "linear_functions", "own_parameter", "refuse_unsupported"]
