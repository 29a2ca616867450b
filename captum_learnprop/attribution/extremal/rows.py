"""What extremal perturbations share: rows of samples and areas, and the rewards of variants."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from zennit_rules.core.scalars import plain

from ...errors import LearnpropError
from ..rewards import Reward, rows_of_target
from .found_masks import ExtremalMasks as ExtremalMasks
from .found_masks import NeutralMaskWarning as NeutralMaskWarning
from .mask_parts import Parts
from .mask_search import FoundRows, search
from .mask_spaces import MaskSpace
from .options import SearchOptions
from .perturbations import Perturbation

DRAWS = 8
"""Draws of a random perturbation that the reward of a finished mask is the mean of."""

Masked = Callable[[tuple[Tensor, ...], Tensor, Tensor], Tensor]
"""``(masks of each input (R, *shape), samples (R,), streams (R,)) -> output of the model (R, ...)``."""

LEAST_REMOVED = 0.05
"""Share of a sample's signal: a perturbation that removes less where the mask is 0 leaves a mask nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of samples and areas, one mask of each input for each.

    Attributes:
        masked: The model under masks.
        spaces: The spaces of each input's masks.
        samples: Their number ``B``.
        like: A tensor of the type and on the device of masks.
        target: Captum's, for the ``B`` samples.
        reward: What masks keep high, a function of the output and the target.
        options: The options of the search.
        perturbations: One of each input; they begin to draw anew with every search, and rewards in results are means
            over `DRAWS` of them.
        parts: What draws parts of the masks at every step of a search; None for whole masks.
        weak: Samples that a warning has named already, ``(B,)``; None for none.
    """

    masked: Masked
    spaces: tuple[MaskSpace, ...]
    samples: int
    like: Tensor
    target: Any
    reward: Reward
    options: SearchOptions
    perturbations: tuple[Perturbation, ...] = ()
    parts: Parts | None = None
    weak: Tensor | None = None

    def variant_rewards(
        self, masks: tuple[Tensor, ...], samples: Tensor, streams: Tensor, draw: int | None = None
    ) -> Tensor:
        """Reward of the variant ``(R,)``: of whole masks, or of the parts that are drawn for a draw of a step.

        Args:
            masks: One for each input, ``(R, *shape)``.
            samples: The sample of each row, ``(R,)``.
            streams: The stream of random numbers that each row draws from, ``(R,)``.
            draw: Number of the draw among those of a step; None for whole masks.
        """
        kept = gone = masks
        if draw is not None and self.parts is not None:
            pair = self.parts(masks[0], streams, draw, self.options.draws)
            kept, gone = (tuple(m * field for m, field in zip(masks, fields, strict=True)) for fields in pair)
        if self.options.variant == "preserve":
            return self._masked_rewards(kept, samples, streams)
        if self.options.variant == "delete":
            return -self._masked_rewards(tuple(1 - mask for mask in gone), samples, streams)
        both = tuple(torch.cat([one, 1 - other]) for one, other in zip(kept, gone, strict=True))
        preserved, deleted = self._masked_rewards(both, samples.repeat(2), streams.repeat(2)).chunk(2)
        return preserved - deleted

    def _step_rewards(self, masks: tuple[Tensor, ...], samples: Tensor, streams: Tensor) -> Tensor:
        """Rewards that a step goes by, ``(R,)``: the mean of its draws."""
        drawn = [self.variant_rewards(masks, samples, streams, draw) for draw in range(self.options.draws)]
        return drawn[0] if len(drawn) == 1 else torch.stack(drawn).mean(0)

    def _masked_rewards(self, masks: tuple[Tensor, ...], samples: Tensor, streams: Tensor) -> Tensor:
        output = self.masked(masks, samples, streams)
        rewards = self.reward(output, rows_of_target(self.target, samples))
        if not isinstance(rewards, Tensor) or rewards.shape != (len(samples),):
            found = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
            raise LearnpropError(f"the reward gave {found} for {len(samples)} rows; it must give one number per row")
        if not bool(torch.isfinite(rewards).all()):
            bad = sorted(set(samples[~torch.isfinite(rewards)].tolist()))
            raise LearnpropError(
                f"the reward is NaN or infinite for samples {bad[:8]}: check the model's weights and the input's range"
            )
        return rewards

    def constant_rewards(self, value: float) -> Tensor:
        """Reward of the preserved input under a constant mask: ``(B,)``."""
        parts = []
        with torch.no_grad():
            for samples in self._batches(torch.arange(self.samples, device=self.like.device)):
                masks = tuple(self.like.new_full((len(samples), *space.shape), value) for space in self.spaces)
                self._restart()
                streams = torch.zeros_like(samples)
                drawn = [self._masked_rewards(masks, samples, streams).detach() for _ in range(self.final_draws)]
                parts.append(torch.stack(drawn).mean(0))
        return torch.cat(parts)

    @torch.no_grad()
    def contributions(self, masks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Masks ``(B, A, ...)`` times what each input's perturbation takes away: ``(B, A, *shape of the input)``."""
        everyone = torch.arange(self.samples, device=self.like.device)
        result = []
        for mask, one in zip(masks, self.perturbations, strict=True):
            change = one.change(mask[:, 0], everyone)[:, None]
            result.append((mask[:, :, None] if change.dim() > mask.dim() else mask).to(change) * change)
        return tuple(result)

    @property
    def final_draws(self) -> int:
        """Number of draws that the reward of a finished mask is the mean of."""
        return DRAWS if any(one.draws for one in self.perturbations) else 1

    @property
    def drawn(self) -> bool:
        """Whether steps of a search are drawn."""
        return self.final_draws > 1 or self.parts is not None

    def _restart(self) -> None:
        for one in self.perturbations:
            one.restart()
        if self.parts is not None:
            self.parts.restart()

    @property
    def batch_size(self) -> int:
        """Number of rows that are worked on together."""
        return self.options.internal_batch_size or 1 << 30

    def search(
        self,
        samples: Tensor,
        areas: Tensor,
        *,
        n_steps: int,
        start: Sequence[Tensor] | None = None,
        start_areas: Tensor | None = None,
        at_least: Tensor | None = None,
        progress: tqdm | None = None,
        streams: Tensor | None = None,
    ) -> FoundRows:
        """Search for the masks of some rows.

        Args:
            samples: The sample of each row, ``(R,)``.
            areas: The area of each row, ``(R,)``.
            n_steps: Steps at most.
            start: Parameters to start from, one tensor for each input; ones by default.
            start_areas: Areas of what is started from, ``(R,)``; a little more than the wanted ones by default.
            at_least: Rewards ``(R,)`` below which a search goes on although a round found nothing better.
            progress: A bar that gets a tick for each step of a row.
            streams: The stream of random numbers that each row draws from, ``(R,)``; one for all by default.
        """
        streams = torch.zeros_like(samples) if streams is None else streams
        parts: list[FoundRows] = []
        # Rows come sample by sample, so the parts follow each other as they came.
        for at in self._batches(samples):
            own, stream = samples[at], streams[at]
            self._restart()
            parts.append(
                search(
                    lambda masks, rows, own=own, stream=stream: (  # type: ignore[misc]
                        self._step_rewards(masks, own[rows], stream[rows])
                    ),
                    self.spaces, areas[at], like=self.like, n_steps=n_steps,
                    start=None if start is None else [values[at] for values in start],
                    start_areas=None if start_areas is None else start_areas[at],
                    at_least=None if at_least is None else at_least[at],
                    samples=own, progress=progress,
                    drawn=self.drawn, growing=self.options.variant == "delete",
                )
            )  # fmt: skip
            if self.drawn:
                parts[-1].rewards = self._finished_rewards(parts[-1].masks, own, stream)
        return _joined(parts)

    def _raise_larger_areas(self, found: FoundRows, samples: Tensor, areas: Tensor) -> None:
        """Search once more where a sample's reward falls with the area, and let the next smaller area's mask grow.

        Areas are no upper bounds: a larger one may be worse where all that is left to keep does harm.
        """
        for sample in range(self.samples):
            rows = (samples == sample).nonzero()[:, 0]
            rows = rows[areas[rows].argsort(stable=True)]
            for smaller, larger in itertools.pairwise(rows.tolist()):
                if found.rewards[larger] >= found.rewards[smaller] or bool(found.neutral[larger]):
                    continue
                at = torch.tensor([larger], device=samples.device)
                again = self.search(
                    samples[at], areas[at], n_steps=self.options.n_steps,
                    start=[values[smaller : smaller + 1] for values in found.parameters], start_areas=areas[[smaller]],
                    at_least=found.rewards[[smaller]],
                )  # fmt: skip
                if again.rewards[0] > found.rewards[larger]:
                    found.replace(larger, again)

    @torch.no_grad()
    def _finished_rewards(self, masks: tuple[Tensor, ...], samples: Tensor, streams: Tensor) -> Tensor:
        """Rewards of finished masks, as a whole."""
        drawn = [self.variant_rewards(masks, samples, streams).detach() for _ in range(self.final_draws)]
        return torch.stack(drawn).mean(0)

    def _batches(self, samples: Tensor) -> list[Tensor]:
        """Rows that are searched in one batch.

        On a CPU those of one sample: batches are no faster there, and convolutions round differently in batches of
        other sizes, which a search of hundreds of steps turns into another mask. So a sample's mask does not depend on
        the others to the last digit.
        """
        rows = torch.arange(len(samples), device=samples.device)
        own = [rows[samples == one] for one in samples.unique()] if samples.device.type == "cpu" else [rows]
        return [part for each in own for part in each.split(self.batch_size)]

    def masks(self, areas: Tensor, *, show_progress: bool, describe: str) -> ExtremalMasks:
        """Masks of all samples for areas ``(B, A)``; a progress bar is described by a word or two."""
        n_steps = self.options.n_steps
        samples = torch.arange(self.samples, device=self.like.device).repeat_interleave(areas.shape[1])
        # Each area draws numbers of its own: what chance does to one mask it does not do to the others.
        streams = torch.arange(areas.shape[1], device=self.like.device).repeat(self.samples)
        with tqdm(total=len(samples) * n_steps, desc=describe, disable=not show_progress) as progress:
            found = self.search(samples, areas.flatten(), n_steps=n_steps, progress=progress, streams=streams)
        if not self.drawn:
            self._raise_larger_areas(found, samples, areas.flatten())
        grid = (self.samples, areas.shape[1])
        result = ExtremalMasks(
            masks=tuple(each.reshape(*grid, *each.shape[1:]) for each in found.masks),
            areas=areas,
            realised=found.areas.reshape(*grid, -1),
            rewards=found.rewards.reshape(grid),
            original=self.constant_rewards(1.0),
            empty=self.constant_rewards(0.0),
            steps=found.steps.reshape(grid),
            converged=found.converged.reshape(grid),
            neutral=found.neutral.reshape(grid),
            parameters=tuple(each.reshape(*grid, *each.shape[1:]) for each in found.parameters),
        )
        neutral = result.neutral.any(1)
        warn_of_neutral(neutral if self.weak is None else neutral & ~self.weak)
        return result


def _joined(parts: Sequence[FoundRows]) -> FoundRows:
    def lists(name: str) -> tuple[Tensor, ...]:
        return tuple(map(torch.cat, zip(*(getattr(part, name) for part in parts), strict=True)))

    plain = ("rewards", "areas", "steps", "converged", "neutral")
    return FoundRows(
        masks=lists("masks"),
        parameters=lists("parameters"),
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in plain},
    )


def warn_of_neutral(samples: Tensor) -> None:
    """Name the samples ``(B,)`` whose output does not depend on the mask."""
    if bool(samples.any()):
        named = samples.nonzero()[:, 0].tolist()
        warnings.warn(
            f"the reward of samples {named[:8]} does not change with the mask (a constant or saturated output, or a "
            "perturbation that leaves the input as it is): their masks are the wanted area everywhere and explain "
            "nothing; try another reward, perturbation or baseline",
            NeutralMaskWarning,
            stacklevel=2,
        )


@torch.no_grad()
def warn_of_small_changes(inputs: Sequence[Tensor], perturbations: Sequence[Perturbation]) -> Tensor:
    """Name the samples of inputs ``(B, ...)`` of which a perturbation everywhere removes next to nothing: ``(B,)``.

    The signal is what deviates from the mean of each channel, or, without space, of the features. A constant has none.
    """
    found = torch.zeros(len(inputs[0]), dtype=torch.bool, device=inputs[0].device)
    for number, (x, one) in enumerate(zip(inputs, perturbations, strict=True)):
        everyone = torch.arange(len(x), device=x.device)
        nothing = x.new_zeros(len(x), *(x.shape[2:] if x.dim() > 2 else x.shape[1:]), dtype=mask_type(x))
        with torch.random.fork_rng():  # a user's function may draw
            removed = (x - one(nothing, everyone)).reshape(len(x), -1)
        one.restart()
        rows = x.flatten(2) if x.dim() > 2 else x.reshape(len(x), -1)
        signal = (rows - rows.mean(-1, keepdim=True)).reshape(len(x), -1)
        removed, signal = (torch.linalg.vector_norm(each.double(), dim=1) for each in (removed, signal))
        weak = removed < LEAST_REMOVED * signal
        found |= weak
        if bool(weak.any()):
            least = float((removed / signal)[weak].min())
            named = weak.nonzero()[:, 0].tolist()[:8]
            warnings.warn(
                f"the perturbation removes only {least:.2%} of the signal of samples {named} "
                f"of input {number} even where the mask is 0, so that their masks say little; choose "
                "perturbation='noise', 'fade' with baselines=, or a function of your own",
                NeutralMaskWarning,
                stacklevel=5,
            )
    return found


def mask_type(inputs: Tensor) -> torch.dtype:
    """Masks are float64 for inputs that are, else float32: half precision cannot tell their values apart."""
    return torch.promote_types(inputs.dtype, torch.float32)


def areas_of(areas: Any) -> tuple[list[Any], bool]:
    """The areas that are asked for, and whether several are: a tensor or an array without dimensions is one number."""
    areas = plain(areas)
    if isinstance(areas, (Tensor, np.ndarray)):
        return areas.flatten().tolist(), True
    if isinstance(areas, Sequence) and not isinstance(areas, str):
        return [plain(one) for one in areas], True
    return [areas], False


def checked_areas(areas: Any, like: Tensor) -> Tensor:
    """Areas in (0, 1) as a tensor ``(A,)`` in float64.

    Raises:
        LearnpropError: For none, or one out of range.
    """
    given, _ = areas_of(areas)
    if not given:
        raise LearnpropError("areas is empty: give at least one share of the input in (0, 1)")
    for area in given:
        if isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 < area < 1:
            raise LearnpropError(f"areas are shares of the input in (0, 1), got {area!r}")
    return torch.tensor([float(area) for area in given], dtype=torch.float64, device=like.device)


def rows_of_arguments(additional: tuple[Any, ...], samples: Tensor, batch: int) -> tuple[Any, ...]:
    """Further arguments of the model for some rows: tensors with an entry per sample go by sample."""
    return tuple(
        value[samples.to(value.device)] if isinstance(value, Tensor) and value.dim() and len(value) == batch else value
        for value in additional
    )
