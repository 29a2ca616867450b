"""Randomisation of parameters against slow re-implementations with numpy and scipy, and on awkward modules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from pairwise import crossed
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from untouched import assert_untouched, snapshot

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.baselines import normal_draws
from captum_learnprop.evaluation.randomization import (
    complexity_rise,
    full_randomization,
    histogram_entropy,
    parameter_randomization,
    random_logit,
)
from captum_learnprop.evaluation.similarity import ssim
from captum_learnprop.reinitialization import layers_top_down, randomized


def attribute(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Input times gradient, signed."""
    x = inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).gather(1, targets[:, None]).sum(), x)
    return gradient * inputs


def brightness(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """An edge detector in place of an explanation."""
    return inputs.sum(1)


class Net(nn.Module):
    """Registered in an order that is not that of execution; SiLU, so that no map has zeros that tie."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * 6 * 6, 5)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.conv(images))).flatten(1))


@pytest.fixture
def setting() -> tuple[nn.Module, Tensor, Tensor]:
    """A net that differs from a new one in all parameters and statistics, inputs, targets."""
    net = Net().double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    net.train()(torch.rand(16, 3, 12, 12).double())
    return net.eval(), torch.rand(4, 3, 12, 12).double(), torch.tensor([0, 3, 2, 1])


# Layers


def test_layers_are_listed_by_execution_or_by_registration(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, _ = setting
    before = snapshot(model, inputs)
    assert layers_top_down(model) == ["conv", "norm", "head"]
    assert layers_top_down(model, inputs) == ["head", "norm", "conv"]
    assert layers_top_down(model.train(), inputs) == ["head", "norm", "conv"]
    assert_untouched(before, model.eval(), inputs)


class Awkward(nn.Module):
    """What a transformer brings: own parameters, attention, a module used twice, tied weights, one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.first = nn.Linear(8, 8, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.shared = nn.LayerNorm(8)
        self.again = self.shared
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.first.weight
        self.plain = nn.BatchNorm1d(8, affine=False)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8))])
        self.functional = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.first(x)], 1)
        x = self.shared(x + self.attention(x, x, x)[0])
        for block in self.blocks:
            x = block(x)
        x = self.plain(self.again(self.tied(x)).mean(1))
        return F.linear(x, self.functional.weight, self.functional.bias)


def test_layers_of_awkward_modules() -> None:
    model = Awkward().eval()
    order = layers_top_down(model, torch.randn(2, 4, 8))
    # What is never called by itself returns with what holds it: the net, or the attention.
    held = ["functional", "", "plain", "shared", "tied", "blocks.1.1", "blocks.0", "attention.out_proj", "attention"]
    assert order == [*held, "first"]
    assert sorted(layers_top_down(model)) == sorted(order)


# Random nets


def test_all_parameters_and_statistics_are_new_and_the_model_stays(setting) -> None:  # type: ignore[no-untyped-def]
    model, _, _ = setting
    before, state = snapshot(model), torch.get_rng_state()
    net = randomized(model, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert_untouched(before, model)
    for name, value in model.state_dict().items():
        assert not torch.equal(net.state_dict()[name], value), name
    assert net.norm.running_mean.eq(0).all()
    bound = 1 / 27**0.5  # that of nn.Conv2d for 3 channels of 3 x 3
    assert bound * 0.8 < net.conv.weight.abs().max() <= bound
    assert net.conv.weight.dtype == torch.float64


def test_seeds_decide_and_layers_do_not_depend_on_each_other(setting) -> None:  # type: ignore[no-untyped-def]
    model, _, _ = setting
    every = randomized(model, "all", seed=3)
    assert all(
        torch.equal(a, b) for a, b in zip(every.parameters(), randomized(model, seed=3).parameters(), strict=True)
    )
    assert not torch.equal(every.conv.weight, randomized(model, seed=4).conv.weight)
    torch.manual_seed(99)
    for layers in (["conv"], "conv", 1, "head", ("norm", "conv")):
        net = randomized(model, layers, seed=3)
        assert torch.equal(net.conv.weight, every.conv.weight), layers
        assert torch.equal(net.head.weight, model.head.weight), layers
    two = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert not torch.equal(*[layer.weight for layer in randomized(two)])


def test_a_container_stands_for_what_is_below_it() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Sequential(nn.Linear(3, 3)))
    net = randomized(model, ["0"])
    assert not torch.equal(net[0][0].weight, model[0][0].weight)
    assert torch.equal(net[1][0].weight, model[1][0].weight)
    assert not torch.equal(randomized(model, [""])[1][0].weight, model[1][0].weight)
    assert all(torch.equal(a, b) for a, b in zip(randomized(model, 0).parameters(), model.parameters(), strict=True))


def test_what_cannot_be_reset_is_permuted_and_ties_hold() -> None:
    model = Awkward().eval()
    model.plain.running_mean.normal_()  # type: ignore[union-attr]
    net = randomized(model)
    for path in ("token", "attention.in_proj_weight"):
        old, new = model.get_parameter(path), net.get_parameter(path)
        assert not torch.equal(old, new)
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
    assert net.tied.weight is net.first.weight
    assert not torch.equal(net.first.weight, model.first.weight)
    assert net.plain.running_mean.eq(0).all()  # type: ignore[union-attr]
    alone = randomized(model, ["attention"])
    assert torch.equal(alone.attention.out_proj.weight, model.attention.out_proj.weight)
    assert torch.equal(alone.token, model.token)


def test_weight_norm_does_not_protect_a_layer() -> None:
    inputs = torch.randn(2, 6)
    for normed in (nn.utils.parametrizations.weight_norm(nn.Linear(6, 4, bias=False)), old_weight_norm()):
        model = nn.Sequential(normed)
        assert not torch.allclose(randomized(model)(inputs), model(inputs))


def _old(make: Callable[..., nn.Module], **options: Any) -> Callable[[nn.Module], nn.Module]:
    def normed(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return make(layer, **options)

    return normed


REPARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "orthogonal, cayley": partial(nn.utils.parametrizations.orthogonal, orthogonal_map="cayley"),
    "orthogonal, without base": partial(nn.utils.parametrizations.orthogonal, use_trivialization=False),
    "two": lambda m: nn.utils.parametrizations.spectral_norm(nn.utils.parametrizations.weight_norm(m)),
    "older weight norm": _old(nn.utils.weight_norm),
    "older weight norm of all": _old(nn.utils.weight_norm, dim=None),
    "older spectral norm": _old(nn.utils.spectral_norm),
}


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_reparametrized_layers_are_drawn_through_their_raw_tensors(name: str, used: bool) -> None:
    norm = REPARAMETRIZED[name]
    model = nn.Sequential(norm(nn.Conv2d(2, 4, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(144, 3)))
    inputs, targets = torch.rand(3, 2, 8, 8), torch.tensor([0, 1, 2])
    if used:
        model(inputs)  # the older form leaves a weight that is part of a graph, which torch refuses to copy
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    out = model(inputs)
    net = randomized(model, seed=1)
    assert layers_top_down(model, inputs) == ["3", "0"]
    assert net(inputs).isfinite().all()
    for old, new in ((model[0], net[0]), (model[3], net[3])):
        assert (old.weight - new.weight).abs().max() > 1e-2
        if name.startswith("orthogonal"):
            product = new.weight @ new.weight.mT
            torch.testing.assert_close(product, torch.eye(product.shape[-1]).expand_as(product), rtol=0, atol=1e-5)
        if name.endswith("spectral norm"):
            assert float(torch.linalg.matrix_norm(new.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=1e-2)
    assert torch.equal(randomized(model, seed=1)(inputs), net(inputs))
    score = full_randomization(model, saliency, inputs, targets)
    assert (score.isfinite() & (score < 0.9)).all()
    assert parameter_randomization(model, saliency, inputs, targets).similarity.isfinite().all()
    assert random_logit(model, saliency, inputs, targets, similarity="spearman").isfinite().all()
    assert torch.equal(model(inputs), out)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def saliency(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(model(inputs).gather(1, targets[:, None]).sum(), inputs)[0]


def old_weight_norm() -> nn.Module:
    """The form that keeps its weight as a plain attribute."""
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(6, 4, bias=False))
    with torch.no_grad():
        layer(torch.zeros(1, 6))  # a weight that is part of a graph cannot be copied
    return layer


def test_recalibration_takes_the_statistics_of_the_images(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, _ = setting
    model.dropout = nn.Dropout()
    for training in (False, True):
        model.train(training)
        before = snapshot(model, inputs)
        net = randomized(model, ["conv"], recalibrate=inputs)
        assert_untouched(before, model, inputs)
        values = net.conv(inputs)
        torch.testing.assert_close(net.norm.running_mean, values.mean((0, 2, 3)))
        torch.testing.assert_close(net.norm.running_var, values.var((0, 2, 3)))
        assert torch.equal(net.norm.weight, model.norm.weight)
        assert net.norm.momentum == model.norm.momentum
        assert [module.training for module in net.modules()] == [training] * 5


def test_layers_that_do_not_exist_are_refused(setting) -> None:  # type: ignore[no-untyped-def]
    model, _, _ = setting
    with pytest.raises(LearnpropError, match=r"no layer 'fc' with parameters; choose from 'conv', 'norm', 'head'"):
        randomized(model, ["fc"])
    for number in (4, -1):
        with pytest.raises(LearnpropError, match="the model has 3 layers"):
            randomized(model, number)


# Parameter randomisation


def slow(first: Tensor, second: Tensor, similarity: str, absolute: bool) -> list[float]:
    """Sample by sample."""
    values = []
    for a, b in zip(first.numpy(), second.numpy(), strict=True):
        a, b = (np.abs(a), np.abs(b)) if absolute else (a, b)
        if similarity == "ssim":
            pair = [torch.tensor(m / np.abs(m).max())[None] for m in (a, b)]
            values.append(ssim(*pair).item())
        else:
            values.append(getattr(stats, f"{similarity}r")(a.ravel(), b.ravel()).statistic)
    return values


@pytest.mark.parametrize("order", ["top_down", "bottom_up"])
@pytest.mark.parametrize("cascading", [True, False])
@pytest.mark.parametrize(("similarity", "absolute"), [("spearman", True), ("pearson", False), ("ssim", True)])
def test_layers_are_randomised_one_by_one(
    setting, order: str, cascading: bool, similarity: str, absolute: bool
) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    result = parameter_randomization(
        model, attribute, inputs, targets,
        order=order, cascading=cascading, similarity=similarity, absolute=absolute, seed=2,
    )  # fmt: skip
    names = ["head", "norm", "conv"] if order == "top_down" else ["conv", "norm", "head"]
    assert result.layers == tuple(names)
    new, net = randomized(model, seed=2), copy.deepcopy(model)
    expected = []
    for name in names:
        if not cascading:
            net = copy.deepcopy(model)
        net.get_submodule(name).load_state_dict(new.get_submodule(name).state_dict())
        expected.append(slow(attribute(model, inputs, targets), attribute(net, inputs, targets), similarity, absolute))
    np.testing.assert_allclose(result.similarity.numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(result.mean().numpy(), np.mean(expected, 0), atol=1e-10)


def test_smooth_form_is_the_mean_over_noisy_inputs(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    result = parameter_randomization(model, attribute, inputs, targets, noise_samples=3, noise_level=0.2, seed=2)
    seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(2)).tolist()

    def smooth(net: nn.Module) -> Tensor:
        maps = []
        for seed in seeds:
            noise = normal_draws((3, 12, 12), inputs, seed)
            ranges = torch.stack([x.max() - x.min() for x in inputs])
            maps.append(attribute(net, inputs + 0.2 * ranges[:, None, None, None] * noise, targets))
        return torch.stack(maps).mean(0)

    expected = slow(smooth(model), smooth(randomized(model, seed=2)), "spearman", True)
    np.testing.assert_allclose(result.similarity[-1].numpy(), expected, atol=1e-10)


def test_full_randomisation_is_the_mean_over_seeds(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    found = full_randomization(model, attribute, inputs, targets, absolute=False, seeds=(4, 5), recalibrate=inputs)
    nets = [randomized(model, seed=seed, recalibrate=inputs) for seed in (4, 5)]
    original = attribute(model, inputs, targets)
    scores = [np.abs(slow(original, attribute(net, inputs, targets), "spearman", False)) for net in nets]
    np.testing.assert_allclose(found.numpy(), np.mean(scores, 0), atol=1e-12)


def test_maps_that_ignore_the_model_fail_and_those_that_follow_it_pass(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    ones = torch.ones(4).double()
    torch.testing.assert_close(full_randomization(model, brightness, inputs, targets), ones)
    smooth = parameter_randomization(model, brightness, inputs, targets, noise_samples=2)
    torch.testing.assert_close(smooth.similarity, ones.expand(3, 4))
    assert complexity_rise(model, brightness, inputs, targets).eq(0.0).all()
    torch.testing.assert_close(random_logit(model, brightness, inputs, targets), ones)

    def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return Saliency(net).attribute(x, target=y)

    assert (full_randomization(model, gradient, inputs, targets) < 0.5).all()


def test_a_constant_map_has_no_rank_correlation(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    result = parameter_randomization(model, lambda m, x, y: torch.ones_like(x), inputs, targets)
    assert result.similarity.isnan().all()
    assert result.mean().isnan().all()
    assert full_randomization(model, lambda m, x, y: torch.ones_like(x), inputs, targets).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_layout_types_and_state(setting, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    model, inputs = model.to(dtype), inputs.to(dtype)
    scores = {
        "parameters": lambda x, y, **o: parameter_randomization(model, attribute, x, y, noise_samples=2, **o).mean(),
        "all": lambda x, y, **o: full_randomization(model, attribute, x, y, **o),
        "rise": lambda x, y, **o: complexity_rise(model, attribute, x, y, **o),
        "logit": lambda x, y, **o: random_logit(model, attribute, x, y, **o),
    }
    before, state = snapshot(model, inputs), torch.get_rng_state()
    strided = inputs.transpose(2, 3).contiguous().transpose(2, 3)
    tolerance = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-3}
    for name, score in scores.items():
        whole = score(inputs, targets)
        assert whole.dtype == torch.float64
        singles = [score(inputs[i : i + 1], targets[i : i + 1]) for i in range(4)]
        torch.testing.assert_close(torch.cat(singles), whole, **tolerance, msg=name)
        torch.testing.assert_close(score(inputs, targets, internal_batch_size=3), whole, **tolerance, msg=name)
        torch.testing.assert_close(score(strided, targets), whole, **tolerance, msg=name)
    assert torch.equal(state, torch.get_rng_state())
    assert_untouched(before, model, inputs)


# Entropy


@crossed(levels=[None, 2], bins=[1, 7, 100], dtype=[torch.float32, torch.float64])
def test_entropy_is_that_of_numpy_and_scipy(levels: int | None, bins: int, dtype: torch.dtype) -> None:
    maps = torch.randn(5, 9, 8, dtype=dtype)
    maps = (maps * levels).round() if levels else maps
    expected = [stats.entropy(np.histogram(one.double().numpy(), bins=bins)[0]) for one in maps]
    np.testing.assert_allclose(histogram_entropy(maps, bins).numpy(), expected, atol=1e-12)


def test_entropy_of_constants_and_of_uniform_values() -> None:
    assert histogram_entropy(torch.full((2, 3, 3), 0.1)).eq(0).all()
    even = torch.arange(200.0).reshape(1, 200)
    assert histogram_entropy(even).item() == pytest.approx(np.log(100))
    with pytest.raises(LearnpropError, match="bins at least 1"):
        histogram_entropy(even, 0)


def test_complexity_rise_is_that_of_numpy(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    found = complexity_rise(model, attribute, inputs, targets, seeds=(1, 2), absolute=True, bins=20)
    maps = [
        attribute(net, inputs, targets).abs().numpy() for net in (model, *(randomized(model, seed=s) for s in (1, 2)))
    ]
    entropy = np.array([[stats.entropy(np.histogram(one, bins=20)[0]) for one in some] for some in maps])
    np.testing.assert_allclose(found.numpy(), ((entropy[1:] - entropy[0]) / entropy[0]).mean(0), atol=1e-12)


# Random logit


@pytest.mark.parametrize(("similarity", "absolute"), [("spearman", False), ("ssim", True)])
def test_random_logit_compares_two_classes(setting, similarity: str, absolute: bool) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    others = (targets + 2) % 5
    found = random_logit(model, attribute, inputs, targets, similarity=similarity, absolute=absolute, others=others)
    maps = [attribute(model, inputs, classes) for classes in (targets, others)]
    np.testing.assert_allclose(found.numpy(), slow(*maps, similarity, absolute), atol=1e-12)


def test_the_other_class_is_never_the_target_and_every_one_occurs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    targets = torch.arange(3)
    seen: list[Tensor] = []

    def spy(net: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
        seen.append(classes)
        return torch.rand(3, 2, 2)

    for seed in range(20):
        random_logit(model, spy, torch.rand(3, 1, 2, 2), targets, similarity="spearman", seed=seed)
    others = torch.stack(seen[1::2])
    assert all(torch.equal(asked, targets) for asked in seen[::2])
    assert [set(column.tolist()) for column in others.T] == [{1, 2}, {0, 2}, {0, 1}]


def test_what_cannot_be_measured_is_refused(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    with pytest.raises(LearnpropError, match="unknown order 'independent'"):
        parameter_randomization(model, attribute, inputs, targets, order="independent")
    with pytest.raises(LearnpropError, match="noise_samples=-1"):
        parameter_randomization(model, attribute, inputs, targets, noise_samples=-1)
    with pytest.raises(LearnpropError, match="unknown similarity 'cosine'"):
        full_randomization(model, attribute, inputs, targets, similarity="cosine")
    with pytest.raises(LearnpropError, match="no parameters"):
        parameter_randomization(nn.Flatten(), brightness, inputs, targets)
    for score in (full_randomization, complexity_rise):
        with pytest.raises(LearnpropError, match="seeds is empty"):
            score(model, attribute, inputs, targets, seeds=())
    for score in (parameter_randomization, full_randomization, complexity_rise, random_logit):
        with pytest.raises(LearnpropError, match=r"attribute gave \(4, 12\)"):
            score(model, lambda m, x, y: x[:, 0, 0], inputs, targets)
        with pytest.raises(LearnpropError, match="NaN or infinite values for sample 0"):
            score(model, lambda m, x, y: x / 0, inputs, targets)
        with pytest.raises(LearnpropError, match="targets must be"):
            score(model, attribute, inputs, targets[:2])
        with pytest.raises(LearnpropError, match="internal_batch_size"):
            score(model, attribute, inputs, targets, internal_batch_size=0)
        with pytest.raises(LearnpropError, match=r"\(B, C, H, W\)"):
            score(model, attribute, inputs[0], targets)
    with pytest.raises(LearnpropError, match="differ from the targets"):
        random_logit(model, attribute, inputs, targets, others=targets)
    with pytest.raises(LearnpropError, match="at least 2 classes"):
        random_logit(model, attribute, inputs, targets + 4)
