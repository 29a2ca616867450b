"""How much of a net's work has a rule: multiply-adds of linear functions, read off the autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .._compat import function_of_node, shape_of_node
from ..core.coverage import LinearWork
from ..core.dependence import Inputs
from .linear import LinearCall
from .relevance import RelevanceCall
from .relevance_nodes import keeps_relevance, node_name, nodes_from_input


def linear_work(output: Any, inputs: Inputs = None) -> LinearWork:
    """Count the work of a forward pass.

    Args:
        output: What the model returned, with its graph.
        inputs: What is explained; None: whatever leaf is no parameter.
    """
    work = LinearWork()
    for node, parents in nodes_from_input(output, inputs):
        call = getattr(node, "call", None) if function_of_node(node) is not None else None
        if isinstance(call, LinearCall):
            work.sites[call.name] += multiply_adds(call.map.apply, call.size, call.weight.shape)
        elif isinstance(call, RelevanceCall) and call.is_product:
            work.products[call.name] += call.multiply_adds()
        elif not keeps_relevance(node, parents) and is_linear_node(node):
            work.missed[node_name(node)] += _of_node(node)
    return work


def multiply_adds(function: Callable[..., Any], *shapes: Iterable[int]) -> int:
    """Counts the multiply-adds of a function of tensors of these shapes, without computing it."""
    with FlopCounterMode(display=False) as counter:
        function(*(torch.empty(tuple(shape), device="meta") for shape in shapes))
    return int(counter.get_total_flops()) // 2


# Autograd nodes of linear functions; how many multiplications make one element of the value.
_PER_ELEMENT: dict[str, Callable[[Any], int]] = {
    "ConvolutionBackward0": lambda node: node._saved_weight[0].numel(),
    "AddmmBackward0": lambda node: node._saved_mat1_sym_sizes[-1],
    "MmBackward0": lambda node: node._saved_self_sym_sizes[-1],
    "BmmBackward0": lambda node: _shared(node._saved_self, node._saved_mat2),
    "BaddbmmBackward0": lambda node: _shared(node._saved_batch1, node._saved_batch2),
    "AddbmmBackward0": lambda node: _shared(node._saved_batch1, node._saved_batch2),
    "MvBackward0": lambda node: node._saved_vec.shape[0] if node._saved_vec is not None else node._saved_self.shape[1],
    "AddmvBackward0": lambda node: (node._saved_vec if node._saved_mat is None else node._saved_mat).shape[-1],
    "DotBackward0": lambda node: (node._saved_self if node._saved_tensor is None else node._saved_tensor).numel(),
    "LinearBackward0": lambda node: node._saved_weight.shape[-1],
}
_OTHERS = ("ScaledDotProduct", "MkldnnRnnLayer", "CudnnRnn", "MkldnnLinear", "MkldnnConvolution", "CudnnConvolution",
           "MiopenConvolution", "Trilinear", "EmbeddingBag")  # fmt: skip
"""Beginnings of the names of other nodes of linear functions, whose work nobody counts."""


def is_linear_node(node: Any) -> bool:
    """Whether an autograd node is that of a linear function."""
    name = node_name(node)
    return name in _PER_ELEMENT or name.startswith(_OTHERS)


def _shared(left: Tensor | None, right: Tensor | None) -> int:
    """Returns the length of the dimension that two batches of matrices are summed over; one may not have been saved."""
    if left is not None:
        return left.shape[2]
    return 0 if right is None else right.shape[1]


def _of_node(node: Any) -> int:
    per_element = _PER_ELEMENT.get(node_name(node))
    if per_element is None:
        return 0
    try:
        if getattr(node, "_saved_transposed", False):
            return int(node._saved_input.numel()) * per_element(node)
        return shape_of_node(node).numel() * per_element(node)
    except (AttributeError, RuntimeError):  # a release of torch that saves something else, or a graph that is freed
        return 0


__all__ = ["is_linear_node", "linear_work", "multiply_adds"]
