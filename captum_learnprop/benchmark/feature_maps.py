"""The feature maps of a net, found by watching a forward pass: no names, no tracing, no module of a certain class.

What is watched are calls of torch's functions, so that an activation, a sum or a concatenation counts whether a module
makes it or the net's own forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from captum_learnprop.errors import LearnpropError
from zennit_rules.core.linear_calls import is_linear_function

_ASPECT = 1.5
"""How much a feature map may be wider or narrower than the image; tokens or channels in the place of an axis are."""

_REPEATING = ("Pool", "Pad")
"""Parts of the names of autograd nodes whose outputs repeat what they get."""

_REORDERING = ("Permute", "Transpose")
"""The same of those whose outputs have what they get in another order."""

_TOKEN_LAYERS = (F.linear, F.layer_norm)
_MOST_TOKEN_LAYERS = 4
"""Layers over tokens after the last feature map; a head that pools by attention has no more, a transformer has."""


@dataclass(frozen=True)
class FeatureMap:
    """A value in the forward pass that everything passes through on its way to the output.

    Attributes:
        call: Which of the calls of torch's functions that give three or four axes makes it, from 0.
        function: Name of that function.
        size: Rows and columns.
        channels_last: Whether its shape is ``(B, rows, columns, K)``, as in Swin transformers.
        of_series: Whether its shape is ``(B, K, columns)``: the image is a series, of height 1.
    """

    call: int
    function: str
    size: tuple[int, int]
    channels_last: bool = False
    of_series: bool = False

    def gradient(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the feature map and the gradient of the targets' outputs in it, both ``(B, K, rows, columns)``.

        Args:
            model: The model it was found in; it comes back untouched.
            images: Images ``(B, C, H, W)``.
            targets: Explained outputs ``(B,)``.

        Raises:
            LearnpropError: The net takes another way than it took with the example.
        """
        kept: list[Tensor] = []

        def keep(call: int, func: Any, value: Tensor) -> Tensor:
            if call != self.call or func.__name__ != self.function:
                return value
            kept.append(value.detach().clone().requires_grad_())
            return kept[0].clone()  # what follows may work in place

        inputs = images.detach().clone().requires_grad_()  # as when it was found: some functions look at that
        with torch.enable_grad():
            with _Watch(keep):
                output = model(inputs)
            explained = output.gather(1, targets[:, None]).sum()
            gradient = torch.autograd.grad(explained, kept, allow_unused=True)[0] if kept else None
        if gradient is None:
            raise LearnpropError(
                f"the feature map of {self.size[0]} x {self.size[1]} positions is not where it was with the example: "
                "what the net calls depends on its input"
            )
        found = (kept[0].detach(), gradient)
        if self.of_series:
            return found[0].unsqueeze(2), found[1].unsqueeze(2)
        return (found[0].movedim(3, 1), found[1].movedim(3, 1)) if self.channels_last else found


def feature_maps(model: nn.Module, example: Tensor) -> tuple[FeatureMap, ...]:
    """Returns the last feature map of each resolution, from fine to coarse; a resolution is half the one before.

    A feature map has the shape ``(1, K, h, w)`` or ``(1, h, w, K)``, of an image of height 1 also ``(1, K, w)``, more
    than one position, comes after the first linear layer, and nothing gets past it: branches and shortcuts have joined.
    Results of pools and padding are none: they repeat what is before them. What transformers make before they turn to
    tokens is none either.

    Args:
        model: The net, in evaluation mode; it comes back untouched.
        example: An image ``(1, C, H, W)``.

    Raises:
        LearnpropError: The net has no feature map.
    """
    image = example.detach()[:1].clone().requires_grad_()
    with torch.enable_grad(), _Watch() as watch:
        output = model(image)
    last: dict[int, FeatureMap] = {}
    latest = -1
    first = next((index for index, made in enumerate(watch.made) if is_linear_function(made.func)), len(watch.made))
    for index in reversed(range(first, len(watch.made))):
        made = watch.made[index]
        found = _feature_map(made, image)
        if found is None:
            continue
        axes = sum(side > 1 for side in image.shape[2:])
        halvings = round(math.log2(image.shape[2] * image.shape[3] / (found.size[0] * found.size[1])) / axes)
        if halvings not in last and _everything_passes(made, output, image):
            last[halvings] = found
            latest = max(latest, index)
    if not last or _are_token_layers(watch.made[latest + 1 :]):
        raise LearnpropError(
            "the net has no feature map (B, K, rows, columns) behind which it makes its decision; of a transformer, "
            "use the methods over tokens"
        )
    return tuple(last[halvings] for halvings in sorted(last))


@dataclass(frozen=True)
class _Made:
    """What a function gave: which call of those with three or four axes it was, its shape, its autograd node."""

    call: int
    func: Any
    shape: tuple[int, ...]
    node: Any


class _Watch(TorchFunctionMode):
    """Notes what torch's functions give that depends on the image.

    Args:
        change: Is given each value with three or four axes, with the number of its call and the function, and returns
            what takes its place.
    """

    def __init__(self, change: Callable[[int, Any, Tensor], Tensor] = lambda call, func, value: value) -> None:
        super().__init__()
        self.made: list[_Made] = []
        self._calls = 0
        self._change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if not isinstance(value, Tensor) or value.grad_fn is None:
            return value
        self.made.append(_Made(self._calls, func, tuple(value.shape), value.grad_fn))
        if value.ndim not in (3, 4):
            return value
        self._calls += 1
        return self._change(self._calls - 1, func, value)


def _feature_map(made: _Made, image: Tensor) -> FeatureMap | None:
    """Returns what was made as a feature map if its shape is one."""
    if any(kind in made.node.name() for kind in _REPEATING):
        return None
    if len(made.shape) == 3:
        return _series_map(made, image)
    if len(made.shape) != 4:
        return None
    for size, channels_last in ((made.shape[2:], False), (made.shape[1:3], True)):
        if _is_like_the_image(size, image):
            return FeatureMap(made.call, made.func.__name__, (size[0], size[1]), channels_last)
    return None


def _series_map(made: _Made, image: Tensor) -> FeatureMap | None:
    """Returns what was made as a feature map ``(1, K, columns)`` of a series.

    Layers over the last axis have channels there, and what only puts axes into another order repeats.
    """
    columns = made.shape[2]
    if image.shape[2] > 1 or not _is_like_the_image((1, columns), image) or made.func in _TOKEN_LAYERS:
        return None
    if any(kind in made.node.name() for kind in _REORDERING):
        return None
    return FeatureMap(made.call, made.func.__name__, (1, columns), of_series=True)


def _is_like_the_image(size: Sequence[int], image: Tensor) -> bool:
    """Whether rows and columns are more than one position, and as wide as the image is."""
    rows, columns = size
    height, width = image.shape[2:]
    if rows * columns == 1 or rows > height or columns > width:
        return False
    if height == 1:
        return True
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


def _are_token_layers(made: Sequence[_Made]) -> bool:
    """Whether layers go on over tokens ``(1, N, D)``, more of them than a head has."""
    return sum(one.func in _TOKEN_LAYERS and len(one.shape) == 3 for one in made) > _MOST_TOKEN_LAYERS
