"""The feature maps of a net, found by watching a forward pass: no names, no tracing, no module of a certain class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError

_ASPECT = 1.5
"""How much a feature map may be wider or narrower than the image; tokens or channels in the place of an axis are."""


@dataclass(frozen=True)
class FeatureMap:
    """An output of a module that everything passes through on its way to the output.

    Attributes:
        name: Path of the module in the model.
        call: Which of the module's calls it is, from 0; some nets use one activation again and again.
        size: Rows and columns.
    """

    name: str
    call: int
    size: tuple[int, int]

    def gradient(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the feature map and the gradient of the targets' outputs in it, both ``(B, K, h, w)``.

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
        return kept[0].detach(), gradient


def feature_maps(model: nn.Module, example: Tensor) -> tuple[FeatureMap, ...]:
    """Returns the last feature map of each resolution, from fine to coarse.

    It is an output ``(1, K, h, w)`` of a module, more than one position large, that nothing gets past: branches and
    shortcuts have joined. Results of pools are none: they repeat what is before them. Where the net looks at tokens
    afterwards, as transformers do, what precedes them is none either.

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
    last: dict[tuple[int, int], FeatureMap] = {}
    for made in reversed(_before_tokens(trace.made)):
        rows, columns = made.output_shape[2:]
        if (rows, columns) not in last and _is_feature_map(made, image) and _everything_passes(made, output, image):
            last[rows, columns] = FeatureMap(made.name, made.call, (rows, columns))
    if not last:
        raise LearnpropError(
            f"{type(model).__name__} has no feature map (B, K, rows, columns) that all of the output comes from; "
            "of a transformer, use the methods for tokens"
        )
    return tuple(sorted(last.values(), key=lambda one: -one.size[0] * one.size[1]))


@dataclass(frozen=True)
class _Made:
    """An output of a module: whose, of which call, its shape, and the autograd node that made it."""

    name: str
    call: int
    output_shape: tuple[int, ...]
    node: Any


@dataclass
class _Trace:
    """The outputs of all modules in one forward pass, in order; a tensor that passes on through others counts once."""

    made: list[_Made] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    known: set[Any] = field(default_factory=set)

    def note(self, name: str, output: Any) -> None:
        call = self.calls[name] = self.calls.get(name, -1) + 1
        if isinstance(output, Tensor) and output.grad_fn is not None and output.grad_fn not in self.known:
            self.known.add(output.grad_fn)
            self.made.append(_Made(name, call, tuple(output.shape), output.grad_fn))


@contextmanager
def _watched(model: nn.Module, trace: _Trace) -> Iterator[None]:
    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                hook = lambda module, args, output, name=name: trace.note(name, output)  # noqa: E731
                handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before_tokens(made: Sequence[_Made]) -> list[_Made]:
    """Returns the outputs ``(1, K, h, w)`` of which the last is not followed by blocks that work on tokens.

    A head may have tokens of its own: what counts are modules that keep their number, as blocks of transformers do.
    """
    maps = [index for index, one in enumerate(made) if len(one.output_shape) == 4]
    after = made[maps[-1] + 1 :] if maps else []
    tokens = [one.output_shape for one in after if len(one.output_shape) == 3 and min(one.output_shape[1:]) > 1]
    return [] if len(tokens) > 2 and len(set(tokens)) < len(tokens) else [made[index] for index in maps]


def _is_feature_map(made: _Made, image: Tensor) -> bool:
    rows, columns = made.output_shape[2:]
    if rows * columns == 1 or rows > image.shape[2] or columns > image.shape[3] or "Pool" in made.node.name():
        return False
    # An axis of a few positions is rounded, so that half a position either way is allowed.
    wide = (columns + 0.5) * image.shape[2] / ((rows - 0.5) * image.shape[3])
    narrow = (columns - 0.5) * image.shape[2] / ((rows + 0.5) * image.shape[3])
    return wide > 1 / _ASPECT and narrow < _ASPECT


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
