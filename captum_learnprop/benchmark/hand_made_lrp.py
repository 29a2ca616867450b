"""Layer-wise relevance propagation by zennit, as a hand-made method: its composites on the model itself.

`canonizers_for` lets zennit's composites see what the model computes, linear layers with a forward of their own and
functions included, and passes relevance through sums, means and normalisations. What it cannot reach raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from zennit.core import Hook
from zennit.rules import Flat, Gamma, ZBox, ZPlus
from zennit.types import AvgPool, Linear

from captum_learnprop.benchmark.explain import Explain, tried, wrong_maps_raise
from captum_learnprop.errors import LearnpropError
from zennit_rules.canonizers import canonizers_for
from zennit_rules.core.linear_map import ConvolutionMap, LinearOperands
from zennit_rules.core.linear_watch import linear_calls_watched
from zennit_rules.linear_canonizer import LINEAR_TYPES, STAND_INS, LinearCanonizer, stand_in_for

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
        called_again: Names of layers that are called more than once. Zennit's rules remember one call of a layer, so
            that each call has a stand-in of its own, and the layer has no rule.
    """

    convolutions: tuple[str, ...]
    low: Tensor
    high: Tensor
    canonizers: tuple[Any, ...]
    called_again: tuple[str, ...] = ()

    def composite(self, layer_map: list[Any], named: Sequence[tuple[tuple[str, ...], Any]] = ()) -> Any:
        """Returns zennit's composite with rules by type of layer, and those by name that come before them."""
        bare = [(self.called_again, Hook())] if self.called_again else []
        return NameLayerMapComposite(name_map=[*bare, *named], layer_map=layer_map, canonizers=list(self.canonizers))

    def at_first(self, rule: Any) -> list[tuple[tuple[str, ...], Any]]:
        """Returns a rule at the first convolution, as `composite` takes it."""
        return [((self.convolutions[0],), rule)]

    def box(self) -> list[tuple[tuple[str, ...], Any]]:
        """Returns the rule of a first layer whose inputs are images from black to white (Montavon et al., 2017)."""
        return self.at_first(ZBox(low=self.low, high=self.high))


def linear_layers(model: nn.Module, example: Tensor) -> LinearLayers:
    """Returns the linear layers of a model, found by watching forward passes.

    Args:
        model: The net, in evaluation mode, that takes images in [0, 1]; it comes back untouched.
        example: An image ``(1, C, H, W)``.

    Raises:
        LearnpropError: Relevance would pass some function of the net by the plain gradient, the first linear layer is
            no convolution, an average pool is called more than once, or the model is compiled or scripted.
    """
    example = example.detach()[:1]
    with wrong_maps_raise():
        canonizers = canonizers_for(model, example)
        calls, black = _linear_calls(model, torch.zeros_like(example))
        _, white = _linear_calls(model, torch.ones_like(example))
    counts = Counter(call.layer for call in calls if call.layer is not None)
    again = tuple(layer for layer, count in counts.items() if count > 1)
    stand_ins = {call.name: call.stand_in for call in calls if call.layer in again and call.stand_in is not None}
    if stand_ins:
        known = [one.calls for one in canonizers if isinstance(one, LinearCanonizer)]
        others = [one for one in canonizers if not isinstance(one, LinearCanonizer)]
        canonizers = [LinearCanonizer({**(known[0] if known else {}), **stand_ins}), *others]
    names = dict.fromkeys(call.found_as(again) for call in calls if call.is_convolution)
    return LinearLayers(
        tuple(names), torch.minimum(black, white), torch.maximum(black, white), tuple(canonizers), again
    )


@dataclass(frozen=True)
class _LinearCall:
    """A call of a linear function: its name, the layer that makes it if it is one, and what can stand in for it."""

    name: str
    layer: str | None
    is_convolution: bool
    stand_in: nn.Module | None

    def found_as(self, again: Sequence[str]) -> str:
        """Returns the name of the module whose rule the call gets: the layer's, or that of its stand-in."""
        if self.layer is not None and self.layer not in again:
            return self.layer
        return f"{STAND_INS}.{self.name.replace('.', '/')}"


def _linear_calls(model: nn.Module, image: Tensor) -> tuple[list[_LinearCall], Tensor]:
    """Returns the calls of linear functions in their order, and what the first of them gets."""
    calls: list[_LinearCall] = []
    first: list[Tensor] = []
    taken: dict[nn.Module, list[Tensor]] = {}

    def take(module: nn.Module, args: tuple[Any, ...]) -> None:
        taken.setdefault(module, []).append(args[0].detach())

    def look(name: str, module: nn.Module, operands: LinearOperands, call: Callable[[], Tensor]) -> Tensor:
        layer = name.partition("#")[0] if isinstance(module, LINEAR_TYPES) else None
        # A layer with a forward of its own may pad there; its rule gets what the layer gets.
        first.append(operands.x.detach() if layer is None else taken[module][-1])
        calls.append(_LinearCall(name, layer, isinstance(operands.map, ConvolutionMap), stand_in_for(operands)))
        return call()

    handles = [m.register_forward_pre_hook(take) for m in model.modules() if isinstance(m, (*LINEAR_TYPES, AvgPool))]
    try:
        with torch.enable_grad(), linear_calls_watched(model, look):
            model(image.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise LearnpropError(f"{type(model).__name__} calls no linear layer: there is nothing that LRP has a rule for")
    if not calls[0].is_convolution:
        raise LearnpropError(
            f"the first linear layer, {calls[0].name!r}, is no convolution: LRP has no rule for pixels"
        )
    if any(len(given) > 1 and isinstance(module, AvgPool) for module, given in taken.items()):
        raise LearnpropError("an average pool is called more than once, and zennit's rule remembers one call of it")
    return calls, first[0]


@contextmanager
def parameters_kept(model: nn.Module) -> Iterator[None]:
    """Gives every module the very parameters back that it had: rules of zennit 1.0.0 leave equal ones instead."""
    kept = [(module, dict(module.named_parameters(recurse=False))) for module in model.modules()]
    try:
        yield
    finally:
        for module, parameters in kept:
            now = dict(module.named_parameters(recurse=False))
            for name in now.keys() | parameters.keys():
                if now.get(name) is not parameters.get(name):
                    setattr(module, name, parameters.get(name))


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
            with parameters_kept(model), composite.context(model) as network, torch.enable_grad():
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
    return layers.composite(EpsilonPlus().layer_map, layers.at_first(Flat()))


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
