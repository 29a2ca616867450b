"""Nets with re-initialised weights, which maps of the trained one must not resemble."""

from __future__ import annotations

from torch import Tensor, nn

from captum_learnprop.reinitialization import randomized

NETS = 4
"""The number of nets that take turns: a map could learn to differ from a single one."""

_SEED = 7_654_321
"""The number that is added to the seed: an evaluation that counts its nets from 0 meets none that was trained with."""


def random_nets(model: nn.Module, seed: int, images: Tensor) -> list[nn.Module]:
    """Returns copies of a model with all weights re-initialised; the model is untouched.

    Args:
        model: What is copied.
        seed: The seed of the training.
        images: Images ``(N, C, *spatial)`` that the statistics of batch norms are measured on.
    """
    return [randomized(model, "all", seed=_SEED + NETS * seed + net, recalibrate=images) for net in range(NETS)]
