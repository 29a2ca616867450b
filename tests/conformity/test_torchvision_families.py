"""Every family of classification models that torchvision ships: coverage, attributions, gradients of the gates.

Weights are random. Where they would silence a network (zero heads, layer scales of 1e-6, running statistics that never
saw data) they are set to values under which signals keep their size, so that a zero gradient means a fault of ours.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision.models as models
from shallow_nets import AS_SHIPPED, SHALLOW, SIDE, shallow_by_default
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation
from untouched import assert_untouched, snapshot

from captum_learnprop import LearnedPropagation
from captum_learnprop.training.per_sample import OriginalPass
from zennit_rules import LearnedGradient, RuleSet

LIMIT = 100_000_000  # parameters; the sweep leaves larger variants out
SIZES = {"alexnet": 63, "inception_v3": 75, "maxvit": 224, "vit": 64}  # pixels; 32 do for the others
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
    x = images(name, 8)
    if name in SHALLOW:
        return lively(SHALLOW[name](num_classes=10), x)
    name = name.removesuffix(AS_SHIPPED)
    options: dict[str, object] = {"init_weights": False} if name.startswith(NO_INIT) else {}
    if family(name) == "vit":
        options["image_size"] = SIZES["vit"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return lively(models.get_model(name, weights=None, num_classes=10, **options), x)


def images(name: str, samples: int = 1) -> Tensor:
    """The first of them are the same whatever their number."""
    side = SIDE if name in SHALLOW else SIZES.get(family(name), 32)
    return torch.stack([torch.randn(3, side, side, generator=torch.Generator().manual_seed(i)) for i in range(samples)])


@torch.no_grad()
def lively(model: nn.Module, x: Tensor) -> nn.Module:
    """Let signals and gradients pass: no zero heads, no vanishing layer scales, running statistics of real data."""
    for path, parameter in model.named_parameters():
        if path.endswith("layer_scale"):
            parameter.fill_(1.0)
        elif parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.eval()
    handles = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = None
        elif isinstance(module, SqueezeExcitation):
            handles.append(module.fc1.register_forward_pre_hook(awake))
    model(x)
    for handle in handles:
        handle.remove()
    return model.eval()


def awake(layer: nn.Conv2d, args: tuple[Tensor]) -> None:
    """Give the few units of a squeeze layer a mean of 1, or all of them may sleep."""
    z = nn.functional.conv2d(args[0], layer.weight, layer.bias)
    scale = z.std() + 1e-6
    layer.weight /= scale
    layer.bias.copy_(1 + (layer.bias - z.mean((0, 2, 3))) / scale)


# -- inventory -------------------------------------------------------------------------------------------------------


def test_every_model_of_torchvision_belongs_to_a_family() -> None:
    assert {family(n) for n in NAMES} == set(FAMILIES)
    assert set(SWEEP) | set(SMALLEST) == {n for n in NAMES if size(n) < LIMIT} | {"vgg11"}


# -- each model ------------------------------------------------------------------------------------------------------

# Layers without a rule, as the coverage report has to name them: not element-wise, or max-pools (exact by default).
POOL = {"MaxPool2d", "MaxPool2DWithIndices"}
SOFTMAX = {"Softmax"}
NO_RULE = {
    "alexnet": POOL, "densenet": POOL, "googlenet": POOL, "inception_v3": POOL, "resnet": POOL, "resnext": POOL,
    "shufflenet_v2": POOL, "squeezenet": POOL, "vgg": POOL, "wide_resnet": POOL,
    "maxvit": SOFTMAX, "swin": SOFTMAX, "swin_v2": SOFTMAX | {"Clamp", "ClampMin"},
    "vit": {"MultiheadAttention", "ScaledDotProductFlashAttentionForCpu"},
}  # fmt: skip
REASONS = {
    "max-pools are exact in this rule set",
    "not element-wise: keeps its own gradient",
    "a bound, not known as an activation: keeps its own gradient",
}


def without_input(name: str, site: str) -> bool:
    """Sites that see parameters only: no signal to the input passes through them."""
    return family(name) == "swin_v2" and (".cpb_mlp." in site or site.endswith(".attn.functional_sigmoid"))


def predicted(model: nn.Module, x: Tensor) -> int:
    """The class with the largest output: SqueezeNet's are rectified, and some are silent."""
    with torch.no_grad():
        return int(model(x).sum(0).argmax())


def original_pass(model: nn.Module, x: Tensor, gate: str = "element") -> OriginalPass:
    leaf, target = x.clone().requires_grad_(), predicted(model, x)
    return OriginalPass(model, LearnedGradient(gate=gate, per_sample=True), (leaf,), target, ())


def gradients(original: OriginalPass, v: Tensor) -> dict[str, Tensor]:
    """Gradient of ``<v, map>`` to the gate of every site."""
    found: dict[str, Tensor] = {}
    original.rule_gradients(original.attributions(), (v,), lambda site, _, g: found.update({site: g["raw"].clone()}))
    return found


def check(name: str) -> None:
    model, x = make(name), images(name)
    before = snapshot(model, x)

    coverage = RuleSet.build(model, x, gate="channel").coverage()
    missing = {row.function: row.reason for row in coverage.rows if not row.rule}
    assert coverage.complete, str(coverage)
    assert set(missing) == NO_RULE.get(family(name), set()), str(coverage)
    assert set(missing.values()) <= REASONS

    maps = LearnedPropagation(model, gate="element").attribute(x, target=predicted(model, x), n_steps=1)
    assert maps.isfinite().all()
    assert maps.any()

    original = original_pass(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradients(original, torch.randn_like(x))
    assert original.fallback is None  # the fast path was taken
    assert set(found) >= {row.name for row in coverage.rows if row.rule and not without_input(name, row.name)}
    for site, gradient in found.items():
        assert gradient.isfinite().all(), site
        assert bool(gradient.any()) != without_input(name, site), site
    assert_untouched(before, model, x)


@pytest.mark.parametrize("name", shallow_by_default(SMALLEST))
def test_family(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEP)
def test_variant(name: str) -> None:
    check(name)


# -- the fast path ---------------------------------------------------------------------------------------------------


# One of each kind of block: plain, in place, residual, reused, concatenated, gated, attention, shifted windows.
EXACT = [
    "squeezenet1_1", "resnet18", "densenet121", "googlenet", "mobilenet_v3_small", "efficientnet_b0",
    "shufflenet_v2_x0_5", "convnext_tiny", "vit_b_16", "swin_t",
]  # fmt: skip


@pytest.mark.parametrize("name", shallow_by_default(EXACT))
@pytest.mark.parametrize("gate", ["element", "quadrant"])
def test_fast_path_equals_double_backward(name: str, gate: str) -> None:
    model, x = make(name).double(), images(name).double()
    fast, slow = original_pass(model, x, gate), original_pass(model, x, gate)
    for original in (fast, slow):
        generator = torch.Generator().manual_seed(2)
        for parameter in original.rules.parameters():
            parameter.data.normal_(std=0.3, generator=generator)
    slow.fallback = "asked for"
    v = torch.randn_like(x)
    expected, found = gradients(slow, v), gradients(fast, v)
    assert fast.fallback is None
    torch.testing.assert_close(fast.attributions()[0], slow.attributions()[0], rtol=1e-10, atol=0)
    assert expected.keys() == found.keys()
    for site, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[site], gradient, rtol=0, atol=1e-9 * scale, msg=site)
