"""Draws that are made again."""

from __future__ import annotations

import pytest
import torch

from zennit_rules.core.draws import Draws


def test_the_same_numbers_and_the_stream_goes_on() -> None:
    draws = Draws()
    first = torch.rand(3)
    state = torch.get_rng_state()
    for _ in range(2):
        with draws.again():
            assert torch.equal(torch.rand(3), first)
        assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(TypeError), draws.again():
        torch.rand(torch.rand(3))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
