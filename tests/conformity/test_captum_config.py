"""Captum's own table of configurations, with our method in the place of its gradient methods.

The table (`captum.testing.attr.helpers.test_config`) is what captum generates its target, batch and hook-removal
tests from; the tests below ask the same questions. Then captum's composed methods: those that run another method
(NeuronGuidedBackprop, GuidedGradCam, NoiseTunnel), its metrics, and its gradient methods inside a rule set.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import captum.attr as ca
import numpy as np
import pytest
import torch
from captum.metrics import infidelity, sensitivity_max
from captum.testing.attr.helpers.gen_test_utils import get_target_layer
from captum.testing.attr.helpers.test_config import config as CONFIG
from captum.testing.helpers.basic_models import BasicModel_ConvNet, BasicModel_MultiLayer
from pairwise import crossed
from torch import Tensor, nn
from untouched import assert_untouched, snapshot

from captum_learnprop import LearnedGuidedBackprop, LearnedLRP, LearnedPropagation
from captum_learnprop.errors import LearnpropError
from zennit_rules import RuleSet

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", r"ignore:\s*Setting forward, backward hooks")

REPLACED = {ca.Saliency, ca.GuidedBackprop, ca.Deconvolution}
PLAIN = [c for c in CONFIG if REPLACED & set(c["algorithms"])]
NEURON = [c for c in CONFIG if {ca.NeuronGuidedBackprop, ca.NeuronDeconvolution} & set(c["algorithms"])]
GRAD_CAM = [c for c in CONFIG if ca.GuidedGradCam in c["algorithms"]]
STEPS = 3
DELTA = 1e-4  # captum's default for batch against single

Make = Callable[[nn.Module, dict[str, Any]], Any]


def ids(configs: list[dict[str, Any]]) -> list[str]:
    return [c["name"] for c in configs]


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def extra(args: dict[str, Any]) -> tuple[Any, ...]:
    given = args.get("additional_forward_args")
    return () if given is None else as_tuple(given)


def moved(rules: RuleSet) -> RuleSet:
    """Away from the start, so that a rule that is not applied is seen."""
    generator = torch.Generator().manual_seed(3)
    for parameter in rules.parameters():
        parameter.data.normal_(std=0.7, generator=generator)
    return rules


def trained(model: nn.Module, args: dict[str, Any], **options: Any) -> RuleSet:
    rules = RuleSet.build(model, (*as_tuple(args["inputs"]), *extra(args)), **options)
    return rules if options.get("start") == "guided_backprop" else moved(rules)


class FewSteps(LearnedPropagation):
    """Learns per sample, with a number of steps that a test can afford."""

    def attribute(self, *args: Any, **kwargs: Any) -> Any:
        return super().attribute(*args, **{"n_steps": STEPS, **kwargs})

    attribute.__wrapped__ = attribute  # type: ignore[attr-defined]  # what NoiseTunnel calls


METHODS: dict[str, Make] = {
    "per_sample": lambda model, args: FewSteps(model),
    "rules": lambda model, args: LearnedPropagation(model, rules=trained(model, args)),
    "feature_rules": lambda model, args: LearnedPropagation(model, rules=trained(model, args, gate="feature")),
    "guided_backprop": lambda model, args: LearnedGuidedBackprop(model),
    "guided_backprop_rules": lambda model, args: LearnedGuidedBackprop(model, trained(model, args)),
    "lrp": lambda model, args: LearnedLRP(model),
    "lrp_rules": lambda model, args: LearnedLRP(model, trained(model, args, composite="learned_epsilon_gamma_box")),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_config = pytest.mark.parametrize("config", PLAIN, ids=ids(PLAIN))


def attributor(config: dict[str, Any], model: nn.Module, make: Make) -> Any:
    method = make(model, config["attribute_args"])
    return ca.NoiseTunnel(method) if config.get("noise_tunnel") else method


def row(value: Any, i: int) -> Any:
    """The part of an argument that belongs to sample ``i``."""
    return value[i : i + 1] if isinstance(value, Tensor) else value


# -- the table -------------------------------------------------------------------------------------------------------


def has_targets_per_sample(config: dict[str, Any]) -> bool:
    target = config["attribute_args"].get("target")
    return isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1)


def test_the_table_still_has_what_we_replace() -> None:
    assert len(PLAIN) >= 13
    assert sum(has_targets_per_sample(c) for c in PLAIN) >= 8
    assert any(c.get("noise_tunnel") for c in PLAIN)
    assert len(NEURON) >= 5
    assert GRAD_CAM


@each_method
@each_config
def test_attributions_are_finite_and_shaped_like_the_inputs(config: dict[str, Any], method: Make) -> None:
    args = config["attribute_args"]
    maps = attributor(config, copy.deepcopy(config["model"]), method).attribute(**args)
    assert isinstance(maps, tuple) == isinstance(args["inputs"], tuple)
    assert [m.shape for m in as_tuple(maps)] == [x.shape for x in as_tuple(args["inputs"])]
    assert all(m.isfinite().all() for m in as_tuple(maps))
    assert any(m.any() for m in as_tuple(maps))


@each_method
@pytest.mark.parametrize(
    "config", [c for c in PLAIN if has_targets_per_sample(c)], ids=ids([c for c in PLAIN if has_targets_per_sample(c)])
)
def test_batch_of_targets_equals_each_sample_alone(config: dict[str, Any], method: Make) -> None:
    model, args = copy.deepcopy(config["model"]), config["attribute_args"]
    attribution = attributor(config, model, method)
    torch.manual_seed(1234)
    batched = as_tuple(attribution.attribute(**args))
    for i, target in enumerate(args["target"]):
        single = {**args, "target": target}
        single["inputs"] = tuple(row(x, i) for x in as_tuple(args["inputs"]))
        if "additional_forward_args" in args:
            single["additional_forward_args"] = tuple(row(a, i) for a in extra(args))
        torch.manual_seed(1234)
        alone = attribution.attribute(**single)
        for together, one in zip(batched, alone, strict=True):
            torch.testing.assert_close(together[i : i + 1], one, atol=config.get("target_delta", DELTA), rtol=0)


# -- nothing left behind ---------------------------------------------------------------------------------------------


@crossed(config={c["name"]: c for c in PLAIN}, method=METHODS, mode=["normal", "bad target", "failing module"])
def test_no_hook_is_left(config: dict[str, Any], method: Make, mode: str) -> None:
    model, args = copy.deepcopy(config["model"]), dict(config["attribute_args"])
    attribution = attributor(config, model, method)
    if mode == "failing module":
        fail_in_last_layer(model, args)
    before = snapshot(model, *as_tuple(args["inputs"]))
    if mode == "bad target":
        with pytest.raises((AssertionError, IndexError), match="target"):
            attribution.attribute(**{**args, "target": 100_000})
    elif mode == "failing module":
        with pytest.raises(RuntimeError, match="this layer fails"):
            attribution.attribute(**args)
    else:
        attribution.attribute(**args)
    assert_untouched(before, model, *as_tuple(args["inputs"]))


def fail_in_last_layer(model: nn.Module, args: dict[str, Any]) -> None:
    """Make the layer that is called last raise, when all rules have been in use."""
    called: list[nn.Module] = []
    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in leaves]
    model(*as_tuple(args["inputs"]), *extra(args))
    for handle in handles:
        handle.remove()

    def fail(*_: Any) -> None:
        raise RuntimeError("this layer fails")

    called[-1].register_forward_pre_hook(fail)


# -- captum's methods that run another method ------------------------------------------------------------------------

GUIDED: Make = lambda model, args: LearnedPropagation(  # noqa: E731
    model, rules=trained(model, args, start="guided_backprop")
)


def assert_same(ours: Any, theirs: Any) -> None:
    for a, b in zip(as_tuple(ours), as_tuple(theirs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("config", NEURON, ids=ids(NEURON))
def test_neuron_guided_backprop_runs_ours(config: dict[str, Any]) -> None:
    model, args = copy.deepcopy(config["model"]), config["attribute_args"]
    layer = get_target_layer(model, config["layer"])
    theirs = ca.NeuronGuidedBackprop(model, layer).attribute(**args)
    ours, other = ca.NeuronGuidedBackprop(model, layer), ca.NeuronGuidedBackprop(model, layer)
    ours.guided_backprop = GUIDED(model, args)
    other.guided_backprop = LearnedPropagation(model, rules=trained(model, args))
    before = snapshot(model, *as_tuple(args["inputs"]))
    assert_same(ours.attribute(**args), theirs)
    different = other.attribute(**args)
    assert_untouched(before, model, *as_tuple(args["inputs"]))
    passes_an_activation = not isinstance(model, BasicModel_ConvNet)  # its neurons are behind one ReLU and one pool
    if passes_an_activation:
        assert any(not torch.allclose(a, b) for a, b in zip(as_tuple(different), as_tuple(theirs), strict=True))


def test_rules_of_a_neuron_cannot_be_learned_and_the_message_says_so() -> None:
    model = BasicModel_MultiLayer()
    neuron = ca.NeuronGuidedBackprop(model, model.relu)
    neuron.guided_backprop = LearnedPropagation(model)
    with pytest.raises(LearnpropError, match=r"rules="):
        neuron.attribute(torch.randn(2, 3), neuron_selector=0)


@pytest.mark.parametrize("config", GRAD_CAM, ids=ids(GRAD_CAM))
def test_guided_grad_cam_runs_ours(config: dict[str, Any]) -> None:
    model, args = copy.deepcopy(config["model"]), config["attribute_args"]
    layer = get_target_layer(model, config["layer"])
    ours, learned = ca.GuidedGradCam(model, layer), ca.GuidedGradCam(model, layer)
    ours.guided_backprop = GUIDED(model, args)
    learned.guided_backprop = FewSteps(model)
    before = snapshot(model, *as_tuple(args["inputs"]))
    assert_same(ours.attribute(**args), ca.GuidedGradCam(model, layer).attribute(**args))
    maps = learned.attribute(**args)
    assert maps.shape == args["inputs"].shape
    assert maps.isfinite().all()
    assert_untouched(before, model, *as_tuple(args["inputs"]))


# -- NoiseTunnel and metrics -----------------------------------------------------------------------------------------


class SmallNet(nn.Module):
    """Convolutions, an in-place and a reused ReLU, a functional one, a max-pool, a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.gelu = nn.ReLU(inplace=True), nn.GELU()
        self.fc1, self.fc2 = nn.Linear(4 * 16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = nn.functional.max_pool2d(self.relu(self.conv2(x)), 2)
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc2(self.gelu(x))


class ReluNet(nn.Sequential):
    """What captum's GuidedBackprop and Deconvolution can do: every ReLU a module of its own."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5),
        )  # fmt: skip


def net(kind: type[nn.Module] = SmallNet) -> nn.Module:
    torch.manual_seed(5)
    return kind().eval()


def batch() -> Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@each_method
def test_noise_tunnel(method: Make, kind: str) -> None:
    model, x = net(), batch()
    tunnel = ca.NoiseTunnel(method(model, {"inputs": x}))
    before = snapshot(model, x)
    maps = tunnel.attribute(x, target=[0, 1, 2], nt_type=kind, nt_samples=3, stdevs=0.1)
    assert maps.shape == x.shape
    assert maps.isfinite().all()
    assert maps.flatten(1).any(dim=1).all()
    assert_untouched(before, model, x)


@each_method
def test_infidelity_and_sensitivity(method: Make) -> None:
    model, x = net(), batch()
    attribution = method(model, {"inputs": x})

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    before = snapshot(model, x)
    maps = attribution.attribute(x, target=1)
    faithful = infidelity(model, perturb, x, maps, target=1, n_perturb_samples=4)
    sensitive = sensitivity_max(attribution.attribute, x, target=1, n_perturb_samples=2)
    for score in (faithful, sensitive):
        assert score.shape == (3,)
        assert score.isfinite().all()
        assert (score >= 0).all()
    assert_untouched(before, model, x)


# -- captum's gradient methods inside a rule set ---------------------------------------------------------------------


GRADIENT_METHODS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "Saliency": lambda m, x: ca.Saliency(m).attribute(x, target=1, abs=False),
    "InputXGradient": lambda m, x: ca.InputXGradient(m).attribute(x, target=1),
    "IntegratedGradients": lambda m, x: ca.IntegratedGradients(m).attribute(x, target=1, n_steps=5),
    "GradientShap": lambda m, x: ca.GradientShap(m).attribute(x, torch.zeros(2, 1, 8, 8), target=1, n_samples=3),
    "LayerGradCam": lambda m, x: ca.LayerGradCam(m, m.conv1).attribute(x, target=1),
    "LayerIntegratedGradients": lambda m, x: ca.LayerIntegratedGradients(m, m.fc1).attribute(x, target=1, n_steps=5),
    "LayerConductance": lambda m, x: ca.LayerConductance(m, m.fc1).attribute(x, target=1, n_steps=5),
    "NeuronGradient": lambda m, x: ca.NeuronGradient(m, m.fc2).attribute(x, 1),
    "NoiseTunnel": lambda m, x: ca.NoiseTunnel(ca.Saliency(m)).attribute(
        x, target=1, nt_samples=3, stdevs=0.1, abs=False
    ),
}
each_gradient_method = pytest.mark.parametrize("run", GRADIENT_METHODS.values(), ids=GRADIENT_METHODS)


def seeded(run: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(7)
    np.random.seed(7)  # GradientShap draws its baselines there
    return run(model, x).detach()


@each_gradient_method
@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
def test_gradient_methods_at_the_gradient_start_are_unchanged(run: Any, gate: str) -> None:
    model, x = net(), batch()
    plain = seeded(run, model, x)
    rules = RuleSet.build(model, x, gate=gate)
    before = snapshot(model, x)
    with rules.applied(model):
        ours = seeded(run, model, x)
    torch.testing.assert_close(ours, plain)
    assert_untouched(before, model, x)


@each_gradient_method
@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
def test_gradient_methods_follow_moved_rules(run: Any, gate: str) -> None:
    model, x = net(), batch()
    plain = seeded(run, model, x)
    rules = moved(RuleSet.build(model, x, gate=gate))
    with rules.applied(model):
        ours = seeded(run, model, x)
    assert ours.isfinite().all()
    assert not torch.allclose(ours, plain, atol=1e-3 * float(plain.abs().max()), rtol=0)
    torch.testing.assert_close(seeded(run, model, x), plain)  # and only inside the context


@pytest.mark.parametrize("gate", ["channel", "quadrant", "feature"])
@pytest.mark.parametrize(("start", "method"), [("guided_backprop", ca.GuidedBackprop), ("deconvnet", ca.Deconvolution)])
def test_saliency_at_other_starts_equals_captums_method(start: str, method: Any, gate: str) -> None:
    model, x = net(ReluNet), batch()
    theirs = method(model).attribute(x, target=1)
    with RuleSet.build(model, x, gate=gate, start=start).applied(model):
        torch.testing.assert_close(seeded(GRADIENT_METHODS["Saliency"], model, x), theirs)
        torch.testing.assert_close(
            seeded(GRADIENT_METHODS["NoiseTunnel"], model, x),
            seeded(
                lambda m, x: ca.NoiseTunnel(method(m)).attribute(x, target=1, nt_samples=3, stdevs=0.1), net(ReluNet), x
            ),
        )


@pytest.mark.parametrize("start", ["gradient", "guided_backprop", "deconvnet"])
def test_attribute_at_each_start_equals_captums_method(start: str) -> None:
    model, x = net(ReluNet), batch()
    theirs = {"guided_backprop": ca.GuidedBackprop, "deconvnet": ca.Deconvolution, "gradient": ca.Saliency}[start](
        model
    )
    options = {"abs": False} if start == "gradient" else {}
    expected = theirs.attribute(x, target=[0, 4, 2], **options)
    for gate in ("element", "position", "channel", "quadrant", "feature"):
        ours = LearnedPropagation(model, gate=gate, start=start)
        torch.testing.assert_close(ours.attribute(x, target=[0, 4, 2], n_steps=0), expected)


# -- captum's habits -------------------------------------------------------------------------------------------------


def test_attribute_future_is_refused_as_captum_does() -> None:
    with pytest.raises(NotImplementedError, match="attribute_future"):
        LearnedPropagation(net()).attribute_future()


def test_attribute_is_wrapped_for_captums_log() -> None:
    assert LearnedPropagation.attribute.__wrapped__.__name__ == "attribute"


def test_other_methods_work_on_the_same_model_afterwards() -> None:
    model, x = net(ReluNet), batch()
    methods: list[tuple[type[Any], dict[str, Any]]] = [
        (ca.DeepLift, {}), (ca.IntegratedGradients, {"n_steps": 4}), (ca.GuidedBackprop, {}),
        (ca.Saliency, {}), (ca.InputXGradient, {}),
    ]  # fmt: skip
    expected = [cls(copy.deepcopy(model)).attribute(x.clone(), target=1, **o).detach() for cls, o in methods]
    LearnedPropagation(model).attribute(x, target=1, n_steps=2)
    LearnedPropagation(model, rules=RuleSet.build(model, x)).attribute(x, target=1)
    for (cls, options), before in zip(methods, expected, strict=True):
        torch.testing.assert_close(cls(model).attribute(x.clone(), target=1, **options).detach(), before)
