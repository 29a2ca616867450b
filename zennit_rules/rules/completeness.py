"""Completeness: through which functions of a forward pass DeepLIFT's contributions add up, and which have no such rule.

Contributions add up through linear functions by their own gradient, and through the functions of this package by their
rules. All else in the autograd graph is named here, for the coverage and for warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .._compat import function_of_node
from ..core.dependence import Inputs
from .relevance_nodes import nodes_from_input

INCOMPLETE = "out of reach: contributions do not add up"
"""How reasons begin."""

# Autograd nodes of functions that are linear in all that depends on the input, taken together: their gradient is their
# chord. An index or a mask that depends on the input is not seen.
_LINEAR = frozenset((
    "AccumulateGrad", "Add", "Sub", "Rsub", "Neg", "Sum", "Nansum", "Mean", "Cumsum", "Trace", "Fill", "Zero",
    "View", "UnsafeView", "ReshapeAlias", "Alias", "Permute", "Transpose", "T", "Squeeze", "Unsqueeze", "Expand",
    "Repeat", "RepeatInterleave", "SelfRepeatInterleave", "Cat", "Stack", "Split", "SplitWithSizes", "SafeSplit",
    "Chunk", "Unbind", "Select", "SelectScatter", "Slice", "SliceScatter", "Narrow", "Index", "IndexSelect", "IndexAdd",
    "IndexCopy", "IndexFill", "IndexPut", "Scatter", "ScatterAdd", "Gather", "Take", "TakeAlongDim", "MaskedSelect",
    "MaskedScatter", "MaskedFill", "Where", "Clone", "Copy", "ToCopy", "CopySlices", "CopyBackwards", "Flip", "Roll",
    "Rot90", "AsStrided", "Unfold", "Im2Col", "Col2Im", "Diagonal", "DiagonalScatter", "DiagEmbed", "Tril", "Triu",
    "Movedim", "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "ReplicationPad1D",
    "ReplicationPad2D", "ReplicationPad3D", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "NativeChannelShuffle",
    "AvgPool1D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool1D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D",
    "MkldnnAdaptiveAvgPool2D", "Embedding", "EmbeddingBag", "NativeDropout", "FusedDropout", "FftC2C", "FftC2R",
    "FftR2C", "Complex", "ViewAsReal", "ViewAsComplex", "Real", "Imag", "Conj", "ResolveConj",
    "UpsampleLinear1D",
    "UpsampleBilinear2D", "UpsampleBilinear2DAa", "UpsampleBicubic2D", "UpsampleBicubic2DAa", "UpsampleTrilinear3D",
    "UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleNearestExact1D", "UpsampleNearestExact2D",
    "UpsampleNearestExact3D",
))  # fmt: skip
# Linear in each operand: complete if only one of them depends on the input.
_MULTILINEAR = frozenset((
    "Mul", "Mm", "Bmm", "Mv", "Dot", "Vdot", "Ger", "Addmm", "Addmv", "Addbmm", "Baddbmm", "Addr", "Addcmul", "Linear",
    "Matmul", "Convolution", "ConvolutionOverrideable", "MkldnnConvolution", "CudnnConvolution", "MiopenConvolution",
    "SlowConv3D", "ThnnConv2D", "ConvDepthwise2D", "ConvDepthwise3D", "SlowConvTranspose2D", "SlowConvTranspose3D",
    "Trilinear", "Kron", "LinalgCross", "LinalgVecdot", "MkldnnLinear", "GridSampler2D", "GridSampler3D", "Lerp",
))  # fmt: skip
_BATCH_NORMS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNormWithUpdate")


def incomplete_nodes(output: Any, inputs: Inputs = None) -> dict[str, int]:
    """Count the autograd nodes above ``output`` that depend on the input and have no complete rule, by name.

    Args:
        output: Tensor with an autograd graph, or a container of them; anything else counts nothing.
        inputs: What is explained; None: whatever leaf of the graph is no parameter.
    """
    counts: Counter[str] = Counter()
    for node, parents in nodes_from_input(output, inputs):
        if not _is_complete(node, parents):
            counts[_function_name(node)] += 1
    return dict(counts)


def _function_name(node: Any) -> str:
    """A node's function: ``"Exp"`` of ``"ExpBackward0"``."""
    name = str(node.name()).split("::")[-1]
    return name if name in _LINEAR else name.rstrip("0123456789").removesuffix("Backward")


def _is_complete(node: Any, parents: list[bool]) -> bool:
    function = function_of_node(node)
    if function is not None:
        return function.__module__.startswith(("zennit_rules.", "zennit."))
    name = _function_name(node)
    if name.startswith("GridSampler"):
        return not any(parents[1:])  # the grid, which says where to look
    if name in _MULTILINEAR:
        return sum(parents) == 1
    if name == "Div":
        return not any(parents[1:]) and getattr(node, "_saved_rounding_mode", None) is None
    if name in _BATCH_NORMS:
        return not getattr(node, "_saved_training", True)
    return name in _LINEAR


def why_incomplete(node: str) -> str:
    """Returns the reason why an autograd node of `incomplete_nodes` is one."""
    if node in _MULTILINEAR or node == "Div":
        return f"{INCOMPLETE}: a product that no rule sees (scripted or C++ code, or inside another function)"
    if node in _BATCH_NORMS:
        return f"{INCOMPLETE}: a batch norm in training mode mixes samples; call model.eval()"
    return f"{INCOMPLETE}: no complete rule is known, it keeps its own gradient"


def incompleteness(model: str, nodes: Mapping[str, int]) -> str:
    """What to tell about a model with such nodes."""
    counted = ", ".join(f"{count} x {name}" for name, count in nodes.items())
    return (
        f"DeepLIFT has no complete rule for these functions of {model}: {counted}. Their own gradient takes its place, "
        "so contributions do not add up to the change of the output: LearnedDeepLift.attribute(..., "
        "return_convergence_delta=True) tells by how much, normalize=True makes up for it"
    )


__all__ = ["INCOMPLETE", "incomplete_nodes", "incompleteness", "why_incomplete"]
