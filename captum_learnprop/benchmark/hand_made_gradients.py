"""Hand-made methods that differentiate the output, by the gradient itself or by another rule at activations.

DeepLIFT, guided backprop and Deconvnet are those of this package before any training, which equal captum's where
captum's are exact; they see activations that are functions, that are used again, or that belong to other classes than
ReLU, where captum silently takes the gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor, nn

from captum_learnprop.attribution.rules.deep_lift import LearnedDeepLift
from captum_learnprop.attribution.rules.guided_backprop import LearnedGuidedBackprop
from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.explain import GREY, Explain, rows_at_once, tried

INTEGRATED_STEPS = 50

NOISE_SAMPLES, NOISE = 20, 0.1
"""Number of noisy copies that SmoothGrad averages, and the standard deviation of the noise on the images' scale."""


def saliency(model: nn.Module, example: Tensor) -> Explain:
    """Returns the method that gives the signed gradient, ``(B, C, H, W)`` (Simonyan et al., 2013)."""
    return _captum(Saliency(model), abs=False)


def input_x_gradient(model: nn.Module, example: Tensor) -> Explain:
    """Returns the method that gives the image times the gradient, ``(B, C, H, W)`` (Shrikumar et al., 2016)."""
    return _captum(InputXGradient(model))


def integrated_gradients(model: nn.Module, example: Tensor) -> Explain:
    """Returns integrated gradients from grey, signed ``(B, C, H, W)`` (Sundararajan et al., ICML 2017)."""
    rows = rows_at_once(example)
    return _captum(IntegratedGradients(model), baselines=GREY, n_steps=INTEGRATED_STEPS, internal_batch_size=rows)


def smooth_grad(model: nn.Module, example: Tensor) -> Explain:
    """Returns SmoothGrad: the mean signed gradient over noisy copies, ``(B, C, H, W)`` (Smilkov et al., 2017).

    Every image has the same noise, whatever else is explained with it.
    """
    averaged = _captum(
        NoiseTunnel(Saliency(model)), nt_type="smoothgrad", nt_samples=NOISE_SAMPLES, stdevs=NOISE, abs=False,
        nt_samples_batch_size=min(NOISE_SAMPLES, rows_at_once(example)),
    )  # fmt: skip

    def single(image: Tensor, target: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return averaged(image, target)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([single(*one) for one in zip(images.split(1), targets.split(1), strict=True)])

    return attribute


def deep_lift(model: nn.Module, example: Tensor) -> Explain:
    """Returns DeepLIFT by the rescale rule, from grey, signed ``(B, C, H, W)`` (Shrikumar et al., ICML 2017).

    Raises:
        LearnpropError: Contributions do not add up through some function of the net.
    """
    method = LearnedDeepLift(model)
    return tried(lambda images, targets: method.attribute(images, GREY, targets), example)


def guided_backprop(model: nn.Module, example: Tensor) -> Explain:
    """Returns guided backpropagation, signed ``(B, C, H, W)`` (Springenberg et al., 2015).

    Raises:
        LearnpropError: The net has no activation that a rule reaches.
    """
    method = LearnedGuidedBackprop(model)
    return tried(lambda images, targets: method.attribute(images, targets), example)


def deconvolution(model: nn.Module, example: Tensor) -> Explain:
    """Returns Deconvnet, signed ``(B, C, H, W)`` (Zeiler and Fergus, ECCV 2014).

    Raises:
        LearnpropError: The net has no activation that a rule reaches.
    """
    method = LearnedPropagation(model, gate="channel", start="deconvnet")
    return tried(lambda images, targets: method.attribute(images, targets, n_steps=0), example)


def _captum(method: Any, **options: Any) -> Explain:
    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        with _quiet_captum():
            attribution: Tensor = method.attribute(images, target=targets, **options)
        return attribution.detach().to(images.dtype)

    return attribute


@contextmanager
def _quiet_captum() -> Iterator[None]:
    """Silences a warning of captum on every call, which tells of nothing a user could change here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input Tensor 0 did not already require gradients")
        yield
