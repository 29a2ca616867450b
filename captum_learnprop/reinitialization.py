"""A copy of a model with parameters drawn anew, layer by layer.

The layers and their order are those of Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim: *Sanity Checks for Saliency
Maps*, NeurIPS 2018: from the output to the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from captum_learnprop.errors import LearnpropError
from captum_learnprop.reparametrized import (
    assign,
    copied,
    is_part_of_parametrization,
    made_of_others,
    plain_copy,
    raw_names,
)


def layers_top_down(model: nn.Module, inputs: Tensor | None = None) -> list[str]:
    """Names of the layers, the modules that own parameters, from the output to the input.

    A batch norm is a layer of its own (for its statistics, if it has no parameters), and so is a module whose
    submodules own others (``nn.MultiheadAttention``); the model itself, if it owns some, is called ``""``. A module
    that is used in several places counts once, under its first name.

    Args:
        model: not changed.
        inputs: an example batch. With it the order is that in which modules return, the last call of each; one that is
            never called by itself returns with what holds it. Without it the order is that of registration, reversed,
            which is right for a model whose modules were made in the order of their use.
    """
    names = [
        name for name, module in model.named_modules() if _is_layer(module) and not is_part_of_parametrization(name)
    ]
    if inputs is None:
        return names[::-1]
    returned = _order_of_return(model, inputs)
    order = {name: index for index, name in enumerate(names)}
    return sorted(names, key=lambda name: (_time(name, returned), order[name]), reverse=True)


def randomized(
    model: nn.Module,
    layers: str | int | Sequence[str] | None = None,
    *,
    seed: int = 0,
    recalibrate: Tensor | None = None,
) -> nn.Module:
    """A copy of the model with some parameters drawn anew; the model and torch's global generator stay as they are.

    Each layer is set by its ``reset_parameters()``, from a stream that depends on the seed and on the layer's place
    among the modules alone: the same layer gets the same values whichever others are drawn. Parameters that this does
    not change, because there is no such method (class tokens, layer scales, ``nn.MultiheadAttention``), are permuted at
    random among their entries. A weight under weight norm, spectral norm or another parametrization, of either of
    torch's forms, is drawn as without it and set through the raw tensors. Batch norms forget their running statistics.
    A parameter that layers share is new for all of them.

    Args:
        model: any module that can be copied.
        layers: None or ``"all"``; ``"head"``, the first of `layers_top_down`; a number, so many of them; or names. A
            name of a module that owns parameters stands for these, another one for everything below it. For the order
            of execution give ``layers_top_down(model, inputs)[:number]``.
        seed: of the draws.
        recalibrate: images on which batch norms estimate their statistics anew, in one batch; without them, batch norms
            after random layers normalise by statistics of activations that no longer occur.

    Raises:
        LearnpropError: there is no such layer.
    """
    net = copied(model)
    modules = dict(net.named_modules())
    places = {name: place for place, name in enumerate(modules)}
    seeds = torch.randint(2**62, (len(modules),), generator=torch.Generator().manual_seed(seed)).tolist()
    for name in _selected(model, layers):
        _reset(modules[name], seeds[places[name]])
    if recalibrate is not None:
        _recalibrate(net, recalibrate)
    return net


def _is_layer(module: nn.Module) -> bool:
    """Does it own something that was learned: parameters, or the statistics of a batch norm without any?"""
    buffers = any(True for _ in module.buffers(recurse=False))
    learned = any(True for _ in module.parameters(recurse=False)) or bool(made_of_others(module))
    return learned or (buffers and hasattr(module, "reset_parameters"))


def _order_of_return(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """When each called module returned for the last time, by name."""
    net = copied(model).eval()
    returned: dict[str, int] = {}
    clock = count()

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            returned[name] = next(clock)

        return hook

    for name, module in net.named_modules():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        net(inputs)
    return returned


def _time(name: str, returned: dict[str, int]) -> int:
    while name not in returned:
        name = name.rpartition(".")[0]
    return returned[name]


def _selected(model: nn.Module, layers: str | int | Sequence[str] | None) -> list[str]:
    """Names of layers."""
    every = layers_top_down(model)
    if layers is None or layers == "all":
        return every
    if layers == "head":
        layers = 1
    if isinstance(layers, int):
        if not 0 <= layers <= len(every):
            raise LearnpropError(f"the model has {len(every)} layers, got layers={layers}")
        return every[:layers]
    wanted: list[str] = []
    for name in [layers] if isinstance(layers, str) else layers:
        found = [name] if name in every else [one for one in every if one.startswith(f"{name}." if name else "")]
        if not found:
            raise LearnpropError(f"no layer {name!r} with parameters; choose from {', '.join(map(repr, every))}")
        wanted += found
    return wanted


def _reset(module: nn.Module, seed: int) -> None:
    """Draw what a module owns anew, in place."""
    made, raw = made_of_others(module), raw_names(module)
    fresh = module
    if made or callable(getattr(module, "reset_parameters", None)):
        fresh = plain_copy(module).cpu()  # one generator for all devices, hence the same values on all
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if callable(getattr(fresh, "reset_parameters", None)):
                fresh.reset_parameters()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed)
    drawn = dict(fresh.named_parameters(recurse=False))
    kept = dict(fresh.named_buffers(recurse=False))
    with torch.no_grad():
        for name, value in module.named_parameters(recurse=False):
            if name not in raw:
                value.copy_(_new(drawn[name], value, generator))
        for name in made:
            current = getattr(module, name)
            assign(module, name, _new(drawn[name].detach(), current, generator).to(current), generator)
        for name, buffer in module.named_buffers(recurse=False):
            if name not in raw:
                buffer.copy_(kept[name])


def _new(drawn: Tensor, current: Tensor, generator: torch.Generator) -> Tensor:
    """What was drawn, or, if that is what there was before, its entries in another order."""
    if not torch.equal(drawn.to(current.device), current):
        return drawn
    order = torch.randperm(drawn.numel(), generator=generator).to(drawn.device)
    return drawn.flatten()[order].reshape(drawn.shape)


def _recalibrate(model: nn.Module, images: Tensor) -> None:
    """Running statistics of batch norms from one batch; everything else as in evaluation."""
    modes = {module: module.training for module in model.modules()}
    norms = [norm for norm in modes if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # None: the mean over calls, here one for most
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes.items():
        module.training = training
