"""Coverage: which layers of a model have a rule, and why the others have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .sites import POOLING_TYPES, UNREACHED_TYPES, Site, is_site

# Autograd nodes of functions that would have been sites, had a rule reached them.
_MISSED = ("Relu", "Elu", "Gelu", "Silu", "Mish", "Hardswish", "Hardsigmoid", "Hardtanh", "Softplus", "Tanh", "Sigmoid",
           "Selu", "Celu", "Prelu", "PreluKernel", "RreluWithNoise", "Softshrink", "Hardshrink", "LeakyRelu",
           "Threshold", "DifferentiableGraph")  # fmt: skip
# Non-linear, but no element-wise activation.
_OTHER = ("Softmax", "LogSoftmax", "Glu", "Clamp", "ClampMin", "ClampMax", "Maximum", "Minimum")
_FAMILIES = ("MaxPool", "AdaptiveMaxPool", "FractionalMaxPool", "ScaledDotProduct")


def unreached_nodes(output: Any) -> dict[str, int]:
    """Count the non-linear autograd nodes above ``output`` that no rule owns, and custom Functions.

    Args:
        output: Tensor with an autograd graph, or a container of them; anything else counts nothing.
    """
    counts: Counter[str] = Counter()
    seen: set[Any] = set()
    todo: list[Any] = [t.grad_fn for t in _tensors(output)]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo.extend(parent for parent, _ in node.next_functions)
        name = node.name().split("::")[-1]
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            if not name.startswith("Gated"):
                counts[name.removesuffix("Backward")] += 1
            continue
        plain = name.rstrip("0123456789").removesuffix("Backward")
        if plain in _MISSED or plain in _OTHER or plain.startswith(_FAMILIES):
            counts[plain] += 1
    return dict(counts)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


@dataclass(frozen=True)
class CoverageRow:
    """One layer.

    Attributes:
        name: Site, module path, or autograd node.
        function: What it computes.
        rule: Gate at the site; empty if there is none.
        reason: Why there is no rule; empty if there is one.
    """

    name: str
    function: str
    rule: str
    reason: str = ""


@dataclass(frozen=True)
class Coverage:
    """Table of the non-linear layers of a model.

    Attributes:
        rows: One per site, then one per layer without a rule.
    """

    rows: tuple[CoverageRow, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        sites: Mapping[str, Site],
        gates: Mapping[str, nn.Module],
        nodes: Mapping[str, int],
        why: Callable[[str], str],
    ) -> Coverage:
        """Compare the sites found with the modules of the model and the nodes of its autograd graph.

        Args:
            model: The model.
            sites: Sites by name.
            gates: Their gates.
            nodes: Number of autograd nodes by name that no rule has.
            why: Reason for each.
        """
        rows = [CoverageRow(s.name, s.function, type(gates[s.name]).__name__) for s in sites.values()]
        called = {name.split("#")[0] for name in sites}
        for path, module in model.named_modules():
            if isinstance(module, UNREACHED_TYPES):
                if (path or "model") in called or any(name.startswith(f"{path}.") for name in called):
                    continue  # what it computes has rules of its own
                reason = "random slope" if isinstance(module, nn.RReLU) else "not element-wise"
                rows.append(CoverageRow(path, type(module).__name__, "", f"{reason}: keeps its own gradient"))
            elif is_site(module) and (path or "model") not in called:
                kind = "max-pools are exact in this rule set" if isinstance(module, POOLING_TYPES) else "not called"
                rows.append(CoverageRow(path, type(module).__name__, "", kind))
        for node, count in nodes.items():
            rows.append(CoverageRow(f"{count} x {node}", node, "", why(node)))
        return cls(tuple(rows))

    @property
    def missed(self) -> tuple[CoverageRow, ...]:
        """Activations, for LRP functions of any kind, that were called but have no rule: out of reach of hooks."""
        return tuple(row for row in self.rows if row.reason.startswith("out of reach"))

    @property
    def complete(self) -> bool:
        """Whether every element-wise activation that was called has a rule; for LRP, every function."""
        return not self.missed

    def __str__(self) -> str:
        table = [("layer", "function", "rule"), *((r.name, r.function, r.rule or f"- ({r.reason})") for r in self.rows)]
        widths = [max(len(row[i]) for row in table) for i in range(3)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table)


def why_unreached(node: str) -> str:
    """Reason why an autograd node of `unreached_nodes` has no rule."""
    if node.startswith("MaxPool"):
        return "max-pools are exact in this rule set"
    if node.startswith(("Clamp", "M")) and node in _OTHER:
        return "a bound, not known as an activation: keeps its own gradient"
    if node in _OTHER or node.startswith(_FAMILIES):
        return "not element-wise: keeps its own gradient"
    if node in _MISSED:
        return "out of reach: called in a way that no rule sees (scripted or C++ code)"
    return "out of reach: a custom autograd Function keeps its own backward"


__all__ = ["Coverage", "CoverageRow", "unreached_nodes", "why_unreached"]
