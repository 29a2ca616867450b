"""Fills and the random numbers they are made of: values by hand, range, rows, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import smooth
from captum_learnprop.training.draws import Draws
from captum_learnprop.training.fills import FILLS, NOISE, FillDraw, fill_names, random_fill

SHAPES = [(3, 2, 9), (3, 3, 8, 6), (3, 1, 4, 5, 6)]


def numbers(inputs: Tensor, seed: int = 0) -> FillDraw:
    draws, channels = Draws(seed, 0, range(len(inputs))), inputs.shape[1]
    return FillDraw(draws.uniform(channels), draws.uniform(), draws.normal(*inputs.shape[1:]))


def filled(inputs: Tensor, draws: Draws, names: tuple[str, ...] = tuple(FILLS)) -> Tensor:
    return random_fill(inputs, names, draws.uniform, draws.normal)


# -- each fill -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", list(FILLS))
def test_shape_range_and_rows(name: str, shape: tuple[int, ...]) -> None:
    inputs = 4 * torch.randn(shape) - 1
    draw, before = numbers(inputs), inputs.clone()
    found = FILLS[name](inputs, draw)
    assert found.shape == inputs.shape
    assert torch.equal(inputs, before)
    if name != "zero":
        flat, own = found.flatten(2), inputs.flatten(2)
        assert (flat.amax(2) <= own.amax(2) + 1e-5).all()
        assert (flat.amin(2) >= own.amin(2) - 1e-5).all()
    for row in range(len(inputs)):
        one = torch.tensor([row])
        torch.testing.assert_close(FILLS[name](inputs[one], draw[one]), found[one])


def test_values_by_hand() -> None:
    inputs = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    normal = torch.tensor([[[[0.0, 0.4], [4.0, -4.0]], [[0.3, 0.1, 0.2, 0.0][:2], [0.2, 0.0]]]])
    draw = FillDraw(torch.tensor([[0.2, 0.9]]), torch.tensor([0.5]), normal)
    assert not FILLS["zero"](inputs, draw).any()
    assert FILLS["mean"](inputs, draw)[0].tolist() == [[[2.0, 2.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]
    assert FILLS["colour"](inputs, draw)[0].tolist() == [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]
    # 5 * clamp(0.2 + NOISE * 0.5 * n, 0, 1)
    expected = [[1.0, 5 * (0.2 + NOISE * 0.2)], [5.0, 0.0]]
    torch.testing.assert_close(FILLS["noise"](inputs, draw)[0, 0], torch.tensor(expected))
    # Pixels in the order of the first channel's normal numbers: the last, the first, the second, the third.
    assert FILLS["shuffle"](inputs, draw)[0, 0].tolist() == [[5.0, 0.0], [1.0, 2.0]]
    large = torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(FILLS["blur"](large, numbers(large))[:, 1], smooth(large[:, 1], 2.0))


def test_shuffle_keeps_pixels_whole() -> None:
    inputs = torch.rand(2, 3, 5, 4)
    found = FILLS["shuffle"](inputs, numbers(inputs))
    for row in range(2):
        pixels, own = found[row].flatten(1).T.tolist(), inputs[row].flatten(1).T.tolist()
        assert pixels != own
        assert sorted(pixels) == sorted(own)


# -- the draw of a kind ----------------------------------------------------------------------------------------------


def test_each_kind_is_drawn_about_equally_often() -> None:
    inputs = torch.rand(400, 1, 2, 3) + 1
    kinds = filled(inputs, Draws(1, 0, range(400)), ("zero", "mean")).flatten(1).any(1)
    assert 160 < int(kinds.sum()) < 240


def test_a_row_gets_the_fill_that_was_drawn_for_it() -> None:
    inputs, names = torch.rand(12, 2, 6, 6), tuple(FILLS)
    found = filled(inputs, Draws(3, 1, range(12)))
    draws = Draws(3, 1, range(12))
    kind = (draws.uniform() * len(names)).long()
    draw = FillDraw(draws.uniform(2), draws.uniform(), draws.normal(2, 6, 6))
    assert len(kind.unique()) > 3
    for row in range(12):
        torch.testing.assert_close(found[row], FILLS[names[kind[row]]](inputs, draw)[row])


def test_chunks_are_the_whole() -> None:
    inputs = torch.rand(6, 3, 8, 8)
    whole = filled(inputs, Draws(5, 2, range(6)))
    parts = [filled(inputs[rows], Draws(5, 2, rows)) for rows in ([0], [1, 2, 3], [4, 5])]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_what_follows_does_not_depend_on_the_fills() -> None:
    inputs, after = torch.rand(3, 2, 4, 4), []
    for names in (("zero",), ("noise", "blur"), tuple(FILLS)):
        draws = Draws(0, 0, range(3))
        filled(inputs, draws, names)
        after.append(draws.uniform())
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_that_of_the_inputs(dtype: torch.dtype) -> None:
    inputs = torch.rand(8, 3, 6, 6).to(dtype)
    found = filled(inputs, Draws(0, 0, range(8)))
    assert found.dtype == dtype
    assert found.isfinite().all()


# -- names -----------------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert fill_names() == tuple(FILLS)
    assert fill_names("random", ("zero", "blur")) == ("colour", "noise", "mean", "shuffle")
    assert fill_names("blur") == ("blur",)
    assert fill_names(("mean", "mean", "noise"), ("zero",)) == ("mean", "mean", "noise")


@pytest.mark.parametrize(
    ("fills", "exclude", "message"),
    [
        ("black", (), r"unknown fill 'black'; choose 'random' or from colour, noise"),
        (("noise", "black"), (), r"unknown fill 'black'"),
        ("random", ("black",), r"unknown fill 'black'"),
        ("blur", ("zero", "blur"), r"'blur' is asked for and excluded"),
        ((), (), r"no fill is left"),
        ("random", tuple(FILLS), r"no fill is left"),
    ],
)
def test_bad_names(fills: Any, exclude: tuple[str, ...], message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        fill_names(fills, exclude)


def test_features_of_a_table_are_filled_from_their_own_row() -> None:
    table = torch.randn(3, 40)
    draw = numbers(table)
    low, high = table.aminmax(dim=1, keepdim=True)
    found = {name: FILLS[name](table, draw) for name in FILLS if name != "blur"}
    for name, fill in found.items():
        assert fill.shape == table.shape
        assert name == "zero" or bool(((low - 1e-5 <= fill) & (fill <= high + 1e-5)).all())
    torch.testing.assert_close(found["colour"], low + (high - low) * draw.colour)
    torch.testing.assert_close(found["mean"], table.mean(1, keepdim=True).expand(3, 40))
    assert torch.equal(found["shuffle"].sort(1).values, table.sort(1).values)
    assert not torch.equal(found["shuffle"], table)
    some = tuple(name for name in FILLS if name != "blur")
    both = filled(table, Draws(0, 0, range(3)), some)
    assert torch.equal(filled(table[1:], Draws(0, 0, [1, 2]), some), both[1:])


def test_features_have_no_neighbours_to_blur() -> None:
    with pytest.raises(LearnpropError, match=r"'blur' needs neighbours, .* \(B, F\).* exclude it"):
        filled(torch.rand(2, 5), Draws(0, 0, range(2)))
    with pytest.raises(LearnpropError, match=r"got \(2,\)"):
        filled(torch.rand(2), Draws(0, 0, range(2)), ("zero",))


def test_the_blur_of_a_thin_axis() -> None:
    flat = torch.randn(2, 1, 32, 32)
    one = FILLS["blur"](flat[:, :, None], numbers(flat[:, :, None]))
    torch.testing.assert_close(one[:, :, 0], FILLS["blur"](flat, numbers(flat)))
    signals = torch.randn(2, 1, 4, 400)
    assert FILLS["blur"](signals, numbers(signals)).std() < 0.5 * signals.std()


# -- random numbers --------------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_step_row_and_call_only() -> None:
    draws = Draws(1, 2, [0, 1, 2])
    first, second = draws.uniform(4), draws.uniform(4)
    other = Draws(1, 2, [2, 0])
    assert torch.equal(other.uniform(4), first[[2, 0]])
    assert torch.equal(other.uniform(4), second[[2, 0]])
    seen = [first, second, Draws(1, 3, [0, 1, 2]).uniform(4), Draws(2, 2, [0, 1, 2]).uniform(4)]
    rows = torch.cat(seen).tolist()
    assert len({tuple(row) for row in rows}) == len(rows)


def test_draws_are_independent_of_torchs_generator_and_leave_it_alone() -> None:
    torch.manual_seed(4)
    first, state = Draws(0, 0, [0]).normal(3), torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(Draws(0, 0, [0]).normal(3), first)


def test_draws_are_uniform_and_normal() -> None:
    draws = Draws(0, 0, range(300))
    uniform, normal = draws.uniform(), draws.normal(20)
    assert uniform.shape == (300,)
    assert 0 <= uniform.min() < 0.02 < 0.98 < uniform.max() < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.05)
    assert normal.shape == (300, 20)
    assert float(normal.mean()) == pytest.approx(0, abs=0.05)
    assert float(normal.std()) == pytest.approx(1, abs=0.05)


def test_draws_say_what_they_are() -> None:
    draws = Draws(1, 2, range(3))
    assert len(draws) == 3
    assert repr(draws) == "Draws(seed=1, step=2, rows=(0, 1, 2)) after 0 calls"
    assert Draws(0, 0, []).uniform(4).shape == (0, 4)
