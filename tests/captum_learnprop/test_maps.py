"""Maps: the scale of each axis, smoothing, and tables."""

from __future__ import annotations

import pytest
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import per_axis, postprocess, smooth


@pytest.mark.parametrize(
    ("spatial", "pixels"),
    [
        ((40, 40), (4.0, 4.0)),
        ((40, 60), (4.0, 4.0)),  # a photograph: one scale, from the shorter side
        ((60, 40), (4.0, 4.0)),
        ((1, 40), (0.1, 4.0)),
        ((1, 40, 50), (0.1, 4.0, 4.0)),
        ((4, 40, 40), (0.4, 4.0, 4.0)),  # a stack of slices
        ((22, 1000), (2.2, 100.0)),  # electrodes and samples of an EEG
        ((30,), (3.0,)),
        ((1, 1), (0.1, 0.1)),
    ],
)
def test_per_axis(spatial: tuple[int, ...], pixels: tuple[float, ...]) -> None:
    assert per_axis(0.1, spatial) == pytest.approx(pixels)


def test_smooth_takes_a_scale_for_each_axis() -> None:
    maps = torch.randn(2, 9, 30, dtype=torch.float64)
    assert torch.equal(smooth(maps, [2.0, 2.0]), smooth(maps, 2.0))
    rows = smooth(maps.flatten(0, 1), 3.0).reshape(maps.shape)
    torch.testing.assert_close(smooth(maps, [0.0, 3.0]), rows)
    assert torch.equal(smooth(maps[:, :1], [5.0, 0.0]), maps[:, :1])  # an axis of length 1 stays
    torch.testing.assert_close(smooth(maps[:, None], 2.0)[:, 0], smooth(maps, 2.0))
    for sigma in (-1.0, [1.0], [1.0, -1.0], float("nan")):
        with pytest.raises(LearnpropError, match="sigma must be at least 0"):
            smooth(maps, sigma)


@pytest.mark.parametrize("sign", ["absolute", "positive", "signed"])
def test_finished(sign: str) -> None:
    flat = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    stack = flat[:, :, None]
    torch.testing.assert_close(postprocess(stack, sign, 0.05)[:, 0], postprocess(flat, sign, 0.05))
    signals = torch.randn(2, 1, 4, 400, dtype=torch.float64)
    assert postprocess(signals, "signed", 0.025).std() < 0.5 * signals.std()
    table = torch.randn(3, 7, dtype=torch.float64)
    want = {"absolute": table.abs(), "positive": table.clamp(min=0), "signed": table}[sign]
    assert torch.equal(postprocess(table, sign, 0.3), want)
