"""LearnedPropagation: learning per sample, using and refining rule sets, and leaving everything as it was."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from difference_quotient import difference_quotient
from pairwise import crossed
from torch import Tensor, nn
from untouched import assert_untouched, snapshot

import captum_learnprop as cl
from captum_learnprop import Agreement, LearnedPropagation, LearnpropError, MaxMask
from captum_learnprop.errors import TargetError
from captum_learnprop.training.objectives import MaskedPass
from captum_learnprop.training.sample_occlusion import SampleOcclusion
from zennit_rules import RuleError, RuleSet, RuleWarning

GATES = ("element", "position", "channel", "quadrant", "feature")
each_gate = pytest.mark.parametrize("gate", GATES)
PLAIN: dict[str, Any] = {"objective": Agreement(), "mask": MaxMask()}


class Net(nn.Module):
    """An in-place and a reused ReLU, a functional one, a max-pool, batch norm, dropout and a smooth activation."""

    def __init__(self, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.pool, self.drop = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.3)
        self.fc1, self.fc2, self.act = nn.Linear(54, 16), nn.Linear(16, 4), activation()

    def forward(self, x: Tensor, scale: Any = 1.0, extra: Tensor | None = None) -> Tensor:
        x = self.relu(self.norm(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x) + x)) * scale
        x = torch.relu(self.fc1(self.drop(x.flatten(1))) + 0.2)
        out = self.fc2(self.act(x))
        return out if extra is None else out + extra


def net(dtype: torch.dtype = torch.float64, **options: Any) -> Net:
    torch.manual_seed(1)
    return Net(**options).to(dtype).eval()


def batch(samples: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(samples, 2, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def moved(rules: RuleSet, std: float = 0.6) -> RuleSet:
    generator = torch.Generator().manual_seed(3)
    for parameter in rules.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std)
    return rules


def loss_of(model: nn.Module, x: Tensor, maps: Tensor, target: Any, objective: Any, mask: Any) -> Tensor:
    """The objective of a map, computed from outside."""
    with torch.no_grad():
        m = mask(maps)
        original, masked = model(x), model(objective.apply(x, m))
        rows = torch.arange(len(x))
        return objective(MaskedPass(original, masked, original[rows, target], masked[rows, target], target, (m,)))


# -- learning per sample ---------------------------------------------------------------------------------------------


@each_gate
@pytest.mark.parametrize("start", ["gradient", "guided_backprop", "deconvnet"])
def test_maps_are_finite_and_of_the_inputs_shape(gate: str, start: str) -> None:
    model, x = net(), batch()
    maps = LearnedPropagation(model, gate=gate, start=start).attribute(x, target=[0, 1, 2], n_steps=3)
    assert maps.shape == x.shape
    assert maps.dtype == x.dtype
    assert not maps.requires_grad
    assert maps.isfinite().all()
    assert maps.flatten(1).any(dim=1).all()


@each_gate
def test_the_objective_falls_and_no_map_is_worse_than_at_the_start(gate: str) -> None:
    model, x, target = net(), batch(6), [0, 1, 2, 3, 0, 1]
    method = LearnedPropagation(model, gate=gate)
    start = loss_of(model, x, method.attribute(x, target=target, n_steps=0), target, Agreement(), MaxMask())
    losses = [
        loss_of(model, x, method.attribute(x, target=target, n_steps=n, **PLAIN), target, Agreement(), MaxMask())
        for n in (1, 5, 15)
    ]
    assert (losses[0] <= start + 1e-12).all()
    assert (losses[1] <= losses[0] + 1e-12).all()  # the same steps, and more of them
    assert (losses[2] <= losses[1] + 1e-12).all()
    assert losses[2].mean() < start.mean() - 1e-3


def test_one_more_step_than_maps_judged() -> None:
    """With n steps, n + 1 maps are judged: the start and one after each update."""
    model, x = net(), batch(1)
    seen: list[Tensor] = []

    class Watch(Agreement):
        def __call__(self, result: MaskedPass) -> Tensor:
            seen.append(result.masks[0].detach())
            return super().__call__(result)

    LearnedPropagation(model).attribute(x, target=0, n_steps=4, objective=Watch(), mask=MaxMask())
    assert len(seen) == 5
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


@pytest.mark.parametrize("n_steps", [1, 3])
@each_gate
def test_the_original_is_run_once_with_rules_and_changed_inputs_see_no_hooks(gate: str, n_steps: int) -> None:
    """By masks: one changed input a step. By deletions: all before, whatever the number of steps."""
    hooked, inputs, x = watched(gate, n_steps, objective=Agreement())
    assert hooked == [True] + [False] * (n_steps + 1)
    assert [torch.equal(i, x) for i in inputs] == [True] + [False] * (n_steps + 1)
    hooked, inputs, x = watched(gate, n_steps, objective=SampleOcclusion(deletions=20, held_out=4))
    assert hooked == [False] * (len(hooked) - 1) + [True]
    assert [torch.equal(i, x) for i in inputs] == [True] + [False] * (len(inputs) - 2) + [True]
    assert sum(map(len, inputs)) == (24 + 2) * len(x)


def watched(gate: str, n_steps: int, **options: Any) -> tuple[list[bool], list[Tensor], Tensor]:
    model, x = net(), batch()
    hooked: list[bool] = []
    inputs: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        touched = [m for m in model.modules() if "forward" in vars(m) or (m is not model and m._forward_pre_hooks)]
        hooked.append(bool(touched))
        inputs.append(args[0].detach().clone())

    handle = model.register_forward_pre_hook(watch)
    LearnedPropagation(model, gate=gate).attribute(x, target=1, n_steps=n_steps, **options)
    handle.remove()
    return hooked, inputs, x


def test_given_rules_take_one_forward_pass() -> None:
    model, x = net(), batch()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    method = LearnedPropagation(model, rules=RuleSet.build(model, x))
    calls.clear()
    method.attribute(x, target=1)
    assert len(calls) == 1


# -- batch = singles -------------------------------------------------------------------------------------------------


def assert_batch_equals_singles(method: Any, x: Tensor, target: list[int], rtol: float, **options: Any) -> None:
    together = method.attribute(x, target=target, **options)
    for i, t in enumerate(target):
        alone = method.attribute(x[i : i + 1], target=[t], **options)
        scale = float(alone.abs().max())
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=rtol * scale, msg=f"sample {i}")


@each_gate
@pytest.mark.parametrize("options", [{}, PLAIN], ids=["default", "plain"])
def test_batch_equals_singles(gate: str, options: dict[str, Any]) -> None:
    method = LearnedPropagation(net(), gate=gate, pooling="soft")
    assert_batch_equals_singles(method, batch(4), [0, 3, 1, 2], 1e-9, n_steps=4, **options)


@each_gate
def test_batch_equals_singles_with_hostile_neighbours(gate: str) -> None:
    """Scales that differ by 1e6, a constant and an all-zero sample, channels whose gates see next to nothing."""
    model = net()
    with torch.no_grad():
        model.conv2.weight[3:] *= 1e-12
        model.fc1.weight[8:] *= 1e-12
    x = batch(5)
    x[1] *= 1e3
    x[2] *= 1e-3
    x[3] = 0.0
    x[4] = 1.0
    assert_batch_equals_singles(LearnedPropagation(model, gate=gate), x, [0, 3, 1, 2, 2], 1e-8, n_steps=5)


@each_gate
def test_batch_equals_singles_in_float32(gate: str) -> None:
    model = net(torch.float32)
    with torch.no_grad():
        model.fc1.weight[8:] *= 1e-6
    assert_batch_equals_singles(
        LearnedPropagation(model, gate=gate), batch(4, torch.float32), [0, 3, 1, 2], 1e-3, n_steps=4
    )


@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
@pytest.mark.parametrize("n_steps", [0, 3])
def test_batch_equals_singles_with_given_rules(gate: str, n_steps: int) -> None:
    model, x = net(), batch(4)
    rules = moved(RuleSet.build(model, x, gate=gate, pooling="soft"))
    assert_batch_equals_singles(LearnedPropagation(model, rules=rules), x, [0, 3, 1, 2], 1e-9, n_steps=n_steps)


class Folded(nn.Module):
    """Time folded into the batch, (B * T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.b = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.relu(self.a(x.reshape(-1, 4)))).reshape(*x.shape[:2], 3).mean(1)


class TimeFirst(Folded):
    """Time before the batch, (T, B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.relu(self.a(x.transpose(0, 1)))).mean(0)


@each_gate
@pytest.mark.filterwarnings("error")
def test_batch_equals_singles_with_time_folded_into_the_batch(gate: str) -> None:
    torch.manual_seed(0)
    model, x = Folded().double(), torch.randn(3, 5, 4, dtype=torch.float64)
    assert_batch_equals_singles(LearnedPropagation(model, gate=gate), x, [0, 1, 2], 1e-9, n_steps=4)


def test_refinement_with_time_folded_into_the_batch() -> None:
    torch.manual_seed(1)
    model, x = Folded().double().eval(), torch.randn(3, 5, 4, dtype=torch.float64)
    rules = moved(RuleSet.build(model, x, gate="channel"), 0.3)
    method = LearnedPropagation(model, rules=rules)
    start = method.attribute(x, target=0)
    lonely = method.attribute(x, target=0, n_steps=3, lr=0.3, **PLAIN)
    assert not torch.allclose(lonely, start)
    assert_batch_equals_singles(method, x, [0, 0, 0], 1e-9, n_steps=3, lr=0.3, **PLAIN)


def test_a_site_without_a_batch_is_said_to_mix_samples() -> None:
    model, x = TimeFirst(), torch.randn(3, 5, 4)
    with pytest.warns(RuleWarning, match=r"first dimension of site 'relu'.*3 samples.*one sample at a time"):
        LearnedPropagation(model).attribute(x, 0, n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LearnedPropagation(model).attribute(x[:1], 0, n_steps=1)


# -- given rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
def test_given_rules_equal_a_gradient_inside_applied(gate: str) -> None:
    model, x = net(), batch().requires_grad_()
    rules = moved(RuleSet.build(model, x, gate=gate))
    with rules.applied(model):
        (expected,) = torch.autograd.grad(model(x)[:, 2].sum(), x)
    found = LearnedPropagation(model, rules=rules).attribute(x, target=2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
def test_refinement_improves_and_leaves_the_rule_set(gate: str) -> None:
    model, x, target = net(), batch(4), [0, 1, 2, 3]
    rules = moved(RuleSet.build(model, x, gate=gate))
    before = {name: p.detach().clone() for name, p in rules.named_parameters()}
    ids = [id(p) for p in rules.parameters()]
    method = LearnedPropagation(model, rules=rules)
    used = method.attribute(x, target=target)
    refined = method.attribute(x, target=target, n_steps=8, **PLAIN)
    for name, parameter in rules.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None
        assert parameter.requires_grad
    assert ids == [id(p) for p in rules.parameters()]
    assert method.rules is rules
    losses = [loss_of(model, x, maps, target, Agreement(), MaxMask()) for maps in (used, refined)]
    assert (losses[1] <= losses[0] + 1e-12).all()
    assert losses[1].mean() < losses[0].mean()
    torch.testing.assert_close(method.attribute(x, target=target), used)


def test_rules_from_a_file(tmp_path: Any) -> None:
    model, x = net(), batch()
    rules = moved(RuleSet.build(model, x))
    path = rules.save(tmp_path / "rules.safetensors", model)
    expected = LearnedPropagation(model, rules=rules).attribute(x, target=0)
    torch.testing.assert_close(LearnedPropagation(model, rules=path).attribute(x, target=0), expected)
    torch.testing.assert_close(LearnedPropagation(model, rules=str(path)).attribute(x, target=0), expected)


# -- create_graph ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["grad", "backward"])
@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
def test_create_graph_differentiates_to_rules_and_inputs(gate: str, way: str) -> None:
    model, x = net(activation=nn.Tanh).requires_grad_(False), batch(2).requires_grad_()
    rules = moved(RuleSet.build(model, x, gate=gate, pooling="soft"))
    method = LearnedPropagation(model, rules=rules)
    weights = torch.randn(x.shape, dtype=x.dtype)

    def value(**options: Any) -> Tensor:
        maps = method.attribute(x, target=[0, 1], **options)
        return (weights * maps).sum() + maps.square().sum()

    live = value(create_graph=True)
    torch.testing.assert_close(live.detach(), value())
    wanted = [*rules.parameters(), x]
    if way == "grad":
        found = torch.autograd.grad(live, wanted)
    else:
        live.backward()
        found = tuple(p.grad for p in wanted)
    for entry, gradient in zip(wanted, found, strict=True):
        for index in {0, entry.numel() // 2, entry.numel() - 1}:
            expected = difference_quotient(value, entry, index)
            assert float(gradient.reshape(-1)[index]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_create_graph_without_gradient_of_the_inputs() -> None:
    model, x = net(), batch()
    rules = moved(RuleSet.build(model, x))
    maps = LearnedPropagation(model, rules=rules).attribute(x, target=0, create_graph=True)
    assert all(g.any() for g in torch.autograd.grad(maps.square().sum(), rules.parameters()))
    assert not x.requires_grad
    assert not LearnedPropagation(model, rules=rules).attribute(x, target=0).requires_grad


# -- captum's arguments ----------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu, self.out = nn.Linear(3, 6), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor, factor: Tensor, offset: float = 0.0) -> Tensor:
        return self.out(self.relu(self.a(a) + self.b(b)) * factor) + offset


@each_gate
def test_tuples_are_mirrored_and_arguments_passed_on(gate: str) -> None:
    torch.manual_seed(0)
    model = TwoInputs().double()
    a, b, factor = (torch.randn(4, n, dtype=torch.float64) for n in (3, 5, 1))
    method = LearnedPropagation(model, gate=gate)
    before = snapshot(model, a, b, factor)
    maps = method.attribute((a, b), [0, 1, 2, 0], (factor, 2.0), n_steps=3)
    assert isinstance(maps, tuple)
    assert [m.shape for m in maps] == [a.shape, b.shape]
    assert all(m.any() and m.isfinite().all() for m in maps)
    for i, t in enumerate([0, 1, 2, 0]):
        rows = slice(i, i + 1)
        alone = method.attribute((a[rows], b[rows]), t, (factor[rows], 2.0), n_steps=3)
        for together, single in zip(maps, alone, strict=True):
            torch.testing.assert_close(together[rows], single)
    assert_untouched(before, model, a, b, factor)
    single = LearnedPropagation(nn.Sequential(model.a, nn.ReLU(), model.out), gate=gate)
    assert isinstance(single.attribute((a,), 0, n_steps=1), tuple)
    assert isinstance(single.attribute(a, 0, n_steps=1), Tensor)


@pytest.mark.parametrize(
    "target",
    [1, [1, 1, 1], torch.tensor([1, 1, 1]), torch.tensor([1]), torch.tensor(1), (1,), [(1,), (1,), (1,)]],
    ids=str,
)
def test_kinds_of_targets_agree(target: Any) -> None:
    method, x = LearnedPropagation(net()), batch()
    torch.testing.assert_close(method.attribute(x, target, n_steps=0), method.attribute(x, 1, n_steps=0))
    assert method.attribute(x, target, n_steps=2).isfinite().all()


def test_a_negative_class_index_counts_from_the_end() -> None:
    method, x = LearnedPropagation(net()), batch()
    torch.testing.assert_close(method.attribute(x, -1, n_steps=3), method.attribute(x, 3, n_steps=3))


def test_outputs_without_classes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(
        LearnedPropagation(model).attribute(x, n_steps=2), LearnedPropagation(model).attribute(x, 0, n_steps=2)
    )
    flat = nn.Sequential(model, nn.Flatten(0))
    torch.testing.assert_close(
        LearnedPropagation(flat).attribute(x, n_steps=2), LearnedPropagation(model).attribute(x, n_steps=2)
    )


@pytest.mark.parametrize("rules", [False, True])
def test_ambient_grad_mode_does_not_matter(rules: bool) -> None:
    model, x = net(), batch()
    method = LearnedPropagation(model, rules=moved(RuleSet.build(model, x)) if rules else None)
    options: dict[str, Any] = {} if rules else {"n_steps": 3}
    expected = method.attribute(x, target=1, **options)
    with torch.no_grad():
        assert torch.equal(method.attribute(x, target=1, **options), expected)
        assert torch.equal(method.attribute(x, target=1, n_steps=2), method.attribute(x, target=1, n_steps=2))
    with torch.inference_mode():
        made_there = x.clone()
    assert torch.equal(method.attribute(made_there, target=1, **options), expected)


# -- dtypes and seeds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@each_gate
def test_dtype_follows_the_input(dtype: torch.dtype, gate: str) -> None:
    model, x = net(dtype), batch(2, dtype)
    maps = LearnedPropagation(model, gate=gate).attribute(x, target=1, n_steps=2)
    assert maps.dtype == dtype
    assert maps.isfinite().all()
    assert maps.any()


@each_gate
def test_bfloat16_autocast(gate: str) -> None:
    model, x = net(torch.float32), batch(2, torch.float32)
    exact = LearnedPropagation(model, gate=gate).attribute(x, target=1, n_steps=0)
    before = snapshot(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        near = LearnedPropagation(model, gate=gate).attribute(x, target=1, n_steps=0)
        maps = LearnedPropagation(model, gate=gate).attribute(x, target=1, n_steps=3)
    assert maps.dtype == near.dtype == torch.float32
    assert maps.isfinite().all()
    assert float((near - exact).norm()) < 0.1 * float(exact.norm())
    assert_untouched(before, model, x)


def test_a_seed_decides_and_the_global_generator_is_left_alone() -> None:
    model, x = net(), batch()
    method = LearnedPropagation(model)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    first = method.attribute(x, target=1, n_steps=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(method.attribute(x, target=1, n_steps=3, seed=5), first)
    assert not torch.equal(method.attribute(x, target=1, n_steps=3, seed=6), first)
    assert torch.equal(method.attribute(x, target=1, n_steps=3), method.attribute(x, target=1, n_steps=3))


# -- nothing is touched ----------------------------------------------------------------------------------------------


def well_used_model() -> Net:
    """A model in the middle of someone's training: mixed modes, frozen parameters, gradients, hooks, patches."""
    model = net(torch.float32)
    model.train()
    model.fc1.eval()
    model.conv1.weight.requires_grad_(False)
    model.fc2.weight.grad = torch.ones_like(model.fc2.weight)
    model.pool.register_forward_hook(lambda module, args, out: None)
    model.fc2.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    model.act.forward = functools.partial(nn.functional.gelu, approximate="none")
    return model


class Stop:
    """Raises at the n-th call of the model."""

    def __init__(self, model: nn.Module, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.calls = at, error, 0
        self.handle = model.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error("stopped here")


@crossed(
    way=["learn", "rules", "refine", "create_graph"],
    error=[None, RuntimeError, KeyboardInterrupt],
    at=[1, 2, 4],
    deep={"model": False, "layer": True},
)
def test_model_and_inputs_are_untouched(way: str, error: Any, at: int, deep: bool) -> None:
    model, x = well_used_model(), batch(2, torch.float32).requires_grad_()
    x.grad = torch.full_like(x, 3.0)
    given = None if way == "learn" else moved(RuleSet.build(model, x))
    if way in ("rules", "create_graph") and (at > 1 and error is not None):
        at = 1  # there is one pass only
    method = LearnedPropagation(model, rules=given)
    options: dict[str, Any] = {"learn": {"n_steps": 3}, "refine": {"n_steps": 3}}.get(way, {})
    options["create_graph"] = way == "create_graph"
    stop = None if error is None else Stop(model.fc2 if deep else model, at, error)
    extra = torch.randn(2, 4, requires_grad=True)
    before = snapshot(model, x, extra)
    state = torch.get_rng_state()
    if stop is None:
        method.attribute(x, 1, (1.0, extra), **options)
    else:
        with pytest.raises(error, match="stopped here"):
            method.attribute(x, 1, (1.0, extra), **options)
        assert stop.calls == at
    assert_untouched(before, model, x, extra)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_model_is_untouched_when_the_objective_raises(error: type[BaseException]) -> None:
    class Fails(Agreement):
        def __call__(self, result: MaskedPass) -> Tensor:
            raise error("in the objective")

    model, x = well_used_model(), batch(2, torch.float32)
    before = snapshot(model, x)
    with pytest.raises(error, match="in the objective"):
        LearnedPropagation(model).attribute(x, 1, n_steps=2, objective=Fails())
    assert_untouched(before, model, x)


def test_a_failed_call_does_not_spoil_the_next() -> None:
    model, x = net(), batch()
    method = LearnedPropagation(model)
    expected = method.attribute(x, target=1, n_steps=2)
    stop = Stop(model, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        method.attribute(x, target=1, n_steps=2)
    stop.handle.remove()
    assert torch.equal(method.attribute(x, target=1, n_steps=2), expected)


def test_training_mode_keeps_running_statistics() -> None:
    model, x = net().train(), batch()
    mean, count = model.norm.running_mean.clone(), int(model.norm.num_batches_tracked)
    assert LearnedPropagation(model).attribute(x, target=1, n_steps=2).isfinite().all()
    assert torch.equal(model.norm.running_mean, mean)
    assert int(model.norm.num_batches_tracked) == count


def test_given_rule_options_must_be_those_of_the_rules() -> None:
    model, x = net(), batch()
    rules = RuleSet.build(model, x, "learned_epsilon_gamma_box", rule_options={"gamma": 0.5})
    composite = "learned_epsilon_gamma_box"
    for given in ({}, {"gamma": 0.5}, {"conv": "gamma", "gamma": 0.5}):
        LearnedPropagation(model, composite, rules, "none", rule_options=given)
    with pytest.raises(RuleError, match=r"rule_options={'gamma': 1} was given, but the rule set has {'gamma': 0\.5};"):
        LearnedPropagation(model, composite, rules, "none", rule_options={"gamma": 1})
    with pytest.raises(RuleError, match=r"the rule set has {'gamma': 0\.5};"):
        LearnedPropagation(model, composite, rules, "none", rule_options={"gamma": 0.5, "colour": 1})


def test_parameters_of_rules_are_not_the_models() -> None:
    model, x = net(), batch()
    names = set(model.state_dict())
    rules = RuleSet.build(model, x)
    LearnedPropagation(model, rules=rules).attribute(x, target=0)
    with rules.applied(model):
        assert set(model.state_dict()) == names
        assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in rules.parameters())


def test_nothing_is_kept_in_memory() -> None:
    model, x = net(torch.float32), batch(2, torch.float32)
    kept: list[Any] = []
    model.conv2.register_forward_hook(lambda m, args, out: kept.append(weakref.ref(out)))
    method = LearnedPropagation(model)
    gc.collect()
    gc.disable()
    try:
        method.attribute(x, target=1, n_steps=2)
        assert len(kept) >= 3
        assert not [ref for ref in kept if ref() is not None]
    finally:
        gc.enable()


# -- bad input -------------------------------------------------------------------------------------------------------


class NoSite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": torch.relu(x.flatten(1))}


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.detach()).flatten(1)


def spoiled(value: float) -> Tensor:
    x = batch()
    x[1, 0, 0, 0] = value
    return x


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: LearnedPropagation(lambda x: x), LearnpropError, r"nn\.Module.*function"),
    "no site": (lambda: LearnedPropagation(NoSite()).attribute(batch(), 0), RuleError, r"NoSite has no site"),
    "compiled": (
        lambda: LearnedPropagation(torch.compile(net())).attribute(batch(), 0),
        RuleError,
        r"torch\.compile.*_orig_mod",
    ),
    "compiled in place": (
        lambda: LearnedPropagation(compiled_in_place()).attribute(batch(), 0),
        RuleError,
        r"compiled.*before compiling",
    ),
    "traced": (
        lambda: LearnedPropagation(torch.jit.trace(net(), batch())).attribute(batch(), 0),
        RuleError,
        r"scripted or traced.*eager",
    ),
    "scripted part": (
        lambda: LearnedPropagation(nn.Sequential(nn.Flatten(), torch.jit.script(nn.ReLU()))).attribute(batch(), 0),
        RuleError,
        r"'1' is a scripted.*eager",
    ),
    "target too large": (lambda: run(target=4), TargetError, r"target 4 .*\(3, 4\).*class index"),
    "target too small": (lambda: run(target=-5), TargetError, r"target -5 .*\(3, 4\)"),
    "target in list too large": (lambda: run(target=[0, 1, 9]), TargetError, r"target \[0, 1, 9\].*\(3, 4\)"),
    "targets too few": (lambda: run(target=[0, 1]), TargetError, r"target \[0, 1\].*one index per sample"),
    "target missing": (lambda: run(target=None), TargetError, r"shape \(3, 4\): pass target="),
    "target of wrong type": (lambda: run(target="cat"), TargetError, r"target 'cat'.*class index"),
    "target a float": (lambda: run(target=1.5), TargetError, r"target 1\.5.*class index"),
    "target with too many dimensions": (lambda: run(target=(1, 2)), TargetError, r"target \(1, 2\).*\(3, 4\)"),
    "NaN": (lambda: run(spoiled(float("nan"))), LearnpropError, r"inputs has 1 values that are NaN.*clean"),
    "infinite": (lambda: run(spoiled(float("inf"))), LearnpropError, r"inputs has 1 values that are NaN or infinite"),
    "empty batch": (lambda: run(batch()[:0]), LearnpropError, r"inputs is empty: shape \(0, 2, 6, 6\)"),
    "integers": (lambda: run(torch.ones(3, 2, 6, 6, dtype=torch.long)), LearnpropError, r"int64.*embeddings"),
    "no tensor": (lambda: run("image.png"), LearnpropError, r"inputs must be a tensor or a tuple of tensors, got str"),
    "second input bad": (
        lambda: LearnedPropagation(TwoInputs()).attribute((torch.randn(2, 3), torch.ones(2, 5).int()), 0, 1.0),
        LearnpropError,
        r"inputs\[1\].*int32",
    ),
    "inference mode": (lambda: inference(), LearnpropError, r"inference_mode.*no_grad"),
    "too many arguments": (
        lambda: run(additional_forward_args=(1.0, None, 3)),
        LearnpropError,
        r"Net\.forward does not take 1 inputs and 3 additional_forward_args",
    ),
    "too few arguments": (
        lambda: LearnedPropagation(TwoInputs()).attribute((torch.randn(2, 3), torch.randn(2, 5)), 0),
        LearnpropError,
        r"TwoInputs\.forward.*'factor'",
    ),
    "rules of another model": (
        lambda: LearnedPropagation(TwoInputs(), rules=RuleSet.build(net(), batch())),
        RuleError,
        r"another model.*TwoInputs",
    ),
    "rules of another batch": (
        lambda: LearnedPropagation(m := net(), rules=RuleSet.build(m, batch(), gate="element")).attribute(batch(2), 0),
        RuleError,
        r"(3 samples|shape \(3).*",
    ),
    "missing file of rules": (
        lambda: LearnedPropagation(net(), rules="none.safetensors"),
        RuleError,
        r"no rule set at",
    ),
    "unknown gate": (lambda: LearnedPropagation(net(), gate="pixel"), RuleError, r"unknown gate 'pixel'.*element"),
    "unknown start": (lambda: LearnedPropagation(net(), start="lrp"), RuleError, r"unknown start 'lrp'.*deconvnet"),
    "unknown pooling": (lambda: LearnedPropagation(net(), pooling="max"), RuleError, r"unknown pooling 'max'.*soft"),
    "unknown composite": (
        lambda: LearnedPropagation(net(), composite="lpr"),
        RuleError,
        r"composite 'lpr' is unknown.*learned_gradient.*did you mean 'lrp'",
    ),
    "composite without rules": (
        lambda: LearnedPropagation(net(), composite="epsilon_plus"),
        RuleError,
        r"'epsilon_plus' has no trainable rules",
    ),
    "negative steps": (lambda: run(n_steps=-1), LearnpropError, r"n_steps must be an integer of at least 0, got -1"),
    "nothing to learn": (
        lambda: LearnedPropagation(net(), gate="none").attribute(batch(), 0),
        LearnpropError,
        r"nothing to learn: gate='none' has no parameters",
    ),
    "relevance of a neuron": (
        lambda: of_a_neuron("learned_epsilon_gamma_box"),
        LearnpropError,
        r"gradient_func was replaced.*relevance starts at the output",
    ),
    "graph of learned rules": (lambda: run(create_graph=True), LearnpropError, r"create_graph=True.*rules="),
    "graph of refined rules": (
        lambda: LearnedPropagation(m := net(), rules=RuleSet.build(m, batch())).attribute(
            batch(), 0, n_steps=1, create_graph=True
        ),
        LearnpropError,
        r"create_graph=True.*n_steps",
    ),
    "output no tensor": (
        lambda: LearnedPropagation(Dictionary()).attribute(batch(), 0),
        TargetError,
        r"returned a dict with .scores., .* wrap the model",
    ),
    "output without gradient": (
        lambda: LearnedPropagation(Constant()).attribute(batch(), 0),
        ValueError,
        r"(no site|does not depend on its input)",
    ),
    "classes wanted, none there": (
        lambda: LearnedPropagation(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(72, 1)).double()).attribute(
            batch(), 0, objective=Agreement(distance="kl")
        ),
        LearnpropError,
        r"distance='kl'.*\(3, 1\).*relative",
    ),
}


def run(inputs: Any = None, target: Any = 0, additional_forward_args: Any = None, **options: Any) -> Any:
    return LearnedPropagation(net()).attribute(
        batch() if inputs is None else inputs, target, additional_forward_args, **options
    )


def of_a_neuron(composite: str) -> Tensor:
    """What a Neuron* class of captum does with a method: another function takes the gradients."""
    model, x = net(), batch()
    method = LearnedPropagation(model, rules=RuleSet.build(model, x, composite))

    def gradients(forward: Any, inputs: Any, target: Any, additional: Any) -> Any:
        return torch.autograd.grad(forward(*inputs)[:, 0].sum(), inputs)

    method.gradient_func = gradients
    return method.attribute(x, target=0)


def test_a_replaced_gradient_func_gives_whole_attributions() -> None:
    model, x = net(), batch()
    expected = LearnedPropagation(model, rules=RuleSet.build(model, x, "learned_deeplift")).attribute(x, target=0)
    torch.testing.assert_close(of_a_neuron("learned_deeplift"), expected)


def compiled_in_place() -> nn.Module:
    model = net()
    model.relu.compile()
    return model


def inference() -> None:
    with torch.inference_mode():
        run()


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_bad_input_gets_one_clear_error(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}") as caught:
        call()
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("name", [n for n in BAD if n.startswith("target")])
def test_bad_targets_are_caught_by_code_written_for_captum(name: str) -> None:
    call, _, _ = BAD[name]
    for kind in (AssertionError, IndexError, ValueError):
        with pytest.raises(kind):
            call()


def test_public_names() -> None:
    assert cl.LearnedPropagation is LearnedPropagation
    assert {"LearnedPropagation", "Agreement", "MaxMask", "LearnpropError"} <= set(dir(cl))
