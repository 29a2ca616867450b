"""The bridge to Quantus; and, where Quantus is installed, that our scores are its scores where the definitions agree.

Checked with Quantus 0.6.0. Known differences, all on purpose:

- Its pointing game counts any of several highest pixels that hits; ours their share.
- Its rank accuracy breaks ties by position; ours takes the mean over orders.
- Its mass accuracy sums signed values; ours positive ones.
- Its ROAD draws noise from numpy's global generator, needs one channel, and reports the accuracy over the batch.
- Its MPRT resets every layer under the same seed, in the order of registration.
- Its random logit takes structural similarity of flattened maps, along one dimension.
"""

from __future__ import annotations

import copy
import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.faithfulness import deletion_curve
from captum_learnprop.evaluation.localization import pointing_game, relevance_mass, relevance_rank_accuracy
from captum_learnprop.evaluation.quantus import as_quantus_explain_func
from captum_learnprop.evaluation.randomization import histogram_entropy, random_logit
from captum_learnprop.evaluation.road import linear_imputation, road_curve
from captum_learnprop.evaluation.similarity import spearman, ssim
from captum_learnprop.reinitialization import layers_top_down
from zennit_rules import RuleSet


@pytest.fixture
def quantus() -> ModuleType:
    """The package; imported where it is needed, since that takes seconds."""
    return importlib.import_module("quantus")


@pytest.fixture
def setting() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A small net of one channel, inputs, targets."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 10 * 10, 5)).eval()
    return model, torch.rand(6, 1, 12, 12).numpy(), np.array([0, 3, 2, 1, 4, 0])


def gradient_times_input(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """For the scores of this package."""
    result: Tensor = InputXGradient(model).attribute(inputs.clone().requires_grad_(), target=targets)
    return result


# The bridge, without Quantus


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_explanations_are_those_of_the_method(setting, dtype: type) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    model.double()
    expected = IntegratedGradients(model).attribute(
        torch.tensor(inputs).double(), target=torch.tensor(targets), n_steps=7
    )
    explain = as_quantus_explain_func(IntegratedGradients, n_steps=7)
    found = explain(model, inputs.astype(dtype), targets, device="cpu")
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)
    # Options of a call override those of the function.
    np.testing.assert_array_equal(as_quantus_explain_func(IntegratedGradients)(model, inputs, targets, n_steps=7),
                                  explain(model, inputs, targets))  # fmt: skip


@pytest.mark.parametrize("sign", ["absolute", "positive", "signed"])
def test_channels_can_be_reduced(sign: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).eval()
    inputs, targets = np.random.default_rng(0).normal(size=(2, 3, 4, 4)), np.array([[1], [0]])
    explain = as_quantus_explain_func(lambda net: InputXGradient(net), sign=sign)
    signed = as_quantus_explain_func(InputXGradient)(model, inputs, targets)
    assert signed.shape == inputs.shape
    expected = {"absolute": np.abs(signed).sum(1), "positive": signed.sum(1).clip(0), "signed": signed.sum(1)}[sign]
    np.testing.assert_allclose(explain(model, inputs, targets)[:, 0], expected, atol=1e-6)


def test_the_model_of_the_call_is_explained_and_nothing_is_changed(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    explain = as_quantus_explain_func(Saliency)
    kept, before = inputs.copy(), explain(model, inputs[::2], targets[::2])
    with torch.no_grad():
        model[3].weight.mul_(2)
    np.testing.assert_allclose(explain(model, inputs[::2], targets[::2]), 2 * before, rtol=1e-5)
    np.testing.assert_array_equal(inputs, kept)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_maps_by_learned_rules_of_the_model_of_the_call(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    rules = RuleSet.build(model, torch.tensor(inputs[:1]), gate="feature")
    with torch.no_grad():
        for parameter in rules.parameters():
            parameter.add_(torch.randn_like(parameter))
    explain = as_quantus_explain_func(lambda net: LearnedPropagation(net, rules=rules))
    other = copy.deepcopy(model)  # as Quantus' randomisation hands over
    torch.nn.init.normal_(other[0].weight)
    maps = []
    for net in (model, other):
        maps.append(explain(net, inputs, targets))
        expected = LearnedPropagation(net, rules=rules).attribute(torch.tensor(inputs), target=torch.tensor(targets))
        np.testing.assert_allclose(maps[-1], expected.detach().numpy(), atol=1e-7)
    assert not np.allclose(*maps)
    assert not np.allclose(maps[0], as_quantus_explain_func(Saliency, abs=False)(model, inputs, targets))


def test_what_does_not_fit_is_refused(setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    with pytest.raises(LearnpropError, match="6 inputs need 6 targets, got 5"):
        as_quantus_explain_func(Saliency)(model, inputs, targets[:5])

    class Pooled:
        def __init__(self, net: nn.Module) -> None: ...

        def attribute(self, inputs: Tensor, **options: Any) -> Tensor:
            return inputs.mean((2, 3))

    with pytest.raises(LearnpropError, match="one attribution of shape"):
        as_quantus_explain_func(Pooled)(model, inputs, targets)
    with pytest.raises(LearnpropError, match="unknown sign"):
        as_quantus_explain_func(Saliency, sign="negative")(model, inputs, targets)


# Agreement with Quantus


def test_localisation_is_that_of_quantus(quantus: ModuleType, setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    maps = np.random.default_rng(0).random((6, 1, 12, 12))
    masks = np.random.default_rng(1).random((6, 1, 12, 12)) < 0.3
    arguments = {"model": model, "x_batch": inputs, "y_batch": targets, "a_batch": maps, "s_batch": masks}
    options = {"disable_warnings": True, "abs": False, "normalise": False}
    pairs = {"PointingGame": pointing_game, "RelevanceRankAccuracy": relevance_rank_accuracy,
             "RelevanceMassAccuracy": relevance_mass}  # fmt: skip
    for name, ours in pairs.items():
        theirs = getattr(quantus, name)(**options)(**arguments)
        np.testing.assert_allclose(
            ours(torch.tensor(maps), torch.tensor(masks)).numpy(), theirs, atol=1e-12, err_msg=name
        )


def test_imputation_is_that_of_quantus(quantus: ModuleType) -> None:
    impute = quantus.functions.perturb_func.noisy_linear_imputation
    images = torch.rand(3, 2, 9, 11, dtype=torch.float64)
    removed = torch.rand(3, 9, 11) < 0.7
    expected = [
        impute(image.numpy(), mask.flatten().nonzero()[:, 0].numpy(), noise=0.0)
        for image, mask in zip(images, removed, strict=True)
    ]
    np.testing.assert_allclose(linear_imputation(images, removed).numpy(), expected, atol=1e-10)


def test_road_is_that_of_quantus(quantus: ModuleType, setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    with torch.no_grad():
        targets = model(torch.tensor(inputs)).argmax(1).numpy()
    maps = np.random.default_rng(0).random((6, 1, 12, 12))
    percentages = (12.5, 25, 50, 75)  # whole numbers of pixels, because Quantus rounds down
    metric = quantus.ROAD(percentages=percentages, noise=0.0, disable_warnings=True)
    theirs = metric(model=model, x_batch=inputs, y_batch=targets, a_batch=maps, softmax=False)
    ours = road_curve(
        model, torch.tensor(inputs), torch.tensor(maps), torch.tensor(targets),
        percentages=percentages, noise=0.0, output="accuracy",
    )  # fmt: skip
    np.testing.assert_allclose(ours.mean(0).numpy(), [theirs[p] for p in percentages], atol=1e-12)


def test_deletion_curves_are_those_of_quantus_pixel_flipping(quantus: ModuleType, setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    maps = np.random.default_rng(0).random((6, 1, 12, 12))
    metric = quantus.PixelFlipping(features_in_step=9, perturb_baseline=0.25, normalise=False, disable_warnings=True)
    theirs = metric(model=model, x_batch=inputs, y_batch=targets, a_batch=maps, softmax=True)
    ours = deletion_curve(
        model, torch.tensor(inputs), torch.tensor(maps), torch.tensor(targets), steps=16, baseline=0.25
    )
    np.testing.assert_allclose(ours[:, 1:].numpy(), theirs, atol=1e-6)


def test_mprt_is_that_of_quantus_on_its_nets(quantus: ModuleType, setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    x, y = torch.tensor(inputs), torch.tensor(targets)
    metric = quantus.MPRT(disable_warnings=True, layer_order="top_down", seed=3)
    explain = as_quantus_explain_func(InputXGradient)
    state = torch.get_rng_state()
    theirs = metric(model=model, x_batch=inputs, y_batch=targets, explain_func=explain)
    torch.set_rng_state(state)
    layers = layers_top_down(model, x)
    assert list(theirs) == ["original", *layers]
    original = gradient_times_input(model, x, y).abs()
    wrapped = quantus.helpers.model.pytorch_model.PyTorchModel(model)
    for name, net in wrapped.get_random_layer_generator(order="top_down", seed=3):
        found = spearman(original, gradient_times_input(net, x, y).abs())
        np.testing.assert_allclose(found.numpy(), theirs[name], atol=1e-6, err_msg=name)


def test_entropy_is_that_of_quantus(quantus: ModuleType) -> None:
    maps = torch.randn(3, 9, 8, dtype=torch.float64)
    expected = [quantus.functions.complexity_func.discrete_entropy(one.numpy(), one.numpy()) for one in maps]
    np.testing.assert_allclose(histogram_entropy(maps).numpy(), expected, atol=1e-12)


def test_random_logit_is_that_of_quantus_for_rank_correlation(quantus: ModuleType, setting) -> None:  # type: ignore[no-untyped-def]
    model, inputs, targets = setting
    seen: list[np.ndarray] = []
    bridge = as_quantus_explain_func(InputXGradient)

    def explain(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **options: Any) -> np.ndarray:
        seen.append(np.asarray(targets))
        return bridge(model, inputs, targets, **options)

    correlation = quantus.functions.similarity_func.correlation_spearman
    metric = quantus.RandomLogit(num_classes=5, similarity_func=correlation, normalise=False, disable_warnings=True)
    theirs = metric(model=model, x_batch=inputs, y_batch=targets, explain_func=explain)
    x, y = torch.tensor(inputs), torch.tensor(targets)
    others = torch.tensor(seen[-1])
    ours = random_logit(model, gradient_times_input, x, y, similarity="spearman", others=others)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)


def test_ssim_is_that_of_scikit_image(quantus: ModuleType) -> None:
    """scikit-image comes with Quantus."""
    metrics = importlib.import_module("skimage.metrics")
    first = torch.randn(3, 14, 13, dtype=torch.float64)
    second = first + torch.randn(3, 14, 13, dtype=torch.float64)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 3.0}
    expected = [
        metrics.structural_similarity(a.numpy(), b.numpy(), **options) for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(ssim(first, second, data_range=3.0).numpy(), expected, atol=1e-10)
