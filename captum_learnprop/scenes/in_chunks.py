"""Scenes drawn a chunk at a time: as quick as drawing all together, and no scene depends on how many are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.scenes.scenes import Scenes
from captum_learnprop.scenes.source import check_draw, scene_generator

CHUNK = 32
"""Scenes that are drawn together. Another number gives other scenes."""


def draw_in_chunks(
    draw: Callable[[int, torch.Generator], Scenes], count: int, split: str, seed: int, size: int, own: int
) -> Scenes:
    """Returns ``count`` scenes, of whole chunks that are cut.

    Args:
        draw: A function ``(number, generator) -> scenes``; all its random numbers come from the generator.
        count: How many scenes, at least 1.
        split: A key of `scenes.SPLITS`.
        seed: Seed of the draw.
        size: The size that is asked for.
        own: The only size that there is.

    Raises:
        LearnpropError: An argument is out of range, or another size is asked for.
    """
    check_draw(count, split, size)
    if size != own:
        raise LearnpropError(f"these scenes have the size {own}, got size={size}: on the command line, --size {own}")
    chunks = [draw(CHUNK, scene_generator(seed, split, number)) for number in range(-(-count // CHUNK))]
    return _joined(chunks)[:count]


def _joined(chunks: list[Scenes]) -> Scenes:
    values = {field.name: [getattr(chunk, field.name) for chunk in chunks] for field in fields(Scenes)}
    return Scenes(**{name: _together(each) for name, each in values.items()})  # type: ignore[arg-type]


def _together(values: list[Tensor | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.cat(known) if known else None
