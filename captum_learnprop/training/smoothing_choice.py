"""The smoothing of finished maps, chosen on held-out images by removing boxes as small as what maps should tell apart.

The objective of a training does not see it: the mass of a map in a region is the same, smoothed or not, where regions
are much wider. Boxes of a few pixels tell. A map that is too rough says of them what noise says, a map that is too
smooth says the same of a stroke and of the ground beside it; between them lies the smoothing whose maps predict best
what the model loses. It depends on the model, on the rules and on the pictures, so no constant is right for all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_learnprop.chunks import rows_together
from captum_learnprop.maps import postprocess
from captum_learnprop.progress import Progress
from captum_learnprop.training.examples import Collection
from captum_learnprop.training.occlusion import DeletionFills, generator_of, measure_drops
from captum_learnprop.training.parts import Part
from captum_learnprop.training.regions import box_regions
from captum_learnprop.training.rule_maps import RuleMaps
from captum_learnprop.training.task import TrainingTask

SMOOTHINGS = (0.0, 0.0125, 0.025, 0.05, 0.075, 0.1)
"""What is chosen from, as fractions of the sides."""

USUAL = 0.025
"""The smoothing that is kept where others are not better: of few large photographs small boxes say little."""

CERTAINTY = 2.0
"""By how many standard errors over the images the best smoothing has to be better than one that is passed over."""

SIDES = (1 / 32, 1 / 16)
"""The sides of the boxes that are removed one at a time, as fractions of those of the image. Correlations for these
rank smoothings as the average precision of maps does; from a side of 1/8 on they hardly tell them apart."""

BOXES = 48
"""Boxes of each side, removed from each image."""

MOST_IMAGES = 24
"""Held-out images that are looked at; their targets share the passes of the model."""

_SEED = 1
"""Added to the seed of the training: these deletions are others than those of its examples."""


def chosen_smoothing(task: TrainingTask, *, show_progress: bool = False) -> float:
    """Returns the smoothing, one of `SMOOTHINGS`, whose maps of the held-out rows predict small deletions best.

    Of those that the best one does not surpass by `CERTAINTY`, the nearest to `USUAL` is taken.

    Args:
        task: The training, with the rules that maps are made by, and with held-out rows of images.
        show_progress: Whether a progress bar is drawn.
    """
    maps = RuleMaps(task.model, task.rules, task.options.sign, 0.0)
    shown = show_progress and task.processes.main
    found = correlations(maps, task.held_out, task.what, task.options.outlines, show_progress=shown)
    short = found[:, found.mean(0).argmax(), None] - found
    errors = short.std(0) / math.sqrt(len(short)) if len(short) > 1 else torch.full((len(SMOOTHINGS),), math.inf)
    good = (short.mean(0) <= CERTAINTY * errors).tolist()
    chosen = min((one for one, fits in zip(SMOOTHINGS, good, strict=True) if fits), key=lambda one: abs(one - USUAL))
    # Every process came to the same but for rounding, which must not decide.
    return float(task.processes.sum(torch.tensor(chosen if task.processes.main else 0.0, dtype=torch.float64)))


def passes(images: int) -> int:
    """Returns the forward passes of a choice on so many held-out images."""
    return min(MOST_IMAGES, images) * (len(SIDES) * BOXES + 1)


def correlations(
    maps: RuleMaps, held_out: Part, what: Collection, outlines: float = 0.0, *, show_progress: bool = False
) -> Tensor:
    """Returns how well maps of each of `SMOOTHINGS` predict small deletions, ``(images, smoothings)``, in [-1, 1].

    That is the mean, over the rows of an image and `SIDES`, of the correlation between the mass of a map in a box and
    what the target loses when the box is removed.

    Args:
        maps: Maps that are not smoothed.
        held_out: Rows of images, of which `MOST_IMAGES` are looked at.
        what: What was measured of them; its seed, fill and quantity are used.
        outlines: Radius of the smoothing that follows the images, as a fraction of the sides.
        show_progress: Whether a progress bar is drawn.
    """
    targets_per_image = held_out.examples.targets_per_image
    images = min(MOST_IMAGES, len(held_out) // targets_per_image)
    device = next((parameter.device for parameter in maps.model.parameters()), torch.device("cpu"))
    fills = DeletionFills(what.fill, held_out.first_images(images))
    found = []
    with Progress(images, "choosing the smoothing", shown=show_progress) as bar:
        for number in range(images):
            rows = held_out.rows(number * targets_per_image + torch.arange(targets_per_image))
            image, targets = rows["inputs"][0].to(device), rows["targets"].to(device)
            generator = generator_of(what.seed + _SEED, number)
            regions = torch.cat([_boxes(side, tuple(image.shape[1:]), generator) for side in SIDES]).to(device)
            drops = measure_drops(
                maps.model, image, targets, regions, fills.draw(len(regions), number, generator), what.quantity,
                internal_batch_size=rows_together(what.internal_batch_size, image.shape, device),
            )  # fmt: skip
            inputs = image.expand(len(targets), *image.shape)
            plain = maps.record(inputs, create_graph=False).explain(targets)[:, None]
            finished = [postprocess(plain, "signed", one, outlines, inputs) for one in SMOOTHINGS]
            found.append(torch.stack([_correlation(one, regions, drops).mean() for one in finished]))
            bar.advance(1)
    return torch.stack(found)


def _boxes(side: float, spatial: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Returns boxes at random places inside the image, ``(BOXES, *spatial)`` bool."""
    length = torch.tensor([max(1, round(side * size)) for size in spatial])
    room = torch.tensor(spatial) - length + 1
    start = (torch.rand(BOXES, len(spatial), generator=generator) * room).long()
    boxes = torch.stack([start, length.expand_as(start)], dim=2)
    return box_regions(boxes[:, None], spatial)


def _correlation(maps: Tensor, regions: Tensor, drops: Tensor) -> Tensor:
    """Returns the mean, over `SIDES`, of the correlation of mass and loss: ``(K,)``; 0 where either is constant."""
    mass = maps.flatten(1).double() @ regions.flatten(1).double().T
    mass, drops = (one.unflatten(1, (len(SIDES), BOXES)) for one in (mass, drops.double()))
    mass, drops = mass - mass.mean(2, keepdim=True), drops - drops.mean(2, keepdim=True)
    norms = mass.norm(dim=2) * drops.norm(dim=2)
    return torch.where(norms > math.ulp(1.0), (mass * drops).sum(2) / norms, 0.0).mean(1)
