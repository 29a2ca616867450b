"""Maps of neurons and layers: captum's ``Neuron*`` and ``Layer*`` classes replace a method's ``gradient_func``."""

from __future__ import annotations

from typing import Any

from captum.attr import GradientAttribution
from torch import Tensor

from zennit_rules.core.protocols import TrainableComposite

from ...errors import LearnpropError
from ...forward import shapes_told


def maps_of_neuron(
    method: GradientAttribution,
    composite: TrainableComposite,
    leaves: tuple[Tensor, ...],
    target: Any,
    additional: tuple[Any, ...],
    *,
    create_graph: bool,
) -> tuple[Tensor, ...]:
    """Maps by a composite that is on the model, of what the method's replaced ``gradient_func`` explains.

    Args:
        method: The method; has the model as ``forward_func``.
        composite: The composite.
        leaves: Inputs that require gradients, ``(B, ...)`` each.
        target: What the replaced function makes of it.
        additional: Further arguments of the model.
        create_graph: Whether the maps are to be differentiated.

    Returns:
        Signed maps in the shapes of the leaves, detached.

    Raises:
        LearnpropError: If the maps are to be differentiated, or the composite propagates relevance, which starts at
            the output.
    """
    if create_graph:
        raise LearnpropError("create_graph=True cannot pass through a replaced gradient_func")
    if composite.starts_with_output:
        raise LearnpropError(
            "gradient_func was replaced (by a Neuron* or Layer* class, say), but relevance starts at the output"
        )
    with shapes_told(method.forward_func, leaves):
        maps = method.gradient_func(method.forward_func, leaves, target, additional or None)
    return tuple(part.detach() for part in composite.finish(maps, leaves))
