"""What maps over the tokens of a vision transformer share: finding the tokens, and the form of the result."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution
from torch import Tensor, nn

from zennit_rules.core.buffers import buffers_kept

from ...errors import LearnpropError
from ...targets import select_target
from ..checked_inputs import checked_inputs
from ..shown import ShownAsCall
from .layout import Anatomy, TensorOutput, anatomy_of

OUTPUTS = ("patches", "input")
MODES = ("nearest", "bilinear")


class PatchReadingWarning(UserWarning):
    """The head reads patch tokens directly, so that a map at the last attention misses a part of their way."""


@dataclass(frozen=True)
class ResultForm:
    """The form of the result that is asked for.

    Attributes:
        output: ``"patches"``, ``(B, 1, rows, columns)``, or ``"input"``, brought to the size of the images.
        mode: How it is brought there: ``"nearest"`` or ``"bilinear"``.
        prefix_scores: Whether the scores of the prefix tokens ``(B, prefix)`` are returned as well.

    Raises:
        LearnpropError: For an unknown ``output`` or ``mode``.
    """

    output: str
    mode: str
    prefix_scores: bool

    def __post_init__(self) -> None:
        for name, value, known in (("output", self.output, OUTPUTS), ("mode", self.mode, MODES)):
            if value not in known:
                raise LearnpropError(f"unknown {name} {value!r}; choose {' or '.join(map(repr, known))}")

    def of(self, tokens: Tensor, images: Tensor, anatomy: Anatomy) -> Any:
        """The result from scores of tokens ``(B, N)``."""
        patches = anatomy.patches(tokens)
        if self.output == "input":
            options = {} if self.mode == "nearest" else {"align_corners": False}
            patches = F.interpolate(patches, size=images.shape[-2:], mode=self.mode, **options)
        return (patches, tokens[:, : anatomy.prefix]) if self.prefix_scores else patches


class TokenAttribution(ShownAsCall, LayerAttribution):
    """Base of attributions to the tokens of a vision transformer.

    Args:
        model: torchvision's, timm's, DINOv2's or Hugging Face's ViT, DeiT, DINOv2, or alike. Returned untouched.
        layer: A block, or an attention module; the last one by default.
        num_prefix_tokens: Tokens before the patches (class, distillation, registers); found by default.
        grid_size: Rows and columns of patches; found by default.

    Raises:
        LearnpropError: If ``model`` or ``layer`` is no module.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | None = None,
        *,
        num_prefix_tokens: int | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(model, nn.Module):
            raise LearnpropError(f"{name} needs an nn.Module, got {type(model).__name__}")
        if layer is not None and not isinstance(layer, nn.Module):
            raise LearnpropError(f"{name}: layer must be a module of the model, got {type(layer).__name__}")
        LayerAttribution.__init__(self, model, layer)
        self.model = model
        self.num_prefix_tokens, self.grid_size = num_prefix_tokens, grid_size
        self._tensor_model = TensorOutput(model)
        self._known: dict[Any, Anatomy] = {}
        self._warned = False

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether the map is a contribution."""
        return False

    def attribute_future(self) -> None:
        """Not implemented, as in captum's own methods."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

    @contextmanager
    def _opened(self, inputs: Any, additional_forward_args: Any) -> Iterator[tuple[tuple[Any, ...], Anatomy, int]]:
        """Positional arguments of the model, its anatomy and the place of the layer; buffers are as before after it."""
        tensors, additional = checked_inputs(self.model, inputs, additional_forward_args)
        if len(tensors) != 1:
            raise LearnpropError(f"{type(self).__name__} explains one input of images, got {len(tensors)}")
        given = (tensors[0].detach(), *additional)
        with buffers_kept(self.model):
            anatomy = self._anatomy(given)
            yield given, anatomy, anatomy.place(self.layer)

    def _anatomy(self, given: tuple[Any, ...]) -> Anatomy:
        images = given[0]
        key = (tuple(images.shape[1:]), self.num_prefix_tokens, self.grid_size)
        if key not in self._known:
            single = tuple(x[:1] if isinstance(x, Tensor) and x.dim() and len(x) == len(images) else x for x in given)
            self._known[key] = anatomy_of(self.model, single, self.num_prefix_tokens, self.grid_size)
        return self._known[key]

    def _selected(self, output: Tensor, target: Any) -> Tensor:
        """What is explained, ``(B,)``: an entry of the output, or what a function makes of it."""
        if not callable(target):
            return select_target(output, target)
        value = target(output)
        if not isinstance(value, Tensor) or value.shape != output.shape[:1]:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise LearnpropError(f"target(output) must give one number per sample, ({len(output)},), but gave {found}")
        return value

    def _warn_of_patches(self, part: Tensor) -> None:
        """Say once that the head reads patches, if there is a derivative to what the last attention gave them."""
        if self._warned or not bool(part.any()):
            return
        self._warned = True
        warnings.warn(
            f"{type(self.model).__name__} reads patch tokens after the last attention (a pooled head): what patches "
            "send on without passing the attention (residual, MLP) is not in the map",
            PatchReadingWarning,
            stacklevel=4,
        )


def dot(left: Tensor, right: Tensor) -> Tensor:
    """``sum_j left_ij right_ij`` over the last dimension, in at least single precision."""
    kind = torch.promote_types(left.dtype, torch.float32)
    return (left.to(kind) * right.to(kind)).sum(-1)
