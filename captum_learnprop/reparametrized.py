"""Layers whose weight is made of other tensors: weight norm, spectral norm, orthogonal and other parametrizations.

Torch has two forms. `torch.nn.utils.parametrize` keeps raw tensors in a module of their own and inverts them where it
can; the older ``torch.nn.utils.weight_norm`` and ``spectral_norm`` put a hook on the layer, which sets its weight, a
plain attribute, before each forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._compat import SpectralNorm, WeightNorm

Module = TypeVar("Module", bound=nn.Module)

ITERATIONS = 20
"""Steps of the power method of a spectral norm, which follows a trained weight slowly and a new one not at all."""


def copied(module: Module) -> Module:
    """A deep copy; a weight that a forward pass computed, which torch refuses to copy, becomes a plain tensor."""
    memo: dict[int, object] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def made_of_others(module: nn.Module) -> tuple[str, ...]:
    """Names of the tensors of a module that are computed from others."""
    return (*_parametrizations(module), *(hook.name for hook in _hooks(module)))


def raw_names(module: nn.Module) -> frozenset[str]:
    """Names of its own parameters and buffers that such hooks compute them from."""
    ends = {WeightNorm: ("_g", "_v"), SpectralNorm: ("_orig", "_u", "_v")}
    return frozenset(f"{hook.name}{end}" for hook in _hooks(module) for end in ends[type(hook)])


def is_part_of_parametrization(name: str) -> bool:
    """Whether a module of that name holds raw tensors of the one above it."""
    return "parametrizations" in name.split(".")


def plain_copy(module: Module) -> Module:
    """A copy of a layer that has these tensors as plain parameters."""
    plain = copied(module)
    for hook in _hooks(plain):
        remove = nn.utils.remove_weight_norm if isinstance(hook, WeightNorm) else nn.utils.remove_spectral_norm
        remove(plain, hook.name)
    if parametrize.is_parametrized(module):
        values = {name: getattr(module, name).detach().clone() for name in _parametrizations(module)}
        # Torch's own way back takes the properties off the class, which the copy shares with the user's module.
        plain.__class__ = parametrize.type_before_parametrizations(module)
        del plain._modules["parametrizations"]
        for name, value in values.items():
            plain.register_parameter(name, nn.Parameter(value))
    return plain


@torch.no_grad()
def assign(module: nn.Module, name: str, value: Tensor, generator: torch.Generator) -> None:
    """Set a tensor that is computed from others, through those, in place.

    Where torch cannot invert the computation (exponential maps without a base), the raw tensors are drawn from a normal
    distribution as wide as ``value``.
    """
    hook = next((hook for hook in _hooks(module) if hook.name == name), None)
    if hook is not None:
        _assign_raw(module, hook, value)
        return
    parts = _parametrizations(module)[name]
    modes = {part: part.training for part in parts.modules()}
    try:
        setattr(module, name, value)
    except (NotImplementedError, RuntimeError, ValueError):
        for raw in parts.parameters(recurse=False):
            drawn = torch.randn(raw.shape, generator=generator, dtype=value.dtype) * value.std().cpu()
            raw.copy_(drawn)
    parts.train()
    for _ in range(ITERATIONS):  # buffers that follow the weight do so in training mode
        getattr(module, name)
    for part, mode in modes.items():
        part.training = mode


def _assign_raw(module: nn.Module, hook: WeightNorm | SpectralNorm, value: Tensor) -> None:
    """The raw tensors of a hook of the older form, and the weight itself."""
    if isinstance(hook, WeightNorm):
        module.get_parameter(f"{hook.name}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
        module.get_parameter(f"{hook.name}_v").copy_(value)
        setattr(module, hook.name, hook.compute_weight(module))
        return
    module.get_parameter(f"{hook.name}_orig").copy_(value)
    for _ in range(ITERATIONS):
        weight = hook.compute_weight(module, do_power_iteration=True)
    setattr(module, hook.name, weight)


def _parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    return (
        dict(module.get_submodule("parametrizations").named_children()) if parametrize.is_parametrized(module) else {}
    )


def _hooks(module: nn.Module) -> Iterator[WeightNorm | SpectralNorm]:
    yield from [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))]


__all__ = ["assign", "copied", "is_part_of_parametrization", "made_of_others", "plain_copy", "raw_names"]
