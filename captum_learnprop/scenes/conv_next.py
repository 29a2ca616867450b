"""A small net of large depthwise convolutions, LayerNorm over channels and GELU.

Source:
    Liu et al., *A ConvNet for the 2020s*, CVPR 2022. Without their scales of the layers, which start near zero and
    need a longer training than small nets get.
"""

from __future__ import annotations

from torch import Tensor, nn

from captum_learnprop.scenes.net_form import IMAGES, Form
from captum_learnprop.scenes.reference_nets import Normalize

STAGES = ((24, 1), (48, 1), (72, 2))
"""Channels and blocks of each stage; between stages sides are halved."""

KERNEL = 7
"""Side of the depthwise convolutions."""

EXPANSION = 3
"""Channels inside a block, in channels that come in; four in the paper."""


class ConvNeXtLike(nn.Module):
    """A stem of stride 2 and three stages of blocks, then the mean over positions; 102 thousand parameters.

    Maps images ``(B, 3, 64, 64)`` in [0, 1] to ten logits ``(B, 10)``, or what a form says.

    Args:
        form: what it takes and gives.
    """

    def __init__(self, form: Form = IMAGES) -> None:
        super().__init__()
        self.normalize = Normalize()
        first = STAGES[0][0]
        layers: list[nn.Module] = [form.conv(form.channels, first, 4, 2, padding=1), ChannelNorm(first)]
        inputs = first
        for stage, (channels, blocks) in enumerate(STAGES):
            if stage:
                layers += [ChannelNorm(inputs), form.conv(inputs, channels, 2, 2)]
            layers += [ConvNeXtBlock(channels, form) for _ in range(blocks)]
            inputs = channels
        self.features = nn.Sequential(*layers)
        self.pool = form.mean_pool()
        self.classifier = nn.Sequential(nn.Flatten(), nn.LayerNorm(inputs), nn.Linear(inputs, form.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``(B, classes)`` of images in [0, 1]."""
        logits: Tensor = self.classifier(self.pool(self.features(self.normalize(images))))
        return logits


class ConvNeXtBlock(nn.Module):
    """``x + narrow(gelu(widen(norm(around(x)))))``: a depthwise convolution, LayerNorm and two 1x1 convolutions.

    Args:
        channels: that come in and leave.
        form: says how many axes there are.
    """

    def __init__(self, channels: int, form: Form = IMAGES) -> None:
        super().__init__()
        self.around = form.conv(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = ChannelNorm(channels)
        self.widen = form.conv(channels, EXPANSION * channels, 1)
        self.gelu = nn.GELU()
        self.narrow = form.conv(EXPANSION * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(B, channels, ...)`` of the same shape, of any sign."""
        out: Tensor = x + self.narrow(self.gelu(self.widen(self.norm(self.around(x)))))
        return out


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position, of ``(B, channels, ...)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised values, of the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
