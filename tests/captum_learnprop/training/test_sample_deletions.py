"""Deletions of samples: what is removed, what stands there instead, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import smooth
from captum_learnprop.training.occlusion import generator_of
from captum_learnprop.training.sample_deletions import measure_deletions, own_fill, random_parts
from captum_learnprop.training.superpixels import superpixels


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator_of(seed, 0), dtype=torch.float64)


def linear(inputs: tuple[Tensor, ...]) -> Tensor:
    """Outputs ``(B, 2)``: the sum over all inputs, and twice that."""
    total = sum(x.flatten(1).sum(1) if x.dim() > 1 else x for x in inputs)
    return torch.stack([total, 2 * total], 1)


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "image": ((3, 2, 12, 10),),
    "volume": ((2, 1, 6, 7, 8),),
    "signal": ((3, 2, 30),),
    "table": ((4, 9),),
    "several": ((3, 2, 8, 8), (3, 5), (3,)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_drops_are_what_the_filled_samples_lose(shapes: tuple[tuple[int, ...], ...]) -> None:
    """Baselines of zeros make it exact: a linear output loses what the region held."""
    inputs = tuple(drawn(*shape, seed=place) for place, shape in enumerate(shapes))
    zeros = tuple(torch.zeros(1, *x.shape[1:]) for x in inputs)
    found = measure_deletions(linear, inputs, 1, 11, baselines=zeros)
    flat = torch.cat([(x.flatten(2).sum(1) if x.dim() > 2 else x.reshape(len(x), -1)) for x in inputs], 1)
    assert found.regions.shape == (len(flat), 11, flat.shape[1])
    assert found.regions.any(2).all()
    torch.testing.assert_close(found.drops, 2 * (found.regions * flat[:, None]).sum(2))


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_own_fills_are_used_and_seeded(shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = tuple(drawn(*shape, seed=place) for place, shape in enumerate(shapes))
    first, again, other = (measure_deletions(linear, inputs, 0, 8, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.drops, again.drops)
    assert torch.equal(first.regions, again.regions)
    assert not torch.equal(first.drops, other.drops)
    assert (first.drops != 0).double().mean() > 0.9


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_a_batch_is_its_samples(shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = tuple(drawn(*shape, seed=place) for place, shape in enumerate(shapes))
    together = measure_deletions(linear, inputs, 0, 8)
    for row in range(len(inputs[0])):
        alone = measure_deletions(linear, tuple(x[row : row + 1] for x in inputs), 0, 8)
        assert torch.equal(alone.regions[0], together.regions[row])
        torch.testing.assert_close(alone.drops[0], together.drops[row])


@pytest.mark.parametrize("together", [1, 4, 64])
def test_pieces_do_not_matter_and_are_small(together: int) -> None:
    x, sizes = drawn(2, 3, 8, 8), []

    def watched(inputs: tuple[Tensor, ...]) -> Tensor:
        sizes.append(len(inputs[0]))
        return linear(inputs)

    found = measure_deletions(watched, (x,), 0, 10, together=together)
    torch.testing.assert_close(found.drops, measure_deletions(linear, (x,), 0, 10).drops)
    assert max(sizes) <= max(together, 2)
    assert sum(sizes) == 2 + 20


@pytest.mark.parametrize("target", [[0, 1], torch.tensor([0, 1]), [(0,), (1,)]])
def test_targets_of_captum(target: Any) -> None:
    x = drawn(2, 3, 8, 8)
    found = measure_deletions(linear, (x,), target, 6).drops
    for row, one in enumerate((0, 1)):
        torch.testing.assert_close(found[row], measure_deletions(linear, (x,), one, 6).drops[row])


def test_half_of_the_parts_of_an_image_follow_it() -> None:
    image = torch.zeros(1, 96, 96)
    image[:, :, 48:] = 1
    labels = superpixels(image)
    parts = random_parts(image, 40, generator_of(0, 0))
    assert all(any(_is_union(part, label) for label in labels) for part in parts[1::2])
    assert sum(any(_is_union(part, label) for label in labels) for part in parts[::2]) <= 3


def _is_union(region: Tensor, label: Tensor) -> bool:
    return torch.equal(torch.isin(label, label[region].unique()), region)


def test_images_are_filled_with_themselves_blurred() -> None:
    x = drawn(2, 3, 16, 24)
    fill = own_fill(x, generator_of(5, 0))
    torch.testing.assert_close(fill, smooth(x.flatten(0, 1), 2.0).reshape(x.shape))


def test_tables_are_filled_with_values_of_their_range() -> None:
    x, generator = drawn(3, 7), generator_of(5, 0)
    first, second = own_fill(x, generator), own_fill(x, generator)
    assert not torch.equal(first, second)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    assert ((first >= low) & (first <= high)).all()


def test_losses_count_gains_as_nothing() -> None:
    found = measure_deletions(linear, (drawn(2, 3, 8, 8),), 0, 20)
    assert (found.drops < 0).any()
    assert torch.equal(found.losses().drops, torch.where(found.drops > 0, found.drops, 0.0))
    assert torch.equal(found.losses().regions, found.regions)


def test_baselines_are_drawn_from() -> None:
    x, given = drawn(1, 2, 6, 6), torch.stack([torch.full((2, 6, 6), value) for value in (100.0, 200.0)])
    drops = measure_deletions(linear, (x,), 0, 30, baselines=(given,)).drops[0]
    sizes = measure_deletions(linear, (x,), 0, 30, baselines=(given,)).regions[0].sum(1)
    value = ((-drops / (2 * sizes)) / 100).round()
    assert set(value.tolist()) == {1.0, 2.0}


def test_bad_baselines_and_outputs_are_refused() -> None:
    x = drawn(1, 2, 6, 6)
    with pytest.raises(LearnpropError, match=r"baselines of shapes \[\(2, 5, 6\)\] do not fit .*\(2, 6, 6\)"):
        measure_deletions(linear, (x,), 0, 4, baselines=(torch.zeros(3, 2, 5, 6),))
    with pytest.raises(LearnpropError, match=r"do not fit"):
        measure_deletions(linear, (x,), 0, 4, baselines=(torch.zeros(0, 2, 6, 6),))
    with pytest.raises(LearnpropError, match="NaN or infinite for a deletion"):
        measure_deletions(lambda inputs: linear(inputs) / (inputs[0] == x[:1]).flatten(1).all(1)[:, None], (x,), 0, 4)
