"""A model with a target function behind it, as a module with one output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from captum_learnprop.targets.functions import Called, TargetFunction


class Asking(nn.Module):
    """A model whose only output is what a target function makes of its own: methods explain it with ``target=0``.

    The model's parameters and modules are shared, and stay the user's.

    Args:
        net: Any model.
        function: What is explained of its output, one value per sample.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from captum_learnprop.targets import Labels
        >>> net = nn.Linear(2, 3).eval()
        >>> x = torch.ones(4, 2)
        >>> torch.equal(Asking(net, Labels((0, 2)))(x)[:, 0], net(x)[:, 0] + net(x)[:, 2])
        True
    """

    def __init__(self, net: nn.Module, function: TargetFunction | Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.function = function if isinstance(function, TargetFunction) else Called(function)
        # A module in training mode around a net that is not would be taken for one that draws random numbers.
        self.training = net.training

    def forward(self, *inputs: Any) -> Tensor:
        """Returns ``(B, 1)``: the value of the target function for each sample."""
        return self.function(self.net(*inputs)).reshape(-1, 1)
