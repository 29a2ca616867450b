"""A user's own net as the benchmark sees it: the bare module, how images become its input, its classes' names."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import tensor_of
from captum_learnprop.images import Preprocessing
from zennit_rules.core import fingerprint


class OnPixels(nn.Module):
    """A classifier of images in [0, 1]: the normalisation that a net expects, then the net.

    Args:
        net: It takes normalised images.
        preprocessing: The mean and the deviation of each channel, and the side of images.
        resize: Whether images of another size are brought to that side.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, preprocessing: Preprocessing, *, resize: bool = False) -> None:
        super().__init__()
        self.net = net
        self.side = preprocessing.crop if resize else None
        like = next(net.parameters(), torch.zeros(0))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=like.dtype, device=like.device)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)
        self.training = net.training  # train() would set it for the user's modules too

    def forward(self, images: Tensor) -> Tensor:
        """Returns outputs ``(B, classes)``, of a structure the logits, for images ``(B, 3, H, W)`` in [0, 1]."""
        if self.side is not None and images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", align_corners=False)
        return tensor_of(self.net((images - self.mean) / self.std), self.net)


@dataclass(frozen=True)
class Candidate:
    """A net that methods are compared on.

    Attributes:
        name: Its name, as the user wrote it.
        net: The module as it is, in evaluation mode, which takes normalised images and gives ``(B, classes)``.
            Rules are learned for it, so that they fit the user's own.
        preprocessing: How images become its input.
        class_names: A name for each class, where they are known.
        code: Digest of the files that the net is made by, where the user wrote them; None where not.
        output: What becomes of its outputs, ``"softmax"``, or ``"sigmoid"`` where classes do not exclude each other.
    """

    name: str
    net: nn.Module = field(repr=False)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    code: str | None = field(default=None, repr=False)
    output: str = "softmax"

    @property
    def side(self) -> int:
        """Height and width of its input in pixels."""
        return self.preprocessing.crop

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image ``(C, H, W)``."""
        return (len(self.preprocessing.mean), self.side, self.side)

    def inputs(self, images: Tensor) -> Tensor:
        """Returns images in [0, 1], ``(B, C, H, W)``, as the net takes them."""
        return self.preprocessing.normalize(images)

    @cached_property
    def classes(self) -> int:
        """Number of its classes.

        Raises:
            LearnpropError: It does not take such images, or is no classifier.
        """
        shape = (1, *self.shape)
        like = next(self.net.parameters(), torch.zeros(0))
        try:
            with torch.no_grad():
                output = self.on_pixels()(torch.full(shape, 0.5, device=like.device))
        # The forward pass is the user's code; whatever it raises means that it does not take this input.
        except Exception as error:
            raise LearnpropError(
                f"{self.name} does not take an input of {shape}: {error}; give its size with --size"
            ) from error
        if not isinstance(output, Tensor) or output.ndim != 2:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise LearnpropError(f"{self.name} is no classifier: it gives {found}, expected (batch, classes)")
        return output.shape[1]

    @cached_property
    def identity(self) -> list[str | None]:
        """What tells nets with the same weights apart: names and types of modules, and their code."""
        return [fingerprint.architecture(self.net), self.code]

    @cached_property
    def weights(self) -> str:
        """The fingerprint of its weights."""
        return fingerprint.weights(self.net)

    def on_pixels(self, net: nn.Module | None = None, *, resize: bool = False) -> nn.Module:
        """Returns a net, by default its own, as one that takes images in [0, 1] (see `OnPixels`)."""
        return OnPixels(self.net if net is None else net, self.preprocessing, resize=resize).eval()

    def class_name(self, number: int) -> str:
        """Returns the name of a class; its number where no name is known."""
        return str(number) if self.class_names is None else self.class_names[number]
