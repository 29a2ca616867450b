"""What the search for extremal masks is told, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zennit_rules.core.scalars import plain

from ...errors import LearnpropError
from ..rewards import Reward, reward_of
from .mask_spaces import SIGMA, STEP

DEFAULT_STEPS = 150

VARIANTS = ("preserve", "delete", "dual")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How masks are searched for; `ExtremalPerturbation.attribute` describes each option.

    Numbers become plain ones: those of numpy and tensors without dimensions are welcome.

    Attributes:
        variant: One of `VARIANTS`.
        reward: A name, or a function.
        perturbation: A name, a function, or None for the default of the input.
        baselines: What fading ends at; one, a tuple of one per input, or None.
        n_steps: Steps at most.
        step: Distance of a smooth mask's cells, as a fraction of the sides.
        sigma: Width of a smooth mask's kernel, as a fraction of the sides.
        internal_batch_size: Rows that run together; None for all.
        parts: Whether only random parts of masks count at each step.
        draws: Rewards that a step is the mean of.
        seed: Where random numbers begin; None for 0.

    Raises:
        LearnpropError: For options out of range.
    """

    variant: str = "preserve"
    reward: str | Reward = "logit"
    perturbation: str | Callable[[Tensor, Tensor], Tensor] | None = None
    baselines: Any = None
    n_steps: int = DEFAULT_STEPS
    step: float = STEP
    sigma: float = SIGMA
    internal_batch_size: int | None = None
    parts: bool = False
    draws: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_steps", "step", "sigma", "internal_batch_size", "draws", "seed"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        _check_count("draws", self.draws)
        if self.variant not in VARIANTS:
            raise LearnpropError(f"unknown variant {self.variant!r}; choose one of {', '.join(VARIANTS)}")
        _check_count("n_steps", self.n_steps)
        if self.internal_batch_size is not None:
            _check_count("internal_batch_size", self.internal_batch_size)

    @property
    def reward_function(self) -> Reward:
        """The reward as a function ``(output (R, ...), target of the rows) -> (R,)``.

        Raises:
            LearnpropError: For an unknown name.
        """
        return reward_of(self.reward)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LearnpropError(f"{name} must be an integer of at least 1, got {value!r}")
