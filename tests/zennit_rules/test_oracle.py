"""The backward pass rebuilt layer by layer from explicit Jacobian matrices, for random parameters of every gate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from rule_nets import GATE_NAMES, STARTS, prepare, randomise
from torch import Tensor, nn

import zennit_rules as zr

BATCH = 2


class Net(nn.Module):
    """Convolution, batch norm, a reused ReLU, max-pool, convolution, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.relu = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.pool, self.conv2, self.fc = nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Three scores."""
        x = self.pool(self.relu(self.bn(self.conv1(x))))
        return self.fc(self.relu(self.conv2(x)).flatten(1))


def through(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    """``J^T g`` of one sample with the whole Jacobian written out."""
    jacobian = torch.autograd.functional.jacobian(layer, x)
    return (jacobian.reshape(g.numel(), x.numel()).T @ g.reshape(-1)).reshape(x.shape)


def quadrant(z: float, g: float, start: str, raw: list[float]) -> float:
    base = {"gradient": [1, 1, 0, 0], "deconvnet": [1, 0, 1, 0], "guided_backprop": [1, 0, 0, 0]}[start]
    k = (0 if z > 0 else 2) + (0 if g > 0 else 1)
    return g * (base[k] + math.tanh(raw[k]))


def gated(name: str, start: str, raw: Tensor, z: Tensor, g: Tensor) -> Tensor:
    """Signal behind a ReLU for one sample, element by element; ``raw`` without its sample dimension."""
    out = torch.zeros_like(g)
    rms = [float(v.square().mean().sqrt()) for v in (z, g)]
    for index in torch.cartesian_prod(*(torch.arange(n) for n in g.shape)).reshape(-1, g.ndim).tolist():
        position = tuple(index)
        c = position[0]
        zi, gi = float(z[position]), float(g[position])
        if name == "quadrant":
            out[position] = quadrant(zi, gi, start, [float(raw[k, c].reshape(())) for k in range(4)])
            continue
        rule = {
            "gradient": gi if zi > 0 else 0.0,
            "deconvnet": max(gi, 0.0),
            "guided_backprop": max(gi, 0.0) if zi > 0 else 0.0,
        }[start]
        if name == "feature":
            zs, gs = zi / (abs(zi) + rms[0]), gi / (abs(gi) + rms[1])
            phi = torch.tensor([1, zs, gs, zs * gs], dtype=torch.float64)
            a, b = (float(torch.tanh(raw[k, :, c].reshape(4) @ phi)) for k in (0, 1))
            out[position] = rule + a * (gi if zi > 0 else 0.0) + b * gi
            continue
        where = {"element": position, "position": (0, *position[1:]), "channel": (c, *(0 for _ in position[1:]))}[name]
        out[position] = rule * (1 + float(torch.tanh(raw[where])))
    return out


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", GATE_NAMES)
def test_backward_pass(name: str, start: str) -> None:
    model = prepare(Net())
    x = torch.randn(BATCH, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    composite = zr.LearnedGradient(gate=name, start=start)
    seed = torch.randn(BATCH, 3).double()
    with composite.context(model):
        model(x)
        randomise(composite.parameters(), scale=0.8)
        (ours,) = torch.autograd.grad(model(x), x, seed)
    assert [s.name for s in composite.rules.sites] == ["relu", "relu#1"]
    first, second = (composite.rules.gate(s.name) for s in composite.rules.sites)

    def raw(gate: nn.Module, i: int) -> Tensor:
        values = gate.raw.detach()
        return values.select(gate.sample_dim, i if values.shape[gate.sample_dim] > 1 else 0)

    def linear(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda v: module(v[None])[0]

    for i in range(BATCH):
        x0 = x[i].detach()
        z1 = linear(model.bn)(linear(model.conv1)(x0))
        a1 = z1.clamp(min=0)
        p1 = linear(model.pool)(a1)
        z2 = linear(model.conv2)(p1)
        g = through(lambda v: model.fc(v.flatten()), z2.clamp(min=0), seed[i])
        g = gated(name, start, raw(second, i), z2, g)
        g = through(linear(model.conv2), p1, g)
        g = through(linear(model.pool), a1, g)
        g = gated(name, start, raw(first, i), z1, g)
        g = through(linear(model.bn), linear(model.conv1)(x0), g)
        g = through(linear(model.conv1), x0, g)
        torch.testing.assert_close(ours[i], g, rtol=1e-10, atol=1e-13)
