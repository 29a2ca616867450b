"""Class activation maps: a feature map weighed by the gradient of the output in it."""

from __future__ import annotations

from torch import Tensor, nn

from captum_learnprop.benchmark.explain import Build, Explain, resized
from captum_learnprop.benchmark.feature_maps import FeatureMap, feature_maps
from captum_learnprop.errors import LearnpropError


def grad_cam(level: int) -> Build:
    """Returns a builder of Grad-CAM, whose maps ``(B, 1, H, W)`` are not negative (Selvaraju et al., ICCV 2017).

    Args:
        level: 0 is the last feature map, n the one that is n resolutions finer.

    Raises:
        LearnpropError: By the builder, where the net has no feature map of that level.
    """

    def build(model: nn.Module, example: Tensor) -> Explain:
        feature = _feature(model, example, level)

        def attribute(images: Tensor, targets: Tensor) -> Tensor:
            activation, gradient = feature.gradient(model, images, targets)
            maps = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).clamp(min=0)
            return resized(maps, images)

        return attribute

    return build


def layer_cam(level: int) -> Build:
    """Returns a builder of LayerCAM, whose maps ``(B, 1, H, W)`` are not negative (Jiang et al., TIP 2021).

    The positive gradient weighs each activation where it is.

    Args:
        level: Which feature map, as in `grad_cam`: 0 is the coarsest, higher is finer.

    Raises:
        LearnpropError: By the builder, for a net without that feature map.
    """

    def build(model: nn.Module, example: Tensor) -> Explain:
        feature = _feature(model, example, level)

        def attribute(images: Tensor, targets: Tensor) -> Tensor:
            activation, gradient = feature.gradient(model, images, targets)
            maps = (gradient.clamp(min=0) * activation).sum(1, keepdim=True).clamp(min=0)
            return resized(maps, images)

        return attribute

    return build


def _feature(model: nn.Module, example: Tensor, level: int) -> FeatureMap:
    found = feature_maps(model, example)
    if level >= len(found):
        raise LearnpropError(
            f"the net has {len(found)} feature maps that all branches join in; level {level} is finer than all"
        )
    return found[-1 - level]
