"""The anatomy of a vision transformer: its attention, its prefix tokens and its patches, seen in a forward pass.

No class names are known here: an attention module is one that calls one of torch's attention functions, or a softmax
over four dimensions, on tokens ``(B, N, D)``; the patches are what the last convolution before the first of them gave.
Works for the models of torchvision, timm, DINOv2 and Hugging Face, and others that are built alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zennit_rules.core.interpose import interposed
from zennit_rules.rules.written_attention import ATTENTION, SOFTMAX

from ...errors import LearnpropError
from ...forward import shapes_told, tensor_of, with_batch

MOST_PREFIX = 16
"""More tokens than this before the patches are not guessed."""


@dataclass(frozen=True)
class Anatomy:
    """What a forward pass shows.

    Attributes:
        attentions: Modules that attend and lead to the output, in the order of their calls.
        blocks: The entry of a list of modules that each belongs to.
        sources: A module that was finished just before each, whose output its input is or comes from; None if there is
            none.
        block_sources: The same for the input of each block.
        prefix: Number of tokens before the patches: class, distillation, registers.
        grid: Rows and columns of patches.
    """

    attentions: tuple[nn.Module, ...]
    blocks: tuple[nn.Module, ...]
    sources: tuple[nn.Module | None, ...]
    block_sources: tuple[nn.Module | None, ...]
    prefix: int
    grid: tuple[int, int]

    def place(self, layer: nn.Module | None) -> int:
        """Index of the attention that is, or is in, a layer; of the last one for None.

        Raises:
            LearnpropError: If there is none or are several.
        """
        if layer is None:
            return len(self.attentions) - 1
        inside = set(layer.modules())
        found = [i for i, attention in enumerate(self.attentions) if attention in inside]
        if len(found) != 1:
            raise LearnpropError(
                f"layer {type(layer).__name__} contains {len(found)} attention modules that the model calls; pass a "
                "block or an attention module, or leave layer out for the last one"
            )
        return found[0]

    def patches(self, tokens: Tensor) -> Tensor:
        """The patches' part of ``(B, N)``, as ``(B, 1, rows, columns)``."""
        return tokens[:, self.prefix :].reshape(len(tokens), 1, *self.grid)


def tokens_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tokens ``(B, N, D)`` among the arguments of a call: the longest sequence, not the query of a pool."""
    found = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim() == 3 and x.is_floating_point()]
    return max(found, key=lambda x: x.shape[1], default=None)


def with_tokens(old: Tensor, new: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Arguments of a call with other tokens wherever the old ones were."""
    return (
        tuple(new if value is old else value for value in args),
        {name: new if value is old else value for name, value in kwargs.items()},
    )


@dataclass
class _RunningCall:
    """A call that has not returned yet: its module, the tokens that it got, and the module that these come from."""

    module: nn.Module
    given: Tensor | None
    source: nn.Module | None


@dataclass
class _AttentionCall:
    """A call of an attention, with the block around it, where the tokens of both come from, and what it gave."""

    attention: nn.Module
    tokens: Tensor
    source: nn.Module | None
    block: nn.Module
    block_source: nn.Module | None
    attended: Tensor | None = None


@dataclass
class _CallTrace:
    """The calls of modules in one forward pass.

    Attributes:
        entries: Identities of the modules that are entries of lists, among which blocks are.
        stack: Calls that have not returned yet, outermost first.
        made: The module that gave a tensor, by the tensor's identity.
        kept: Those tensors, so that their identities stay theirs.
        last: The module that returned last.
        maps: Rows and columns of what convolutions gave before the first attention.
        seen: Calls of attentions.
    """

    entries: set[int]
    stack: list[_RunningCall] = field(default_factory=list)
    made: dict[int, nn.Module] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    last: nn.Module | None = None
    maps: list[tuple[int, int]] = field(default_factory=list)
    seen: list[_AttentionCall] = field(default_factory=list)

    def around(self, module: nn.Module) -> Callable[..., Any]:
        """A wrapper of the module's calls, for `interposed`, that notes them."""

        def run(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            given = tokens_of(args, kwargs)
            self.stack.append(_RunningCall(module, given, self.made.get(id(given), self.last)))
            try:
                result = call_next(*args, **kwargs)
            finally:
                self.stack.pop()
            for one in self.seen:
                if one.attention is module and one.attended is None:
                    one.attended = result[0] if isinstance(result, (tuple, list)) else result
            if isinstance(result, Tensor):
                self.made[id(result)] = module
                self.kept.append(result)
                if isinstance(module, nn.Conv2d) and not self.seen:
                    self.maps.append((result.shape[-2], result.shape[-1]))
            self.last = module
            return result

        return run

    def note_attention(self) -> None:
        """Note that attention is computed now: it belongs to the innermost running call that has parameters."""
        frames = [frame for frame in self.stack if any(True for _ in frame.module.parameters())]
        if not frames:
            return
        inner = frames[-1]
        if inner.given is None or any(one.attention is inner.module for one in self.seen):
            return
        around = [frame for frame in frames[:-1] if id(frame.module) in self.entries and frame.given is not None]
        block = around[-1] if around else inner
        self.seen.append(_AttentionCall(inner.module, inner.given, inner.source, block.module, block.source))


class _AttentionDetector(TorchFunctionMode):
    """Tells a trace when one of torch's functions attends."""

    def __init__(self, trace: _CallTrace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if func in ATTENTION or (func in SOFTMAX and value.dim() == 4):
            self.trace.note_attention()
        return value


def anatomy_of(
    model: nn.Module,
    inputs: tuple[Any, ...],
    num_prefix_tokens: int | None = None,
    grid_size: tuple[int, int] | None = None,
) -> Anatomy:
    """Watch one forward pass.

    Args:
        model: A vision transformer.
        inputs: What its forward takes; one sample is enough.
        num_prefix_tokens: Number of tokens before the patches, if not to be found.
        grid_size: Rows and columns of patches, if not to be found.

    Raises:
        LearnpropError: If no attention over tokens ``(B, N, D)`` is called, or prefix and grid cannot be told or do not
            make up the tokens.
    """
    entries = {
        id(child)
        for module in model.modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        for child in module.children()
    }
    trace = _CallTrace(entries)
    images = inputs[0].detach().clone().requires_grad_()
    with torch.enable_grad(), interposed(list(model.modules()), trace.around), _AttentionDetector(trace):
        output = TensorOutput(model)(images, *inputs[1:])
    seen = [one for one in trace.seen if len(one.tokens) == len(images) and _depends_on(output, one.attended)]
    if not seen:
        raise LearnpropError(
            f"{type(model).__name__} calls no attention over tokens (B, N, D): it is no plain vision transformer "
            "(windows and grouped attention, as in Swin, have no one map over the image)"
        )
    tokens = seen[-1].tokens.shape[1]
    prefix, grid = _layout(tokens, trace.maps, num_prefix_tokens, grid_size)
    return Anatomy(
        tuple(one.attention for one in seen),
        tuple(one.block for one in seen),
        tuple(one.source for one in seen),
        tuple(one.block_source for one in seen),
        prefix,
        grid,
    )


def _depends_on(output: Tensor, attended: Any) -> bool:
    """Whether the output depends on what an attention gave: some models have heads that they do not use."""
    if not isinstance(attended, Tensor) or attended.grad_fn is None or output.grad_fn is None:
        return True
    seen: set[Any] = set()
    todo: list[Any] = [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is attended.grad_fn:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(parent for parent, _ in node.next_functions)
    return False


def _layout(
    tokens: int, maps: list[tuple[int, int]], prefix: int | None, grid: tuple[int, int] | None
) -> tuple[int, tuple[int, int]]:
    if grid is None:
        most = MOST_PREFIX if prefix is None else prefix
        fitting = [(rows, columns) for rows, columns in maps if 0 <= tokens - rows * columns <= most]
        if not fitting:
            raise LearnpropError(
                f"no convolution of the model gives patches for its {tokens} tokens; pass grid_size=(rows, columns)"
            )
        grid = fitting[-1]
    rows, columns = grid
    prefix = tokens - rows * columns if prefix is None else prefix
    if prefix < 0 or prefix + rows * columns != tokens:
        raise LearnpropError(
            f"{prefix} prefix tokens and a grid of {rows} x {columns} make {prefix + rows * columns} tokens, but the "
            f"last attention gets {tokens}; check num_prefix_tokens and grid_size"
        )
    return prefix, (rows, columns)


class TensorOutput(nn.Module):
    """A model whose output is a tensor: the ``logits`` of a structured output, or its embedding.

    Args:
        model: A model that returns a tensor, or an object with ``logits``, ``image_embeds``, ``pooler_output`` or
            ``last_hidden_state (B, N, D)``, whose first token is taken.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, *inputs: Any) -> Tensor:
        """Output for the inputs of the model."""
        with shapes_told(self.model, inputs[:1]):
            output = self.model(*inputs)
        for name in ("logits", "image_embeds", "pooler_output"):
            if isinstance(getattr(output, name, None), Tensor):
                return getattr(output, name)
        if isinstance(getattr(output, "last_hidden_state", None), Tensor):
            hidden: Tensor = output.last_hidden_state
            return hidden[:, 0]
        return with_batch(tensor_of(output, self.model), len(inputs[0]))
