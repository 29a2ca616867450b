"""Torchvision's architectures with fewer and narrower blocks of each kind, for tests that a developer waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision.models as models
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.models.maxvit import MaxVit
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)
from torchvision.models.vision_transformer import VisionTransformer

SIDE = 64  # pixels
AS_SHIPPED = " as shipped"

HIDDEN = 32


def light_head(build: Callable[..., nn.Module], num_classes: int = 10) -> nn.Module:
    """Returns a model of ``features`` and a ``classifier`` with hidden linear layers of 32 units in the place of 4096.

    ``build`` runs without memory or random numbers; weights are torch's defaults.
    """
    with torch.device("meta"):
        model = build(num_classes=num_classes)
    for layer in model.features.to_empty(device="cpu"):
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    head = model.classifier
    linear = [i for i, layer in enumerate(head) if isinstance(layer, nn.Linear)]
    sizes = [head[linear[0]].in_features, *[HIDDEN] * (len(linear) - 1), num_classes]
    for i, ends in zip(linear, pairwise(sizes), strict=True):
        head[i] = nn.Linear(*ends)
    return model


MB, FUSED = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0), FusedMBConvConfig
SWIN = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
SHALLOW: dict[str, Callable[..., nn.Module]] = {
    "alexnet": partial(light_head, models.alexnet),
    "convnext_tiny": partial(ConvNeXt, [CNBlockConfig(24, 48, 1), CNBlockConfig(48, None, 2)]),
    "densenet121": partial(DenseNet, 8, (2, 3, 2), 16),
    "efficientnet_b0": partial(
        EfficientNet, [MB(1, 3, 1, 16, 16, 1), MB(6, 5, 2, 16, 24, 2), MB(6, 3, 2, 24, 40, 1)], 0.2
    ),
    "efficientnet_v2_s": partial(
        EfficientNet, [FUSED(1, 3, 1, 16, 16, 1), FUSED(4, 3, 2, 16, 24, 2), MB(4, 3, 2, 24, 40, 2)], 0.2
    ),
    "maxvit_t": partial(
        MaxVit, (SIDE, SIDE), 16, 2, [16, 32], [1, 2], 8, 0.0, partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    ),
    "resnext50_32x4d": partial(ResNet, Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4),
    "swin_t": partial(SwinTransformer, **SWIN, block=SwinTransformerBlock),
    "swin_v2_t": partial(SwinTransformer, **SWIN, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    "vgg11": partial(light_head, partial(models.vgg11, init_weights=False)),
    "vit_b_16": partial(VisionTransformer, SIDE, 16, 2, 4, 32, 64),
    "wide_resnet50_2": partial(ResNet, Bottleneck, [1, 1, 1, 1], width_per_group=128),
}  # fmt: skip
"""What builds a shallow form of each model with so many classes, for images of ``SIDE``."""


def shallow_by_default(names: Iterable[str]) -> list[Any]:
    """Returns names of tests: of shallow forms where there is one; the models as they are shipped are slow then."""
    names = list(names)
    slow = [pytest.param(f"{name}{AS_SHIPPED}", marks=pytest.mark.slow) for name in names if name in SHALLOW]
    return [*names, *slow]
