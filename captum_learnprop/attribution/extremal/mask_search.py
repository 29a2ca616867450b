"""The search for masks of given areas under which a reward is highest, many rows at once.

Maximises ``reward(m) / scale - lambda R(m)`` by gradient steps on a mask's parameters, where ``R`` is the distance of
the sorted mask from one of exactly the wanted area (Fong, Patrick and Vedaldi, ICCV 2019). ``scale`` is how far the
reward of this row was seen to move, so that ``lambda`` means the same whatever the unit of the output. It grows: at
first the reward orders the mask, in the end the area decides. A row whose energy no longer rises is done and leaves
the batch. No row sees another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .mask_spaces import MaskSpace

FIRST_LAMBDA, LAST_LAMBDA = 3.0, 1000.0
RAMP = 0.48
"""Share of the steps in which lambda grows, geometrically."""

WARM_RAMP = 0.4
"""The same for a search that starts from a mask of another area, with lambda from `WARM_LAMBDA`."""

WARM_LAMBDA = 10.0

RATE, MOMENTUM = 0.03, 0.8
PATIENCE, LEAST_RISE = 15, 1e-3
"""A row is done when its energy rose by less than this, in units of the reward's scale, for so many steps."""

BENT = 0.2
"""The level that becomes one half in a finished mask is at least this far from 0 and 1."""

FLAT = 1e-5
"""A reward that moves by less than this share of its size, or of whose range the derivative to all parameters together
is less than this, does not tell masks from each other."""

Rewards = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""``(masks of each input (R, *shape), indices of the rows (R,)) -> rewards (R,)``."""


@dataclass
class FoundRows:
    """What a search found, by row.

    Attributes:
        masks: One tensor for each input, ``(R, *shape)``, in [0, 1].
        parameters: What they were made from, ``(R, *cells)`` each.
        rewards: Rewards of the masks, ``(R,)``.
        areas: Share of each input's mask above one half, ``(R, inputs)``.
        steps: Number of steps that were taken, ``(R,)``.
        converged: Whether the energy stopped rising, ``(R,)`` bool; of drawn rewards, whether all steps were taken.
        neutral: Rows whose reward does not depend on the mask: theirs is the wanted area everywhere, ``(R,)`` bool.
    """

    masks: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    rewards: Tensor
    areas: Tensor
    steps: Tensor
    converged: Tensor
    neutral: Tensor


def away_from_area(masks: Tensor, ones: Tensor) -> Tensor:
    """Masks ``(R, N)`` minus what their area wants them to be: 1 where the ``ones (R,)`` highest values are, else 0.

    The mean of its square is ``R``. Values that tie with the largest of the zeros are all drawn to 0: a constant mask
    is drawn down evenly.
    """
    edge = masks.new_full((len(masks), 1), -1.0)
    for count in ones.unique().tolist():
        rows = ones == count
        if count < masks.shape[1]:
            edge[rows] = masks[rows].kthvalue(masks.shape[1] - count, dim=1, keepdim=True).values
    return masks - (masks > edge).to(masks.dtype)


def ones_of(areas: Tensor, space: MaskSpace) -> Tensor:
    """Number of values that masks of some areas ``(R,)`` have at 1; at least one."""
    size = torch.Size(space.shape).numel()
    return (areas.double() * size).round().clamp(1, size).long()


def _levelled(masks: Tensor, ones: Tensor) -> Tensor:
    """Masks whose values are bent, 0 and 1 kept, so that as many as wanted lie above one half, if `BENT` allows."""
    ranked = masks.flatten(1).sort(1, descending=True).values
    inside = ranked.gather(1, ones[:, None] - 1)
    outside = ranked.gather(1, ones[:, None].clamp(max=ranked.shape[1] - 1))
    level = ((inside + outside) / 2).clamp(BENT, 1 - BENT).reshape(-1, *[1] * (masks.dim() - 1))
    return torch.where(masks < level, 0.5 * masks / level, 0.5 + 0.5 * (masks - level) / (1 - level))


@dataclass
class _SearchState:
    """The rows that are still searched for: their parameters, and what was seen of their rewards."""

    rows: Tensor
    parameters: list[Tensor]
    speed: list[Tensor]
    low: Tensor
    high: Tensor
    size: Tensor
    pull: Tensor
    energy: Tensor
    since: Tensor
    best: list[Tensor]
    averaged: int = 0

    def keep(self, which: Tensor) -> None:
        """Go on with some rows."""
        for name, value in vars(self).items():
            if isinstance(value, list):
                setattr(self, name, [each[which] for each in value])
            elif isinstance(value, Tensor):
                setattr(self, name, value[which])

    @property
    def scale(self) -> Tensor:
        """How far the reward was seen to move."""
        return self.high - self.low

    @property
    def flat(self) -> Tensor:
        """Rows whose reward was not seen to depend on the mask."""
        still = self.scale <= FLAT * self.size
        return still | (self.pull <= FLAT * self.scale)

    def see(self, rewards: Tensor, to_masks: Sequence[Tensor]) -> None:
        """How far the reward moves, and how much it depends on the masks."""
        self.low, self.high = torch.minimum(self.low, rewards), torch.maximum(self.high, rewards)
        self.size = torch.maximum(self.size, rewards.abs())
        pull = torch.stack([each.flatten(1).abs().sum(1) for each in to_masks]).sum(0)
        self.pull = torch.maximum(self.pull, pull.to(self.pull))

    def average(self, *, settled: bool) -> None:
        """Keep the mean of the parameters since lambda stopped growing: of drawn rewards the highest is luck."""
        self.averaged = self.averaged + 1 if settled else 1
        for kept, values in zip(self.best, self.parameters, strict=True):
            kept.lerp_(values.detach(), 1.0 / self.averaged)

    def judge(self, energy: Tensor, *, settled: bool) -> None:
        """Keep the parameters of the highest energy since lambda stopped growing; before that, the last ones."""
        better = energy > self.energy if settled else torch.ones_like(energy, dtype=torch.bool)
        if settled:
            self.since = torch.where(energy > self.energy + LEAST_RISE, 0, self.since + 1)
            self.energy = torch.where(better, energy, self.energy)
        for kept, values in zip(self.best, self.parameters, strict=True):
            kept[better] = values.detach()[better]


def search(
    reward: Rewards,
    spaces: Sequence[MaskSpace],
    areas: Tensor,
    *,
    like: Tensor,
    n_steps: int,
    start: Sequence[Tensor] | None = None,
    progress: tqdm | None = None,
    drawn: bool = False,
) -> FoundRows:
    """Masks of the wanted areas under which the reward is highest.

    Args:
        reward: A function that is differentiable in the masks.
        spaces: The space of each input's mask.
        areas: Share of every input's mask that is 1, ``(R,)``.
        like: A tensor of the type and on the device of masks.
        n_steps: Steps at most.
        start: Parameters to start from, one tensor for each input; ones by default.
        progress: A bar that gets a tick for each step of a row.
        drawn: Whether rewards are drawn, so that all steps are taken and masks are made from mean parameters.
    """
    count = len(areas)
    everything = torch.arange(count, device=like.device)
    found = [like.new_empty(count, *space.cells) for space in spaces]
    steps = torch.zeros(count, dtype=torch.long, device=like.device)
    converged, neutral = steps.bool(), steps.bool()
    state = _initial_state(reward, spaces, everything, like, start)
    first, share = (FIRST_LAMBDA, RAMP) if start is None else (WARM_LAMBDA, WARM_RAMP)
    ramp = max(1, round(share * n_steps))
    for step in range(n_steps):
        weight = first * (LAST_LAMBDA / first) ** min(1.0, step / ramp)
        _step(reward, spaces, areas[state.rows], state, weight, settled=step >= ramp, drawn=drawn)
        steps[state.rows] += 1
        if progress is not None:
            progress.update(len(state.rows))
        done = state.since >= PATIENCE
        if step == PATIENCE:
            done = done | state.flat
        if done.any():
            _store(found, converged, neutral, state, done, ended=True)
            state.keep(~done)
            if not len(state.rows):
                break
    if len(state.rows):
        _store(found, converged, neutral, state, torch.ones_like(state.rows, dtype=torch.bool), ended=drawn)
    with torch.no_grad():
        masks = [
            _levelled(space.masks(values), ones_of(areas, space)) for space, values in zip(spaces, found, strict=True)
        ]
        for values in (*masks, *found):
            values[neutral] = areas[neutral].to(values).reshape(-1, *[1] * (values.dim() - 1))
        rewards = reward(tuple(masks), everything).detach()
        hard = torch.stack([(each > 0.5).flatten(1).double().mean(1) for each in masks], 1)
    return FoundRows(tuple(masks), tuple(found), rewards, hard, steps, converged, neutral)


def _initial_state(
    reward: Rewards, spaces: Sequence[MaskSpace], rows: Tensor, like: Tensor, start: Sequence[Tensor] | None
) -> _SearchState:
    count = len(rows)
    if start is None:
        start = [like.new_ones(count, *space.cells) for space in spaces]
    with torch.no_grad():
        ends = [reward(tuple(like.new_full((count, *s.shape), v) for s in spaces), rows) for v in (0.0, 1.0)]
    nothing, whole = (end.detach().to(like.dtype) for end in ends)
    return _SearchState(
        rows=rows,
        parameters=[each.detach().clone() for each in start],
        speed=[torch.zeros_like(each) for each in start],
        low=torch.minimum(nothing, whole),
        high=torch.maximum(nothing, whole),
        size=torch.maximum(nothing.abs(), whole.abs()),
        pull=torch.zeros_like(nothing),
        energy=torch.full_like(nothing, -torch.inf),
        since=torch.zeros(count, dtype=torch.long, device=like.device),
        best=[each.detach().clone() for each in start],
    )


def _step(
    reward: Rewards,
    spaces: Sequence[MaskSpace],
    areas: Tensor,
    state: _SearchState,
    weight: float,
    *,
    settled: bool,
    drawn: bool,
) -> None:
    live = [values.requires_grad_() for values in state.parameters]
    with torch.enable_grad():
        masks = tuple(space.masks(values) for space, values in zip(spaces, live, strict=True))
        rewards = reward(masks, state.rows)
    to_masks = torch.autograd.grad(rewards, masks, torch.ones_like(rewards), materialize_grads=True)
    state.see(rewards.detach().to(state.low.dtype), to_masks)
    scale = torch.where(state.flat, torch.inf, state.scale)
    away = [
        away_from_area(each.detach().flatten(1), ones_of(areas, space)).reshape(each.shape)
        for each, space in zip(masks, spaces, strict=True)
    ]
    # The energy's derivative in units of what the area alone moves: a value is drawn by 2 (m - wanted), whatever
    # lambda, and by the reward less and less.
    downhill = [
        (2.0 * gap - to_mask * (gap[0].numel() / (weight * scale)).reshape(-1, *[1] * (gap.dim() - 1))) / space.share
        for gap, to_mask, space in zip(away, to_masks, spaces, strict=True)
    ]
    gradients = torch.autograd.grad(masks, live, downhill)
    distance = torch.stack([gap.flatten(1).square().mean(1) for gap in away]).mean(0)
    with torch.no_grad():
        if drawn:
            state.average(settled=settled)
        else:
            state.judge(rewards.detach() / scale - weight * distance, settled=settled)
        for values, speed, gradient in zip(state.parameters, state.speed, gradients, strict=True):
            speed.mul_(MOMENTUM).add_(gradient)
            values.requires_grad_(False).add_(speed, alpha=-RATE).clamp_(0.0, 1.0)


def _store(
    found: list[Tensor], converged: Tensor, neutral: Tensor, state: _SearchState, which: Tensor, *, ended: bool
) -> None:
    rows = state.rows[which]
    for place, values in zip(found, state.best, strict=True):
        place[rows] = values[which]
    flat = state.flat[which]
    neutral[rows] = flat
    converged[rows] = ended & ~flat
