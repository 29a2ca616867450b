"""Scenes of a face among crops that are no faces: which way is the face turned?

The crops are ``skimage.data.lfw_subset()``, 100 faces and 100 other crops of 25 x 25 grey pixels out of *Labeled Faces
in the Wild* (Huang, Ramesh, Berg, Learned-Miller, 2007), which scikit-image brings: nothing is downloaded. Everything
in a scene is turned, tinted and cut to an ellipse alike, so that neither an outline nor a colour tells the face.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import pi, radians
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captum_learnprop.scenes.drawing import SIZE, Layer, background, draw_noise, uniform
from captum_learnprop.scenes.in_chunks import ChunkedSource
from captum_learnprop.scenes.photographs import file_of_skimage
from captum_learnprop.scenes.scenes import Scenes, label_rows, members_of

TURNS = ("upright", "turned right", "upside down", "turned left")
"""The classes: how many quarters of a turn clockwise, from 0."""

CROPS = 4
"""Crops in a scene, one in each quarter: a face and three others."""

CROP_PIXELS = (24.0, 30.0)
"""Range of the side of a crop in a scene, in pixels."""

ELLIPSE = (0.40, 0.49)
"""Half the width and half the height of what is shown of a crop, in sides of the crop."""

TILT = radians(12.0)
"""How far a crop is turned at most beside whole quarters, to both sides."""

DRAWING = 1
"""Grows when the same arguments give other scenes than before."""


@dataclass(frozen=True)
class FaceSource(ChunkedSource):
    """Scenes of 64 pixels with a face and three crops of something else, on a coloured ground.

    The class is one of `TURNS`; the ground truth is the ellipse of the face, and the other crops are what may tempt a
    map. Splits share no crop.
    """

    size = SIZE

    @property
    def name(self) -> str:
        """``"faces"``."""
        return "faces"

    @property
    def kind(self) -> str:
        """``"patch"``: what decides, beside what tempts."""
        return "patch"

    @property
    def questions_per_scene(self) -> int:
        """One, about the face."""
        return 1

    def chunk(self, count: int, split: str, generator: torch.Generator) -> Scenes:
        """Returns ``count`` scenes with crops of a split.

        Raises:
            LearnpropError: The installed scikit-image has no such crops.
        """
        return _draw(count, *face_crops(split), generator)

    def identity(self) -> dict[str, Any]:
        """Returns a digest of the crops."""
        content = hashlib.sha256(_load_crops().numpy().tobytes()).hexdigest()
        return {"source": self.name, "drawing": DRAWING, "crops": content}

    def class_range(self) -> int:
        """Returns 4."""
        return len(TURNS)


def face_crops(split: str) -> tuple[Tensor, Tensor]:
    """Returns the faces ``(S, 25, 25)`` and the other crops ``(S, 25, 25)`` of a split, in [0, 1].

    Raises:
        LearnpropError: The installed scikit-image has no such file.
    """
    crops = _load_crops()
    faces, others = crops[: len(crops) // 2], crops[len(crops) // 2 :]
    index = members_of(split, torch.zeros(len(faces), dtype=torch.int64))
    return faces[index], others[index]


@lru_cache(maxsize=1)
def _load_crops() -> Tensor:
    return torch.from_numpy(np.load(file_of_skimage("lfw_subset.npy"))).float()


def _draw(count: int, faces: Tensor, others: Tensor, generator: torch.Generator) -> Scenes:
    """Returns scenes: a coloured ground, and a crop in each quarter."""
    place = torch.randint(CROPS, (count,), generator=generator)
    targets = torch.randint(len(TURNS), (count,), generator=generator)
    images, masks = background(count, generator), []
    for quarter in range(CROPS):
        is_face = place == quarter
        turns = torch.where(is_face, targets, torch.randint(len(TURNS), (count,), generator=generator))
        sources = torch.where(is_face[:, None, None], _some(faces, count, generator), _some(others, count, generator))
        layer = _crop_layer(sources, turns, divmod(quarter, 2), generator)
        images = layer.over(images)
        masks.append(layer.coverage[:, 0] >= 0.5)
    images = (images + draw_noise(images, generator)).clamp_(0, 1)
    every = torch.stack(masks, 1)
    chosen = torch.arange(CROPS) == place[:, None]
    return Scenes(
        images=images,
        labels=label_rows(targets[:, None], len(TURNS)),
        masks=every[chosen][:, None],
        targets=targets[:, None],
        distractors=every[~chosen].reshape(count, CROPS - 1, SIZE, SIZE).any(1),
    )


def _some(crops: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns random crops, mirrored or not, with another brightness and contrast: ``(N, 25, 25)``."""
    chosen = crops[torch.randint(len(crops), (count,), generator=generator)]
    mirrored = torch.rand(count, 1, 1, generator=generator) < 0.5
    chosen = torch.where(mirrored, chosen.flip(-1), chosen)
    middle = chosen.mean((1, 2), keepdim=True)
    contrast = uniform((count, 1, 1), 0.8, 1.3, generator)
    return (uniform((count, 1, 1), 0.35, 0.65, generator) + contrast * (chosen - middle)).clamp_(0, 1)


def _crop_layer(sources: Tensor, turns: Tensor, quarter: Sequence[int], generator: torch.Generator) -> Layer:
    """Returns crops as ellipses at random places of a quarter (row, column), turned, in a random tint."""
    count = len(sources)
    sizes = uniform((count, 1), *CROP_PIXELS, generator)
    corner = torch.tensor([quarter[1], quarter[0]]) * (SIZE / 2)
    centres = corner + sizes / 2 + torch.rand(count, 2, generator=generator) * (SIZE / 2 - sizes)
    angles = turns * (pi / 2) + uniform((count,), -TILT, TILT, generator)
    x, y = _coordinates(centres, sizes[:, 0], angles)
    grid = torch.stack([2 * x, 2 * y], -1)
    grey = F.grid_sample(sources[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    # The distance to the edge in pixels, for an edge one pixel wide.
    away = (1 - ((x / ELLIPSE[0]).square() + (y / ELLIPSE[1]).square()).sqrt()) * (ELLIPSE[0] * sizes[:, :1, None])
    tint = uniform((count, 3, 1, 1), 0.8, 1.1, generator)
    return Layer((away + 0.5).clamp(0, 1)[:, None], (grey * tint).clamp(0, 1))


def _coordinates(centres: Tensor, sizes: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x and y ``(N, 64, 64)`` of all pixels in turned crops, in sides of the crop from its middle."""
    middles = torch.arange(SIZE) + 0.5
    across = (middles[None, None, :] - centres[:, :1, None]) / sizes[:, None, None]
    down = (middles[None, :, None] - centres[:, 1:, None]) / sizes[:, None, None]
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    return cos * across + sin * down, cos * down - sin * across
