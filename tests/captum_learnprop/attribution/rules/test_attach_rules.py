"""attach_rules: trained rules inside captum's own LRP object, call after call, with nothing left behind."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr as ca
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule, IdentityRule
from captum.metrics import sensitivity_max
from lrp_nets import Net, batch, net, trained
from torch import Tensor, nn
from untouched import assert_untouched, snapshot

import captum_learnprop as cl
from captum_learnprop import LearnedLRP, LearnpropError, attach_rules, detach_rules
from zennit_rules import RuleError, RuleSet

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor")
exactly = {"rtol": 0, "atol": 1e-10}


class Refused(Net):
    """Layers and calls at which captum's LRP, by itself, stops or goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu, self.flatten, self.conv1d = nn.GELU(), nn.Flatten(), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = self.gelu(self.conv2(self.conv2(x)) + x)
        return self.fc2(self.relu2(self.fc1(self.conv1d(self.flatten(self.mean(x))[:, None])[:, 0])))


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "gamma": {"rule_options": {"dense": "gamma", "first": "conv", "gamma": 0.25, "negative": "mirrored"}},
    "alpha beta, norms apart": {"rule_options": {"conv": "alpha_beta", "first": "conv", "beta": 1.0, "merge": False}},
}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


# -- what it computes ------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("kind", [Net, Refused])
def test_equals_learned_lrp_at_every_call(kind: type[nn.Module], options: Any) -> None:
    model, x = net(kind), batch()
    rules = trained(model, x, **options)
    expected, expected_delta = LearnedLRP(model, rules).attribute(x, [2, 0, 1], return_convergence_delta=True)
    lrp = ca.LRP(model)
    assert attach_rules(lrp, rules) is lrp
    for _ in range(3):
        found, delta = lrp.attribute(x, target=[2, 0, 1], return_convergence_delta=True)
        torch.testing.assert_close(found.detach(), expected, **exactly)
        torch.testing.assert_close(delta.detach(), expected_delta, **exactly)


def test_it_is_captums_engine_that_runs() -> None:
    """Two forward passes, the second through captum's wrapper, and relevance that starts at 1."""
    model, x = net(), batch()
    lrp = attach_rules(ca.LRP(model), trained(model, x))
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("model"))
    engine, wrapper = lrp.gradient_func, lrp._forward_fn_wrapper
    lrp.gradient_func = lambda *args: calls.append("gradient_func") or engine(*args)
    lrp._forward_fn_wrapper = lambda *args: calls.append("wrapper") or wrapper(*args)
    lrp.attribute(x, target=0)
    assert calls == ["model", "gradient_func", "wrapper", "model"]


def test_trained_rules_matter_and_detaching_gives_captum_back() -> None:
    model, x = net(), batch()
    lrp = ca.LRP(model)
    plain = lrp.attribute(x, target=0).detach()
    attach_rules(lrp, trained(model, x))
    assert not torch.allclose(lrp.attribute(x, target=0), plain, atol=1e-2 * float(plain.abs().max()))
    assert detach_rules(lrp) is lrp
    assert "attribute" not in vars(lrp)
    torch.testing.assert_close(lrp.attribute(x, target=0).detach(), plain)
    assert detach_rules(lrp) is lrp


def test_attaching_again_replaces_the_rules(tmp_path: Path) -> None:
    model, x = net(), batch()
    first, second = trained(model, x), trained(model, x, std=0.05)
    path = second.save(tmp_path / "rules.safetensors", model)
    lrp = attach_rules(attach_rules(ca.LRP(model), first), str(path))
    torch.testing.assert_close(lrp.attribute(x, 1).detach(), LearnedLRP(model, second).attribute(x, 1), **exactly)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lrp: pickle.loads(pickle.dumps(lrp))], ids=["copy", "pickle"])
def test_copies_have_their_own_model_and_rules(copied: Callable[[Any], Any]) -> None:
    model, x = net(), batch()
    lrp = attach_rules(ca.LRP(model), trained(model, x))
    expected = lrp.attribute(x, target=0).detach()
    other = copied(lrp)
    with torch.no_grad():
        model.fc2.weight.zero_()
    torch.testing.assert_close(other.attribute(x, target=0).detach(), expected)


def test_batch_equals_singles() -> None:
    model, x, target = net(), batch(4), [0, 3, 1, 2]
    lrp = attach_rules(ca.LRP(model), trained(model, x))
    singles = [lrp.attribute(x[i : i + 1], target=[t]) for i, t in enumerate(target)]
    torch.testing.assert_close(lrp.attribute(x, target=target), torch.cat(singles), **exactly)


# -- captum around it ------------------------------------------------------------------------------------------------


def test_noise_tunnel() -> None:
    model, x = net(), batch()
    rules = trained(model, x)
    results = []
    for method in (attach_rules(ca.LRP(model), rules), LearnedLRP(model, rules)):
        torch.manual_seed(4)
        tunnel = ca.NoiseTunnel(method)
        results.append(tunnel.attribute(x, target=1, nt_samples=3, stdevs=0.1, return_convergence_delta=True))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.detach(), expected.detach(), **exactly)


def test_sensitivity() -> None:
    model, x = net(), batch()
    lrp = attach_rules(ca.LRP(model), trained(model, x))
    score = sensitivity_max(lrp.attribute, x, target=1, n_perturb_samples=2)
    assert score.shape == (3,)
    assert bool((score > 0).all())


def test_the_signature_is_captums() -> None:
    model, x = net(), batch()
    lrp = ca.LRP(model)
    expected = inspect.signature(lrp.attribute)
    assert inspect.signature(attach_rules(lrp, trained(model, x)).attribute) == expected


def test_verbose_names_the_trained_rules(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = net(), batch()
    attach_rules(ca.LRP(model), trained(model, x)).attribute(x, target=0, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Applied BoxGate(")
    assert "on layer Conv2d(2, 6" in lines[0]
    assert sum("a fixed rule on layer" in line for line in lines) == 5  # norm, pool, addition, averages
    assert len(lines) == 9


# -- what it leaves behind -------------------------------------------------------------------------------------------


class Later(ca.LRP):
    """Captum as it will be: only rules that captum itself set are taken away (pull request 1841)."""

    def _check_and_attach_rules(self) -> None:
        for layer in self.model.modules():
            if "rule" in vars(layer):
                vars(layer)["kept"] = layer.rule
        super()._check_and_attach_rules()

    def _remove_rules(self) -> None:
        super()._remove_rules()
        for layer in self.model.modules():
            if "kept" in vars(layer):
                layer.rule = vars(layer).pop("kept")


@pytest.mark.parametrize("captum", [ca.LRP, Later])
@pytest.mark.parametrize("fails", [None, "conv1", "fc2"])
def test_model_and_inputs_are_untouched(captum: Any, fails: str | None) -> None:
    model, x = net(), batch()
    model.fc1.weight.requires_grad_(False)
    lrp = attach_rules(captum(model), trained(model, x))
    calls: list[int] = []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == (1 if fails == "conv1" else 2):  # in the first pass, or late in the second
            raise KeyboardInterrupt

    if fails:
        model.get_submodule(fails).register_forward_pre_hook(stop)
    before = snapshot(model, x)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            lrp.attribute(x, target=0)
    else:
        lrp.attribute(x, target=0)
    assert_untouched(before, model, x)


def test_a_bad_target_leaves_nothing() -> None:
    model, x = net(), batch()
    lrp = attach_rules(ca.LRP(model), trained(model, x))
    before = snapshot(model, x)
    with pytest.raises((AssertionError, IndexError)):
        lrp.attribute(x, target=99)
    assert_untouched(before, model, x)


@pytest.mark.parametrize("captum", [ca.LRP, Later])
def test_rules_on_modules_wait_and_come_back(captum: Any) -> None:
    model, x = net(), batch()
    rules = trained(model, x)
    expected = LearnedLRP(model, rules).attribute(x, target=0)
    lrp = attach_rules(captum(model), rules)
    mine = {"conv1": GammaRule(), "norm": IdentityRule(), "pool": EpsilonRule(0.5)}
    for path, rule in mine.items():
        model.get_submodule(path).rule = rule
    found = lrp.attribute(x, target=0)
    torch.testing.assert_close(found.detach(), expected, **exactly)
    for path, module in model.named_modules():
        assert vars(module).get("rule") is mine.get(path)
        assert not {"activations", "kept"} & vars(module).keys()


def test_training_mode_keeps_running_statistics() -> None:
    model, x = net(), batch()
    lrp = attach_rules(ca.LRP(model), trained(model, x))
    model.train()
    before = snapshot(model, x)
    lrp.attribute(x, target=0)
    assert_untouched(before, model, x)


def test_rules_are_no_part_of_the_model() -> None:
    model, x = net(), batch()
    rules = trained(model, x)
    lrp = attach_rules(ca.LRP(model), rules)
    names: list[set[str]] = []
    model.fc2.register_forward_pre_hook(
        lambda *_: names.append(set(model.state_dict()) | set(dict(model.named_modules())))
    )
    before = set(model.state_dict()) | set(dict(model.named_modules()))
    lrp.attribute(x, target=0)
    assert names == [before, before]


# -- what it refuses -------------------------------------------------------------------------------------------------


class ReusedReLU(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.relu2(self.fc1(self.mean(self.relu2(self.conv2(self.conv1(x)))).flatten(1))))


class RegisteredTwice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(self.conv2, self.relu2)


def attach(kind: type[nn.Module] = Net, **options: Any) -> Any:
    model = net(kind)
    return attach_rules(ca.LRP(model), trained(model, batch(), **options))


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no LRP": (lambda: attach_rules(ca.Saliency(net()), "rules"), LearnpropError, r"captum\.attr\.LRP, got Saliency"),
    "LRP of a layer": (
        lambda: attach_rules(ca.LayerLRP(m := net(), m.conv1), trained(m, batch())),
        LearnpropError,
        r"got LayerLRP",
    ),
    "rules of another model": (
        lambda: attach_rules(ca.LRP(nn.Sequential(nn.Linear(4, 2))), trained(net(), batch())),
        RuleError,
        r"belongs to another model",
    ),
    "rules of another composite": (
        lambda: attach_rules(ca.LRP(m := net()), RuleSet.build(m, batch())),
        RuleError,
        r"'learned_epsilon_gamma_box', got 'learned_gradient'",
    ),
    "gates at activations": (
        lambda: attach(gate="channel"),
        LearnpropError,
        r"gate at 'relu1', a ReLU, where captum.*LearnedLRP\(model, rules\)",
    ),
    "an activation called again": (
        lambda: attach(ReusedReLU),
        LearnpropError,
        r"calls 'relu2', a ReLU, more than once \('relu2#1'\).*LearnedLRP",
    ),
    "an activation registered twice": (
        lambda: attach(RegisteredTwice),
        LearnpropError,
        r"ReLU is registered as 'relu2' and as 'block\.1', where captum\.attr\.LRP fails\. Use .*LearnedLRP",
    ),
    "fusion": (lambda: attach(fusion=True), LearnpropError, r"one backward pass.*LearnedLRP"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_error(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_gates_at_activations_that_captum_leaves_alone_are_fine() -> None:
    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gelu, self.mean, self.fc = (
                nn.Conv2d(2, 4, 3),
                nn.GELU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Linear(4, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.mean(self.gelu(self.conv(x)))).flatten(1))

    model, x = net(Smooth), batch()
    rules = trained(model, x, gate="channel")
    found = attach_rules(ca.LRP(model), rules).attribute(x, target=0).detach()
    torch.testing.assert_close(found, LearnedLRP(model, rules).attribute(x, target=0), **exactly)


def test_public_names() -> None:
    assert cl.attach_rules is attach_rules
    assert cl.detach_rules is detach_rules
    assert {"attach_rules", "detach_rules"} <= set(dir(cl))
