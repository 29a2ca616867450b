"""What takes the place of a pixel that is removed: a number, a tensor, a function of the inputs, or a name.

A score that removes pixels depends on it: sharp edges and flat areas can be evidence in themselves. A ranking of
methods that holds under several baselines says more than one that holds under one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import smooth
from zennit_rules.core.scalars import plain

Baseline = float | Tensor | str | Callable[[Tensor], Tensor]
"""A number; a tensor that broadcasts to the inputs; a name in `BASELINES`; or a function of the inputs that gives such
a tensor or a number."""

BLUR_SIGMA = 5.0
"""Pixels; the width of the blur of RISE (BMVC 2018), whose kernel ends at 11 pixels."""


def fill_values(baseline: Baseline, inputs: Tensor, seed: int = 0) -> Tensor:
    """Returns the baseline of each input, ``(B, C, H, W)`` of the inputs' type and device.

    Args:
        baseline: a number, a tensor that broadcasts to the inputs, a function of the inputs, or a name: ``"zero"``;
            ``"mean"``, of each sample's channels over its pixels; ``"blur"``, the input under a Gaussian of
            `BLUR_SIGMA` pixels; ``"noise"``, normal with the mean and the standard deviation of each sample's channels,
            the same draw for every sample.
        inputs: ``(B, C, H, W)``.
        seed: of ``"noise"``; torch's global generator is not used.

    Raises:
        LearnpropError: the name is not known, or the baseline does not broadcast to the inputs.

    Example:
        >>> fill_values("mean", torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        tensor([[[[2.5000, 2.5000],
                  [2.5000, 2.5000]]]])
    """
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise LearnpropError(
                f"unknown baseline {baseline!r}; choose one of {', '.join(BASELINES)}, a number or a tensor"
            )
        return BASELINES[baseline](inputs, seed)
    if callable(baseline):
        baseline = baseline(inputs)
    if not isinstance(baseline, Tensor):
        return torch.full_like(inputs, baseline)
    try:
        return baseline.detach().to(inputs).expand_as(inputs)
    except RuntimeError as error:
        raise LearnpropError(
            f"baseline {tuple(baseline.shape)} does not broadcast to inputs {tuple(inputs.shape)}"
        ) from error


def normal_draws(shape: tuple[int, ...], like: Tensor, seed: int) -> Tensor:
    """Returns standard normal numbers of a tensor's type and device that depend on the shape and the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(plain(seed)), dtype=torch.float64).to(like)


def _zero(inputs: Tensor, seed: int) -> Tensor:
    return torch.zeros_like(inputs)


def _mean(inputs: Tensor, seed: int) -> Tensor:
    return inputs.mean((2, 3), keepdim=True).expand_as(inputs)


def _blur(inputs: Tensor, seed: int) -> Tensor:
    return smooth(inputs.flatten(0, 1), BLUR_SIGMA).reshape(inputs.shape)


def _noise(inputs: Tensor, seed: int) -> Tensor:
    deviation, mean = torch.std_mean(inputs, (2, 3), correction=0, keepdim=True)
    return mean + deviation * normal_draws(tuple(inputs.shape[1:]), inputs, seed)


BASELINES: dict[str, Callable[[Tensor, int], Tensor]] = {"zero": _zero, "mean": _mean, "blur": _blur, "noise": _noise}
"""Baselines by name; each is a function of the inputs and a seed."""
