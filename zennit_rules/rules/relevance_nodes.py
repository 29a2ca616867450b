"""Autograd nodes that keep relevance: which functions of a forward pass have a rule, and which need none.

Views, permutations, concatenations and max-pools pass relevance rightly by their own gradient; functions of this
package and of zennit have rules. Everything else between input and output is counted here, for the coverage.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from .._compat import function_of_node
from ..core.dependence import Inputs, after_pass, tensors_in
from .relevance import RelevanceFunction

# Autograd nodes whose own gradient moves relevance to where its value came from, or copies of it back together.
_MOVING = (
    "View", "UnsafeView", "ReshapeAlias", "Alias", "Permute", "Transpose", "T", "Squeeze", "Unsqueeze", "Expand",
    "Repeat", "RepeatInterleave", "Cat", "Stack", "Split", "SplitWithSizes", "SafeSplit", "Chunk", "Unbind", "Select",
    "Slice", "Narrow", "Index", "IndexSelect", "Gather", "Take", "TakeAlongDim", "MaskedSelect", "MaskedFill", "Where",
    "Clone", "Copy", "ToCopy", "Flip", "Roll", "Rot90", "AsStrided", "Unfold", "Im2Col", "Diagonal", "Tril", "Triu",
    "Embedding",
    "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "ReplicationPad1D", "ReplicationPad2D",
    "ReplicationPad3D", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "NativeChannelShuffle", "Movedim",
    "MaxPool2DWithIndices", "MaxPool3DWithIndices", "MkldnnMaxPool2D", "MkldnnMaxPool3D", "MaxPool1D", "MaxPool2D",
    "AdaptiveMaxPool1D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "FractionalMaxPool2D", "FractionalMaxPool3D", "Max",
    "Min", "Amax", "Amin", "Maximum", "Minimum", "Topk", "Sort", "Kthvalue", "Median",
)  # fmt: skip
RELEVANCE_KEEPING = frozenset(f"{name}Backward{k}" for name in _MOVING for k in range(3)) | {
    "AccumulateGrad", "CopyBackwards", "CopySlices",
}  # fmt: skip


def unkept_nodes(output: Any, inputs: Inputs = None) -> dict[str, int]:
    """Count the autograd nodes between input and output through which relevance would pass by the plain gradient.

    Nodes of this package and of zennit have rules, those in `RELEVANCE_KEEPING` need none, and what depends on
    parameters alone gets no relevance; all others are counted by name (``"ConvolutionBackward0"``).

    Args:
        output: Tensor with an autograd graph, or a container of them; anything else counts nothing.
        inputs: What relevance is for; None: whatever leaf is no parameter.
    """
    return dict(Counter(node_name(node) for node in nodes_without_rule(output, inputs)))


def nodes_without_rule(output: Any, inputs: Inputs = None) -> list[Any]:
    """The nodes that `unkept_nodes` counts."""
    return [node for node, parents in nodes_from_input(output, inputs) if not keeps_relevance(node, parents)]


def node_name(node: Any) -> str:
    """Name of an autograd node, without its namespace."""
    return str(node.name()).split("::")[-1]


def nodes_from_input(output: Any, inputs: Inputs = None) -> list[tuple[Any, list[bool]]]:
    """Returns the nodes on the way of relevance that depend on the input, and which of their edges do."""
    depends = after_pass(inputs)
    found: list[tuple[Any, list[bool]]] = []
    seen: set[Any] = set()
    todo: list[Any] = [tensor.grad_fn for tensor in tensors_in(output)]
    while todo:
        node = todo.pop()
        if node is None or node in seen or not depends.of_node(node):
            continue
        seen.add(node)
        if node not in depends.covered:
            parents = [parent is not None and depends.of_node(parent) for parent, _ in node.next_functions]
            found.append((node, parents))
        todo.extend(_receivers(node))
    return found


def _receivers(node: Any) -> list[Any]:
    """Nodes that get relevance of this one."""
    parents = [parent for parent, _ in node.next_functions]
    if function_of_node(node) is not RelevanceFunction:
        return parents
    return [parent for parent, takes in zip(parents, node.call.takes, strict=True) if takes]


def keeps_relevance(node: Any, parents: list[bool]) -> bool:
    """Whether relevance passes a node rightly: by a rule, or by the node's own gradient.

    Args:
        node: An autograd node.
        parents: Which of its edges depend on the input.
    """
    name = node_name(node)
    if name.startswith("AddBackward"):  # a constant beside the input takes nothing away
        return sum(parents) == 1 and (parents[0] or node._saved_alpha == 1)
    if name.startswith("SubBackward"):
        return sum(parents) == 1 and parents[0]
    function = function_of_node(node)
    if function is not None:
        return function.__module__.startswith(("zennit_rules.", "zennit."))
    return name in RELEVANCE_KEEPING


__all__ = [
    "RELEVANCE_KEEPING",
    "keeps_relevance",
    "node_name",
    "nodes_from_input",
    "nodes_without_rule",
    "unkept_nodes",
]
