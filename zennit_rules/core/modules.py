"""The modules of a model, listed without recursion: torch's own generators take a share of a fast attribution."""

from __future__ import annotations

from torch import nn


def named_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns what ``root.named_modules()`` yields: each module once, by its first path."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()
    todo: list[tuple[str, nn.Module]] = [("", root)]
    while todo:
        path, module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        found.append((path, module))
        children = module._modules
        if children:
            before = f"{path}." if path else ""
            todo += [(before + name, each) for name, each in reversed(children.items()) if each is not None]
    return found


def modules_of(root: nn.Module) -> list[nn.Module]:
    """Returns what ``root.modules()`` yields."""
    return [module for _, module in named_modules(root)]


__all__ = ["modules_of", "named_modules"]
