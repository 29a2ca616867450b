"""ExtremalMasks: masks with what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zennit_rules.core.notebook import html_table

from ..shown import numbers_text


class NeutralMaskWarning(UserWarning):
    """A mask of some samples says nothing: their output does not depend on it, or their input hardly does."""


@dataclass(frozen=True, repr=False)
class ExtremalMasks:
    """Masks with what is known of them; ``B`` samples, ``A`` areas.

    Attributes:
        masks: One tensor for each input, ``(B, A, *spatial)``, or ``(B, A, F)`` for inputs without space; in [0, 1].
        areas: The areas that were asked for, ``(A,)`` or ``(B, A)``, as shares.
        realised: Share of each input's mask above one half, ``(B, A, inputs)``.
        rewards: Reward of the variant under the masks, ``(B, A)``; a deletion's is minus the output.
        original: Reward of the untouched input, ``(B,)``, in the sign of preservation.
        empty: The same of the input that is perturbed everywhere, ``(B,)``.
        steps: Number of steps that were taken, ``(B, A)``.
        converged: Whether a further round of the search found no better mask, ``(B, A)``; of drawn rewards, whether all
            steps were taken.
        neutral: Whether the output does not depend on the mask, ``(B, A)``.
        parameters: What the masks were made from, one tensor for each input, ``(B, A, *cells)``.
    """

    masks: tuple[Tensor, ...]
    areas: Tensor
    realised: Tensor
    rewards: Tensor
    original: Tensor
    empty: Tensor
    steps: Tensor
    converged: Tensor
    neutral: Tensor
    parameters: tuple[Tensor, ...] = field(default=())

    def preserved(self, rewards: Tensor) -> Tensor:
        """Returns what of the reward masks preserve, ``(reward - empty) / (original - empty)``, counted from none.

        Args:
            rewards: Rewards of preservation ``(B, ...)``; such as `rewards`, or those of further masks.
        """
        shape = (-1, *(1,) * (rewards.ndim - 1))
        span = self.original - self.empty
        span = torch.where(span == 0, torch.ones_like(span), span).reshape(shape)
        return (rewards - self.empty.reshape(shape)) / span

    def _means(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means over samples, by area ``(A,)``: area, realised area, reward, steps."""
        areas = self.areas.expand(self.rewards.shape)
        realised = self.realised.double().mean(-1)
        return areas.mean(0), realised.mean(0), self.rewards.double().mean(0), self.steps.double().mean(0)

    def __repr__(self) -> str:
        areas, realised, rewards, _ = self._means()
        return (
            f"ExtremalMasks(samples={len(self.rewards)}, areas=[{numbers_text(areas)}], "
            f"realised=[{numbers_text(realised)}], rewards=[{numbers_text(rewards)}], "
            f"converged={int(self.converged.sum())} of {self.converged.numel()}, neutral={int(self.neutral.sum())})"
        )

    def _repr_html_(self) -> str:
        samples = len(self.rewards)
        rows = [
            [*(f"{float(mean):.3g}" for mean in means), *(f"{int(flags.sum())} of {samples}" for flags in counted)]
            for *means, counted in zip(
                *self._means(), zip(self.converged.unbind(1), self.neutral.unbind(1), strict=True), strict=True
            )
        ]
        caption = (
            f"Extremal masks of {samples} samples, means over samples; untouched inputs have a reward of "
            f"{float(self.original.double().mean()):.3g}, wholly perturbed ones {float(self.empty.double().mean()):.3g}"
        )
        return html_table(caption, ("area", "realised", "reward", "steps", "converged", "neutral"), rows)
