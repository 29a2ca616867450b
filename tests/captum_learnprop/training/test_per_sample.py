"""The parts of per-sample learning: targets, the kept forward pass, the descent, the choice of the best map."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairwise import crossed
from torch import Tensor, nn

from captum_learnprop.errors import TargetError
from captum_learnprop.targets import select_target
from captum_learnprop.training.per_sample import Descent, OriginalPass, learn
from zennit_rules import ElementGate, LearnedGradient, QuadrantGate, RuleError, RuleWarning

# -- select ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ((2,), None, [0, 1]),
        ((2, 1), None, [0, 1]),
        ((2, 3), 1, [1, 4]),
        ((2, 3), -1, [2, 5]),
        ((2, 3), [2, 0], [2, 3]),
        ((2, 3), torch.tensor([2, 0]), [2, 3]),
        ((2, 3), torch.tensor([1]), [1, 4]),
        ((2, 2, 3), (1, 2), [5, 11]),
        ((2, 2, 3), [(0, 1), (1, 0)], [1, 9]),
    ],
)
def test_select(shape: tuple[int, ...], target: Any, expected: list[float]) -> None:
    output = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    assert select_target(output, target).tolist() == expected


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        ({"scores": torch.ones(2, 3)}, 0, r"returned a dict with 'scores', .* wrap the model"),
        ((torch.ones(2, 3),), 0, r"returned a tuple of 1 \(\(2, 3\)\), .* wrap the model"),
        (torch.ones(2, 3), 3, r"target 3 .*\(2, 3\).*class index"),
        (torch.ones(2, 3), [0], r"target \[0\] .*one index per sample"),
        (torch.ones(2, 3), None, r"shape \(2, 3\): pass target="),
        (torch.ones(2, 2, 3), 1, r"target 1 leaves \(2, 3\)"),
        (torch.tensor(1.0), None, r"target None"),
        (torch.ones(2, 3), "1", r"target '1' .*class index"),
    ],
)
def test_select_refuses(output: Any, target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        select_target(output, target)


# -- the kept forward pass -------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Reused and in-place ReLUs, batch norm, concatenation, pooling, products, normalisation, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.relu, self.pool, self.silu = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.SiLU()
        self.layer_norm, self.attend = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv1(x)))
        x = self.relu(self.conv2(x) + x)
        x = self.pool(torch.cat([x, self.silu(x) * x.mean((2, 3), keepdim=True)], dim=1))
        tokens = self.layer_norm(x.flatten(2).transpose(1, 2))
        tokens = tokens + self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return self.fc(torch.nn.functional.gelu(tokens).mean(1))


def original_pass(model: nn.Module, x: Tensor, gate: str = "element", **options: Any) -> OriginalPass:
    leaf = x.clone().requires_grad_()
    return OriginalPass(model, LearnedGradient(gate=gate, per_sample=True, **options), (leaf,), 1, ())


def shaken(original: OriginalPass) -> OriginalPass:
    generator = torch.Generator().manual_seed(5)
    for parameter in original.rules.parameters():
        parameter.data.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return original


def gradients(original: OriginalPass, v: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(site: str, gate: nn.Module, by_name: dict[str, Tensor]) -> None:
        found.update({f"{site}::{name}": g.clone() for name, g in by_name.items()})

    original.rule_gradients(original.attributions(), (v,), keep)
    return found


def residual() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    return Residual().double().eval(), x, torch.randn_like(x)


@crossed(
    gate=["element", "position", "channel", "quadrant", "feature"],
    start=["gradient", "guided_backprop", "deconvnet"],
    pooling=["exact", "soft"],
)
def test_fast_path_equals_double_backward(gate: str, start: str, pooling: str) -> None:
    model, x, v = residual()
    fast, slow = (shaken(original_pass(model, x, gate, start=start, pooling=pooling)) for _ in range(2))
    slow.fallback = "asked for"
    expected, found = gradients(slow, v), gradients(fast, v)
    assert fast.fallback is None
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12, msg=name)


@pytest.mark.parametrize("fallback", [None, "asked for"])
def test_rule_gradients_by_finite_differences(fallback: str | None) -> None:
    model, x, v = residual()
    original = shaken(original_pass(model, x, pooling="soft"))
    original.fallback = fallback
    found = gradients(original, v)
    for name, parameter in original.rules.named_parameters():
        flat, values = parameter.data.view(-1), []
        for sign in (1, -1):
            flat[0] += sign * 1e-6
            values.append(float((v * original.attributions()[0]).sum()))
            flat[0] -= sign * 1e-6
        assert float(found[name].view(-1)[0]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-9), name


def test_attributions_follow_the_rules_as_they_are_now() -> None:
    model, x, _ = residual()
    original = original_pass(model, x)
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(original.attributions()[0], plain)
    shaken(original)
    assert not torch.allclose(original.attributions()[0], plain)
    for parameter in original.rules.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(original.attributions()[0], plain)


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x) * 2
        y[:, 0] = y[:, 1] * 3
        return y


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(Doubled.apply(torch.relu(x)))


@pytest.mark.parametrize(("kind", "reason"), [(Writes, r"by index"), (Custom, r"cannot be followed")])
def test_what_cannot_be_followed_falls_back_and_says_why(kind: type[nn.Module], reason: str) -> None:
    x = torch.randn(2, 3, dtype=torch.float64).abs() + 0.1
    original = original_pass(kind(), x)
    assert original.fallback is not None
    assert re.search(reason, original.fallback)
    found = gradients(original, torch.ones_like(x))
    assert all(g.isfinite().all() for g in found.values())
    assert any(g.any() for g in found.values())


def test_a_wrong_linearisation_is_noticed() -> None:
    model, x, v = residual()
    reference = shaken(original_pass(model, x))
    reference.fallback = "asked for"
    original = shaken(original_pass(model, x))
    step = next(s for s in original.tape._steps if callable(s.run))
    right = step.run
    step.run = lambda *tangents: right(*tangents) * 1.5
    with pytest.warns(RuleWarning, match=r"double backward.*does not match"):
        found = gradients(original, v)
    for name, gradient in gradients(reference, v).items():
        torch.testing.assert_close(found[name], gradient)
    with warnings.catch_warnings():  # said once, not at each step
        warnings.simplefilter("error")
        gradients(original, v)


def test_an_output_that_does_not_depend_on_the_input() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).detach()

    with pytest.raises((TargetError, RuleError), match=r"does not depend|no site"):
        original_pass(Detached(), torch.randn(2, 3))


# -- Descent ---------------------------------------------------------------------------------------------------------


def stepped(gate: nn.Module, *gradients: Tensor, **options: Any) -> Tensor:
    descent = Descent(0.1, **options)
    for gradient in gradients:
        descent.step("site", gate, {"raw": gradient.clone()})
    return gate.get_parameter("raw").detach()


def test_a_step_has_the_wanted_size_whatever_the_scale() -> None:
    gradient = torch.randn(3, 2, 4, 4) * torch.tensor([1e-6, 1.0, 1e6]).reshape(3, 1, 1, 1)
    raw = stepped(ElementGate((3, 2, 4, 4)), gradient)
    torch.testing.assert_close(raw.square().mean(dim=(1, 2, 3)).sqrt(), torch.full((3,), 0.1))
    for i in range(3):
        torch.testing.assert_close(raw[i] / 0.1, -gradient[i] / gradient[i].square().mean().sqrt())


def test_momentum_by_hand() -> None:
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]])
    rms = 2**0.5
    expected = -0.1 * rms * first / 5
    moving = second + 0.8 * first
    expected = expected - 0.1 * rms * moving / moving.norm()
    torch.testing.assert_close(stepped(ElementGate((1, 2)), first, second), expected)
    without = -0.1 * rms * (first / 5 + second)
    torch.testing.assert_close(stepped(ElementGate((1, 2)), first, second, momentum=0.0), without)


def test_samples_of_a_gate_move_on_their_own() -> None:
    gradient = torch.randn(4, 2, 5)
    gate = QuadrantGate((2, 5), samples=2)
    raw = stepped(gate, gradient)
    for i in range(2):
        alone = stepped(QuadrantGate((1, 5), samples=1), gradient[:, i : i + 1])
        torch.testing.assert_close(raw[:, i : i + 1], alone)


def test_no_gradient_no_step() -> None:
    gradient = torch.randn(2, 3)
    gradient[1] = 0.0
    raw = stepped(ElementGate((2, 3)), gradient)
    assert raw[0].any()
    assert not raw[1].any()


@pytest.mark.parametrize("rows", [1, 3])
def test_rounding_noise_is_no_gradient(rows: int) -> None:
    """Also where a sample has several rows at a site, as when a model folds time into the batch."""
    descent, gate = Descent(0.1), ElementGate((2 * rows, 1))
    descent.noise = torch.tensor([1e-6, 1e-6])
    descent.step("site", gate, {"raw": torch.tensor([[1e-7]] * rows + [[1e-5]] * rows)})
    torch.testing.assert_close(gate.raw.detach(), torch.tensor([[0.0]] * rows + [[-0.1]] * rows))


def test_sites_do_not_share_momentum() -> None:
    descent, a, b = Descent(0.1), ElementGate((1, 2)), ElementGate((1, 2))
    descent.step("a", a, {"raw": torch.tensor([[1.0, 0.0]])})
    descent.step("b", b, {"raw": torch.tensor([[0.0, 1.0]])})
    assert not b.raw[0, 0]


# -- learn -----------------------------------------------------------------------------------------------------------


class Scripted:
    """A step whose losses are known: rows are steps, columns samples."""

    def __init__(self, losses: list[list[float]]) -> None:
        self.losses, self.done = torch.tensor(losses), 0
        self.updates: list[bool] = []

    def run(self, *, update: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        loss = self.losses[self.done]
        maps = tuple(torch.full((2, 3), 10.0 * self.done + i) for i in range(2))
        self.done += 1
        self.updates.append(update)
        return maps, loss


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([[3.0, 1.0], [2.0, 2.0], [4.0, 0.5]], [1, 2]),
        ([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [0, 0]),
        ([[1.0, 1.0], [float("nan"), 0.5], [0.5, float("nan")]], [2, 1]),
        ([[float("nan"), 2.0], [1.0, 3.0], [0.5, 1.0]], [2, 2]),
        ([[1.0, 2.0]], [0, 0]),
    ],
)
def test_each_sample_keeps_its_best_map(losses: list[list[float]], best: list[int]) -> None:
    step: Any = Scripted(losses)
    maps = learn(step, len(losses) - 1)
    assert step.updates == [True] * (len(losses) - 1) + [False]
    for i, found in enumerate(maps):
        assert found[:, 0].tolist() == [10.0 * b + i for b in best]


def test_the_progress_bar_is_drawn_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    bar: Callable[..., Any] = learn  # a scripted step stands in for a real one
    bar(Scripted([[1.0, 1.0]] * 3), 2)
    assert capsys.readouterr().err == ""
    bar(Scripted([[1.0, 1.0]] * 3), 2, show_progress=True)
    assert "learning rules" in capsys.readouterr().err
