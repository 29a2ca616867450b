"""LRP on timm's families, random weights: which share of the work has a rule, conservation, and derivatives.

A sweep: ``pytest -m slow tests/conformity/test_timm_families.py``. Nets are made small where their names allow it.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zennit_rules as zr

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.slow

NAME = "learned_epsilon_gamma_box"
FAMILIES: dict[str, int] = {
    "tf_efficientnet_lite0": 64, "tf_mobilenetv3_small_minimal_100": 64, "mobilenetv3_small_050": 64, "mixnet_s": 64,
    "resnetv2_50x1_bit": 64, "dm_nfnet_f0": 64, "beit_base_patch16_224": 224, "eva02_tiny_patch14_224": 224,
    "swinv2_cr_tiny_ns_224": 224, "swinv2_tiny_window8_256": 256, "convnextv2_atto": 64, "levit_128s": 224,
    "mobilevit_xxs": 64, "mobilevitv2_050": 64, "maxvit_rmlp_pico_rw_256": 256, "coatnet_pico_rw_224": 224,
    "edgenext_xx_small": 64, "repvgg_a0": 64, "inception_v4": 96, "xception41": 96, "mixer_s32_224": 224,
    "cait_xxs24_224": 224, "deit3_small_patch16_224": 224, "resnet18": 64, "seresnet50": 64, "densenet121": 64,
    "regnety_002": 64, "vgg11_bn": 64, "efficientnet_b0": 64, "ghostnet_050": 64, "hrnet_w18_small": 64,
    "resmlp_12_224": 224, "poolformer_s12": 64, "vit_tiny_patch16_224": 224, "crossvit_tiny_240": 240,
    "twins_pcpvt_small": 224, "gcvit_xxtiny": 224, "fastvit_t8": 64, "pit_ti_224": 224, "gmixer_24_224": 224,
}  # fmt: skip
"""Model and size of the image."""

CONSERVING = {
    "bias": "zero", "first": "conv", "gamma": 0.25, "negative": "mirrored", "stabilizer": 1e-20, "epsilon": 1e-20,
}  # fmt: skip
"""Rules under which nothing takes relevance away but a softmax, whose rule does not conserve it. Signals of some random
nets are so small that a larger stabilizer would."""


def net(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10).eval()
    for module in model.modules():  # norms that do something; layer scales that do not silence the blocks
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=0.02)  # some heads start at 0
    size = FAMILIES[name]
    return model.double().requires_grad_(False), torch.randn(1, 3, size, size, dtype=torch.float64)


def built(model: nn.Module, x: Tensor, **options: Any) -> zr.RuleSet:
    return zr.RuleSet.build(model, x, NAME, gate="none", rule_options={"low": -5.0, "high": 5.0, **options})


def relevance(model: nn.Module, x: Tensor, rules: zr.RuleSet, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    leaf, composite = x.clone().requires_grad_(), rules.composite()
    with composite.context(model):
        output = model(leaf)
        seed = torch.zeros_like(output)
        seed[:, 1] = 1
        (found,) = zr.attribute(composite, output, (leaf,), seed, create_graph=create_graph)
    return found, output.detach()[:, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_work_conservation_and_derivatives(name: str, record_property: Any) -> None:
    model, x = net(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", zr.RuleWarning)
        rules = built(model, x)
    coverage = rules.coverage()
    shares = []
    for each in (rules, built(model, x, **CONSERVING)):
        found, output = relevance(model, x, each)
        assert bool(found.isfinite().all())
        shares.append(float(found.sum() / output))
    record_property("share", coverage.share)
    record_property("conservation", shares)
    attends = any(site.kind == "linear" and "matmul" in row.name for site in rules.sites for row in coverage.rows)
    print(
        f"{name}: share {coverage.share:.2%}, {len(rules.sites)} sites, relevance / output {shares[0]:.3f}, without "
        f"biases {shares[1]:.6f}{', attends' if attends else ''}"
    )
    rounding = 1e-13 * float(found.abs().sum() / output.abs())  # where contributions cancel, relevance is large
    assert attends or abs(shares[1] - 1) <= 1e-6 + rounding
    assert coverage.share == 1.0, str(coverage)
    assert coverage.complete, str(coverage.missed)

    # One derivative for each kind of parameter, in the middle of the net, by central differences.
    rules = built(model, x, gamma=0.5, strength=0.5, epsilon=0.1)
    kinds: dict[tuple[str, str], str] = {}
    sites = rules.sites
    for site in sorted(sites, key=lambda s: abs(sites.index(s) - len(sites) // 2)):
        for parameter, _ in rules.gate(site.name).named_parameters():
            kinds.setdefault((type(rules.gate(site.name)).__name__, parameter), site.name)
    parameters = [rules.gate(site).get_parameter(parameter) for (_, parameter), site in kinds.items()]
    weights = torch.randn_like(x)

    def loss(create_graph: bool = False) -> Tensor:
        return (relevance(model, x, rules, create_graph)[0] * weights).sum()

    gradients = torch.autograd.grad(loss(create_graph=True), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step * direction)
            ends.append(float(loss()))
            with torch.no_grad():
                parameter.sub_(step * direction)
        numerical = (ends[0] - ends[1]) / 2e-5
        analytical = float((gradient * direction).sum())
        scale = max(abs(numerical), abs(float(loss())), 1e-12)
        assert abs(numerical - analytical) <= 1e-4 * scale, (numerical, analytical, kinds)
