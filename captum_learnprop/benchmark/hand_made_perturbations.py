"""Hand-made methods that change the image and look at the output. All lengths are fractions of the image's sides."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from captum.attr import Occlusion
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.attribution.extremal.inputs import ExtremalPerturbation, NeutralMaskWarning
from captum_learnprop.benchmark.explain import GREY, Explain, rows_at_once

OCCLUSION_WINDOW, OCCLUSION_STRIDE = 8, 16
"""Windows are an eighth of a side large, and a sixteenth apart."""

RISE_MASKS, RISE_CELLS, RISE_KEPT = 500, 7, 0.5
"""Number of random masks, cells of each along a side, and the probability that a cell is kept."""

_NOISE_AND_PARTS: dict[str, Any] = {"variant": "dual", "perturbation": "noise", "parts": True}
EXTREMAL: dict[str, Any] = {
    **_NOISE_AND_PARTS, "areas": (0.03, 0.05, 0.07), "draws": 4, "n_steps": 100, "step": 1 / 64, "sigma": 1 / 32,
}  # fmt: skip
EXTREMAL_X_INPUT: dict[str, Any] = {
    **_NOISE_AND_PARTS, "areas": (0.06, 0.1, 0.15), "draws": 3, "n_steps": 60, "reward": "contrastive", "soften": 0.08,
}  # fmt: skip
EXTREMAL_QUICK: dict[str, Any] = {**_NOISE_AND_PARTS, "areas": (0.05, 0.1), "draws": 1, "n_steps": 50}
EXTREMAL_AREA: dict[str, Any] = {
    "areas": (0.02, 0.05, 0.1, 0.2, 0.4), "halvings": 1, "n_steps": 100, "perturbation": "noise",
    "reward": "contrastive",
}  # fmt: skip
"""Options of extremal perturbations, chosen on validation scenes: masks that keep and delete, of which random parts
count, and noise in the place of what is removed. Over a blur or a fixed colour masks find evidence that is not the
object. A mask by itself must be fine; one that is multiplied by the input need not. The quick ones, for large images,
are the method's own but for areas, steps and draws; nothing was chosen for them, nor for the extremal area's."""


def occlusion(model: nn.Module, example: Tensor) -> Explain:
    """Returns occlusion: the drop of the output when a window is grey, ``(B, C, H, W)``, equal over channels.

    Source:
        Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014.
    """
    method = Occlusion(model)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        channels, *sides = images.shape[1:]
        attribution: Tensor = method.attribute(
            images,
            target=targets,
            sliding_window_shapes=(channels, *(_part(side, OCCLUSION_WINDOW) for side in sides)),
            strides=(channels, *(_part(side, OCCLUSION_STRIDE) for side in sides)),
            baselines=GREY,
            perturbations_per_eval=max(1, rows_at_once(images) // len(images)),
        )
        return attribution.detach().to(images.dtype)

    return attribute


def _part(side: int, parts: int) -> int:
    return max(1, round(side / parts))


def occlusion_passes() -> int:
    """Returns the forward passes of occlusion: one for each window, and one for the image."""
    return (OCCLUSION_STRIDE - OCCLUSION_STRIDE // OCCLUSION_WINDOW + 1) ** 2 + 1


def rise(model: nn.Module, example: Tensor) -> Explain:
    """Returns RISE: how much higher the output is where a random mask keeps the pixel, signed ``(B, 1, H, W)``.

    Removed pixels are grey, as for occlusion. The mean output is taken off before masks are weighed by their outputs,
    so that a constant in the output leaves no trace of the masks; the paper's probabilities are near 0 for most masks.

    Source:
        Petsiuk, Das and Saenko, *RISE: Randomized Input Sampling for Explanation of Black-box Models*, BMVC 2018.
    """

    @torch.no_grad()
    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        at_once = max(1, rows_at_once(images) // len(images))
        # Sums of hundreds of outputs, of which the mean is taken off, are kept in double precision.
        weighed = images.new_zeros(len(images), images.shape[-2] * images.shape[-1], dtype=torch.float64)
        plain, total = weighed.new_zeros(weighed.shape[1]), weighed.new_zeros(len(images), 1)
        for masks in _rise_masks(images, at_once):
            masked = (GREY + masks[:, None, None] * (images - GREY)).flatten(0, 1)
            output = model(masked).gather(1, targets.repeat(len(masks))[:, None]).reshape(len(masks), -1).double()
            flat = masks.flatten(1).double()
            weighed, plain, total = weighed + output.T @ flat, plain + flat.sum(0), total + output.sum(0)[:, None]
        maps = (weighed - total / RISE_MASKS * plain) / (RISE_MASKS * RISE_KEPT)
        return maps.reshape(len(images), 1, *images.shape[-2:]).to(images.dtype)

    return attribute


def _rise_masks(images: Tensor, at_once: int) -> Iterator[Tensor]:
    """Yields all masks ``(M, H, W)`` in [0, 1], some at a time: coarse grids, enlarged and shifted within a cell."""
    generator = torch.Generator().manual_seed(0)
    grids = torch.rand(RISE_MASKS, 1, RISE_CELLS + 1, RISE_CELLS + 1, generator=generator) < RISE_KEPT
    shifts = torch.rand(RISE_MASKS, 2, generator=generator)
    height, width = images.shape[-2:]
    cell = (-(-height // RISE_CELLS), -(-width // RISE_CELLS))
    larger = tuple((RISE_CELLS + 1) * one for one in cell)
    for some, moved in zip(grids.split(at_once), shifts.split(at_once), strict=True):
        grown = F.interpolate(some.to(images), size=larger, mode="bilinear", align_corners=False)[:, 0]
        starts = [(int(down * cell[0]), int(right * cell[1])) for down, right in moved.tolist()]
        yield torch.stack([mask[y : y + height, x : x + width] for mask, (y, x) in zip(grown, starts, strict=True)])


def extremal_perturbation(model: nn.Module, example: Tensor) -> Explain:
    """Returns the mean of the extremal masks of three areas, ``(B, 1, H, W)`` in [0, 1] (Fong et al., ICCV 2019)."""
    return _extremal(model, EXTREMAL, multiply_by_inputs=False)


def extremal_perturbation_quick(model: nn.Module, example: Tensor) -> Explain:
    """Returns the mean of the extremal masks of two areas after few steps, ``(B, 1, H, W)`` in [0, 1]."""
    return _extremal(model, EXTREMAL_QUICK, multiply_by_inputs=False)


def extremal_perturbation_x_input(model: nn.Module, example: Tensor) -> Explain:
    """Returns the mean contribution under softened extremal masks of three areas, signed ``(B, C, H, W)``.

    A contribution is the mask times the distance from the median colour. Source: ours, on masks of Fong et al., 2019.
    """
    return _extremal(model, EXTREMAL_X_INPUT, multiply_by_inputs=True)


def extremal_area(model: nn.Module, example: Tensor) -> Explain:
    """Returns the mask of the smallest area that preserves the output, ``(B, 1, H, W)`` in [0, 1] (Fong et al., 2019).

    Where no area does, it is that of the largest one.
    """
    method = ExtremalPerturbation(model)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=NeutralMaskWarning)
            found = method.extremal_area(images, target=targets, **EXTREMAL_AREA)
        return found.mask[0].to(images.dtype)

    return attribute


def extremal_area_passes() -> int:
    """Returns the passes of an extremal area: steps for each area of the curve, and half as many for each halving."""
    steps = int(EXTREMAL_AREA["n_steps"])
    return 2 * (len(EXTREMAL_AREA["areas"]) * steps + int(EXTREMAL_AREA["halvings"]) * (steps // 2))


def _extremal(model: nn.Module, options: dict[str, Any], *, multiply_by_inputs: bool) -> Explain:
    method = ExtremalPerturbation(model, multiply_by_inputs)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        with warnings.catch_warnings():  # a mask without an explanation scores as one
            warnings.filterwarnings("ignore", category=NeutralMaskWarning)
            maps: Tensor = method.attribute(images, target=targets, **options)
        return maps.mean(1, keepdim=not multiply_by_inputs).to(images.dtype)

    return attribute


def extremal_passes(options: dict[str, Any]) -> int:
    """Returns the passes of extremal perturbations with options.

    A step runs what is kept and what is deleted forward and backward, as often as it draws, for each area.
    """
    return 4 * int(options["n_steps"]) * int(options["draws"]) * len(options["areas"])
