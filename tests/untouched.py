"""What a user sees of a model and of tensors, written down; to be compared after a call that must change nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zennit_rules.core.sites import recorder


def _tensor(t: Tensor) -> dict[str, Any]:
    return {
        "id": id(t),
        "pointer": t.data_ptr(),
        "values": t.detach().clone(),
        "requires_grad": t.requires_grad,
        "is_leaf": t.is_leaf,
        "grad": None if not t.is_leaf or t.grad is None else (id(t.grad), t.grad.clone()),
        "hooks": len(t._backward_hooks or ()),
    }


def _module(m: nn.Module) -> dict[str, Any]:
    hooks = {name: [id(h) for h in value.values()] for name, value in vars(m).items() if "hooks" in name and value}
    plain = {k: v for k, v in vars(m).items() if isinstance(v, (bool, int, float, str, tuple))}
    return {"attributes": sorted(vars(m)), "hooks": hooks, "plain": plain, "children": [id(c) for c in m.children()]}


def snapshot(model: nn.Module, *tensors: Tensor) -> dict[str, Any]:
    """State of the model, of tensors of the caller and of torch's global switches."""
    return {
        "modules": {name: _module(m) for name, m in model.named_modules()},
        "parameters": {name: _tensor(p) for name, p in model.named_parameters()},
        "buffers": {name: _tensor(b) for name, b in model.named_buffers()},
        "tensors": [_tensor(t) for t in tensors],
        "grad_enabled": torch.is_grad_enabled(),
        "modes": torch._C._len_torch_function_stack(),
        "recorder": recorder.get() is None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Where two snapshots differ; empty if nowhere."""
    if isinstance(before, dict) and isinstance(after, dict):
        odd = [f"{where}.{key} came or went" for key in before.keys() ^ after.keys()]
        return odd + [d for k in before.keys() & after.keys() for d in differences(before[k], after[k], f"{where}.{k}")]
    if isinstance(before, (list, tuple)) and type(before) is type(after) and len(before) == len(after):
        return [
            d for i, (b, a) in enumerate(zip(before, after, strict=True)) for d in differences(b, a, f"{where}.{i}")
        ]
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        same = before.shape == after.shape and torch.equal(before.isnan(), after.isnan())
        return [] if same and torch.equal(before.nan_to_num(), after.nan_to_num()) else [f"{where} has other values"]
    return [] if before == after else [f"{where}: {before!r} became {after!r}"]


def assert_untouched(before: dict[str, Any], model: nn.Module, *tensors: Tensor) -> None:
    """Compare with a snapshot of the same model and tensors."""
    found = differences(before, snapshot(model, *tensors))
    assert not found, "\n".join(found)
