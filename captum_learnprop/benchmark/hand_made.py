"""Hand-made methods to compare with, each in the form that its paper means, on any net and at any size of images.

A method is built for a model that takes images in [0, 1] and for images of the size of an example. The files beside
this one hold the methods by idea: gradients, class activation maps, relevance propagation, perturbations, products,
tokens, controls.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from captum_learnprop.benchmark.explain import GREY as GREY
from captum_learnprop.benchmark.explain import Build
from captum_learnprop.benchmark.explain import Explain as Explain
from captum_learnprop.benchmark.hand_made_cams import grad_cam, layer_cam
from captum_learnprop.benchmark.hand_made_controls import centre_prior, contrast, intensity, random_map
from captum_learnprop.benchmark.hand_made_gradients import (
    INTEGRATED_STEPS,
    NOISE_SAMPLES,
    deconvolution,
    deep_lift,
    guided_backprop,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from captum_learnprop.benchmark.hand_made_lrp import (
    Lrp,
    epsilon_alpha_beta,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_box,
    epsilon_plus_flat,
    excitation_backprop,
    gamma,
    z_plus_box,
)
from captum_learnprop.benchmark.hand_made_perturbations import (
    EXTREMAL,
    EXTREMAL_AREA,
    EXTREMAL_QUICK,
    EXTREMAL_X_INPUT,
    RISE_MASKS,
    extremal_area,
    extremal_area_passes,
    extremal_passes,
    extremal_perturbation,
    extremal_perturbation_quick,
    extremal_perturbation_x_input,
    occlusion,
    occlusion_passes,
    rise,
)
from captum_learnprop.benchmark.hand_made_products import times_grad_cam
from captum_learnprop.benchmark.hand_made_tokens import TOKEN_METHODS, token_method, transformer_in
from captum_learnprop.errors import LearnpropError
from zennit_rules._moved import renamed

FAMILIES = ("gradient", "cam", "lrp", "product", "perturbation", "token", "control")


@dataclass(frozen=True)
class HandMade:
    """A hand-made method.

    Attributes:
        name: Name in tables.
        family: One of `FAMILIES`.
        passes: Number of forward and backward passes through the net per image, whatever its size.
        build: Makes the method for a model on images in [0, 1] and an example ``(1, 3, H, W)`` of the size that is
            explained; raises a `LearnpropError` with the reason where it cannot.
        options: What decides its maps and may change: results by others are not mixed with these.
    """

    name: str
    family: str
    passes: int
    build: Build
    options: str = ""


def hand_made(name: str) -> HandMade:
    """Returns the method of a name, one of `HAND_MADE`.

    Raises:
        LearnpropError: There is no such method.
    """
    if name not in HAND_MADE:
        raise LearnpropError(f"unknown hand-made method {name!r}; choose one of {', '.join(HAND_MADE)}")
    return HAND_MADE[name]


def hand_made_for(model: nn.Module, example: Tensor) -> dict[str, HandMade]:
    """Returns the methods to compare on a net: those for every net, and those over tokens if it is a transformer.

    A method for every net that cannot explain this one raises when it is built, with the reason, so that a report can
    show it in the place of its row.

    Args:
        model: The net, in evaluation mode, that takes images in [0, 1]; it comes back untouched.
        example: An image ``(1, 3, H, W)`` of the size that is explained.
    """
    anatomy = transformer_in(model, example)
    if anatomy is None:
        return dict(HAND_MADE)
    patches = anatomy.grid[0] * anatomy.grid[1]
    tokens = [HandMade(name, "token", one.passes(patches), token_method(one)) for name, one in TOKEN_METHODS.items()]
    return HAND_MADE | {method.name: method for method in tokens}


_Z_PLUS = Lrp(epsilon_plus_box)
_GAMMA = Lrp(gamma)

HAND_MADE: dict[str, HandMade] = {
    method.name: method
    for method in (
        HandMade("saliency", "gradient", 2, saliency),
        HandMade("input x gradient", "gradient", 2, input_x_gradient),
        HandMade("integrated gradients", "gradient", 2 * INTEGRATED_STEPS, integrated_gradients),
        HandMade("SmoothGrad", "gradient", 2 * NOISE_SAMPLES, smooth_grad, options="noise of each image by itself"),
        HandMade("DeepLift", "gradient", 4, deep_lift),
        HandMade("guided backprop", "gradient", 2, guided_backprop),
        HandMade("Deconvnet", "gradient", 2, deconvolution),
        HandMade("Grad-CAM", "cam", 2, grad_cam(0)),
        HandMade("Grad-CAM, mid layer", "cam", 2, grad_cam(1)),
        HandMade("LayerCAM, mid layer", "cam", 2, layer_cam(1)),
        HandMade("LayerCAM, early layer", "cam", 2, layer_cam(2)),
        HandMade("guided Grad-CAM", "cam", 4, times_grad_cam(guided_backprop)),
        HandMade("LRP epsilon plus", "lrp", 2, Lrp(epsilon_plus)),
        HandMade("LRP epsilon plus, flat", "lrp", 2, Lrp(epsilon_plus_flat)),
        HandMade("LRP z+, box", "lrp", 2, _Z_PLUS),
        HandMade("LRP epsilon gamma, box", "lrp", 2, Lrp(epsilon_gamma_box)),
        HandMade("LRP gamma", "lrp", 2, _GAMMA),
        HandMade("LRP epsilon alpha2 beta1", "lrp", 2, Lrp(epsilon_alpha_beta)),
        HandMade("LRP z+ throughout, box", "lrp", 2, Lrp(z_plus_box, seed="one")),
        HandMade("excitation backprop", "lrp", 2, Lrp(excitation_backprop, seed="one")),
        HandMade("LRP z+, box x Grad-CAM", "product", 4, times_grad_cam(_Z_PLUS)),
        HandMade("LRP gamma x Grad-CAM", "product", 4, times_grad_cam(_GAMMA)),
        HandMade("SmoothGrad x Grad-CAM", "product", 2 * NOISE_SAMPLES + 2, times_grad_cam(smooth_grad)),
        HandMade("DeepLift x Grad-CAM", "product", 6, times_grad_cam(deep_lift)),
        HandMade("intensity x Grad-CAM", "product", 2, times_grad_cam(contrast)),
        HandMade("occlusion", "perturbation", occlusion_passes(), occlusion),
        HandMade("RISE", "perturbation", RISE_MASKS, rise),
        HandMade(
            "extremal perturbation, quick",
            "perturbation",
            extremal_passes(EXTREMAL_QUICK),
            extremal_perturbation_quick,
            options=str(EXTREMAL_QUICK),
        ),
        HandMade(
            "extremal perturbation",
            "perturbation",
            extremal_passes(EXTREMAL),
            extremal_perturbation,
            options=str(EXTREMAL),
        ),
        HandMade(
            "extremal perturbation x input",
            "perturbation",
            extremal_passes(EXTREMAL_X_INPUT),
            extremal_perturbation_x_input,
            options=str(EXTREMAL_X_INPUT),
        ),
        HandMade("extremal area", "perturbation", extremal_area_passes(), extremal_area, options=str(EXTREMAL_AREA)),
        HandMade("random", "control", 0, random_map),
        HandMade("centre prior", "control", 0, centre_prior),
        HandMade("intensity", "control", 0, intensity),
    )
}
"""Hand-made methods for every net, by name."""

__getattr__ = renamed(__name__, {"HandMadeError": "LearnpropError"})
