"""Every family of classification models that torchvision ships: coverage, attributions, gradients of the gates.

Weights are random. Where they would silence a network (zero heads, layer scales of 1e-6, running statistics that never
saw data) they are set to values under which signals keep their size, so that a zero gradient means a fault of ours.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache

import pytest
import torch
import torchvision.models as models
from torch import Tensor, nn

from captum_learnprop import LearnedPropagation
from captum_learnprop.training.per_sample import OriginalPass
from zennit_rules import LearnedGradient, RuleSet

LIMIT = 100_000_000  # parameters; the sweep leaves larger variants out
SIZES = {"inception_v3": 75, "maxvit": 224, "vit": 64}  # pixels; 32 do for the others
NO_INIT = ("googlenet", "inception_v3", "vgg")  # they draw truncated normals for long unless told not to

# A prefix per family; the longest that fits a name is its family.
FAMILIES = (
    "alexnet", "convnext", "densenet", "efficientnet_b", "efficientnet_v2", "googlenet", "inception_v3", "maxvit",
    "mnasnet", "mobilenet_v2", "mobilenet_v3", "regnet_x", "regnet_y", "resnet", "resnext", "shufflenet_v2",
    "squeezenet", "swin_v2", "swin", "vgg", "vit", "wide_resnet",
)  # fmt: skip


def family(name: str) -> str:
    return max((f for f in FAMILIES if name.startswith(f)), key=len, default=f"no family for {name}")


def size(name: str) -> int:
    """Declared number of parameters, without building the model."""
    return models.get_model_weights(name).DEFAULT.meta["num_params"]


NAMES = models.list_models(module=models)
SMALLEST = [min((n for n in NAMES if family(n) == f), key=size) for f in FAMILIES]
SWEEP = [n for n in NAMES if n not in SMALLEST and size(n) < LIMIT]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, object] = {"init_weights": False} if name.startswith(NO_INIT) else {}
    if family(name) == "vit":
        options["image_size"] = SIZES["vit"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return lively(models.get_model(name, weights=None, num_classes=10, **options), images(name, 4))


def images(name: str, samples: int = 1) -> Tensor:
    side = SIZES.get(family(name), 32)
    return torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def lively(model: nn.Module, x: Tensor) -> nn.Module:
    """Let signals and gradients pass: no zero heads, no vanishing layer scales, running statistics of real data."""
    for path, parameter in model.named_parameters():
        if path.endswith("layer_scale"):
            parameter.fill_(1.0)
        elif parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = None
    model(x)
    return model.eval()


# -- inventory -------------------------------------------------------------------------------------------------------


def test_every_model_of_torchvision_belongs_to_a_family() -> None:
    assert {family(n) for n in NAMES} == set(FAMILIES)
    assert set(SWEEP) | set(SMALLEST) == {n for n in NAMES if size(n) < LIMIT} | {"vgg11"}
