"""A small net of inverted residuals: depthwise convolutions, ReLU6, and blocks that end without an activation.

Source:
    Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018.
"""

from __future__ import annotations

from torch import Tensor, nn

from captum_learnprop.scenes.net_form import IMAGES, Form
from captum_learnprop.scenes.reference_nets import Normalize

STAGES = ((24, 1, 1), (32, 2, 2), (56, 2, 2))
"""Channels, blocks and the stride of the first block, of each stage."""

EXPANSION = 3
"""Channels inside a block, in channels that come in."""

STEM, HEAD = 16, 160
"""Channels after the first and the last convolution."""


class MobileNetLike(nn.Module):
    """A stem, five inverted residuals and a 1x1 convolution, then the mean over positions; 63 thousand parameters.

    Maps images ``(B, 3, 64, 64)`` in [0, 1] to ten logits ``(B, 10)``, or what a form says. Every activation is a
    module used once, and is ReLU6.

    Args:
        form: what it takes and gives.
    """

    def __init__(self, form: Form = IMAGES) -> None:
        super().__init__()
        self.normalize = Normalize()
        layers: list[nn.Module] = [*_convolution(form, form.channels, STEM, 3, stride=2)]
        inputs = STEM
        for channels, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, channels, stride if block == 0 else 1, form))
                inputs = channels
        self.features = nn.Sequential(*layers, *_convolution(form, inputs, HEAD, 1))
        self.pool = form.mean_pool()
        self.classifier = nn.Linear(HEAD, form.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``(B, classes)`` of images in [0, 1]."""
        logits: Tensor = self.classifier(self.pool(self.features(self.normalize(images))).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """Widens by a 1x1 convolution, looks around by a depthwise one, narrows by a 1x1; adds its input where it can.

    Args:
        inputs: channels that come in.
        outputs: channels that leave.
        stride: of the depthwise convolution.
        form: says how many axes there are.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, form: Form = IMAGES) -> None:
        super().__init__()
        inside = EXPANSION * inputs
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *_convolution(form, inputs, inside, 1),
            *_convolution(form, inside, inside, 3, stride=stride, groups=inside),
            form.conv(inside, outputs, 1, bias=False),
            form.norm(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(B, outputs, ...)`` of ``(B, inputs, ...)``, of any sign."""
        out: Tensor = self.body(x)
        return x + out if self.residual else out


def _convolution(
    form: Form, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Returns a convolution, its batch norm and ReLU6."""
    convolution = form.conv(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, form.norm(outputs), nn.ReLU6()]
