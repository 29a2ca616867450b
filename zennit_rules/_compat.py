"""Everything that leans on non-public names of zennit or torch; each has a test of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

try:
    from zennit.canonizers import Canonizer, NamedMergeBatchNorm
    from zennit.composites import COMPOSITES, LayerMapComposite
    from zennit.core import Composite, Hook, RemovableHandle, RemovableHandleList
except (ImportError, RuntimeError, AttributeError) as error:  # zennit imports torchvision eagerly
    raise ImportError(
        f"zennit cannot be imported ({error}). It imports torchvision: install torch and torchvision "
        "of matching releases, then `pip install 'zennit>=0.5.1,<2'`."
    ) from error

# Switches off every __torch_function__ handler, modes included: what a rule computes inside a site is not
# a call of the user's model.
DisableTorchFunction = torch._C.DisableTorchFunction


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return torch._C._current_graph_task_id() != -1


def on_autograd_thread() -> bool:
    """Whether this thread is one of autograd's own, which run the backward passes on accelerators."""
    return in_backward() and isinstance(threading.current_thread(), threading._DummyThread)


def function_of_node(node: object) -> type | None:
    """The custom autograd Function that made a node; None for nodes of torch's own functions."""
    found: type | None = getattr(type(node), "_forward_cls", None)
    return found


def shape_of_node(node: Any) -> torch.Size:
    """Shape of the value that an autograd node stands for."""
    return torch.Size(node._input_metadata[0].shape)


def zennit_hooks(module: torch.nn.Module) -> list[Hook]:
    """Zennit rules that are registered on a module."""
    owners = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, Hook)]


def active_transform() -> str | None:
    """What of ``torch.func`` or forward-mode AD is running in this thread; None for plain autograd."""
    interpreter = torch._C._functorch.peek_interpreter_stack()
    if interpreter is not None:
        return f"torch.func ({interpreter.key().name.lower()})"
    return "forward-mode AD" if forward_ad._current_level >= 0 else None


def one_gradient_at_a_time(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Backward pass of a custom Function that takes batched gradients (``is_grads_batched=True``) one by one.

    Rules look at whole signals (percentiles, sums, indices), which ``vmap`` has no way for.
    """

    @wraps(backward)
    def wrapped(ctx: Any, *signals: Any) -> Any:
        batched = [torch._C._functorch.is_legacy_batchedtensor(g) for g in signals]
        if not any(batched):
            return backward(ctx, *signals)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        apart = [torch._remove_batch_dim(g, level, 1, 0) if b else g for g, b in zip(signals, batched, strict=True)]
        count = next(len(g) for g, b in zip(apart, batched, strict=True) if b)
        rows = [wrapped(ctx, *(g[i] if b else g for g, b in zip(apart, batched, strict=True))) for i in range(count)]
        rows = [row if isinstance(row, tuple) else (row,) for row in rows]
        return tuple(
            None if column[0] is None else torch._add_batch_dim(torch.stack(column), 0, level)
            for column in zip(*rows, strict=True)
        )

    return wrapped


_HOOK_DICTS = ("_forward_pre_hooks", "_forward_hooks")
_FLAGS_OF_HOOKS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def without_zennit_hooks(state: dict[str, Any]) -> None:
    """Take zennit rules out of the attributes of a module; containers that had some are replaced by copies."""
    for name in _HOOK_DICTS:
        hooks = state.get(name, {})
        kept = {key: hook for key, hook in hooks.items() if not isinstance(getattr(hook, "__self__", None), Hook)}
        if len(kept) < len(hooks):
            state[name] = type(hooks)(kept)
            for flags in _FLAGS_OF_HOOKS:
                ours = state.get(flags, {})
                state[flags] = type(ours)((k, v) for k, v in ours.items() if k in kept or k not in hooks)


def unsupported_model(model: torch.nn.Module) -> str | None:
    """Tell why hooks cannot work on ``model``, or None if they can."""
    if hasattr(model, "_orig_mod"):
        return "it was made by torch.compile, which bypasses hooks: pass the original, `model._orig_mod`"
    for name, module in model.named_modules():
        where = f"its module {name!r}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is a scripted or traced module, which hooks cannot reach: pass the eager model"
        if isinstance(module, torch.nn.DataParallel) and len(module.device_ids) > 1:
            return f"{where} is a DataParallel, which runs copies of its module in other threads: pass `model.module`"
        distributed = {cls.__name__ for cls in type(module).__mro__}
        if "DistributedDataParallel" in distributed:
            return (
                f"{where} is a DistributedDataParallel, whose passes wait for those of other processes: pass "
                "`model.module`; training of rules shares the work out by itself"
            )
        if distributed & {"FSDPModule", "FullyShardedDataParallel"}:
            return (
                f"{where} is sharded (FSDP), and its weights are there during passes alone, but rules need them in "
                "between: load the whole state (torch.distributed.checkpoint.state_dict, full_state_dict=True) into a "
                "model that is not sharded"
            )
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return f"{where} was compiled (torch.compile), which bypasses hooks: pass the model before compiling"
    return None


__all__ = [
    "COMPOSITES",
    "Canonizer",
    "Composite",
    "DisableTorchFunction",
    "Hook",
    "LayerMapComposite",
    "NamedMergeBatchNorm",
    "RemovableHandle",
    "RemovableHandleList",
    "active_transform",
    "function_of_node",
    "in_backward",
    "on_autograd_thread",
    "one_gradient_at_a_time",
    "shape_of_node",
    "tree_flatten",
    "tree_unflatten",
    "unsupported_model",
    "without_zennit_hooks",
    "zennit_hooks",
]
