"""Layers with constant weights, against torch's own: the same values, the same derivatives of signals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zennit_rules.core.constant_weights import constant_weights


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return norm


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    "same": lambda: nn.Conv2d(4, 4, (2, 3), padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1),
    "norm": batch_norm,
    "norm of the batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "plain norm": lambda: nn.BatchNorm2d(4, affine=False),
    "computed weights": lambda: weight_norm(nn.Conv2d(4, 4, 3)),
    "dense": lambda: nn.Linear(5, 3),
}


def derivatives(layer: nn.Module) -> tuple[Tensor, ...]:
    """The value, a gradient, and a derivative of that in the signal it began with, and in the input."""
    torch.manual_seed(1)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    out = layer(x * 1.0)
    g = torch.randn_like(out).requires_grad_()
    (gradient,) = torch.autograd.grad(out, x, g.square(), create_graph=True)
    (second,) = torch.autograd.grad((gradient * torch.randn_like(gradient)).sum(), g)
    return out.detach(), gradient.detach(), second


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_values_and_derivatives_are_the_layers_own(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().double().eval()
    expected = derivatives(layer)
    with constant_weights():
        found = derivatives(layer)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_what_works_in_place_behind_it_may() -> None:
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    with constant_weights():
        out = batch_norm().eval()(x).relu_()
    assert out.min() >= 0
    out.sum().backward()
    assert x.grad is not None


def test_no_weight_takes_part_in_second_derivatives() -> None:
    layer, x = nn.Conv2d(4, 4, 3), torch.randn(2, 4, 5, 5, requires_grad=True)
    with constant_weights():
        out = layer(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    gradient.sum().backward()
    assert layer.weight.grad is None


def test_weights_that_something_computed_keep_their_derivative() -> None:
    raw, x = torch.randn(4, 4, 3, 3, requires_grad=True), torch.randn(2, 4, 5, 5, requires_grad=True)
    with constant_weights():
        out = F.conv2d(x, raw.tanh())
    assert torch.autograd.grad(out.sum(), raw)[0].any()
