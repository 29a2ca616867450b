"""Fills: what stands where a mask removes the input.

Every fill is made of the row's own input and of the row's own random numbers, so it does not depend on the batch. The
network answers to the fill too: train with several, and leave out the ones an evaluation will use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import per_axis, smooth
from zennit_rules._moved import renamed

BLUR = 1 / 8
"""The standard deviation of ``"blur"`` as a share of the sides (see `per_axis`): parts of objects are gone, the light
stays."""

NOISE = 0.5
"""The largest standard deviation of ``"noise"`` as a share of each channel's range; as in occlusion regression."""


@dataclass(frozen=True)
class FillDraw:
    """The random numbers that fills of ``B`` rows are made from.

    Attributes:
        colour: ``(B, C)``, uniform in [0, 1).
        strength: ``(B,)``, uniform in [0, 1).
        noise: ``(B, C, *spatial)``, standard normal.

    Of a table, C is the number of features.
    """

    colour: Tensor
    strength: Tensor
    noise: Tensor

    def __getitem__(self, rows: Tensor) -> FillDraw:
        """Returns the numbers of the rows that an index or bool tensor selects."""
        return FillDraw(self.colour[rows], self.strength[rows], self.noise[rows])


Fill = Callable[[Tensor, FillDraw], Tensor]
"""A function ``(inputs (B, C, *spatial), draw) -> (B, C, *spatial)`` that sees one row at a time."""


def zero(inputs: Tensor, draw: FillDraw) -> Tensor:
    """Returns 0, which is black, grey or the data's mean, depending on how inputs were normalised."""
    return torch.zeros_like(inputs)


def mean(inputs: Tensor, draw: FillDraw) -> Tensor:
    """Returns each channel's mean over space; for a table each row's mean."""
    return inputs.mean(_space(inputs), keepdim=True).expand_as(inputs)


def blur(inputs: Tensor, draw: FillDraw) -> Tensor:
    """Returns the input after a Gaussian blur of `BLUR` times the sides (see `per_axis`); tables have none."""
    return smooth(inputs.flatten(0, 1), per_axis(BLUR, inputs.shape[2:])).reshape(inputs.shape)


def colour(inputs: Tensor, draw: FillDraw) -> Tensor:
    """Returns one random colour, each channel uniform between its lowest and highest value in the input.

    Each feature of a table is uniform between the lowest and highest value of its row.
    """
    low, high = _range(inputs)
    return (low + (high - low) * _broadcast(draw.colour, inputs)).expand_as(inputs)


def noise(inputs: Tensor, draw: FillDraw) -> Tensor:
    """Returns a random colour plus normal noise of random strength up to `NOISE`, within each channel's range."""
    low, high = _range(inputs)
    share = _broadcast(draw.colour, inputs) + NOISE * _broadcast(draw.strength[:, None], inputs) * draw.noise
    return low + (high - low) * share.clamp(0.0, 1.0)


def shuffle(inputs: Tensor, draw: FillDraw) -> Tensor:
    """Returns the input's pixels in random order: its colours without its shapes. Channels stay together."""
    if inputs.dim() == 2:
        return inputs.gather(1, draw.noise.argsort(1))
    order = draw.noise[:, :1].flatten(2).argsort(2).expand(-1, inputs.shape[1], -1)
    return inputs.flatten(2).gather(2, order).reshape(inputs.shape)


FILLS: dict[str, Fill] = {
    "colour": colour,
    "noise": noise,
    "mean": mean,
    "shuffle": shuffle,
    "zero": zero,
    "blur": blur,
}
"""The fills by their names."""


def fill_names(fills: str | tuple[str, ...] = "random", exclude: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Returns the names of the fills to draw from.

    Args:
        fills: ``"random"`` for all in `FILLS`, one name or several.
        exclude: Fills that must not be used, for example because an evaluation uses them.

    Raises:
        LearnpropError: A name is unknown, or asked for and excluded, or nothing is left.
    """
    asked = (fills,) if isinstance(fills, str) and fills != "random" else fills
    names = tuple(name for name in FILLS if name not in exclude) if asked == "random" else tuple(asked)
    for name in (*names, *exclude):
        if name not in FILLS:
            raise LearnpropError(f"unknown fill {name!r}; choose 'random' or from {', '.join(FILLS)}")
    if clash := [name for name in names if name in exclude]:
        raise LearnpropError(f"fill {clash[0]!r} is asked for and excluded; take it out of exclude={exclude!r} or fill")
    if not names:
        raise LearnpropError(f"no fill is left: fill={fills!r}, exclude={exclude!r}")
    return names


def random_fill(
    inputs: Tensor,
    names: tuple[str, ...],
    uniform: Callable[..., Tensor],
    normal: Callable[..., Tensor],
) -> Tensor:
    """Returns a fill for each row, of a kind drawn from ``names``: ``(B, C, *spatial)``.

    It draws the same numbers whatever the kind, so that the draws that follow do not depend on it.

    Args:
        inputs: Images ``(B, C, *spatial)``, or a table ``(B, F)``.
        names: Some of `FILLS`; a name that comes twice is drawn twice as often.
        uniform: Draws ``(B, *shape)`` in [0, 1) for a shape, as `Batch.uniform` does.
        normal: Draws ``(B, *shape)`` standard normal for a shape, as `Batch.normal` does.

    Raises:
        LearnpropError: The inputs have no features, or cannot have one of the fills.
    """
    if inputs.dim() < 2:
        raise LearnpropError(f"inputs must be (B, C, *spatial) or (B, F), got {tuple(inputs.shape)}")
    if inputs.dim() == 2 and "blur" in names:
        raise LearnpropError("fill 'blur' needs neighbours, which features of a table (B, F) do not have: exclude it")
    kind = (uniform() * len(names)).long().clamp(max=len(names) - 1)
    channels = inputs.shape[1]
    draw = FillDraw(uniform(channels), uniform(), normal(*inputs.shape[1:]))
    filled = torch.empty_like(inputs)
    for index, name in enumerate(names):
        rows = kind == index
        if rows.any():
            filled[rows] = FILLS[name](inputs[rows], draw[rows]).to(inputs.dtype)
    return filled


def _space(inputs: Tensor) -> tuple[int, ...]:
    return tuple(range(2, inputs.dim())) or (1,)  # features are compared with those of the same row


def _range(inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs.amin(_space(inputs), keepdim=True), inputs.amax(_space(inputs), keepdim=True)


def _broadcast(values: Tensor, inputs: Tensor) -> Tensor:
    """Returns ``(B, C or 1)`` as ``(B, C or 1, 1, ...)``."""
    return values.reshape(*values.shape, *[1] * (inputs.dim() - 2))


__getattr__ = renamed(__name__, {"FillError": "LearnpropError"})
