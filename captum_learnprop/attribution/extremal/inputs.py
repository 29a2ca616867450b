"""ExtremalPerturbation: the smooth mask of a given area under which a model's output is highest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor, nn

from zennit_rules.core.scalars import plain

from ..._compat import _format_output
from ...errors import LearnpropError
from ...forward import output_of
from ...maps import per_axis, smooth
from ...training.pass_by_rules import in_training_mode, left_as_found
from ..checked_inputs import checked_inputs
from ..rewards import Reward
from ..shown import ShownAsCall, numbers_text
from .found_masks import ExtremalMasks, NeutralMaskWarning
from .mask_parts import Parts
from .mask_spaces import SIGMA, STEP, FreeMasks, MaskSpace, SmoothMasks
from .options import DEFAULT_STEPS, SearchOptions
from .perturbations import Perturbation, perturbation_of
from .rows import (
    Rows,
    areas_of,
    checked_areas,
    mask_type,
    rows_of_arguments,
    warn_of_small_changes,
)

SEARCHED_AREAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
"""Areas of the curve that an extremal area is looked for on, before halving."""


@dataclass(frozen=True, repr=False)
class ExtremalArea:
    """The smallest area that suffices, and how the output grows with the area.

    Attributes:
        area: Share of the input, ``(B,)``; NaN where no area of the curve suffices.
        mask: One mask for each input, ``(B, 1, *spatial)`` or ``(B, F)``: that of the extremal area, or of the largest
            area where none suffices.
        curve_areas: Areas that were tried, ``(B, P)``, ascending.
        curve: What of the reward is preserved at each, ``(reward - empty) / (original - empty)``, ``(B, P)``.
        share: The share of the reward that was asked for.
    """

    area: Tensor
    mask: tuple[Tensor, ...]
    curve_areas: Tensor
    curve: Tensor
    share: float

    def __repr__(self) -> str:
        tried = self.curve_areas.shape[1]
        return f"ExtremalArea(area=[{numbers_text(self.area)}], share={self.share:g}, areas tried: {tried})"


class ExtremalPerturbation(ShownAsCall, PerturbationAttribution):
    """The smooth mask of a given area that keeps the output highest (or, deleted, lowers it most).

    For each sample and area ``a`` it maximises ``reward(model(x under m))`` over smooth masks ``m`` of area ``a``,
    all samples and areas in one batch. A mask keeps the places where a smooth field, a Gaussian's mean over a coarse
    grid, is highest: exactly the wanted share lies above one half. A search has rounds, each from soft masks of another
    area to hard ones of the wanted area; the best mask seen is returned, so more steps never find a worse one.

    Source: Fong, Patrick and Vedaldi, "Understanding Deep Networks via Extremal Perturbations and Smooth Masks", ICCV
    2019 (https://arxiv.org/abs/1910.08485), for the problem. The paper's masks are maxima of a kernel, and a penalty
    pulls them to their area; the fields, the exact area, the rounds and the exchanges at the end of a search over
    values without order are ours.

    Warning:
        A mask is found *against* the model: it can be evidence that only this model sees. It says which region
        suffices, not what each pixel is worth.

    Args:
        model: An ``nn.Module`` or any differentiable function of the inputs; returned untouched from every call.
        multiply_by_inputs: Whether `attribute` returns contributions: masks times what the perturbation takes away
            where they are 0 (the input minus the baseline, minus its blur, or, for ``"noise"``, minus the median of
            each channel). A mask says where the evidence is, its contribution what of the input that is, to the pixel.
    """

    def __init__(self, model: nn.Module | Callable[..., Tensor], multiply_by_inputs: bool = False) -> None:
        if not callable(model):
            raise LearnpropError(f"ExtremalPerturbation needs a model or function, got {type(model).__name__}")
        super().__init__(model)
        self.model = model
        self.multiply_by_inputs = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether `attribute` returns contributions, not masks."""
        return self.multiply_by_inputs

    @log_usage()
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        areas: float | Sequence[float] | Tensor = 0.1,
        variant: str = "preserve",
        reward: str | Reward = "logit",
        perturbation: str | Callable[[Tensor, Tensor], Tensor] | None = None,
        baselines: Any = None,
        parts: bool = False,
        draws: int = 1,
        soften: float = 0.0,
        n_steps: int = DEFAULT_STEPS,
        step: float = STEP,
        sigma: float = SIGMA,
        internal_batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
        return_masks: bool = False,
    ) -> Any:
        """Masks of some areas.

        Args:
            inputs: ``(B, C, *spatial)`` with one to three dimensions of space, ``(B, F)``, or a tuple of them; each
                input gets a mask of its own, of the same area.
            target: Explained entry of the output, by captum's conventions.
            additional_forward_args: Further arguments of the model; tensors with B entries go by sample.
            areas: Share of the input that a mask keeps, in (0, 1); or several.
            variant: ``"preserve"``: the output under the mask is high; ``"delete"``: with the mask's area removed it is
                low; ``"dual"``: both.
            reward: ``"logit"``, ``"contrastive"`` (above the best other class), ``"probability"``, or a function
                ``(output (R, ...), target of the rows) -> (R,)``.
            perturbation: ``"blur"``, ``"fade"`` (to ``baselines``), ``"noise"`` (random colours, drawn anew at every
                step: the mask cannot rely on its surroundings), or a function ``(inputs (R, ...), masks (R, 1,
                *spatial)) -> (R, ...)``. None: fade where ``baselines`` are given or the input has no space, else blur.
            baselines: What fading ends at: number or tensor, or a tuple of one per input; 0 by default.
            parts: At every step only a random part of the mask counts, so that each piece of it has to help whichever
                others are there. With few draws a mask may keep to one piece.
            draws: Rewards that each step is the mean of, where parts or ``"noise"`` are drawn; each costs a pass. Each
                area draws numbers of its own.
            soften: Standard deviation of a Gaussian that finished masks are smoothed by, as a fraction of the sides
                (see `per_axis`). Where a mask ends is less certain than where it is: a mean over areas ranks pixels
                better if masks end softly. Masks without space stay as they are; so do those of ``return_masks``.
            n_steps: Steps at most; rows of which a further round finds no better mask leave earlier.
            step: Distance of the mask's grid cells, as a fraction of the sides (see `per_axis`); at least one pixel.
            sigma: Standard deviation of the Gaussian that makes masks smooth, as a fraction of the sides (see
                `per_axis`).
            internal_batch_size: Rows (sample and area; twice as many inputs for ``"dual"``) that run together.
            seed: Where the random numbers of ``"noise"``, ``parts`` and models that draw begin; 0 by default.
            show_progress: Draw a progress bar.
            return_masks: Also return an `ExtremalMasks` with realised areas, rewards and steps.

        Returns:
            Masks in [0, 1] in the container of ``inputs``: ``(B, 1, *spatial)`` for one area, ``(B, A, *spatial)`` for
            a sequence of A. For inputs ``(B, F)``: ``(B, F)`` for one area, ``(B, A, F)`` for a sequence. With
            ``multiply_by_inputs``, signed contributions ``(B, C, *spatial)`` or ``(B, A, C, *spatial)``.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: For options out of range, inputs that are not finite, and the like.
        """
        options = SearchOptions(
            variant=variant, reward=reward, perturbation=perturbation, baselines=baselines, n_steps=n_steps, step=step,
            sigma=sigma, internal_batch_size=internal_batch_size, parts=parts, draws=draws, seed=seed,
        )  # fmt: skip
        soften = plain(soften)
        tensors, rows = self._rows(inputs, target, additional_forward_args, options)
        if isinstance(soften, bool) or not isinstance(soften, (int, float)) or not 0 <= soften < 1:
            raise LearnpropError(f"soften is a fraction of the image's side in [0, 1), got {soften!r}")
        wanted = checked_areas(areas, tensors[0])
        with undisturbed(self.model, options.seed):
            areas_of_all = wanted.expand(len(tensors[0]), -1)
            found = rows.masks(areas_of_all, show_progress=show_progress, describe="extremal masks")
        _, several = areas_of(areas)
        masks = tuple(
            _softened(mask, soften) if x.dim() > 2 else mask for x, mask in zip(tensors, found.masks, strict=True)
        )
        if self.multiply_by_inputs:
            maps = rows.contributions(masks)
            maps = maps if several else tuple(each[:, 0] for each in maps)
        else:
            maps = tuple(mask if x.dim() > 2 or several else mask[:, 0] for x, mask in zip(tensors, masks, strict=True))
        formatted = _format_output(isinstance(inputs, tuple), maps)
        return (formatted, found) if return_masks else formatted

    def extremal_area(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        share: float = 0.9,
        areas: Sequence[float] = SEARCHED_AREAS,
        halvings: int = 3,
        reward: str | Reward = "logit",
        perturbation: str | Callable[[Tensor, Tensor], Tensor] | None = None,
        baselines: Any = None,
        n_steps: int = DEFAULT_STEPS,
        step: float = STEP,
        sigma: float = SIGMA,
        internal_batch_size: int | None = None,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> ExtremalArea:
        """The smallest area whose preserved output reaches a share of the original.

        The output counts from that of the input perturbed everywhere: an area suffices when ``(reward - empty) >= share
        (original - empty)``. All areas are tried in one batch; then the gap between the smallest that suffices and the
        next smaller one is halved for every sample, each time starting from the smallest mask that suffices.

        Args:
            inputs: ``(B, C, *spatial)``, ``(B, F)``, or a tuple of them, as in `attribute`.
            target: Explained entry of the output, by captum's conventions.
            additional_forward_args: Further arguments of the model; tensors with B entries go by sample.
            share: Share of the original reward that must be reached, above 0.
            areas: Areas of the curve, in (0, 1).
            halvings: Number of times that the gap is halved.
            reward: A name or a function, as in `attribute`.
            perturbation: A name, a function or None, as in `attribute`.
            baselines: What fading ends at; 0 by default.
            n_steps: Steps at most; half as many after each halving.
            step: Distance of the mask's grid cells, as a fraction of the sides.
            sigma: Width of the mask's kernel, as a fraction of the sides.
            internal_batch_size: Rows (sample and area) that run together; all by default.
            seed: Where random numbers begin; 0 by default.
            show_progress: Draw a progress bar.

        Returns:
            The areas ``(B,)``, their masks and the curves ``(B, P)``.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: For options out of range, inputs that are not finite, and the like.
        """
        share, halvings = plain(share), plain(halvings)
        if not share > 0:
            raise LearnpropError(f"share must be above 0, got {share!r}")
        if isinstance(halvings, bool) or not isinstance(halvings, int) or halvings < 0:
            raise LearnpropError(f"halvings must be an integer of at least 0, got {halvings!r}")
        options = SearchOptions(
            reward=reward, perturbation=perturbation, baselines=baselines, n_steps=n_steps, step=step, sigma=sigma,
            internal_batch_size=internal_batch_size, seed=seed,
        )  # fmt: skip
        tensors, rows = self._rows(inputs, target, additional_forward_args, options)
        ladder = checked_areas(areas, tensors[0]).unique()
        with undisturbed(self.model, options.seed):
            return _narrowed(rows, ladder, share=share, halvings=halvings, show_progress=show_progress)

    def attribute_future(self) -> None:
        """Not implemented, as in captum's own methods."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

    def _rows(
        self, inputs: Any, target: Any, additional_forward_args: Any, options: SearchOptions
    ) -> tuple[tuple[Tensor, ...], Rows]:
        """Checked inputs and the rows to search."""
        given, additional = checked_inputs(self.model, inputs, additional_forward_args)
        tensors = tuple(x.detach() for x in given)
        like = tensors[0].new_empty(0, dtype=mask_type(tensors[0]))
        spaces = tuple(space_of(x, options.step, options.sigma, like) for x in tensors)
        ends = options.baselines if isinstance(options.baselines, tuple) else (options.baselines,) * len(tensors)
        if len(ends) != len(tensors):
            raise LearnpropError(f"{len(ends)} baselines for {len(tensors)} inputs; give one for each")
        seed = options.seed or 0
        changed: list[Perturbation] = [
            perturbation_of(options.perturbation, x, end, seed) for x, end in zip(tensors, ends, strict=True)
        ]
        weak = warn_of_small_changes(tensors, changed)

        def masked(masks: tuple[Tensor, ...], samples: Tensor, streams: Tensor) -> Tensor:
            inputs = tuple(change(mask, samples, streams) for change, mask in zip(changed, masks, strict=True))
            own = rows_of_arguments(additional, samples, len(tensors[0]))
            return output_of(self.forward_func, inputs, own, model=self.model)

        parts = Parts([space.shape for space in spaces], [x.dim() > 2 for x in tensors], seed)
        rows = Rows(
            masked=masked,
            spaces=spaces,
            samples=len(tensors[0]),
            like=like,
            target=target,
            reward=options.reward_function,
            options=options,
            perturbations=tuple(changed),
            parts=parts if options.parts else None,
            weak=weak,
        )
        return tensors, rows


def undisturbed(model: Any, seed: int | None) -> AbstractContextManager[None]:
    """A context that leaves a model's buffers and torch's random numbers as they were; a mere function may draw."""
    return left_as_found(model, seed=seed, draws=not isinstance(model, nn.Module) or in_training_mode(model))


def space_of(inputs: Tensor, step: float, sigma: float, like: Tensor) -> MaskSpace:
    """The masks that one input ``(B, C, *spatial)`` or ``(B, F)`` may have: smooth ones over space, else free ones.

    Raises:
        LearnpropError: For fractions ``step`` or ``sigma`` out of range, or more than three dimensions of space.
    """
    if inputs.dim() < 3:
        return FreeMasks(tuple(inputs.shape[1:]))
    return SmoothMasks(tuple(inputs.shape[2:]), step, sigma, like)


def _narrowed(rows: Rows, ladder: Tensor, *, share: float, halvings: int, show_progress: bool) -> ExtremalArea:
    """The extremal area: by a ladder of areas, then by halves.

    Masks of the ladder are searched from the start, since a small mask found from a larger one's misses better ones;
    halves go on from the smallest mask that suffices.
    """
    wide = rows.masks(ladder.expand(rows.samples, -1), show_progress=show_progress, describe="extremal areas")
    curve = list(wide.preserved(wide.rewards).unbind(1))
    areas = [area.expand(rows.samples) for area in ladder.unbind()]
    enough = torch.stack(curve, 1) >= share
    first = torch.where(enough.any(1), enough.double().argmax(1), len(ladder) - 1)
    everyone = torch.arange(rows.samples, device=rows.like.device)
    best = torch.where(enough.any(1), ladder[first], torch.nan)
    below = torch.where(first > 0, ladder[(first - 1).clamp(min=0)], 0.0)
    masks = tuple(mask[everyone, first] for mask in wide.masks)
    start = tuple(each[everyone, first] for each in wide.parameters)
    for _ in range(halvings if bool(enough.any()) else 0):
        middle = ((below + best) / 2).nan_to_num(float(ladder[-1]))
        found = rows.search(everyone, middle, n_steps=max(1, rows.options.n_steps // 2), start=start)
        areas.append(middle)
        curve.append(wide.preserved(found.rewards))
        suffices = (curve[-1] >= share) & ~best.isnan()
        best, below = torch.where(suffices, middle, best), torch.where(suffices, below, middle)
        masks = tuple(_chosen(suffices, new, old) for new, old in zip(found.masks, masks, strict=True))
        start = tuple(_chosen(suffices, new, old) for new, old in zip(found.parameters, start, strict=True))
    order = torch.stack(areas, 1).argsort(stable=True, dim=1)
    return ExtremalArea(
        area=torch.where(wide.neutral.any(1), torch.nan, best),
        mask=tuple(
            mask if isinstance(space, FreeMasks) else mask[:, None]
            for mask, space in zip(masks, rows.spaces, strict=True)
        ),
        curve_areas=torch.stack(areas, 1).gather(1, order),
        curve=torch.stack(curve, 1).gather(1, order),
        share=share,
    )


def _softened(masks: Tensor, sigma: float) -> Tensor:
    """Masks ``(B, A, *spatial)`` smoothed by a fraction of the sides (see `per_axis`)."""
    return smooth(masks.flatten(0, 1), per_axis(sigma, masks.shape[2:])).reshape(masks.shape)


def _chosen(which: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(which.reshape(-1, *[1] * (new.dim() - 1)), new, old)


__all__ = ["DEFAULT_STEPS", "ExtremalArea", "ExtremalMasks", "ExtremalPerturbation", "NeutralMaskWarning"]
