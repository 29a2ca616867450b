"""LearnedDeepLift: whole models against a dense re-implementation, and the run on the baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairwise import crossed
from rescale_oracle import pool_by_loops, slopes, softmax_matrix
from rule_nets import NETS, assert_gradient, images, one_hot, prepare, randomise, score, vgg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from untouched import assert_untouched, snapshot
from zennit.attribution import Gradient
from zennit.composites import COMPOSITES, MixedComposite, NameMapComposite
from zennit.rules import Epsilon, Pass

import zennit_rules as zr

GATES = ("channel", "quadrant", "feature", "element", "position")
BASELINES: dict[str, Callable[[Tensor], Any]] = {
    "zero": lambda x: None,
    "number": lambda x: 0.7,
    "row": lambda x: torch.randn_like(x[:1]),
    "tensor": torch.randn_like,
    "the input": lambda x: x.detach().clone(),
    "half of the input": lambda x: torch.where(torch.rand_like(x) < 0.5, x.detach(), torch.randn_like(x)),
}
each_baseline = pytest.mark.parametrize("baseline", BASELINES)
each_net = pytest.mark.parametrize("net", NETS)


def contributions(
    composite: zr.LearnedDeepLift,
    model: nn.Module,
    x: Tensor,
    target: int = 1,
    functional: bool = False,
    **options: Any,
) -> Tensor:
    """Attribution of one score, inside the context of the composite."""
    out = model(x)
    seed = one_hot(out, target)
    return zr.attribute(composite, out, (x,), out * seed if functional else seed, **options)[0]


def explain(
    model: nn.Module, x: Tensor, baseline: Any = None, rules: zr.RuleSet | None = None, **options: Any
) -> Tensor:
    """Attribution of one score."""
    composite = zr.LearnedDeepLift(rules=rules)
    composite.baselines = baseline
    with composite.context(model):
        return contributions(composite, model, x, **options)


def moved(model: nn.Module, x: Tensor, **options: Any) -> zr.RuleSet:
    rules = zr.RuleSet.build(model, x, composite="learned_deeplift", **options)
    randomise(rules.parameters())
    return rules


# -- a dense re-implementation ---------------------------------------------------------------------------------------


def dense(model: nn.Sequential, x: Tensor, x0: Tensor, rules: zr.RuleSet, target: int) -> Tensor:
    """Layer by layer and sample by sample: Jacobians of the linear layers, loops in the others."""
    values, references = [x.detach()], [x0]
    for layer in model:
        values.append(layer(values[-1]))
        references.append(layer(references[-1]))
    g = one_hot(values[-1], target)
    sites = {site.name for site in rules.sites}
    for name, layer in reversed(list(model.named_children())):
        z, z0 = values[int(name)], references[int(name)]
        if isinstance(layer, nn.MaxPool2d):
            g = pool_by_loops(layer, z, z0, g)
        elif isinstance(layer, nn.Softmax):
            matrices = [softmax_matrix(a, b, False) for a, b in zip(z.tolist(), z0.tolist(), strict=True)]
            g = torch.stack([m.T @ v for m, v in zip(matrices, g, strict=True)])
        elif name in sites:
            a, b = rules.gate(name)(z, g)
            g = a * g * slopes(layer, z, z0) + b * g
        else:
            rows = []
            for sample, signal in zip(z, g, strict=True):
                jacobian: Any = torch.autograd.functional.jacobian(lambda v, f=layer: f(v[None])[0], sample)
                rows.append((signal.flatten() @ jacobian.reshape(signal.numel(), -1)).reshape(sample.shape))
            g = torch.stack(rows)
    return (g * (x - x0)).detach()


def chain() -> nn.Sequential:
    """Every kind of site, some right after each other."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 2), nn.GELU(),
        nn.Tanh(), nn.Flatten(), nn.Linear(16, 6), nn.Hardswish(), nn.Linear(6, 5), nn.Softmax(1),
    )  # fmt: skip
    prepare(model)
    return model


@pytest.mark.parametrize("baseline", ["number", "row", "half of the input"])
@pytest.mark.parametrize("gate", GATES)
def test_dense(gate: str, baseline: str) -> None:
    model, x = chain(), images(2, 7)
    x0 = BASELINES[baseline](x)
    rules = moved(model, x, gate=gate)
    full = torch.full_like(x, x0).detach() if isinstance(x0, float) else x0.expand_as(x)
    expected = dense(model, x, full, rules, 1)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(explain(model, x, x0, rules), expected, rtol=1e-9, atol=1e-12)


# -- completeness ----------------------------------------------------------------------------------------------------


@each_baseline
@each_net
def test_complete_with_reused_inplace_and_functional_calls(net: str, baseline: str) -> None:
    model, x = NETS[net](), images()
    x0 = BASELINES[baseline](x)
    found = explain(model, x, x0)
    change = model(x.detach()) - model(torch.zeros_like(x) + (0.0 if x0 is None else x0)).detach()
    torch.testing.assert_close(found.flatten(1).sum(1), change[:, 1], rtol=1e-12, atol=1e-13)


class Softmaxes(nn.Module):
    """Softmax in all its spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 5)
        self.softmax, self.log = nn.Softmax(1), nn.LogSoftmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (
            F.softmax(x, dim=1)
            + torch.softmax(x, 1)
            + x.softmax(-1, dtype=x.dtype)
            + self.softmax(x)
            + self.softmax(2 * x)
        )
        x = self.second(5 * x)
        return self.log(x) + F.log_softmax(x, 1) + x.log_softmax(dim=1) + torch.log_softmax(x, -1)


def test_softmax_in_all_its_spellings_is_a_site() -> None:
    model, x = prepare(Softmaxes()), torch.randn(3, 6).double().requires_grad_()
    rules = zr.RuleSet.build(model, (x,), composite="learned_deeplift")
    assert len(rules.sites) == 9
    assert {site.kind for site in rules.sites} == {"softmax"}
    assert rules.parameters() == []
    rows = rules.coverage().rows
    assert len(rows) == 9
    assert all(row.rule for row in rows)
    found = explain(model, x, 0.4, rules)
    torch.testing.assert_close(
        found.sum(1), (model(x) - model(torch.full_like(x, 0.4)))[:, 1].detach(), rtol=1e-12, atol=0
    )


class Doubled(torch.autograd.Function):
    """Somebody's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Odd(nn.Module):
    """Functions with a rule (softmin, softmax in another precision, clamp, GLU) and without."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu, self.min, self.glu = nn.Linear(6, 8), nn.ReLU(), nn.Softmin(1), nn.GLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.glu(self.relu(self.fc(x)))
        x = self.min(x) * torch.softmax(x, 1, dtype=torch.float32) + x.clamp(-1, 1)
        return torch.logcumsumexp(x, 1) + x.sort(1)[0] + Doubled.apply(x)


def test_what_has_no_complete_rule_is_in_the_coverage_and_warned_of() -> None:
    with pytest.warns(zr.RuleWarning, match=r"functions of Odd: .*normalize=True") as caught:
        rules = zr.RuleSet.build(Odd().double(), torch.randn(2, 6).double(), composite="learned_deeplift")
    assert len(caught) == 1
    rows = rules.coverage().rows
    missed = {"Logcumsumexp", "Sort", "Doubled"}
    assert {row.function for row in rows if row.rule} == {"ReLU", "Softmax"}
    assert {row.function for row in rows if not row.rule} == missed
    assert not rules.coverage().complete
    assert all(name in str(caught[0].message) for name in missed)


def test_max_pools_are_sites_with_nothing_to_train_unless_soft() -> None:
    model, x = vgg(), images()
    exact = zr.RuleSet.build(model, x, composite="learned_deeplift")
    soft = zr.RuleSet.build(model, x, composite="learned_deeplift", pooling="soft")
    assert [s.name for s in exact.sites if s.kind == "pooling"] == ["3", "6"]
    assert {n for n, _ in soft.named_parameters()} - {n for n, _ in exact.named_parameters()} == {
        f"{pool}::raw_{what}" for pool in (3, 6) for what in ("strength", "temperature")
    }
    torch.testing.assert_close(explain(model, x, 0.5, soft), explain(model, x, 0.5, exact), rtol=1e-12, atol=1e-15)
    randomise(soft.parameters())
    assert (explain(model, x, 0.5, soft) - explain(model, x, 0.5, exact)).abs().max() > 1e-4


# -- derivatives -----------------------------------------------------------------------------------------------------


@crossed(gate=GATES, net=[*NETS, "chain"], functional={"constant target": False, "functional target": True})
def test_parameters_by_finite_differences(gate: str, net: str, functional: bool) -> None:
    model, x = (chain(), images(2, 7)) if net == "chain" else (NETS[net](), images())
    rules = moved(model, x, gate=gate, pooling="soft", rule_options={"baseline": 0.3})
    composite, parameters = rules.composite(), rules.parameters()
    with composite.context(model):
        live = contributions(composite, model, x, functional=functional, create_graph=True)
        value = contributions(composite, model, x, functional=functional)
        torch.testing.assert_close(live.detach(), value.detach(), rtol=1e-12, atol=1e-15)
        found = torch.autograd.grad(score(live), parameters, retain_graph=True)
        score(live).backward()
        for parameter, gradient in zip(parameters, found, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-15)
        assert_gradient(
            lambda: score(contributions(composite, model, x, functional=functional)), parameters, found, eps=1e-5
        )


@pytest.mark.parametrize("target", ["constant", "functional"])
def test_parameters_by_finite_differences_through_zennits_gradient(target: str) -> None:
    model, x = chain(), images(2, 7).detach()
    rules = moved(model, x, gate="feature")
    composite = rules.composite()
    seed = one_hot(model(x))

    def multipliers(create_graph: bool) -> Tensor:
        with Gradient(model, composite, create_graph=create_graph) as attributor:
            live = attributor(x, seed if target == "constant" else lambda out: out * seed)[1]
            with attributor.inactive():
                return score(live) if not create_graph else torch.autograd.grad(score(live), rules.parameters())

    assert_gradient(lambda: multipliers(False), rules.parameters(), multipliers(True))


def test_input_by_finite_differences() -> None:
    model, x, x0 = chain(), images(1, 7), torch.randn(1, 3, 7, 7).double()
    rules = moved(model, x, gate="feature")
    found = torch.autograd.grad(score(explain(model, x, x0, rules, create_graph=True)), x)
    assert_gradient(lambda: score(explain(model, x, x0, rules)), [x], found, eps=1e-6)


@pytest.mark.parametrize("baseline", ["the input", "half of the input"])
@pytest.mark.parametrize("gate", GATES)
def test_nothing_is_nan_where_input_and_baseline_are_equal(gate: str, baseline: str) -> None:
    model, x = chain(), images(2, 7)
    rules = moved(model, x, gate=gate, pooling="soft")
    composite = rules.composite()
    composite.baselines = BASELINES[baseline](x)
    composite.multiply_by_inputs = False
    with composite.context(model):
        live = contributions(composite, model, x, create_graph=True)
        gradients = torch.autograd.grad(score(live), [x, *rules.parameters()])
    assert live.abs().max() > 0
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@each_net
def test_a_sample_does_not_depend_on_its_batch(net: str) -> None:
    model, x, x0 = NETS[net](), images(3), torch.randn(3, 3, 8, 8).double()
    rules = moved(model, x, gate="feature")
    whole = explain(model, x, x0, rules)
    for i in range(3):
        alone = explain(model, x[i : i + 1].detach().requires_grad_(), x0[i : i + 1], rules)
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-11, atol=1e-14)


# -- the run on the baseline -----------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """Two tensors, a further one that only scales, and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.act = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 5), nn.SiLU()

    def forward(self, x: Tensor, y: Tensor, scale: Tensor, *, shift: float = 0.0) -> Tensor:
        return self.fc(self.act(self.a(x) + self.b(y)) * scale + shift)


@pytest.mark.parametrize(
    "baselines", [None, 0.3, (0.3, -1.0), (torch.zeros(1, 4), 0.2), (torch.randn(2, 4), torch.randn(1, 3))]
)
def test_several_inputs_and_arguments_that_stay(baselines: Any) -> None:
    model = prepare(TwoInputs())
    x, y = (torch.randn(2, n).double().requires_grad_() for n in (4, 3))
    scale = torch.randn(2, 1).double()
    composite = zr.LearnedDeepLift(gate="none")
    composite.baselines = baselines
    with composite.context(model):
        out = model(x, y, scale, shift=0.5)
        maps = zr.attribute(composite, out, (x, y), one_hot(out))
    starts = composite.baselines_of((x, y))
    change = (out - model(*starts, scale, shift=0.5))[:, 1].detach()
    torch.testing.assert_close(maps[0].sum(1) + maps[1].sum(1), change, rtol=1e-12, atol=1e-14)


def test_baselines_that_do_not_fit_are_refused() -> None:
    model, x = vgg(), images()
    for wrong, said in (
        (torch.zeros(3, 3, 8, 8), r"baselines\[0\] has shape \(3, 3, 8, 8\), its input \(2, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"baselines\[0\] has shape"),
        ("zero", "must be a number or a tensor, got str"),
        ((0.0, 0.0), "2 baselines were given, for as many tensors"),
    ):
        with pytest.raises(zr.RuleError, match=said):
            explain(model, x, wrong if not isinstance(wrong, str) else (wrong,))
    composite = zr.LearnedDeepLift()
    composite.baselines = (0.0,)
    with pytest.raises(zr.RuleError, match="1 baselines were given for 2 inputs"):
        composite.baselines_of((x, x))


def test_without_a_tensor_that_requires_grad_there_is_no_run_and_no_reference() -> None:
    model, x = vgg().requires_grad_(), images().detach()
    calls = []
    model[0].register_forward_hook(lambda *a: calls.append(1))
    composite = zr.LearnedDeepLift()
    with composite.context(model):
        with torch.no_grad():
            model(x)
        assert len(calls) == 1
        out = model(x)
        assert len(calls) == 2
        with pytest.raises(zr.RuleError, match=r"site '9' has no reference.*requires grad"):
            torch.autograd.grad(out.sum(), model[0].weight)
        composite.baselines = (0.0,)
        torch.autograd.grad(model(x).sum(), model[0].weight)
        assert len(calls) == 4
        composite.baselines = None
        out = model(x)  # the reference of the pass before is not that of this one
        with pytest.raises(zr.RuleError, match="has no reference"):
            torch.autograd.grad(out.sum(), model[0].weight)


def test_multipliers_stay_those_of_their_own_pass() -> None:
    model, x = vgg(), images()
    expected = explain(model, x, 0.2), explain(model, x, -0.9)
    composite = zr.LearnedDeepLift()
    with composite.context(model):
        passes = []
        for baseline in (0.2, -0.9):
            composite.baselines = baseline
            passes.append(model(x))
        for out, baseline, wanted in zip(passes, (0.2, -0.9), expected, strict=True):
            composite.baselines = baseline
            assert torch.equal(zr.attribute(composite, out, (x,), one_hot(out))[0], wanted)


@pytest.mark.parametrize("layer", [nn.GELU(), nn.MaxPool1d(3, 2), nn.Softmax(1), nn.ReLU(inplace=True)])
def test_a_model_of_one_site(layer: nn.Module) -> None:
    leaf = torch.randn(2, 4, 7).double().requires_grad_()
    composite = zr.LearnedDeepLift(gate="none")
    composite.baselines = 0.4
    with composite.context(layer):
        x = leaf.clone()
        (multipliers,) = torch.autograd.grad(layer(x)[:, 1].sum(), leaf)
    x0 = torch.full_like(leaf, 0.4).detach()
    change = (layer(leaf.detach().clone()) - layer(x0.clone()))[:, 1].sum()
    torch.testing.assert_close((multipliers * (leaf - x0)).sum().detach(), change, rtol=1e-12, atol=1e-14)


def test_training_mode_draws_once_and_keeps_buffers() -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8).eval(), nn.Dropout(0.5), nn.GELU(), nn.Linear(8, 5)
    ).double()
    model.train()
    model[1].eval()
    x = torch.randn(3, 6).double().requires_grad_()
    torch.manual_seed(4)
    outputs = []
    model.register_forward_hook(lambda m, args, out: outputs.append(out.detach()))
    model(x)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    before = snapshot(model, x)
    composite = zr.LearnedDeepLift()
    with composite.context(model):
        found = contributions(composite, model, x)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(outputs[0], outputs[-1])
    torch.manual_seed(4)
    start = model(torch.zeros_like(x)).detach()  # the same units dropped: contributions are complete
    torch.testing.assert_close(found.sum(1), (outputs[0] - start)[:, 1], rtol=1e-12, atol=1e-14)
    assert_untouched(before, model, x)


def test_running_statistics_see_the_input_once_and_never_the_baseline() -> None:
    def norm() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()).double().train()

    model, plain, x = norm(), norm(), torch.randn(4, 6).double().requires_grad_()
    plain.load_state_dict(model.state_dict())
    with zr.LearnedDeepLift(rule_options={"baseline": 3.0}).context(model):
        model(x)
    plain(x)
    for found, expected in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("number", [1, 2], ids=["on the baseline", "on the input"])
@each_net
def test_after_an_exception_the_model_is_as_before(net: str, number: int) -> None:
    model, x = NETS[net](), images()
    seen = []

    def fail(*args: Any) -> None:
        seen.append(1)
        if len(seen) == number:
            raise KeyboardInterrupt

    handle = model.fc.register_forward_pre_hook(fail) if net != "vgg" else model[8].register_forward_pre_hook(fail)
    before = snapshot(model, x)
    composite = zr.LearnedDeepLift()
    with pytest.raises(KeyboardInterrupt), composite.context(model):
        model(x)
    assert len(seen) == number
    assert_untouched(before, model, x)
    handle.remove()
    with composite.context(model):
        found = contributions(composite, model, x)
    assert torch.equal(found, explain(model, x))


def test_checkpointed_parts() -> None:
    class Part(nn.Module):
        def __init__(self, saves: bool) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6), nn.ReLU())
            self.fc, self.saves = nn.Linear(6, 5), saves

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(checkpoint(self.part, x, use_reentrant=False) if self.saves else self.part(x))

    plain, saving = prepare(Part(False)), prepare(Part(True))
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6).double().requires_grad_()
    torch.testing.assert_close(explain(saving, x, 0.3), explain(plain, x, 0.3), rtol=1e-13, atol=0)


# -- zennit's and the rule set's habits ------------------------------------------------------------------------------


class TestComposite:
    def test_known_to_zennit(self) -> None:
        assert COMPOSITES["learned_deeplift"] is zr.LearnedDeepLift
        assert zr.composite_class("learned_deeplift") is zr.LearnedDeepLift
        assert COMPOSITES["learned_deeplift"]().rules.config["rule_options"] == {"baseline": 0.0}

    def test_zennits_gradient_yields_multipliers(self) -> None:
        model, x = vgg(), images().detach()
        with Gradient(model, zr.LearnedDeepLift(rule_options={"baseline": 0.5})) as attributor:
            _, multipliers = attributor(x, one_hot(model(x)))
        expected = explain(model, x.clone().requires_grad_(), 0.5)
        torch.testing.assert_close(multipliers * (x - 0.5), expected, rtol=1e-12, atol=1e-15)

    def test_inactive_it_is_the_gradient(self) -> None:
        model, x = chain(), images(2, 7)
        (expected,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
        composite = zr.LearnedDeepLift()
        with composite.context(model):
            out = model(x)
            with composite.inactive():
                (found,) = torch.autograd.grad(out[:, 1].sum(), x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)

    @each_net
    def test_inside_a_mixed_composite(self, net: str) -> None:
        model, x = NETS[net](), images()
        own = zr.LearnedDeepLift(rule_options={"baseline": 0.5})
        mixed = MixedComposite([own, NameMapComposite([])])
        for _ in range(2):
            with mixed.context(model):
                (found,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
            torch.testing.assert_close(found * (x.detach() - 0.5), explain(model, x, 0.5), rtol=1e-12, atol=1e-15)
        assert not any("forward" in m.__dict__ or m._forward_pre_hooks for m in model.modules())

    def test_rules_of_zennit_in_the_layer_map(self) -> None:
        model, x = vgg(), images()
        composite = zr.LearnedDeepLift(layer_map=[(nn.Linear, Epsilon()), (nn.ReLU, Pass())])
        with composite.context(model):
            (found,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
        assert bool(torch.isfinite(found).all())
        assert {site.kind for site in composite.rules.sites} == {"pooling"}

    @pytest.mark.parametrize(("options", "said"), [
        ({"baseline": torch.zeros(1)}, "baseline=tensor"), ({"baseline": float("nan")}, "finite number"),
        ({"baseline": True}, "finite number"), ({"gamma": 1}, "no rule option 'gamma'; it has: baseline"),
    ])  # fmt: skip
    def test_options_that_it_does_not_take(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(zr.RuleError, match=said):
            zr.LearnedDeepLift(rule_options=options)

    def test_rules_keep_their_baseline(self, tmp_path: Path) -> None:
        model, x = chain(), images(2, 7)
        rules = moved(model, x, gate="feature", pooling="soft", rule_options={"baseline": 0.5})
        loaded = zr.RuleSet.load(rules.save(tmp_path / "rules.safetensors", model), model)
        assert loaded.composite().baseline == 0.5
        assert loaded.coverage().rows == rules.coverage().rows
        expected = explain(model, x, rules=rules)
        assert torch.equal(explain(model, x, rules=loaded), expected)
        assert torch.equal(explain(model, x, 0.5, rules=loaded), expected)
        assert not torch.allclose(explain(model, x, 0.0, rules=loaded), expected)

    def test_per_sample_rules(self) -> None:
        model, x = chain(), images(2, 7)
        rules = moved(model, x, gate="channel")
        torch.testing.assert_close(
            explain(model, x, 0.5, rules.for_samples(2)), explain(model, x, 0.5, rules), rtol=1e-13, atol=1e-15
        )

    def test_references_are_forgotten(self) -> None:
        model, x = vgg(), images()
        composite = zr.LearnedDeepLift()
        with composite.context(model):
            model(x)
            assert composite.references._seen
        assert not composite.references._seen

    def test_the_callers_baseline_is_untouched_by_models_that_work_in_place(self) -> None:
        class InPlace(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(6, 5)

            def forward(self, x: Tensor) -> Tensor:
                with torch.no_grad():
                    x.mul_(2)
                return torch.relu(self.fc(x))

        model, baseline = prepare(InPlace()), torch.randn(1, 6).double()
        kept = baseline.clone()
        explain(model, torch.randn(2, 6).double().requires_grad_(), baseline)
        assert torch.equal(baseline, kept)


def test_functions_that_a_site_calls_are_no_sites_of_their_own() -> None:
    """``nn.Softmax`` calls ``F.softmax``: in the baseline's pass, too, that is not the model's functional call."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.softmax = nn.Linear(6, 6), nn.Linear(6, 5), nn.Softmax(1)

        def forward(self, x: Tensor) -> Tensor:
            constant = self.softmax(torch.ones_like(x))
            return F.softmax(self.second(3 * self.softmax(self.first(x)) * constant), dim=1)

    model, x = prepare(Both()), torch.randn(3, 6).double().requires_grad_()
    rules = zr.RuleSet.build(model, (x,), composite="learned_deeplift")
    assert [site.name for site in rules.sites] == ["softmax", "softmax#1", "functional_softmax(dim=1)"]
    found = explain(model, x, 0.4, rules)
    difference = (model(x) - model(torch.full_like(x, 0.4)))[:, 1].detach()
    torch.testing.assert_close(found.sum(1), difference, rtol=1e-12, atol=1e-14)


def test_a_baseline_that_makes_more_calls_is_refused() -> None:
    class Repeats(nn.Module):
        """Calls its ReLU once more for small inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(3, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            if float(x.detach().abs().sum()) < 1:
                x = self.relu(self.fc(x))
            return self.relu(self.fc(x))

    model = Repeats().double().eval()
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    with (
        zr.LearnedDeepLift().context(model),
        pytest.raises(zr.RuleError, match=r"baseline went through site 'relu#1' \(1 such sites\), the input did not"),
    ):
        model(x)


class Counted(nn.Module):
    """A net that notes how many rows each pass has."""

    def __init__(self, activation: nn.Module, merge: bool = False) -> None:
        super().__init__()
        self.first, self.activation, self.pool = nn.Conv2d(3, 4, 3), activation, nn.MaxPool2d(2)
        self.merge, self.rows = merge, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        z = self.first(x)
        z = self.activation(z.flatten(0, 1)).reshape(z.shape) if self.merge else self.activation(z)
        pooled: Tensor = self.pool(z)
        return pooled.flatten(1)


@pytest.mark.parametrize(
    ("activation", "merge", "training", "baseline", "rows"),
    [
        (nn.ReLU(), False, False, 0.3, [1, 3]),
        (nn.ReLU(inplace=True), False, False, 0.0, [1, 3]),
        (nn.ReLU(), False, True, 0.3, [3, 3]),
        (nn.ReLU(), False, False, torch.rand(3, 3, 8, 8, dtype=torch.float64), [3, 3]),
        (nn.SiLU(), False, False, 0.3, [1, 3, 3, 3]),
        (nn.ReLU(), True, False, 0.3, [1, 3, 3, 3]),
    ],
)
def test_one_row_of_a_baseline_does_where_it_changes_nothing(
    activation: nn.Module, merge: bool, training: bool, baseline: Any, rows: list[int]
) -> None:
    torch.manual_seed(0)
    model = Counted(activation, merge).double().train(training)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    composite = zr.LearnedDeepLift(gate="none")
    maps = []
    for given in (baseline, torch.zeros_like(x) + baseline):
        composite.baselines = given
        model.rows.clear()
        with composite.context(model):
            maps.append(torch.autograd.grad(model(x)[:, 1].sum(), x)[0])
        if given is baseline:
            assert model.rows == rows
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-12, atol=1e-12)
    if rows[:3] == [1, 3, 3]:  # a model for which one row did not do is remembered
        composite.baselines = baseline
        model.rows.clear()
        with composite.context(model):
            model(x)
        assert model.rows == [3, 3]
