"""Hand-made methods for vision transformers: maps over the tokens of the patches, brought to the image's size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from captum_learnprop.attribution.tokens.ablation import TokenAblation
from captum_learnprop.attribution.tokens.attention_maps import AttentionMap, AttentionRollout, GenericAttention
from captum_learnprop.attribution.tokens.averaged_cdam import SmoothCDAM
from captum_learnprop.attribution.tokens.cdam import CDAM
from captum_learnprop.attribution.tokens.layout import Anatomy, anatomy_of
from captum_learnprop.benchmark.explain import Build, Explain, rows_at_once, tried
from captum_learnprop.errors import LearnpropError

SMOOTH_CDAM_SAMPLES = 50


@dataclass(frozen=True)
class TokenMethod:
    """A method over tokens.

    Attributes:
        kind: Its class, of `captum_learnprop.attribution.tokens`.
        passes: Number of passes through the net per image, of the number of patches.
        in_batches: Whether it runs the net on many copies of an image, some at a time.
        options: Further arguments of its ``attribute``.
    """

    kind: type[Any]
    passes: Callable[[int], int]
    in_batches: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


TOKEN_METHODS: dict[str, TokenMethod] = {
    "CDAM": TokenMethod(CDAM, lambda patches: 2),
    "SmoothCDAM": TokenMethod(
        SmoothCDAM, lambda patches: 2 * SMOOTH_CDAM_SAMPLES, True, {"n_samples": SMOOTH_CDAM_SAMPLES}
    ),
    "AttentionMap": TokenMethod(AttentionMap, lambda patches: 1),
    "AttentionRollout": TokenMethod(AttentionRollout, lambda patches: 1),
    "GenericAttention": TokenMethod(GenericAttention, lambda patches: 2),
    "TokenAblation": TokenMethod(TokenAblation, lambda patches: patches + 1, True),
}
"""Methods over tokens by name."""


def transformer_in(model: nn.Module, example: Tensor) -> Anatomy | None:
    """Returns the anatomy of a net that is a plain vision transformer, also inside other modules; None of any other."""
    try:
        return anatomy_of(model, (example,))
    except LearnpropError:
        return None


def token_method(chosen: TokenMethod) -> Build:
    """Returns a builder of a method over tokens, ``(B, 1, H, W)``, interpolated between the patches.

    Args:
        chosen: Which one, of `TOKEN_METHODS`.

    Raises:
        LearnpropError: By the builder, where the net is no plain vision transformer.
    """

    def build(model: nn.Module, example: Tensor) -> Explain:
        anatomy_of(model, (example,))  # which says why, where the net is no transformer
        method = chosen.kind(model)

        def attribute(images: Tensor, targets: Tensor) -> Tensor:
            batches = {"internal_batch_size": rows_at_once(images)} if chosen.in_batches else {}
            found: Tensor = method.attribute(
                images, targets, output="input", mode="bilinear", **chosen.options, **batches
            )
            return found

        return attribute if chosen.in_batches else tried(attribute, example)

    return build
