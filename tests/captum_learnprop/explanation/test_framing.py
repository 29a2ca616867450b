"""Where a model's input lies in a picture: two ways to know it, which agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import ResNet18_Weights

from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation.framing import Frame, framed
from captum_learnprop.images import Preprocessing


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (200, 37), (12, 240), (56, 56)])
@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(64, 56), Preprocessing(56, 56), Preprocessing(64, 56, squeeze=True)],
    ids=["crop", "whole side", "squeezed"],
)
def test_what_is_measured_is_what_is_computed(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    image = picture(*size)
    told = framed(image, preprocessing)
    measured = framed(image, lambda one: preprocessing.normalize(preprocessing.pixels(one)))
    torch.testing.assert_close(measured.input, told.input)
    for name in ("top", "left", "tall", "wide"):
        difference = abs(getattr(measured.frame, name) - getattr(told.frame, name))
        assert difference < max(1.0, 0.01 * max(size)), name
    assert measured.mean == pytest.approx(preprocessing.mean, abs=1e-5)
    assert measured.std == pytest.approx(preprocessing.std, abs=1e-5)


def test_the_transforms_of_torchvision() -> None:
    found = framed(picture(640, 480), ResNet18_Weights.DEFAULT.transforms())
    wanted = Preprocessing.of_weights("resnet18", "DEFAULT").covered(640, 480)
    assert (found.frame.top, found.frame.left, found.frame.tall, found.frame.wide) == pytest.approx(wanted, abs=1.5)


def test_margins_are_known() -> None:
    padded = transforms.Compose([transforms.Pad((0, 8)), transforms.Resize((32, 32)), transforms.ToTensor()])
    frame = framed(picture(64, 48), padded).frame
    assert (frame.top, frame.tall) == pytest.approx((-8, 64), abs=1)
    assert (frame.rows, frame.columns, frame.complete) == (slice(0, 48), slice(0, 64), True)
    values = torch.arange(32.0)[:, None].expand(32, 32)
    placed = frame.place(values)
    assert placed.shape == (48, 64)
    assert placed[0, 0] == pytest.approx(4, abs=0.6)
    assert placed[-1, 0] == pytest.approx(27, abs=0.6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (transforms.Compose([transforms.RandomHorizontalFlip(1.0), transforms.ToTensor()]), "it may flip"),
        (lambda image: 3, "gave int"),
        (lambda image: torch.zeros(3, 8, 8), "a black and a white picture become the same"),
        (lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_what_is_no_preprocessing(function: object, message: str) -> None:
    with pytest.raises(LearnpropError, match=message):
        framed(picture(64, 48), function)  # type: ignore[arg-type]


def test_a_map_keeps_its_place_and_size() -> None:
    values = torch.rand(6, 6)
    assert torch.equal(Frame.whole(6, 6).place(values), values)
    placed = Frame(10, 12, 2.0, 4.0, 6.0, 6.0).place(values)
    assert torch.equal(placed[2:8, 4:10], values)
    assert placed.sum() == pytest.approx(float(values.sum()), rel=1e-5)
