"""Pictures to begin with: photographs inside scikit-image's wheel, scenes of the package, cut-outs from the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.scenes.photographs import Photograph, photograph_source, photographs_folder, whole
from captum_learnprop.scenes.scenes import make_scenes

_DIGITS = 6
"""Scenes of two digits that are offered."""

_CUTOUTS = 4
"""Scenes of two cut-outs from the cache that are offered."""

_TRAINING = 24
"""Scenes of digits to train on."""

_SEED = 7
"""Seed of the scenes."""


@dataclass(frozen=True)
class Example:
    """A picture to begin with.

    Attributes:
        name: What it is called.
        draws: Whether it shows drawn digits, which the small nets of the package know, and not things.
        image: Reads or draws it, 8-bit RGB.
    """

    name: str
    draws: bool
    image: Callable[[], Image.Image]


def examples() -> dict[str, Example]:
    """Returns the pictures that are here, by name; nothing is downloaded.

    Scenes of digits need scikit-learn, scenes of cut-outs the photographs that ``learnprop data photos`` puts into the
    cache: without, they are left out.
    """
    found = [_photograph(each) for each in _photographs()]
    if photographs_folder().is_dir():
        found += [_cutouts(number) for number in range(_CUTOUTS)]
    if find_spec("sklearn") is not None:
        found += [_digits(number) for number in range(_DIGITS)]
    return {one.name: one for one in found}


def example_picture(name: str) -> Image.Image:
    """Returns an example by its name, as the page shows it.

    Raises:
        LearnpropError: There is no such example.
    """
    known = examples()
    if name not in known:
        raise LearnpropError(
            f"there is no example {name!r}{did_you_mean(name, known) or '; there are ' + ', '.join(known)}"
        )
    return known[name].image()


def many_pictures(draws: bool) -> list[Image.Image]:
    """Returns pictures to train and to analyse on: scenes of the package's training part, or all other examples.

    Args:
        draws: Whether they show drawn digits.

    Raises:
        LearnpropError: scikit-learn, which has the digits, is missing.
    """
    if not draws:
        return [one.image() for one in examples().values() if not one.draws]
    if find_spec("sklearn") is None:
        raise LearnpropError("scenes of digits need scikit-learn: pip install scikit-learn")
    return [transforms.to_pil_image(image) for image in make_scenes("pairs", _TRAINING, split="train").images]


def _photographs() -> list[Photograph]:
    try:
        return whole()
    except LearnpropError:  # another scikit-image, without one of them
        return []


def _photograph(photograph: Photograph) -> Example:
    return Example(photograph.name.removesuffix("_left"), False, photograph.image)


def _digits(number: int) -> Example:
    def image() -> Image.Image:
        return transforms.to_pil_image(_drawn_digits()[number])

    return Example(f"digits {number + 1}", True, image)


def _cutouts(number: int) -> Example:
    def image() -> Image.Image:
        return transforms.to_pil_image(_drawn_cutouts()[number])

    return Example(f"two things {number + 1}", False, image)


@lru_cache(maxsize=1)
def _drawn_digits() -> Tensor:
    return make_scenes("pairs", _DIGITS, split="test", seed=_SEED).images


@lru_cache(maxsize=1)
def _drawn_cutouts() -> Tensor:
    return photograph_source(2).draw(_CUTOUTS, split="test", seed=_SEED, size=320).images
