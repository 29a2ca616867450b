"""Rewards: the number that an extremal mask keeps high, from the output for perturbed inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zennit_rules.core.scalars import plain

from ..errors import LearnpropError
from ..targets import select_target

Reward = Callable[[Tensor, Any], Tensor]
"""``(output (R, ...), target of these rows) -> (R,)``, differentiable."""


def logit(output: Tensor, target: Any) -> Tensor:
    """The target's entry of the output as it is, ``(R,)``.

    Raises:
        TargetError: If the target does not fit the output.
    """
    return select_target(output, target)


def contrastive(output: Tensor, target: Any) -> Tensor:
    """The target's entry above the best other class, ``y_c - max_{c' != c} y_c'``, ``(R,)``.

    Raises:
        LearnpropError: If the output is not ``(R, classes)`` with two classes at least.
        TargetError: If the target does not fit it.
    """
    own = select_target(output, target)
    if output.dim() != 2 or output.shape[1] < 2:
        raise LearnpropError(f"reward='contrastive' compares classes, but the output is {tuple(output.shape)}")
    others = torch.zeros_like(output, dtype=torch.bool).scatter_(1, _indices(output, target)[:, None], True)
    return own - output.masked_fill(others, -torch.inf).amax(1)


def probability(output: Tensor, target: Any) -> Tensor:
    """Probability of the target, ``(R,)`` in [0, 1]: softmax over classes; the sigmoid of a model with one output.

    Raises:
        LearnpropError: If the output is not ``(R, classes)``.
        TargetError: If the target does not fit it.
    """
    if output.dim() == 1 or output.shape[1:] == (1,):
        return select_target(output, target).sigmoid()
    if output.dim() != 2:
        raise LearnpropError(f"reward='probability' needs outputs (B, classes), got {tuple(output.shape)}")
    return select_target(output.softmax(1), target)


REWARDS: dict[str, Reward] = {"logit": logit, "contrastive": contrastive, "probability": probability}


def reward_of(reward: str | Reward) -> Reward:
    """The reward of a name, or the callable itself.

    Raises:
        LearnpropError: For an unknown name.
    """
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise LearnpropError(f"unknown reward {reward!r}; choose one of {', '.join(REWARDS)} or pass a function")
        return REWARDS[reward]
    if not callable(reward):
        raise LearnpropError(f"reward must be a name or a function (output, target) -> (rows,), got {reward!r}")
    return reward


def rows_of_target(target: Any, rows: Tensor) -> Any:
    """The target of some rows, by captum's conventions: lists and tensors of more than one entry go by sample."""
    target = plain(target)
    if isinstance(target, Tensor) and target.numel() > 1:
        return target[rows.to(target.device)]
    if isinstance(target, list):
        if len(target) == 1:
            return target * len(rows)
        return [target[row] for row in rows.tolist()]
    return target


def _indices(output: Tensor, target: Any) -> Tensor:
    if isinstance(target, Sequence):
        target = [one[0] if isinstance(one, tuple) else one for one in target]
    index = torch.as_tensor(target, device=output.device).reshape(-1).long() % output.shape[1]
    return index.expand(len(output)) if index.numel() == 1 else index
