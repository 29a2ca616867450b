"""Hand-made methods to compare with, each in the form that its paper means.

Methods that see modules only (DeepLift, guided backprop, Deconvnet, LRP) run on the model's `twin`. LRP starts from
a seed under which positive relevance speaks *for* the target whatever the sign of the output: see `Lrp`.
Every method takes images in [0, 1].
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import (
    Deconvolution,
    DeepLift,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    LayerActivation,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn
from torch.nn import functional as F

from captum_learnprop.attribution.extremal.inputs import ExtremalPerturbation, NeutralMaskWarning
from captum_learnprop.benchmark.hand_made_lrp import Explain as Explain
from captum_learnprop.benchmark.hand_made_lrp import (
    Lrp,
    epsilon_alpha_beta,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_box,
    epsilon_plus_flat,
    excitation_backprop,
    z_plus_box,
)
from captum_learnprop.benchmark.twin import EXAMPLE_SIZE, Twin, twin_of
from captum_learnprop.errors import LearnpropError
from zennit_rules._moved import renamed

FAMILIES = ("gradient", "cam", "lrp", "perturbation", "control")

GREY = 0.5
"""Baseline of integrated gradients, DeepLift and occlusion: the middle of the range."""

INTEGRATED_STEPS = 50
OCCLUSION_WINDOW, OCCLUSION_STRIDE = 8, 4
NOISE_SAMPLES, NOISE = 20, 0.1
"""Number of noisy copies that SmoothGrad averages, and the standard deviation of the noise on the images' scale."""

_NOISE_AND_PARTS: dict[str, Any] = {"variant": "dual", "perturbation": "noise", "parts": True}
EXTREMAL: dict[str, Any] = {
    **_NOISE_AND_PARTS, "areas": (0.03, 0.05, 0.07), "draws": 4, "n_steps": 100, "step": 1 / 64, "sigma": 1 / 32,
}  # fmt: skip
EXTREMAL_X_INPUT: dict[str, Any] = {
    **_NOISE_AND_PARTS, "areas": (0.06, 0.1, 0.15), "draws": 3, "n_steps": 60, "reward": "contrastive", "soften": 0.08,
}  # fmt: skip
"""Options of extremal perturbations, chosen on validation scenes: masks that keep and delete, of which random parts
count, and noise in the place of what is removed. Over a blur or a fixed colour masks find evidence that is not the
object. A mask by itself must be fine; one that is multiplied by the input need not."""

INTERNAL_BATCH_SIZE = 256


@dataclass(frozen=True)
class HandMade:
    """A hand-made method.

    Attributes:
        name: as in tables.
        family: one of `FAMILIES`.
        passes: forward and backward passes through the net per image of 64 x 64 pixels.
        build: makes the method for a model; raises a `LearnpropError` with the reason where it cannot.
        options: what decides its maps and may change: results by others are not mixed with these.
    """

    name: str
    family: str
    passes: int
    build: Callable[[nn.Module], Explain]
    options: str = ""


def hand_made(name: str) -> HandMade:
    """Returns the method of a name, one of `HAND_MADE`.

    Raises:
        LearnpropError: no such method.
    """
    if name not in HAND_MADE:
        raise LearnpropError(f"unknown hand-made method {name!r}; choose one of {', '.join(HAND_MADE)}")
    return HAND_MADE[name]


# -- gradients -----------------------------------------------------------------------------------------------------


def saliency(model: nn.Module) -> Explain:
    """Returns the method that gives the signed gradient, ``(B, C, H, W)`` (Simonyan et al., 2013)."""
    return _captum(Saliency(model), abs=False)


def input_x_gradient(model: nn.Module) -> Explain:
    """Returns the method that gives the image times the gradient, ``(B, C, H, W)`` (Shrikumar et al., 2016)."""
    return _captum(InputXGradient(model))


def integrated_gradients(model: nn.Module) -> Explain:
    """Returns integrated gradients from grey, signed ``(B, C, H, W)`` (Sundararajan et al., ICML 2017)."""
    return _captum(
        IntegratedGradients(model), baselines=GREY, n_steps=INTEGRATED_STEPS, internal_batch_size=INTERNAL_BATCH_SIZE
    )


def smooth_grad(model: nn.Module) -> Explain:
    """Returns SmoothGrad: the mean signed gradient over noisy copies, ``(B, C, H, W)`` (Smilkov et al., 2017)."""
    tunnel = NoiseTunnel(Saliency(model))
    averaged = _captum(tunnel, nt_type="smoothgrad", nt_samples=NOISE_SAMPLES, stdevs=NOISE, abs=False)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return averaged(images, targets)

    return attribute


def deep_lift(model: nn.Module) -> Explain:
    """Returns DeepLift by the rescale rule, from grey, signed ``(B, C, H, W)`` (Shrikumar et al., ICML 2017).

    It runs one image at a time: captum's rule for max-pools reads the gradient of the first sample for all others.

    Raises:
        LearnpropError: the net cannot be written in separate modules.
    """
    single = _captum(DeepLift(twin_of(model, for_deep_lift=True).network), baselines=torch.tensor([[[[GREY]]]]))

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([single(x, y) for x, y in zip(images.split(1), targets.split(1), strict=True)])

    return attribute


def guided_backprop(model: nn.Module) -> Explain:
    """Returns guided backpropagation, signed ``(B, C, H, W)`` (Springenberg et al., 2015).

    Raises:
        LearnpropError: the net cannot be written in separate modules.
    """
    return _captum(GuidedBackprop(twin_of(model).network))


def deconvolution(model: nn.Module) -> Explain:
    """Returns Deconvnet, signed ``(B, C, H, W)`` (Zeiler and Fergus, ECCV 2014).

    Raises:
        LearnpropError: the net cannot be written in separate modules.
    """
    return _captum(Deconvolution(twin_of(model).network))


def _captum(method: Any, **options: Any) -> Explain:
    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        chosen = {
            name: value.expand_as(images).to(images) if isinstance(value, Tensor) else value
            for name, value in options.items()
        }
        with _quiet_captum():
            attribution: Tensor = method.attribute(images, target=targets, **chosen)
        return attribution.detach().to(images.dtype)

    return attribute


# -- class activation maps -----------------------------------------------------------------------------------------


def grad_cam(level: int) -> Callable[[nn.Module], Explain]:
    """Returns a builder of Grad-CAM, whose maps ``(B, 1, H, W)`` are not negative (Selvaraju et al., ICCV 2017).

    Args:
        level: 0 is the last feature map, n the one that is n resolutions finer.

    Raises:
        LearnpropError: by the builder, where the net has no twin or no feature map of that level.
    """

    def build(model: nn.Module) -> Explain:
        twin = twin_of(model)
        method = LayerGradCam(twin.network, twin.network.get_submodule(_feature(twin, level)))

        def attribute(images: Tensor, targets: Tensor) -> Tensor:
            with _quiet_captum():
                maps = method.attribute(images, target=targets, relu_attributions=True)
            return _resized(maps.detach(), images)

        return attribute

    return build


def layer_cam(level: int) -> Callable[[nn.Module], Explain]:
    """Returns a builder of LayerCAM, whose maps ``(B, 1, H, W)`` are not negative (Jiang et al., TIP 2021).

    The positive gradient weighs each activation where it is.

    Args:
        level: as in `grad_cam`: 0 is the coarsest feature map, higher is finer.

    Raises:
        LearnpropError: when it builds, for a net without a twin or without that feature map.
    """

    def build(model: nn.Module) -> Explain:
        twin = twin_of(model)
        layer = twin.network.get_submodule(_feature(twin, level))
        activation = LayerActivation(twin.network, layer)

        def attribute(images: Tensor, targets: Tensor) -> Tensor:
            features = activation.attribute(images, attribute_to_layer_input=False).detach().requires_grad_()
            handle = layer.register_forward_hook(lambda module, args, output: features)
            try:
                with torch.enable_grad():
                    output = twin.network(images).gather(1, targets[:, None]).sum()
                    gradient = torch.autograd.grad(output, features)[0]
            finally:
                handle.remove()
            maps = (gradient.clamp(min=0) * features.detach()).sum(1, keepdim=True).clamp(min=0)
            return _resized(maps, images)

        return attribute

    return build


def guided_grad_cam(model: nn.Module) -> Explain:
    """Returns guided backpropagation times Grad-CAM at the last feature map, signed ``(B, C, H, W)``.

    Source:
        Selvaraju et al., *Grad-CAM*, ICCV 2017.

    Raises:
        LearnpropError: the net cannot be written in separate modules, or has no feature map.
    """
    twin = twin_of(model)
    method = GuidedGradCam(twin.network, twin.network.get_submodule(_feature(twin, 0)))
    return _captum(method, interpolate_mode="bilinear")


def _feature(twin: Twin, level: int) -> str:
    if level >= len(twin.features):
        raise LearnpropError(
            f"the net has {len(twin.features)} feature maps that all branches join in; level {level} is finer than all"
        )
    return twin.features[-1 - level]


def _resized(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)


# -- perturbations and controls --------------------------------------------------------------------------------------


def occlusion(model: nn.Module) -> Explain:
    """Returns occlusion: the drop of the output when a window is grey, ``(B, C, H, W)``, equal over channels.

    Source:
        Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*, ECCV 2014.
    """
    method = Occlusion(model)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        channels = images.shape[1]
        attribution: Tensor = method.attribute(
            images,
            target=targets,
            sliding_window_shapes=(channels, OCCLUSION_WINDOW, OCCLUSION_WINDOW),
            strides=(channels, OCCLUSION_STRIDE, OCCLUSION_STRIDE),
            baselines=GREY,
            perturbations_per_eval=max(1, INTERNAL_BATCH_SIZE // len(images)),
        )
        return attribution.detach().to(images.dtype)

    return attribute


def extremal_perturbation(model: nn.Module) -> Explain:
    """Returns the mean of the extremal masks of three areas, ``(B, 1, H, W)`` in [0, 1] (Fong et al., ICCV 2019)."""
    return _extremal(model, EXTREMAL, multiply_by_inputs=False)


def extremal_perturbation_x_input(model: nn.Module) -> Explain:
    """Returns the mean contribution under softened extremal masks of three areas, signed ``(B, C, H, W)``.

    A contribution is the mask times the distance from the median colour. Source: ours, on masks of Fong et al., 2019.
    """
    return _extremal(model, EXTREMAL_X_INPUT, multiply_by_inputs=True)


def _extremal(model: nn.Module, options: dict[str, Any], *, multiply_by_inputs: bool) -> Explain:
    method = ExtremalPerturbation(model, multiply_by_inputs)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        with warnings.catch_warnings():  # a mask without an explanation scores as one
            warnings.filterwarnings("ignore", category=NeutralMaskWarning)
            maps: Tensor = method.attribute(images, target=targets, **options)
        return maps.mean(1, keepdim=not multiply_by_inputs).to(images.dtype)

    return attribute


def _extremal_passes(options: dict[str, Any]) -> int:
    """A step runs what is kept and what is deleted forward and backward, as often as it draws, for each area."""
    return 4 * int(options["n_steps"]) * int(options["draws"]) * len(options["areas"])


def random_map(model: nn.Module) -> Explain:
    """Returns uniform noise ``(B, 1, H, W)`` in [0, 1), seeded by the image and the target, as a control."""

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        maps = []
        for image, target in zip(images, targets, strict=True):
            seed = zlib.crc32(image.cpu().contiguous().numpy().tobytes()) + int(target)
            maps.append(torch.rand(1, *image.shape[-2:], generator=torch.Generator().manual_seed(seed)))
        return torch.stack(maps).to(images)

    return attribute


def centre_prior(model: nn.Module) -> Explain:
    """Returns a Gaussian in the middle, ``(B, 1, H, W)`` in (0, 1], a quarter of the image wide.

    Objects tend to be there.
    """

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = torch.linspace(-2, 2, height), torch.linspace(-2, 2, width)
        bump = torch.exp(-0.5 * (rows[:, None] ** 2 + columns[None] ** 2))
        return bump.expand(len(images), 1, height, width).to(images)

    return attribute


def intensity(model: nn.Module) -> Explain:
    """Returns the distance of each pixel from the image's mean colour, ``(B, 1, H, W)``, not negative.

    It redraws the image and knows nothing of the net.
    """

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        return (images - images.mean((2, 3), keepdim=True)).square().sum(1, keepdim=True).sqrt()

    return attribute


def _windows(size: int) -> int:
    return -(-(size - OCCLUSION_WINDOW) // OCCLUSION_STRIDE) + 1


HAND_MADE: dict[str, HandMade] = {
    method.name: method
    for method in (
        HandMade("saliency", "gradient", 2, saliency),
        HandMade("input x gradient", "gradient", 2, input_x_gradient),
        HandMade("integrated gradients", "gradient", 2 * INTEGRATED_STEPS, integrated_gradients),
        HandMade("SmoothGrad", "gradient", 2 * NOISE_SAMPLES, smooth_grad),
        HandMade("DeepLift", "gradient", 4, deep_lift),
        HandMade("guided backprop", "gradient", 2, guided_backprop),
        HandMade("Deconvnet", "gradient", 2, deconvolution),
        HandMade("Grad-CAM", "cam", 2, grad_cam(0)),
        HandMade("Grad-CAM, mid layer", "cam", 2, grad_cam(1)),
        HandMade("LayerCAM, mid layer", "cam", 3, layer_cam(1)),
        HandMade("LayerCAM, early layer", "cam", 3, layer_cam(2)),
        HandMade("guided Grad-CAM", "cam", 4, guided_grad_cam),
        HandMade("LRP epsilon plus", "lrp", 2, Lrp(epsilon_plus)),
        HandMade("LRP epsilon plus, flat", "lrp", 2, Lrp(epsilon_plus_flat)),
        HandMade("LRP z+, box", "lrp", 2, Lrp(epsilon_plus_box)),
        HandMade("LRP epsilon gamma, box", "lrp", 2, Lrp(epsilon_gamma_box)),
        HandMade("LRP epsilon alpha2 beta1", "lrp", 2, Lrp(epsilon_alpha_beta)),
        HandMade("LRP z+ throughout, box", "lrp", 2, Lrp(z_plus_box, seed="one")),
        HandMade("excitation backprop", "lrp", 2, Lrp(excitation_backprop, seed="one")),
        HandMade("occlusion", "perturbation", _windows(EXAMPLE_SIZE) ** 2 + 1, occlusion),
        HandMade(
            "extremal perturbation",
            "perturbation",
            _extremal_passes(EXTREMAL),
            extremal_perturbation,
            options=str(EXTREMAL),
        ),
        HandMade(
            "extremal perturbation x input",
            "perturbation",
            _extremal_passes(EXTREMAL_X_INPUT),
            extremal_perturbation_x_input,
            options=str(EXTREMAL_X_INPUT),
        ),
        HandMade("random", "control", 0, random_map),
        HandMade("centre prior", "control", 0, centre_prior),
        HandMade("intensity", "control", 0, intensity),
    )
}
"""Hand-made methods by name."""


@contextmanager
def _quiet_captum() -> Iterator[None]:
    """Silences captum's warnings on every call, which tell of nothing a user could change here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks and attributes on non-linear")
        warnings.filterwarnings("ignore", message="Input Tensor 0 did not already require gradients")
        yield


__getattr__ = renamed(
    __name__, {"HandMadeError": "LearnpropError", "box_rule": "captum_learnprop.benchmark.hand_made_lrp.box_rule"}
)
