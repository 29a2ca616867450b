"""Functions of torch go by several names: ``F.relu``, ``torch.relu``, ``Tensor.relu``, ``relu_``, ``__iadd__``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OWNERS = (F, torch, Tensor)


def spellings(name: str, owners: Sequence[Any] = OWNERS) -> Iterator[tuple[Any, Any, bool]]:
    """Every function of that name, the one that computes the same beside its operand, and whether it is in place."""
    for owner in owners:
        beside = getattr(owner, name, None)
        if beside is None:
            continue
        plain = name.startswith("__i")
        yield beside, getattr(owner, f"__{name[3:]}", None) if plain else beside, plain
        written = getattr(owner, f"{name}_", None)
        if written is not None and not name.startswith("__"):
            yield written, beside, True


__all__ = ["OWNERS", "spellings"]
