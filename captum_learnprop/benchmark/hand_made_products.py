"""Products of two hand-made maps: fine detail from one, the place of the class from a class activation map."""

from __future__ import annotations

from torch import Tensor, nn

from captum_learnprop.benchmark.explain import Build, Explain
from captum_learnprop.benchmark.hand_made_cams import grad_cam


def times_grad_cam(fine: Build) -> Build:
    """Returns a builder of a method times the last layer's Grad-CAM, signed as the method, in its shape.

    Guided Grad-CAM is the one that has a name of its own (Selvaraju et al., ICCV 2017).

    Args:
        fine: Builder of the method.

    Raises:
        LearnpropError: By the builder, where one of the two cannot explain the net.
    """

    def build(model: nn.Module, example: Tensor) -> Explain:
        detail, place = fine(model, example), grad_cam(0)(model, example)

        def attribute(images: Tensor, targets: Tensor) -> Tensor:
            return detail(images, targets) * place(images, targets)

        return attribute

    return build
