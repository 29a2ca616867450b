"""Occlusion regression: train maps to predict what the model loses when parts of the input are removed.

For each training image a set of random regions is removed once, without gradient, and the drop of the
explained quantity is kept. A map is good when its mass inside a region correlates with the drop, over the
regions of one image: the training form of *sensitivity-n* (Ancona et al., ICLR 2018) and *infidelity* (Yeh
et al., NeurIPS 2019). The model is never run on anything that depends on the map, so a map cannot be
optimised *against* the model.

What replaces a region is drawn at random: colours and noise, never a fixed baseline, which an evaluation
might use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.faithfulness import OUTPUTS

REGION_SIDES = (1 / 16, 1 / 2)
"""Range of the side of a box, as a share of the image's side, drawn log-uniformly: from a stroke to an
object."""

MAX_BOXES = 4
"""A region is a union of 1 to this many boxes of one scale: one box alone cannot tell parts from wholes."""


class OcclusionError(LearnpropError):
    """Images, maps or options that occlusion regression cannot use."""


@dataclass(frozen=True)
class OcclusionCache:
    """What the model lost, for ``N`` images with ``D`` deletions each.

    Attributes:
        regions: ``(N, D, H, W)`` bool, the removed pixels.
        drops: ``(N, D)`` float32, quantity of the whole image minus that of the image without the region.
    """

    regions: Tensor
    drops: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.drops)

    def __getitem__(self, index: slice | Tensor) -> OcclusionCache:
        """The cache of the images that a slice or an index tensor selects."""
        return OcclusionCache(self.regions[index], self.drops[index])


@torch.no_grad()
def build_cache(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    *,
    deletions: int = 48,
    output: str = "sigmoid",
    seed: int = 0,
    internal_batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> OcclusionCache:
    """Remove random regions from each image and keep what its target lost.

    Args:
        model: maps images to ``(B, classes)``, in evaluation mode.
        images: ``(N, C, H, W)``. Fills are drawn between the lowest and the highest value of each channel.
        targets: ``(N,)`` int64, the explained class of each image.
        deletions: regions per image, at least 3: a correlation needs them.
        output: ``"sigmoid"`` or ``"softmax"`` probability, or ``"logit"``.
        seed: seed of regions and fills.
        internal_batch_size: how many changed images go through the model together.
        progress: called with (images done, images in all).

    Raises:
        OcclusionError: shapes do not fit, values are not finite, or an option is out of range.
    """
    _check_data(images, targets, deletions, output)
    generator = torch.Generator().manual_seed(seed)
    quantity = OUTPUTS[output]
    low, high = images.amin((0, 2, 3)).cpu(), images.amax((0, 2, 3)).cpu()
    regions, drops = [], []
    per_chunk = max(1, internal_batch_size // deletions)
    for image, target in zip(images.split(per_chunk), targets.split(per_chunk), strict=True):
        count, channels, height, width = image.shape
        region = random_regions(count * deletions, height, width, generator)
        fill = random_fills(len(region), (channels, height, width), low, high, generator).to(image)
        repeated = image.repeat_interleave(deletions, 0)
        changed = torch.where(region[:, None].to(image.device), fill, repeated)
        asked = target.repeat_interleave(deletions)[:, None]
        after = torch.cat([quantity(model(part)) for part in changed.split(internal_batch_size)]).gather(1, asked)
        before = quantity(model(image)).gather(1, target[:, None])
        drops.append(before - after.reshape(count, deletions))
        regions.append(region.reshape(count, deletions, height, width).to(image.device))
        if progress is not None:
            progress(sum(map(len, drops)), len(images))
    return OcclusionCache(torch.cat(regions), torch.cat(drops).float())


def random_regions(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Unions of 1 to `MAX_BOXES` boxes of one random scale each: ``(count, height, width)`` bool, none
    empty."""
    low, high = (torch.tensor(side).log() for side in REGION_SIDES)
    side = (low + (high - low) * torch.rand(count, 1, generator=generator)).exp()
    aspect = 2.0 ** (torch.rand(count, MAX_BOXES, generator=generator) - 0.5)
    used = torch.arange(MAX_BOXES) < torch.randint(1, MAX_BOXES + 1, (count, 1), generator=generator)
    rows = _spans((side * aspect * height).clamp(1, height), height, generator)
    columns = _spans((side / aspect * width).clamp(1, width), width, generator)
    region = torch.zeros(count, height, width, dtype=torch.bool)
    for box in range(MAX_BOXES):
        region |= rows[:, box, :, None] & columns[:, box, None, :] & used[:, box, None, None]
    return region


def _spans(lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Intervals of the given lengths in pixels: ``(count, boxes, size)`` bool.

    They may reach over the border, by all but one pixel: so every pixel is removed equally often.
    """
    lengths = lengths.round()
    start = (torch.rand(lengths.shape, generator=generator) * (size + lengths - 1)).floor() - lengths + 1
    position = torch.arange(size)
    return (position >= start[..., None]) & (position < (start + lengths)[..., None])


def random_fills(
    count: int, shape: tuple[int, int, int], low: Tensor, high: Tensor, generator: torch.Generator
) -> Tensor:
    """What replaces a region: a random colour plus noise of random strength, ``(count, C, H, W)`` in [low,
    high]."""
    channels = shape[0]
    colour = torch.rand(count, channels, 1, 1, generator=generator)
    strength = 0.5 * torch.rand(count, 1, 1, 1, generator=generator)
    fill = (colour + strength * torch.randn(count, *shape, generator=generator)).clamp(0.0, 1.0)
    low, high = low.reshape(-1, 1, 1).float(), high.reshape(-1, 1, 1).float()
    return low + (high - low) * fill


def region_mass(maps: Tensor, regions: Tensor) -> Tensor:
    """Sum of each map ``(B, H, W)`` inside each of its regions ``(B, D, H, W)``: ``(B, D)``."""
    return torch.bmm(regions.flatten(2).to(maps.dtype), maps.flatten(1)[..., None])[..., 0]


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of the rows of two ``(B, D)`` tensors: ``(B,)`` in [-1, 1]; 0 where a row is
    constant."""
    first = first - first.mean(1, keepdim=True)
    second = second - second.mean(1, keepdim=True)
    first, second = first / _largest(first), second / _largest(second)
    norm = (first.square().sum(1) * second.square().sum(1) + torch.finfo(first.dtype).eps ** 2).sqrt()
    return (first * second).sum(1) / norm


def _largest(rows: Tensor) -> Tensor:
    """The largest absolute value of each row, 1 for a row of zeros: maps of deep nets can be as small as
    1e-20."""
    size = rows.detach().abs().amax(1, keepdim=True)
    return torch.where(size > 0, size, torch.ones_like(size))


def occlusion_loss(maps: Tensor, cache: OcclusionCache) -> Tensor:
    """``1 - mean_b Pearson_d(mass of map b inside region d, drop by region d)``: a scalar in [0, 2].

    Args:
        maps: ``(B, H, W)``, differentiable.
        cache: regions and drops of the same ``B`` images.

    Raises:
        OcclusionError: shapes differ.
    """
    if maps.dim() != 3 or cache.regions.shape[0] != len(maps) or cache.regions.shape[2:] != maps.shape[1:]:
        raise OcclusionError(
            f"maps {tuple(maps.shape)} do not fit regions {tuple(cache.regions.shape)}; "
            "expected (B, H, W) and (B, D, H, W)"
        )
    return 1.0 - correlation(region_mass(maps, cache.regions), cache.drops.to(maps.dtype)).mean()


def _check_data(images: Tensor, targets: Tensor, deletions: int, output: str) -> None:
    if images.dim() != 4 or not images.numel():
        raise OcclusionError(f"images must be (N, C, H, W) and not empty, got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise OcclusionError("images have NaN or infinite values")
    if targets.shape != (len(images),) or targets.dtype != torch.int64:
        raise OcclusionError(
            f"targets must be int64 of shape ({len(images)},), got {targets.dtype} {tuple(targets.shape)}"
        )
    if deletions < 3:
        raise OcclusionError(f"deletions must be at least 3 for a correlation, got {deletions}")
    if output not in OUTPUTS:
        raise OcclusionError(f"unknown output {output!r}; choose one of {', '.join(OUTPUTS)}")
