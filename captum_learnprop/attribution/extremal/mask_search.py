"""The search for masks of given areas under which a reward is highest, many rows at once.

Solves ``max_m reward(m)`` over masks of area ``a`` (Fong, Patrick and Vedaldi, ICCV 2019). Where the paper pulls at the
area by a penalty, every mask here has it exactly (see `areas`), so that a step follows the reward alone, by a gradient
whose length does not count: there is no weight to choose, and the unit of the output does not matter. A round begins
with soft masks of nearly the whole input (a deletion's: of nearly nothing), whose area goes to the wanted one while
their edges harden. Further rounds go on from the best mask, by turns softened a little, and softened much from a larger
area; the best mask of all is what is found. More steps are more rounds after the same ones. No sample sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .areas import Edges, ones_of
from .mask_spaces import FreeMasks, MaskSpace
from .swaps import Rewards, best_swaps, binary

ROUND, NEXT_ROUND = 100, 50
"""Steps of the first round, and of each after it."""

MOVED, SETTLED = 0.5, 0.8
"""Shares of a round: after the first the area is the wanted one, after the second edges are as hard as in the end."""

SOFT = 20.0
"""How much softer edges may be when the first round begins."""

AGAIN = ((1.0, 1.5), (1.5, 5.0))
"""Further rounds by turns: area that they begin with, in units of the wanted one, and how much softer edges may be. The
gentle ones climb on from where the search is, the others leave it for another place."""

MOST = 0.98
"""Area that the first round begins with; a deletion begins with 1 less this."""

RATE, MOMENTUM = 0.1, 0.8
"""Step of a parameter in [0, 1], for a gradient whose root mean square is 1, and share of the last steps in it."""

LEAST_RISE = 0.01
"""A round found something better if the reward rose by this share of how far it was seen to move."""

EARLY = 15
"""Steps after which a reward is known not to depend on the mask."""

FLAT = 1e-5
"""A reward that moves by less than this share of its size, or of whose range the derivative to all parameters together
is less than this, does not tell masks from each other."""


@dataclass
class FoundRows:
    """What a search found, by row.

    Attributes:
        masks: One tensor for each input, ``(R, *shape)``, in [0, 1].
        parameters: What they were made from, ``(R, *cells)`` each.
        rewards: Rewards of the masks, ``(R,)``.
        areas: Share of each input's mask above one half, ``(R, inputs)``.
        steps: Number of steps that were taken, ``(R,)``.
        converged: Whether the last round found no better mask, ``(R,)`` bool; of drawn rewards, whether all steps were
            taken.
        neutral: Rows whose reward does not depend on the mask: theirs is the wanted area everywhere, ``(R,)`` bool.
    """

    masks: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    rewards: Tensor
    areas: Tensor
    steps: Tensor
    converged: Tensor
    neutral: Tensor

    def replace(self, row: int, other: FoundRows) -> None:
        """Put the only row of another search in the place of one row."""
        for name, value in vars(self).items():
            new = getattr(other, name)
            pairs = zip(value, new, strict=True) if isinstance(value, tuple) else [(value, new)]
            for place, one in pairs:
                place[row] = one[0]


@dataclass
class _Best:
    """The best masks seen, their rewards, and how far rewards were seen to move, by row."""

    masks: list[Tensor]
    parameters: list[Tensor]
    rewards: Tensor
    low: Tensor
    high: Tensor
    size: Tensor
    pull: Tensor

    @property
    def flat(self) -> Tensor:
        """Rows whose reward was not seen to depend on the mask."""
        scale = self.high - self.low
        return (scale <= FLAT * self.size) | (self.pull <= FLAT * scale)

    def see(self, rows: Tensor, rewards: Tensor, to_masks: Sequence[Tensor]) -> None:
        """How far the reward moves, and how much it depends on the masks."""
        self.low[rows] = torch.minimum(self.low[rows], rewards)
        self.high[rows] = torch.maximum(self.high[rows], rewards)
        self.size[rows] = torch.maximum(self.size[rows], rewards.abs())
        pull = torch.stack([each.flatten(1).abs().sum(1) for each in to_masks]).sum(0)
        self.pull[rows] = torch.maximum(self.pull[rows], pull.to(self.pull))

    def keep(self, rows: Tensor, rewards: Tensor, masks: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        """Keep what is better than before."""
        better = rewards > self.rewards[rows]
        at = rows[better]
        self.rewards[at] = rewards[better]
        for places, values in ((self.masks, masks), (self.parameters, parameters)):
            for place, value in zip(places, values, strict=True):
                place[at] = value[better]


def search(
    reward: Rewards,
    spaces: Sequence[MaskSpace],
    areas: Tensor,
    *,
    like: Tensor,
    n_steps: int,
    start: Sequence[Tensor] | None = None,
    start_areas: Tensor | None = None,
    samples: Tensor | None = None,
    at_least: Tensor | None = None,
    progress: tqdm | None = None,
    drawn: bool = False,
    growing: bool = False,
) -> FoundRows:
    """Masks of the wanted areas under which the reward is highest.

    Args:
        reward: A function that is differentiable in the masks.
        spaces: The space of each input's mask.
        areas: Share of every input's mask that lies above one half, ``(R,)``.
        like: A tensor of the type and on the device of masks.
        n_steps: Steps at most.
        start: Parameters to go on from, one tensor for each input; the first round is then one of those that follow.
        start_areas: Areas of what is gone on from, ``(R,)``: that round begins with them.
        samples: The sample of each row, ``(R,)``: a row whose reward is below that of a smaller area of the same
            sample goes on from the smaller area's mask. None: no row sees another.
        at_least: Rewards ``(R,)`` below which a search goes on although a round found nothing better.
        progress: A bar that gets a tick for each step of a row.
        drawn: Whether rewards are drawn: all steps are one round, and masks are made from its mean parameters.
        growing: Whether areas come from below, not from above.
    """
    best = _ends(reward, spaces, areas, like)
    steps = torch.zeros(len(areas), dtype=torch.long, device=like.device)
    converged = torch.full_like(areas, drawn, dtype=torch.bool)
    live, taken, rounds = torch.arange(len(areas), device=like.device), 0, 0
    while len(live) and taken < n_steps:
        first = taken == 0 and start is None
        length = n_steps - taken if drawn else min(ROUND if first else NEXT_ROUND, n_steps - taken)
        before = best.rewards[live].clone()
        if first:
            begin = [like.new_full((len(live), *space.cells), 0.5) for space in spaces]
        else:
            given = start is not None and taken == 0
            source = live if given or samples is None else _better_smaller(samples, areas, best.rewards)[live]
            begin = [each[source] for each in (start if start is not None and given else best.parameters)]
        again = None if first else AGAIN[rounds % len(AGAIN)]
        one = _Round(reward, spaces, areas, live, begin, best, length, again=again, growing=growing, drawn=drawn)
        if start_areas is not None and taken == 0:
            one.from_area = start_areas[live].to(one.from_area)
        elif not first:
            one.from_area = torch.where(source == live, one.from_area, areas[source])
        rounds += not first
        steps[live] += one.run(progress)
        taken += length
        if not first and not drawn:
            rose = best.rewards[live] - before
            converged[live] = rose <= LEAST_RISE * (best.high - best.low)[live]
        done = converged if at_least is None else converged & (best.rewards >= at_least)
        live = live[~(done | best.flat)[live]] if not drawn else live[:0]
    return _finished(reward, spaces, areas, best, steps, converged & ~best.flat, drawn=drawn)


def _better_smaller(samples: Tensor, areas: Tensor, rewards: Tensor) -> Tensor:
    """The row to go on from, ``(R,)``: that of the same sample, not of a larger area, that has the highest reward."""
    allowed = (samples[:, None] == samples) & (areas <= areas[:, None])
    best = torch.where(allowed, rewards, -torch.inf)
    own = torch.arange(len(areas), device=areas.device)
    top = best.max(1)
    return torch.where(top.values > rewards, top.indices, own)


def _ends(reward: Rewards, spaces: Sequence[MaskSpace], areas: Tensor, like: Tensor) -> _Best:
    """Nothing found yet, but how far the reward moves from nothing to everything."""
    count = len(areas)
    rows = torch.arange(count, device=like.device)
    with torch.no_grad():
        ends = [reward(tuple(like.new_full((count, *s.shape), v) for s in spaces), rows) for v in (0.0, 1.0)]
    nothing, whole = (end.detach().to(like.dtype) for end in ends)
    return _Best(
        masks=[like.new_zeros(count, *space.shape) for space in spaces],
        parameters=[like.new_zeros(count, *space.cells) for space in spaces],
        rewards=torch.full_like(nothing, -torch.inf),
        low=torch.minimum(nothing, whole),
        high=torch.maximum(nothing, whole),
        size=torch.maximum(nothing.abs(), whole.abs()),
        pull=torch.zeros_like(nothing),
    )


class _Round:
    """Steps from soft masks of another area to hard ones of the wanted area."""

    def __init__(
        self,
        reward: Rewards,
        spaces: Sequence[MaskSpace],
        areas: Tensor,
        rows: Tensor,
        begin: list[Tensor],
        best: _Best,
        length: int,
        *,
        again: tuple[float, float] | None,
        growing: bool,
        drawn: bool,
    ) -> None:
        self.reward, self.spaces, self.rows, self.best = reward, spaces, rows, best
        self.length, self.first, self.drawn = length, again is None, drawn
        self.wanted = areas[rows]
        if again is None:
            self.softness, self.from_area = SOFT, torch.full_like(self.wanted, 1 - MOST if growing else MOST)
        else:
            wider, self.softness = again
            self.from_area = self.wanted / wider if growing else (self.wanted * wider).clamp(max=MOST)
        self.parameters = begin
        self.speed = [torch.zeros_like(each) for each in begin]
        self.edges = [Edges(space.shape, len(rows), begin[0]) for space in spaces]
        self.mean, self.averaged = [each.clone() for each in begin], 0

    def run(self, progress: tqdm | None) -> int:
        """Take the steps; returns their number."""
        for step in range(self.length):
            self._step(step)
            if progress is not None:
                progress.update(len(self.rows))
            if step == EARLY and bool(self.best.flat[self.rows].all()):
                return step + 1
        if self.drawn:
            self._keep_mean()
        return self.length

    def _step(self, step: int) -> None:
        moved = min(1.0, step / (MOVED * self.length))
        hardened = min(1.0, step / (SETTLED * self.length))
        areas = self.from_area * (self.wanted / self.from_area) ** moved
        softness = self.softness ** (1.0 - hardened)
        masks = self._masks(areas, softness, untouched=self.first and step == 0)
        live = tuple(mask.requires_grad_() for mask in masks)
        with torch.enable_grad():
            rewards = self.reward(live, self.rows)
        to_masks = torch.autograd.grad(rewards, live, torch.ones_like(rewards), materialize_grads=True)
        rewards = rewards.detach().to(self.best.low)
        self.best.see(self.rows, rewards, to_masks)
        if not self.drawn and (hardened == 1.0 or step == self.length - 1):
            self.best.keep(self.rows, rewards, [mask.detach() for mask in live], self.parameters)
        if self.drawn and moved == 1.0:
            self.averaged += 1
            for kept, values in zip(self.mean, self.parameters, strict=True):
                kept.lerp_(values, 1.0 / self.averaged)
        for space, edges, to_mask, values, speed in zip(
            self.spaces, self.edges, to_masks, self.parameters, self.speed, strict=True
        ):
            uphill = space.to_parameters(edges.to_fields(to_mask))
            speed.mul_(MOMENTUM).add_(_of_length_one(uphill), alpha=1 - MOMENTUM)
            values.add_(speed, alpha=RATE).clamp_(0.0, 1.0)

    def _masks(self, areas: Tensor, softness: float, *, untouched: bool) -> tuple[Tensor, ...]:
        """Masks of the parameters; at the first step nothing tells places apart, and they are constant."""
        if untouched:
            return tuple(edges.constant(areas) for edges in self.edges)
        return tuple(
            edges.masks(space.fields(values), areas, softness)
            for space, edges, values in zip(self.spaces, self.edges, self.parameters, strict=True)
        )

    def _keep_mean(self) -> None:
        """Make masks of the mean parameters since the area was reached: of drawn rewards the highest is luck."""
        values = self.mean if self.averaged else self.parameters
        for _ in range(20):  # until the steepness has followed the mean, which no step has seen
            masks = [
                edges.masks(space.fields(each), self.wanted, 1.0)
                for space, edges, each in zip(self.spaces, self.edges, values, strict=True)
            ]
        self.best.keep(self.rows, torch.zeros_like(self.best.rewards[self.rows]), masks, values)


def _of_length_one(gradient: Tensor) -> Tensor:
    """Gradients ``(R, ...)`` whose root mean square is 1, or 0 where there are none."""
    size = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    size = size.reshape(-1, *[1] * (gradient.dim() - 1))
    scaled = gradient / size
    return scaled / scaled.flatten(1).square().mean(1).sqrt().clamp(min=1e-6).reshape(size.shape)


def _finished(
    reward: Rewards,
    spaces: Sequence[MaskSpace],
    areas: Tensor,
    best: _Best,
    steps: Tensor,
    converged: Tensor,
    *,
    drawn: bool,
) -> FoundRows:
    """The best masks, those without order made of zeros and ones, and neutral ones where nothing matters."""
    neutral = best.flat
    everything = torch.arange(len(areas), device=areas.device)
    for number, space in enumerate(spaces):
        if isinstance(space, FreeMasks):
            best.masks[number] = binary(best.masks[number], ones_of(areas, space.shape))
    if not drawn:
        best.masks = best_swaps(reward, spaces, best.masks, everything[~neutral])
    with torch.no_grad():
        for values in (*best.masks, *best.parameters):
            values[neutral] = areas[neutral].to(values).reshape(-1, *[1] * (values.dim() - 1))
        rewards = reward(tuple(best.masks), everything).detach()
        hard = torch.stack([(each > 0.5).flatten(1).double().mean(1) for each in best.masks], 1)
    return FoundRows(tuple(best.masks), tuple(best.parameters), rewards, hard, steps, converged, neutral)
