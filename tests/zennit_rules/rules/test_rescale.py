"""The rescale rules, one layer at a time, against loops over elements, windows and matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from rescale_oracle import pool_by_loops, slopes, softmax_matrix
from rule_nets import assert_gradient, prepare, randomise, score
from test_activation import ACTIVATIONS, supports
from test_pooling import POOLS
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite, NameMapComposite
from zennit.types import Activation, MaxPool

import zennit_rules as zr
from zennit_rules.rules.rescale import SOFTMAX_TYPES

GATES = ("channel", "quadrant", "feature", "element", "position", "none")
SHAPE = (2, 3, 4, 4)


def propagate(layer: nn.Module, rule: zr.LearnedRescale, z: Tensor, z0: Tensor, g: Tensor, **options: Any) -> Tensor:
    """One backward pass of a layer under a rule that stands on its own; ``z`` requires grad."""
    with NameMapComposite([([""], rule)]).context(layer):
        with zr.reference_pass():
            layer(z0.clone())
        work = z.clone() if getattr(layer, "inplace", False) else z
        out = layer(work)
        return torch.autograd.grad(out, z, g, **options)[0]


def data(shape: tuple[int, ...] = SHAPE, same: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activation that requires grad, reference with a share of equal elements, incoming signal."""
    z, z0, g = (1.5 * torch.randn(shape, dtype=torch.float64) for _ in range(3))
    return z.requires_grad_(), torch.where(torch.rand(shape) < same, z.detach(), z0), g


def gate(name: str, shape: tuple[int, ...] = SHAPE, **options: Any) -> zr.Gate:
    made = zr.gates.gate_class(name)(shape, **options).double()
    randomise(made.parameters())
    return made


class TestActivations:
    @pytest.mark.parametrize(("activation", "adapter"), [
        (activation, adapter) for activation in ACTIVATIONS for adapter in ("module", "inplace")
        if supports(activation, adapter)
    ])  # fmt: skip
    def test_multipliers_are_chords(self, activation: str, adapter: str) -> None:
        expected_of = prepare(ACTIVATIONS[activation][0]())
        layer = prepare(ACTIVATIONS[activation][0](**({"inplace": True} if adapter == "inplace" else {})))
        z, z0, g = data()
        found = propagate(layer, zr.LearnedRescale(zr.ChannelGate((1, 3, 1, 1)).double()), z, z0, g)
        torch.testing.assert_close(found, g * slopes(expected_of, z, z0), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("start", ["gradient", "deconvnet", "guided_backprop"])
    @pytest.mark.parametrize("name", GATES)
    def test_gates_weigh_the_chord_and_the_signal(self, name: str, start: str) -> None:
        z, z0, g = data()
        made = gate(name, start=start)
        a, b = made(z.detach(), g)
        found = propagate(nn.SiLU(), zr.LearnedRescale(made), z, z0, g)
        torch.testing.assert_close(found, a * g * slopes(nn.SiLU(), z, z0) + b * g, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("layer", [nn.ReLU, nn.GELU, partial(nn.ELU, inplace=True), nn.PReLU])
    @pytest.mark.parametrize("name", GATES[:5])
    def test_parameters_by_finite_differences(self, name: str, layer: Callable[[], nn.Module]) -> None:
        made = prepare(layer())
        weights = gate(name)
        z, z0, g = data()
        rule = zr.LearnedRescale(weights)
        live = propagate(made, rule, z, z0, g, create_graph=True)
        value = propagate(made, rule, z, z0, g)
        torch.testing.assert_close(live.detach(), value, rtol=1e-13, atol=1e-15)
        parameters = list(weights.parameters())
        found = torch.autograd.grad(score(live), parameters)
        assert_gradient(lambda: score(propagate(made, rule, z, z0, g)), parameters, found)

    @pytest.mark.parametrize("layer", [nn.Tanh, nn.GELU, nn.Softplus])
    def test_input_by_finite_differences(self, layer: type[nn.Module]) -> None:
        z, z0, g = data(same=0.0)
        rule = zr.LearnedRescale(gate("feature"))
        live = propagate(layer(), rule, z, z0, g, create_graph=True)
        found = torch.autograd.grad(score(live), z)
        assert_gradient(lambda: score(propagate(layer(), rule, z, z0, g)), [z], found)

    @pytest.mark.parametrize("layer", [nn.ReLU, nn.GELU, nn.Hardswish])
    @pytest.mark.parametrize("name", GATES[:5])
    def test_at_the_reference_it_is_the_gradient_and_nothing_is_nan(self, name: str, layer: type[nn.Module]) -> None:
        z, _, g = data()
        weights = gate(name, start="gradient")
        for parameter in weights.parameters():
            parameter.data.zero_()
        live = propagate(layer(), zr.LearnedRescale(weights), z, z.detach(), g, create_graph=True)
        (expected,) = torch.autograd.grad(layer()(z), z, g)
        torch.testing.assert_close(live.detach(), expected, rtol=0, atol=1e-15)
        gradients = torch.autograd.grad(score(live), [z, *weights.parameters()])
        assert all(bool(torch.isfinite(found).all()) for found in gradients)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_low_precision_is_finite(self, dtype: torch.dtype) -> None:
        z, z0, g = (t.detach().to(dtype) for t in data())
        found = propagate(nn.GELU(), zr.LearnedRescale(zr.ChannelGate((1, 3, 1, 1))), z.requires_grad_(), z0, g)
        assert found.dtype is dtype
        assert bool(torch.isfinite(found).all())

    def test_eps_says_what_counts_as_no_difference(self) -> None:
        z, _, g = data()
        z0 = z.detach() - 0.01
        wide = propagate(nn.Tanh(), zr.LearnedRescale(zr.gates.PlainGate(), eps=0.02), z, z0, g)
        narrow = propagate(nn.Tanh(), zr.LearnedRescale(zr.gates.PlainGate()), z, z0, g)
        (tangent,) = torch.autograd.grad(torch.tanh(z), z, g)
        torch.testing.assert_close(wide, tangent, rtol=1e-12, atol=0)
        assert (narrow - tangent).abs().max() > 1e-4


@pytest.fixture(params=POOLS)
def pooled(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Max-pool, input, reference, incoming signal."""
    pool, shape = POOLS[request.param]
    z, z0, _ = data(shape, same=0.2)
    return pool, z, z0, torch.randn_like(pool(z)).detach()


Pooled = tuple[nn.Module, Tensor, Tensor, Tensor]


class TestMaxPools:
    def test_loops(self, pooled: Pooled) -> None:
        pool, z, z0, g = pooled
        found = propagate(pool, zr.RescaleMaxPool(), z, z0, g)
        torch.testing.assert_close(found, pool_by_loops(pool, z.detach(), z0, g), rtol=1e-9, atol=1e-12)

    def test_complete_for_each_sample(self, pooled: Pooled) -> None:
        pool, z, z0, g = pooled
        found = propagate(pool, zr.RescaleMaxPool(), z, z0, g)
        passed = (found * (z.detach() - z0)).flatten(1).sum(1)
        torch.testing.assert_close(
            passed, (g * (pool(z.detach()) - pool(z0))).flatten(1).sum(1), rtol=1e-10, atol=1e-12
        )

    def test_a_sample_does_not_depend_on_its_batch(self, pooled: Pooled) -> None:
        pool, z, z0, g = pooled
        found = propagate(pool, zr.RescaleMaxPool(), z, z0, g)
        for i in range(len(z)):
            alone = z.detach()[i : i + 1].requires_grad_()
            assert torch.equal(propagate(pool, zr.RescaleMaxPool(), alone, z0[i : i + 1], g[i : i + 1])[0], found[i])

    def test_at_the_reference_it_is_the_gradient(self, pooled: Pooled) -> None:
        pool, z, _, g = pooled
        live = propagate(pool, zr.RescaleMaxPool(), z, z.detach(), g, create_graph=True)
        assert torch.equal(live.detach(), torch.autograd.grad(pool(z), z, g)[0])

    def test_softened_it_is_mixed_by_the_pool_gate(self, pooled: Pooled) -> None:
        pool, z, z0, g = pooled
        soft = zr.PoolGate(0.6, 0.2).double()
        randomise(soft.parameters())
        exact = propagate(pool, zr.RescaleMaxPool(), z, z0, g)
        torch.testing.assert_close(propagate(pool, zr.RescaleMaxPool(zr.PoolGate().double()), z, z0, g), exact)
        # What LearnedMaxPool mixes in is the same; only the other end of the mix differs.
        with NameMapComposite([([""], zr.LearnedMaxPool(soft))]).context(pool):
            (known,) = torch.autograd.grad(pool(z), z, g)
        (gradient,) = torch.autograd.grad(pool(z), z, g)
        expected = known + (1 - soft.strength.detach()) * (exact - gradient)
        rule = zr.RescaleMaxPool(soft)
        torch.testing.assert_close(propagate(pool, rule, z, z0, g), expected, rtol=1e-9, atol=1e-12)
        parameters = list(soft.parameters())
        found = torch.autograd.grad(score(propagate(pool, rule, z, z0, g, create_graph=True)), parameters)
        assert_gradient(lambda: score(propagate(pool, rule, z, z0, g)), parameters, found)


class TestSoftmax:
    @pytest.mark.parametrize("log", [False, True])
    @pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
    def test_matrix(self, scale: float, log: bool) -> None:
        z, z0, g = data((5, 6))
        z, z0 = (scale * z).detach().requires_grad_(), scale * z0
        found = propagate(nn.LogSoftmax(1) if log else nn.Softmax(1), zr.RescaleSoftmax(), z, z0, g)
        rows = [softmax_matrix(a, b, log) for a, b in zip(z.tolist(), z0.tolist(), strict=True)]
        expected = torch.stack([m.T @ v for m, v in zip(rows, g, strict=True)])
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)

    @pytest.mark.filterwarnings("ignore:Implicit dimension choice")
    @pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (2, 3, 4, 2)])
    @pytest.mark.parametrize("layer", SOFTMAX_TYPES)
    def test_complete_along_any_dimension(self, layer: type[nn.Module], shape: tuple[int, ...]) -> None:
        for dim in (*range(len(shape)), -1, None):
            z, z0, g = data(shape)
            z = (20 * z).detach().requires_grad_()
            with_dim = layer(dim=dim)
            found = propagate(with_dim, zr.RescaleSoftmax(), z, z0, g)
            change = g * (with_dim(z.detach()) - with_dim(z0))
            torch.testing.assert_close((found * (z.detach() - z0)).sum(), change.sum(), rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("layer", SOFTMAX_TYPES)
    def test_at_the_reference_it_is_the_gradient(self, layer: type[nn.Module]) -> None:
        z, _, g = data((4, 5))
        found = propagate(layer(1), zr.RescaleSoftmax(), z, z.detach(), g)
        torch.testing.assert_close(found, torch.autograd.grad(layer(1)(z), z, g)[0], rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("layer", SOFTMAX_TYPES)
    def test_without_the_rule_it_is_the_gradient(self, layer: type[nn.Module]) -> None:
        z, z0, g = data((4, 5))
        composite = NameMapComposite([([""], zr.RescaleSoftmax())])
        with composite.context(model := layer(1)):
            with zr.reference_pass():
                model(z0)
            with composite.inactive():
                (found,) = torch.autograd.grad(model(z), z, g)
        torch.testing.assert_close(found, torch.autograd.grad(layer(1)(z), z, g)[0], rtol=1e-12, atol=1e-14)

    def test_a_shift_of_all_inputs_changes_nothing(self) -> None:
        z, z0, g = data((4, 5))
        found = propagate(nn.Softmax(1), zr.RescaleSoftmax(), z, z0, g)
        shifted = (z + torch.randn(4, 1)).detach().requires_grad_()
        torch.testing.assert_close(propagate(nn.Softmax(1), zr.RescaleSoftmax(), shifted, z0, g), found)
        torch.testing.assert_close(found.sum(1), torch.zeros(4).double(), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("distance", [1e-12, 1e-5, 9.99e-4, 1.001e-3, 0.3, 50.0])
    def test_second_order_by_finite_differences(self, distance: float) -> None:
        z, _, g = data((4, 5))
        z0 = z.detach() + distance * torch.randn_like(z)
        live = propagate(nn.Softmax(1), zr.RescaleSoftmax(), z, z0, g, create_graph=True)
        found = torch.autograd.grad(score(live), z)
        assert_gradient(lambda: score(propagate(nn.Softmax(1), zr.RescaleSoftmax(), z, z0, g)), [z], found)

    def test_masked_entries_stay_silent(self) -> None:
        z, z0, g = data((4, 5))
        mask = torch.zeros(4, 5).double()
        mask[:, 3] = float("-inf")
        z, z0 = (z + mask).detach().requires_grad_(), z0 + mask
        live = propagate(nn.Softmax(1), zr.RescaleSoftmax(), z, z0, g, create_graph=True)
        assert torch.equal(live[:, 3], torch.zeros(4).double())
        rest = [0, 1, 2, 4]
        expected = propagate(nn.Softmax(1), zr.RescaleSoftmax(), z.detach()[:, rest].requires_grad_(), z0[:, rest],
                             g[:, rest])  # fmt: skip
        torch.testing.assert_close(live[:, rest].detach(), expected, rtol=1e-12, atol=1e-14)
        assert bool(torch.isfinite(torch.autograd.grad(score(live), z)[0]).all())


def small_net() -> nn.Module:
    return prepare(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 2), nn.Tanh(), nn.Flatten(),
            nn.Linear(16, 5),
        )
    )  # fmt: skip


class TestOnItsOwn:
    """In a composite of zennit, whose user runs the baseline."""

    def composite(self) -> LayerMapComposite:
        return LayerMapComposite(
            [(Activation, zr.LearnedRescale(zr.gates.PlainGate())), (MaxPool, zr.RescaleMaxPool())]
        )

    def test_complete(self) -> None:
        model, x, x0 = small_net(), torch.randn(2, 3, 7, 7).double(), torch.randn(1, 3, 7, 7).double()
        composite = self.composite()
        with Gradient(model, composite) as attributor:
            with zr.reference_pass():
                model(x0)
            for _ in range(2):  # one baseline serves several passes
                out, multipliers = attributor(x, torch.eye(5).double()[[1, 1]])
        total = (multipliers * (x - x0)).flatten(1).sum(1)
        torch.testing.assert_close(total, (out - model(x0))[:, 1].detach(), rtol=1e-12, atol=1e-13)

    def test_without_a_baseline_it_says_what_to_do(self) -> None:
        model, x = small_net(), torch.randn(2, 3, 7, 7).double().requires_grad_()
        with self.composite().context(model):
            out = model(x)
            with pytest.raises(zr.RuleError, match=r"Tanh.*no reference.*LearnedDeepLift.*reference_pass"):
                torch.autograd.grad(out.sum(), x, retain_graph=True)
        torch.autograd.grad(out.sum(), x)  # after the context the rules are silent

    def test_reused_modules_need_the_composite(self) -> None:
        relu = nn.ReLU()
        model = nn.Sequential(relu, nn.Linear(3, 3), relu)
        refused = pytest.raises(zr.RuleError, match=r"more than once.*LearnedDeepLift")
        with self.composite().context(model), refused, zr.reference_pass():
            model(torch.randn(2, 3))

    def test_a_baseline_of_another_shape_is_refused(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        with self.composite().context(model):
            with zr.reference_pass():
                model(torch.randn(2, 3))
            with pytest.raises(zr.RuleError, match=r"'ReLU'.*\(4, 3\).*\(2, 3\)"):
                model(torch.randn(4, 3))

    @pytest.mark.parametrize("rule", [zr.LearnedRescale(zr.ChannelGate(), 0.1), zr.RescaleMaxPool(eps=0.1)])
    def test_copies_share_the_gate_and_nothing_else(self, rule: Any) -> None:
        copy = rule.copy()
        assert type(copy) is type(rule)
        assert copy.gate is rule.gate
        assert copy.references is not rule.references
        assert copy.references.eps == 0.1

    def test_values_are_untouched(self) -> None:
        model, x = small_net(), torch.randn(2, 3, 7, 7).double()
        expected = model(x)
        with self.composite().context(model):
            with zr.reference_pass():
                assert torch.equal(model(x), expected)
            assert torch.equal(model(x.requires_grad_()), expected)
