"""The feature maps of a net, found by watching a forward pass: no names, no tracing, no module of a certain class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError

_ASPECT = 1.5
"""How much a feature map may be wider or narrower than the image; tokens or channels in the place of an axis are."""

_REPEATING = ("Pool", "Pad")
"""In the names of autograd nodes whose outputs repeat what they get."""

_TOKEN_OUTPUTS = 3
"""Outputs of modules over tokens that make a transformer; a head that pools by attention has fewer."""


@dataclass(frozen=True)
class FeatureMap:
    """An output of a module that everything passes through on its way to the output.

    Attributes:
        name: Path of the module in the model.
        call: Which of the module's calls it is, from 0; some nets use one activation again and again.
        size: Rows and columns.
        channels_last: Whether its shape is ``(B, rows, columns, K)``, as in Swin transformers.
    """

    name: str
    call: int
    size: tuple[int, int]
    channels_last: bool = False

    def gradient(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the feature map and the gradient of the targets' outputs in it, both ``(B, K, rows, columns)``.

        Args:
            model: The model it was found in; it comes back untouched.
            images: Images ``(B, C, H, W)``.
            targets: Explained outputs ``(B,)``.
        """
        kept: list[Tensor] = []
        calls = 0

        def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            nonlocal calls
            calls += 1
            if calls - 1 != self.call:
                return None
            kept.append(output.detach().clone().requires_grad_())
            return kept[0].clone()  # what follows may work in place

        handle = model.get_submodule(self.name).register_forward_hook(keep)
        try:
            with torch.enable_grad():
                output = model(images.detach()).gather(1, targets[:, None]).sum()
                gradient = torch.autograd.grad(output, kept[0])[0]
        finally:
            handle.remove()
        found = (kept[0].detach(), gradient)
        return (found[0].movedim(3, 1), found[1].movedim(3, 1)) if self.channels_last else found


def feature_maps(model: nn.Module, example: Tensor) -> tuple[FeatureMap, ...]:
    """Returns the last feature map of each resolution, from fine to coarse; a resolution is half the one before.

    A feature map is an output ``(1, K, h, w)`` or ``(1, h, w, K)`` of a module, more than one position large, that
    nothing gets past: branches and shortcuts have joined. Results of pools and padding are none: they repeat what is
    before them. What transformers make before they turn to tokens is none either.

    Args:
        model: The net, in evaluation mode; it comes back untouched.
        example: An image ``(1, C, H, W)``.

    Raises:
        LearnpropError: The net has no feature map.
    """
    image = example.detach()[:1].clone().requires_grad_()
    trace = _Trace()
    with torch.enable_grad(), _watched(model, trace):
        output = model(image)
    last: dict[int, FeatureMap] = {}
    latest = -1
    for index in reversed(range(len(trace.made))):
        found = _feature_map(trace.made[index], image)
        if found is None:
            continue
        halvings = round(0.5 * math.log2(image.shape[2] * image.shape[3] / (found.size[0] * found.size[1])))
        if halvings not in last and _everything_passes(trace.made[index], output, image):
            last[halvings] = found
            latest = max(latest, index)
    if not last or _are_blocks_of_tokens(trace.made[latest + 1 :]):
        raise LearnpropError(
            "the net has no feature map (B, K, rows, columns) behind which it makes its decision; of a transformer, "
            "use the methods over tokens"
        )
    return tuple(last[halvings] for halvings in sorted(last))


@dataclass(frozen=True)
class _Made:
    """An output of a module: whose, of which call, its shape, and the autograd node that made it."""

    name: str
    call: int
    shape: tuple[int, ...]
    node: Any


@dataclass
class _Trace:
    """The outputs of all modules in one forward pass, in order; a tensor that passes on through others counts once."""

    made: list[_Made] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    known: set[Any] = field(default_factory=set)

    def note(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        call = self.calls[name] = self.calls.get(name, -1) + 1
        if isinstance(output, Tensor) and output.grad_fn is not None and output.grad_fn not in self.known:
            self.known.add(output.grad_fn)
            self.made.append(_Made(name, call, tuple(output.shape), output.grad_fn))


@contextmanager
def _watched(model: nn.Module, trace: _Trace) -> Iterator[None]:
    inner = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(partial(trace.note, name)) for name, module in inner]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _feature_map(made: _Made, image: Tensor) -> FeatureMap | None:
    """Returns the output as a feature map if its shape is one."""
    if len(made.shape) != 4 or any(kind in made.node.name() for kind in _REPEATING):
        return None
    for size, channels_last in ((made.shape[2:], False), (made.shape[1:3], True)):
        if _is_like_the_image(size, image):
            return FeatureMap(made.name, made.call, (size[0], size[1]), channels_last)
    return None


def _is_like_the_image(size: Sequence[int], image: Tensor) -> bool:
    """Whether rows and columns are more than one position, and as wide as the image is."""
    rows, columns = size
    height, width = image.shape[2:]
    if rows * columns == 1 or rows > height or columns > width:
        return False
    # Few positions are rounded a lot: half a position either way is allowed.
    widest = (columns + 0.5) / (rows - 0.5) * height / width
    narrowest = (columns - 0.5) / (rows + 0.5) * height / width
    return widest > 1 / _ASPECT and narrowest < _ASPECT


def _everything_passes(made: _Made, output: Tensor, image: Tensor) -> bool:
    """Whether no path in the graph leads from the output to the image but through what was made."""
    todo, seen = [output.grad_fn], {made.node}
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is image:
            return False
        seen.add(node)
        todo.extend(parent for parent, _ in node.next_functions)
    return True


def _are_blocks_of_tokens(made: Sequence[_Made]) -> bool:
    """Whether modules go on over tokens ``(1, N, D)``, several of the same shape."""
    tokens = [one.shape for one in made if len(one.shape) == 3 and min(one.shape[1:]) > 1]
    return len(tokens) >= _TOKEN_OUTPUTS and len(set(tokens)) < len(tokens)
