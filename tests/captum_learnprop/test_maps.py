"""Maps: the scale of each axis, smoothing, and tables."""

from __future__ import annotations

import pytest
import torch

from captum_learnprop.errors import LearnpropError
from captum_learnprop.maps import FLATNESS, follow_outlines, per_axis, postprocess, smooth


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


def window(at: tuple[int, ...], radius: tuple[int, ...], axes: torch.Size) -> tuple[slice, ...]:
    return tuple(slice(max(0, i - r), min(n, i + r + 1)) for i, r, n in zip(at, radius, axes, strict=True))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("axes", [(7, 9), (12,), (3, 5, 4)], ids=str)
def test_outlines_are_those_of_a_regression_in_every_window(channels: int, axes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    maps, images = torch.randn(2, *axes).double(), 3 * torch.randn(2, channels, *axes).double() - 1
    radius = tuple(range(2, 2 + len(axes)))
    found = follow_outlines(maps, images, radius)
    for sample in range(2):
        low, high = images[sample].min(), images[sample].max()
        guide = (images[sample] - low) / (high - low)
        functions = {}
        for at in torch.ones(axes).nonzero().tolist():
            part = window(tuple(at), radius, torch.Size(axes))
            x, y = guide[(slice(None), *part)].flatten(1), maps[(sample, *part)].flatten()
            centred = x - x.mean(1, keepdim=True)
            covariance = centred @ centred.T / x.shape[1] + FLATNESS * torch.eye(channels).double()
            slope = torch.linalg.solve(covariance, centred @ (y - y.mean()) / x.shape[1])
            functions[tuple(at)] = slope, y.mean() - slope @ x.mean(1)
        for at in functions:
            part = window(at, radius, torch.Size(axes))
            cover = [tuple(one) for one in torch.ones(axes).nonzero().tolist()
                     if all(p.start <= i < p.stop for i, p in zip(one, part, strict=True))]  # fmt: skip
            slope = torch.stack([functions[one][0] for one in cover]).mean(0)
            level = torch.stack([functions[one][1] for one in cover]).mean()
            expected = slope @ guide[(slice(None), *at)] + level
            torch.testing.assert_close(found[(sample, *at)], expected, rtol=1e-9, atol=1e-9)


def test_a_blob_takes_the_shape_of_what_it_lies_on() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[..., 8:24, 10:20] = torch.tensor([0.9, 0.2, 0.4])[:, None, None]
    images += 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    blob = torch.zeros(1, 32, 32)
    blob[:, 14, 14] = 1
    blob = smooth(blob, 4.0)
    shape = follow_outlines(blob, images, 8)[0]
    inside = images[0, 0] > 0.5
    assert shape[inside].min() > shape[~inside].max()
    assert not blob[0][inside].min() > blob[0][~inside].max()


def test_following_is_linear_and_blind_to_the_range_and_order_of_images() -> None:
    maps, images = torch.randn(3, 10, 12).double(), torch.rand(3, 3, 10, 12).double()
    found = follow_outlines(maps, images, 3)
    torch.testing.assert_close(follow_outlines(2 * maps - 1, images, 3), 2 * found - 1)
    torch.testing.assert_close(follow_outlines(maps, 50 * images - 7, 3), found)
    torch.testing.assert_close(follow_outlines(maps[1:2], images[1:2], 3), found[1:2])
    assert torch.equal(follow_outlines(maps, images, 0), maps)
    # An image of one colour has no outlines: windows are averaged, twice.
    constant = follow_outlines(maps, torch.full_like(images, 0.3), 20)
    torch.testing.assert_close(constant, maps.mean((1, 2), keepdim=True).expand_as(maps))
    assert torch.autograd.gradcheck(lambda m: follow_outlines(m, images, 3), maps.requires_grad_())


def test_what_cannot_be_followed_is_told() -> None:
    maps, images = torch.randn(2, 8, 8), torch.rand(2, 3, 8, 8)
    for radius in (-1.0, [1.0], float("nan")):
        with pytest.raises(LearnpropError, match="radius must be at least 0"):
            follow_outlines(maps, images, radius)
    for other in (images[:1], images[..., 1:], images[:, 0]):
        with pytest.raises(LearnpropError, match=r"must be \(B, C, \*spatial\) for maps \(2, 8, 8\)"):
            follow_outlines(maps, other, 1)
    with pytest.raises(LearnpropError, match="pass images="):
        postprocess(images, "signed", 0.0, 0.1)
