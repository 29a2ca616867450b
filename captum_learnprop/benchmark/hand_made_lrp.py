"""Layer-wise relevance propagation by zennit, as a hand-made method: its composites on the model itself.

`canonizers_for` lets zennit's composites see what the model computes, linear layers with a forward of their own and
functions included, and passes relevance through sums, means and normalisations. What it cannot reach raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    ExcitationBackprop,
    NameLayerMapComposite,
    layer_map_base,
)
from zennit.rules import Flat, Gamma, ZBox, ZPlus
from zennit.types import Linear

from captum_learnprop.benchmark.explain import Explain, tried, wrong_maps_raise
from captum_learnprop.errors import LearnpropError
from zennit_rules.canonizers import canonizers_for
from zennit_rules.core.linear_map import ConvolutionMap, LinearOperands
from zennit_rules.core.linear_watch import linear_calls_watched
from zennit_rules.linear_canonizer import LINEAR_TYPES, STAND_INS

GAMMA = 0.25
"""Gamma of the rule of that name, at all layers: what zennit's composites have."""


@dataclass(frozen=True)
class LinearLayers:
    """The linear layers of a net as zennit's composites see them, once its canonizers are in place.

    Attributes:
        convolutions: Names of the convolutions, in the order of their calls.
        low: Lowest input of the first of them, in its shape with one row: the lower of what black and white images are.
        high: Highest input of the first of them, the higher of the two.
        canonizers: What makes composites see them, see `canonizers_for`.
    """

    convolutions: tuple[str, ...]
    low: Tensor
    high: Tensor
    canonizers: tuple[Any, ...]

    @property
    def first(self) -> str:
        """Name of the first convolution."""
        return self.convolutions[0]

    def composite(self, layers: list[Any], first: Any = None) -> Any:
        """Returns zennit's composite with rules by type, and another one at the first convolution if it is given."""
        named = [] if first is None else [((self.first,), first)]
        return NameLayerMapComposite(name_map=named, layer_map=layers, canonizers=list(self.canonizers))

    def box(self) -> Any:
        """Returns the rule of a first layer whose inputs are images between black and white (Montavon et al., 2017)."""
        return ZBox(low=self.low, high=self.high)


def linear_layers(model: nn.Module, example: Tensor) -> LinearLayers:
    """Returns the linear layers of a model, found by watching forward passes.

    Args:
        model: The net, in evaluation mode, that takes images in [0, 1]; it comes back untouched.
        example: An image ``(1, C, H, W)``.

    Raises:
        LearnpropError: Relevance would pass some function of the net by the plain gradient, the first linear layer is
            no convolution, or the model is compiled or scripted.
    """
    example = example.detach()[:1]
    with wrong_maps_raise():
        canonizers = canonizers_for(model, example)
        convolutions, black = _convolutions(model, torch.zeros_like(example))
        _, white = _convolutions(model, torch.ones_like(example))
    return LinearLayers(convolutions, torch.minimum(black, white), torch.maximum(black, white), tuple(canonizers))


def _convolutions(model: nn.Module, image: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """Returns the names of the convolutions in the order of their calls, and what the first of them gets."""
    names: dict[str, None] = {}
    inputs: list[Tensor] = []
    taken: dict[nn.Module, Tensor] = {}

    def take(module: nn.Module, args: tuple[Any, ...]) -> None:
        taken[module] = args[0]

    def look(name: str, module: nn.Module, operands: LinearOperands, call: Callable[[], Tensor]) -> Tensor:
        is_layer, is_convolution = isinstance(module, LINEAR_TYPES), isinstance(operands.map, ConvolutionMap)
        if not inputs and not is_convolution:
            raise LearnpropError(f"the first linear layer, {name!r}, is no convolution: LRP has no rule for its inputs")
        if not inputs:  # a layer with a forward of its own may pad there; its rule gets what the layer gets
            inputs.append((taken[module] if is_layer else operands.x).detach())
        if is_convolution:  # a layer goes by its path, a function by the stand-in that its canonizer puts in place
            names[name.partition("#")[0] if is_layer else f"{STAND_INS}.{name.replace('.', '/')}"] = None
        return call()

    handles = [m.register_forward_pre_hook(take) for m in model.modules() if isinstance(m, LINEAR_TYPES)]
    try:
        with torch.enable_grad(), linear_calls_watched(model, look):
            model(image.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not inputs:
        raise LearnpropError(f"{type(model).__name__} calls no linear layer: there is nothing that LRP has a rule for")
    return tuple(names), inputs[0]


@dataclass(frozen=True)
class Lrp:
    """Layer-wise relevance propagation by a zennit composite.

    Attributes:
        make: Makes the composite for the linear layers of a model.
        seed: What the target's output starts with. The epsilon rule at the last layer gives unit i the share
            ``a_i w_i / z``, which flips its sign with the output ``z``: there the seed is ``"output"`` (``z``
            itself), and relevance is the contribution ``a_i w_i``. The z+ rule's shares are positive: ``"one"``.
    """

    make: Callable[[LinearLayers], Any]
    seed: str = "output"

    def __call__(self, model: nn.Module, example: Tensor) -> Explain:
        """Returns the method for a model, whose relevance is signed ``(B, C, H, W)``.

        Raises:
            LearnpropError: Some function of the net has no rule, with its name.
        """
        return tried(self.on(model, linear_layers(model, example)), example)

    def on(self, model: nn.Module, layers: LinearLayers) -> Explain:
        """Returns the method for a model whose linear layers are known; relevance is signed ``(B, C, H, W)``."""
        composite = self.make(layers)

        def attribute(images: Tensor, targets: Tensor) -> Tensor:
            leaf = images.detach().clone().requires_grad_()
            with composite.context(model) as network, torch.enable_grad():
                output = network(leaf)
                start = torch.zeros_like(output)
                value = output.detach() if self.seed == "output" else torch.ones_like(output)
                start.scatter_(1, targets[:, None], value.gather(1, targets[:, None]))
                relevance: Tensor = torch.autograd.grad(output, leaf, start)[0]
            return relevance

        return attribute


def epsilon_plus(layers: LinearLayers) -> Any:
    """Returns zennit's composite: z+ at convolutions, epsilon at dense layers."""
    return layers.composite(EpsilonPlus().layer_map)


def epsilon_plus_box(layers: LinearLayers) -> Any:
    """Returns `epsilon_plus` with the box rule at the first convolution."""
    return layers.composite(EpsilonPlus().layer_map, layers.box())


def epsilon_plus_flat(layers: LinearLayers) -> Any:
    """Returns `epsilon_plus` with the flat rule at the first convolution."""
    return layers.composite(EpsilonPlus().layer_map, Flat())


def epsilon_gamma_box(layers: LinearLayers) -> Any:
    """Returns zennit's composite: gamma at convolutions, epsilon at dense layers, the box rule at the first."""
    return layers.composite(EpsilonGammaBox(low=layers.low, high=layers.high).layer_map, layers.box())


def epsilon_alpha_beta(layers: LinearLayers) -> Any:
    """Returns zennit's composite: alpha 2, beta 1 at convolutions, epsilon at dense layers."""
    return layers.composite(EpsilonAlpha2Beta1().layer_map)


def excitation_backprop(layers: LinearLayers) -> Any:
    """Returns zennit's composite: z+ everywhere (Zhang et al., ECCV 2016)."""
    return layers.composite(ExcitationBackprop().layer_map)


def z_plus_box(layers: LinearLayers) -> Any:
    """Returns z+ at all layers with weights, and the box rule at the first convolution."""
    return layers.composite([*layer_map_base(), (Linear, ZPlus())], layers.box())


def gamma(layers: LinearLayers) -> Any:
    """Returns gamma at all layers with weights, convolutions and dense layers, the first included."""
    return layers.composite([*layer_map_base(), (Linear, Gamma(GAMMA))])
