"""LearnedMaxPool against loops over windows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rescale_oracle import each
from rule_nets import assert_gradient, images, randomise, score, vgg
from torch import Tensor, nn
from zennit.composites import NameMapComposite

import zennit_rules as zr
from zennit_rules.rules import pooling

POOLS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.MaxPool1d(2), (2, 3, 7)),
    "1d overlap": (nn.MaxPool1d(3, 1, 1), (2, 2, 6)),
    "1d dilation": (nn.MaxPool1d(3, 2, 1, dilation=2), (2, 2, 9)),
    "2d": (nn.MaxPool2d(2), (2, 3, 4, 6)),
    "2d overlap": (nn.MaxPool2d(3, 2), (2, 2, 7, 7)),
    "2d padding": (nn.MaxPool2d(3, 2, 1), (2, 2, 6, 5)),
    "2d ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 2, 6, 8)),
    "2d ceil and padding": (nn.MaxPool2d(2, 2, 1, ceil_mode=True), (1, 2, 5, 6)),
    "2d dilation": (nn.MaxPool2d(2, 1, 1, dilation=2), (1, 2, 5, 5)),
    "2d oblong": (nn.MaxPool2d((2, 3), (2, 1), (1, 0)), (2, 2, 5, 6)),
    "2d gaps": (nn.MaxPool2d(2, 3), (1, 2, 8, 8)),
    "2d whole": (nn.MaxPool2d(4), (2, 2, 4, 4)),
    "2d single element": (nn.MaxPool2d(1), (2, 1, 1, 1)),
    "3d": (nn.MaxPool3d(2), (1, 2, 4, 4, 4)),
    "3d overlap": (nn.MaxPool3d((1, 3, 2), (1, 2, 1), (0, 1, 0)), (2, 2, 2, 5, 4)),
}


def by_loops(pool: Any, z: Tensor, g: Tensor, m: Tensor, temperature: Tensor) -> Tensor:
    """Each window's signal, shared out by the winner and by a softmax, window by window."""
    dims = z.ndim - 2
    kernel, stride = each(pool.kernel_size, dims), each(pool.stride, dims)
    padding, dilation = each(pool.padding, dims), each(pool.dilation, dims)
    out = torch.zeros_like(z)
    for b in range(z.shape[0]):
        mb, t = float(m[b % len(m)]), float(temperature[b % len(temperature)])
        spread = float(z[b].std()) if z[b].numel() > 1 else 1.0
        for c, *window in itertools.product(range(z.shape[1]), *(range(n) for n in g.shape[2:])):
            inside = []
            for offset in itertools.product(*(range(k) for k in kernel)):
                at = tuple(
                    w * s - p + o * d for w, s, p, o, d in zip(window, stride, padding, offset, dilation, strict=True)
                )
                if all(0 <= i < n for i, n in zip(at, z.shape[2:], strict=True)):
                    inside.append((b, c, *at))
            values = [float(z[at]) for at in inside]
            top = max(values)
            weights = [math.exp((v - top) / (t * spread)) for v in values]
            for at, v, w in zip(inside, values, weights, strict=True):
                out[at] += float(g[(b, c, *window)]) * ((1 - mb) * (v == top) + mb * w / sum(weights))
    return out


def propagate(pool: nn.Module, z: Tensor, g: Tensor, gate: zr.PoolGate, **options: Any) -> Tensor:
    """One backward pass of the layer under the rule."""
    with NameMapComposite([([""], zr.LearnedMaxPool(gate))]).context(pool):
        out = pool(z)
        assert torch.equal(out, pool(z.detach()))
        return torch.autograd.grad(out, z, g, **options)[0]


@pytest.fixture(params=POOLS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """Layer, input, incoming signal."""
    pool, shape = POOLS[request.param]
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    return pool, z, torch.randn_like(pool(z)).detach()


Case = tuple[nn.Module, Tensor, Tensor]


class TestValues:
    @pytest.mark.parametrize("samples", [None, 2])
    def test_loops(self, case: Case, samples: int | None) -> None:
        pool, z, g = case
        if samples is not None and z.shape[0] != samples:
            samples = z.shape[0]
        gate = zr.PoolGate(samples=samples).double()
        randomise(gate.parameters())
        expected = by_loops(pool, z.detach(), g, gate.strength.detach(), gate.temperature.detach())
        torch.testing.assert_close(propagate(pool, z, g, gate), expected, rtol=1e-10, atol=1e-12)

    def test_start_is_exact(self, case: Case) -> None:
        pool, z, g = case
        (exact,) = torch.autograd.grad(pool(z), z, g)
        assert torch.equal(propagate(pool, z, g, zr.PoolGate().double()), exact)
        live = propagate(pool, z, g, zr.PoolGate().double(), create_graph=True)
        torch.testing.assert_close(live.detach(), exact, rtol=0, atol=1e-14)

    def test_limit_of_temperature_is_exact(self, case: Case) -> None:
        pool, z, g = case
        (exact,) = torch.autograd.grad(pool(z), z, g)
        for strength in (1.0, 0.5):
            cold = propagate(pool, z, g, zr.PoolGate(temperature=1e-9, strength=strength).double())
            torch.testing.assert_close(cold, exact, rtol=1e-10, atol=1e-12)

    def test_signal_is_conserved(self, case: Case) -> None:
        pool, z, g = case
        gate = zr.PoolGate(0.7, 0.8).double()
        torch.testing.assert_close(propagate(pool, z, g, gate).sum(), g.sum(), rtol=1e-10, atol=1e-12)


def test_parameters_by_finite_differences(case: Case) -> None:
    pool, z, g = case
    gate = zr.PoolGate(0.6, 0.2).double()
    randomise(gate.parameters())
    parameters = list(gate.parameters())
    live = propagate(pool, z, g, gate, create_graph=True)
    torch.testing.assert_close(live.detach(), propagate(pool, z, g, gate), rtol=1e-13, atol=1e-14)
    found = torch.autograd.grad(score(live), parameters)
    assert_gradient(lambda: score(propagate(pool, z, g, gate)), parameters, found)


def test_strength_learns_from_its_exact_start() -> None:
    pool, z = nn.MaxPool2d(2), torch.randn(2, 3, 4, 4, requires_grad=True)
    gate = zr.PoolGate()
    live = propagate(pool, z, torch.randn(2, 3, 2, 2), gate, create_graph=True)
    strength, temperature = torch.autograd.grad(score(live), (gate.raw_strength, gate.raw_temperature))
    assert strength.abs() > 0
    assert temperature == 0  # at m = 0 no temperature changes anything


def test_more_elements_receive_a_signal() -> None:
    z, g = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 4, 4)
    hit = [int((propagate(nn.MaxPool2d(2), z, g, zr.PoolGate(0.5, m)) != 0).sum()) for m in (0.0, 0.5)]
    assert hit[0] == g.numel()
    assert hit[1] == z.numel()


@pytest.mark.parametrize("value", [0.0, 3.0, -1e300])
def test_constant_input_is_finite(value: float) -> None:
    z = torch.full((2, 1, 4, 4), value, dtype=torch.float64, requires_grad=True)
    gate = zr.PoolGate(strength=0.5).double()
    live = propagate(nn.MaxPool2d(2), z, torch.ones(2, 1, 2, 2).double(), gate, create_graph=True)
    found = torch.autograd.grad(score(live), list(gate.parameters()), materialize_grads=True)
    assert torch.isfinite(live).all()
    assert all(torch.isfinite(f).all() for f in found)


def test_ties_follow_torch() -> None:
    z = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    g = torch.ones(1, 1, 2, 2).double()
    (exact,) = torch.autograd.grad(F.max_pool2d(z, 2), z, g)
    assert torch.equal(propagate(nn.MaxPool2d(2), z, g, zr.PoolGate().double()), exact)


@pytest.mark.parametrize("pooling", ["exact", "soft"])
def test_indices_are_returned_as_asked(pooling: str) -> None:
    class Unpooling(nn.Module):
        def __init__(self, functional: bool) -> None:
            super().__init__()
            self.functional, self.relu, self.pool = functional, nn.ReLU(), nn.MaxPool2d(2, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(x)
            pooled = F.max_pool2d(x, 2, return_indices=True) if self.functional else self.pool(x)
            return F.max_unpool2d(*pooled, 2).flatten(1)

    for functional in (False, True):
        model, x = Unpooling(functional), images()
        expected = model(x)
        (gradient,) = torch.autograd.grad(expected[:, 0].sum(), x)
        with zr.LearnedGradient(pooling=pooling).context(model) as hooked:
            assert torch.equal(hooked(x), expected)
            assert torch.equal(torch.autograd.grad(hooked(x)[:, 0].sum(), x)[0], gradient)


def test_in_a_composite_every_pool_has_a_gate_and_softening_reaches_more_of_the_layer_below() -> None:
    model, x = vgg(), images()
    composite = zr.LearnedGradient(gate="element", pooling="soft", per_sample=True)
    reached = []
    with composite.context(model):
        model(x)
        pools = [s.name for s in composite.rules.sites if s.kind == "pooling"]
        assert pools == ["3", "6"]
        for _ in range(2):
            live = torch.autograd.grad(model(x)[:, 1].sum(), x, create_graph=True)[0]
            gradients = torch.autograd.grad(score(live), [composite.rules.gate(s).raw for s in ("2", "5")])
            reached.append(sum(int((g != 0).sum()) for g in gradients))
            for name in pools:
                composite.rules.gate(name).raw_strength.data.fill_(1.0)
    assert reached[1] > 1.5 * reached[0] > 0


@pytest.mark.parametrize("piece", [1, 60, 10**6])
def test_a_part_at_a_time(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "PIECE", piece)
    torch.manual_seed(0)
    gate = zr.PoolGate(samples=2).double()
    randomise(gate.parameters())
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64, requires_grad=True)
    with NameMapComposite([(["0"], zr.LearnedMaxPool(gate))]).context(nn.Sequential(nn.MaxPool2d(3, 2, 1))) as model:
        out = model(x)
        g = torch.randn_like(out)
        (plain,) = torch.autograd.grad(out, x, g, retain_graph=True)
        (recorded,) = torch.autograd.grad(out, x, g, create_graph=True)
    torch.testing.assert_close(plain, recorded, rtol=1e-12, atol=1e-12)
