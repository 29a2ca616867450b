"""A call of ``F.batch_norm``, read: in evaluation mode it is a factor and a summand for each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class BatchNorm:
    """The arguments of a call, in their order."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    @property
    def is_line(self) -> bool:
        """Whether it is a line of its input, whatever else is in the batch."""
        return not self.training and self.running_mean is not None and self.running_var is not None

    @property
    def scale(self) -> Tensor:
        """The factors ``(C,)`` of a line."""
        assert self.running_var is not None
        scale = (self.running_var + self.eps).rsqrt()
        return scale if self.weight is None else scale * self.weight

    @property
    def shift(self) -> Tensor:
        """The summands ``(C,)`` of a line."""
        assert self.running_mean is not None
        return (0.0 if self.bias is None else self.bias) - self.running_mean * self.scale

    def value(self, input: Tensor) -> Tensor:
        """The norm of an input."""
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
