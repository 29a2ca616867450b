"""Coverage: which layers of a model have a rule, and why the others have none."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import function_of_node
from ..errors import RuleError, RuleWarning
from .notebook import html_table
from .site_functions import POOLING_TYPES, UNREACHED_TYPES, is_site
from .sites import Site

# Autograd nodes of functions that would have been sites, had a rule reached them.
_ACTIVATION_NODES = (
    "Relu", "Elu", "Gelu", "Silu", "Mish", "Hardswish", "Hardsigmoid", "Hardtanh", "Softplus", "Tanh", "Sigmoid",
    "Selu", "Celu", "Prelu", "PreluKernel", "RreluWithNoise", "Softshrink", "Hardshrink", "LeakyRelu", "LogSigmoid",
    "Threshold", "DifferentiableGraph",
)  # fmt: skip
# Non-linear, but no element-wise activation.
_OTHER_NODES = ("Softmax", "LogSoftmax", "Glu", "Clamp", "ClampMin", "ClampMax", "Maximum", "Minimum")
_OUT_OF_REACH = "out of reach"
_OTHER_NODE_PREFIXES = ("MaxPool", "AdaptiveMaxPool", "FractionalMaxPool", "ScaledDotProduct")


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
            function = function_of_node(node)
            if function is None or not function.__module__.startswith("zennit_rules."):
                counts[name.removesuffix("Backward")] += 1
            continue
        plain = name.rstrip("0123456789").removesuffix("Backward")
        if plain in _ACTIVATION_NODES or plain in _OTHER_NODES or plain.startswith(_OTHER_NODE_PREFIXES):
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


@dataclass
class LinearWork:
    """The multiply-adds of the linear functions on the way from the input to an output.

    Attributes:
        sites: By name of the site.
        products: Those of products of two signals, which have a fixed rule, by function.
        missed: Those without a rule, by name of the autograd node.
    """

    sites: Counter[str] = field(default_factory=Counter)
    products: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        """The share of the multiply-adds that have a rule; 1 if there are none."""
        with_rule = self.sites.total() + self.products.total()
        total = with_rule + self.missed.total()
        return with_rule / total if total else 1.0


@dataclass(frozen=True)
class CoverageRow:
    """One layer.

    Attributes:
        name: Site, module path, or autograd node.
        function: What it computes.
        rule: Gate at the site; empty if there is none.
        reason: Why there is no rule; empty if there is one.
        multiply_adds: Work of a linear function in the pass that the rules were built by; 0 for anything else, and in
            composites where linear functions need no rule.
        is_linear: Whether it is a linear function that needs a rule.
    """

    name: str
    function: str
    rule: str
    reason: str = ""
    multiply_adds: int = 0
    is_linear: bool = False


@dataclass(frozen=True, repr=False)
class Coverage:
    """A table of the layers of a model that need a rule.

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
        work: LinearWork | None = None,
    ) -> Coverage:
        """Compare the sites found with the modules of the model and the nodes of its autograd graph.

        Args:
            model: The model.
            sites: Sites by name.
            gates: Their gates.
            nodes: Number of autograd nodes by name that no rule has.
            why: Reason for each.
            work: What linear functions have to do, where they need a rule.
        """
        work = work or LinearWork()
        rows = [
            CoverageRow(
                s.name, s.function, type(gates[s.name]).__name__, "", work.sites[s.name], s.kind in ("linear", "first")
            )
            for s in sites.values()
        ]
        rows += [
            CoverageRow(f"products by {name}", name, "shared", "", count, True) for name, count in work.products.items()
        ]
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
            rows.append(CoverageRow(f"{count} x {node}", node, "", why(node), work.missed[node], node in work.missed))
        return cls(tuple(rows))

    @property
    def missed(self) -> tuple[CoverageRow, ...]:
        """The activations, for LRP functions of any kind, that were called but have no rule: out of reach of hooks."""
        return tuple(row for row in self.rows if row.reason.startswith(_OUT_OF_REACH))

    @property
    def complete(self) -> bool:
        """Whether every element-wise activation that was called has a rule; for LRP, every function."""
        return not self.missed

    @property
    def share(self) -> float:
        """The share of the multiply-adds of linear functions, from input to output, that have a rule, in [0, 1].

        1 where linear functions need none, and where there are none.
        """
        total = sum(row.multiply_adds for row in self.rows)
        return 1.0 if total == 0 else 1.0 - sum(row.multiply_adds for row in self.missed) / total

    def __repr__(self) -> str:
        with_rule = sum(bool(row.rule) for row in self.rows)
        return f"Coverage({with_rule} of {len(self.rows)} layers with a rule, {self.share:.1%} of the multiply-adds)"

    def _repr_html_(self) -> str:
        """Shows the table in a notebook: layers, their rules, and their share of the multiply-adds."""
        total = sum(row.multiply_adds for row in self.rows)
        header = ["layer", "function", "rule", *(["share of work"] if total else [])]
        rows = [
            [r.name, r.function, r.rule or f"- ({r.reason})", *([f"{r.multiply_adds / total:.1%}"] if total else [])]
            for r in self.rows
        ]
        return html_table(repr(self), header, rows)

    def __str__(self) -> str:
        table = [("layer", "function", "rule"), *((r.name, r.function, r.rule or f"- ({r.reason})") for r in self.rows)]
        widths = [max(len(row[i]) for row in table) for i in range(3)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        if any(row.multiply_adds for row in self.rows):
            lines.append(f"{self.share:.1%} of the multiply-adds have a rule")
        return "\n".join(lines)


def check_reach(
    model: nn.Module, composite: str, nodes: Mapping[str, int], work: LinearWork, why: Callable[[str], str]
) -> None:
    """Say, in proportion, where the maps of a composite are wrong for want of a rule.

    Args:
        model: The model.
        composite: Name of the composite.
        nodes: Number of autograd nodes by name that no rule has.
        work: What linear functions have to do.
        why: Reason why a node has no rule.

    Warns:
        RuleWarning: If some functions have no rule: which, and their share of the multiply-adds.

    Raises:
        RuleError: If linear functions were called and none of them has a rule.
    """
    reasons = {node: why(node) for node in nodes}
    missed = [node for node, reason in reasons.items() if reason.startswith(_OUT_OF_REACH)]
    if not missed:
        return
    named = "; ".join(f"{nodes[node]} x {node} ({reasons[node]})" for node in missed[:4])
    named += "; ..." if len(missed) > 4 else ""
    if work.missed and not work.sites and not work.products:
        raise RuleError(
            f"{composite!r} reaches no linear layer of {type(model).__name__}, so its maps would be wrong: {named}. "
            "Rules see functions of torch that the model calls from Python: take torch.jit and custom autograd "
            "Functions out of its forward pass, or use a composite of gradients ('learned_gradient')"
        )
    warnings.warn(
        f"{len(missed)} kinds of functions of {type(model).__name__} have no rule of {composite!r}, "
        f"{1 - work.share:.1%} of the multiply-adds: {named}. Attributions are wrong there",
        RuleWarning,
        stacklevel=4,
    )


def why_unreached(node: str) -> str:
    """Returns the reason why an autograd node of `unreached_nodes` has no rule."""
    if node.startswith("MaxPool"):
        return "max-pools are exact in this rule set"
    if node.startswith(("Clamp", "M")) and node in _OTHER_NODES:
        return "a bound, not known as an activation: keeps its own gradient"
    if node in _OTHER_NODES or node.startswith(_OTHER_NODE_PREFIXES):
        return "not element-wise: keeps its own gradient"
    if node in _ACTIVATION_NODES:
        return "out of reach: called in a way that no rule sees (scripted or C++ code)"
    return "out of reach: a custom autograd Function keeps its own backward"


__all__ = ["Coverage", "CoverageRow", "LinearWork", "check_reach", "unreached_nodes", "why_unreached"]
