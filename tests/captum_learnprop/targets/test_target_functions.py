"""Target functions: their values, their derivatives, and what they refuse."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision
from small_nets import SIZE, images, net
from torch import Tensor, nn
from torch.nn import functional as F

import captum_learnprop as cl
from captum_learnprop.errors import TargetError
from captum_learnprop.targets import (
    Asking,
    Called,
    Detection,
    Labels,
    Region,
    Similarity,
    TargetFunction,
    Value,
    label_number,
)
from zennit_rules import RuleSet

DOUBLE = torch.float64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


FUNCTIONS: dict[str, tuple[TargetFunction, Tensor]] = {
    "labels": (Labels((0, 2), weights=(1.0, -0.5)), numbers(3, 4)),
    "region": (Region(1, torch.tensor([[1, 0], [1, 1]])), numbers(3, 2, 4, 4)),
    "similarity": (Similarity(numbers(5, seed=1)), numbers(3, 5)),
    "value": (Value((1, 0)), numbers(3, 2, 2)),
    "value of a vector": (Value(), numbers(3)),
    "own": (Called(lambda output: output.square().sum(1)), numbers(3, 4)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_value_a_sample_that_is_differentiable_and_its_own(name: str) -> None:
    function, output = FUNCTIONS[name]
    values = function(output)
    assert values.shape == (3,)
    assert values.dtype == DOUBLE
    torch.testing.assert_close(torch.cat([function(output[i : i + 1]) for i in range(3)]), values)
    assert torch.autograd.gradcheck(function, output.clone().requires_grad_())


def test_values() -> None:
    output = numbers(2, 4)
    torch.testing.assert_close(Labels((0, 2), (1, -0.5))(output), output[:, 0] - 0.5 * output[:, 2])
    torch.testing.assert_close(Labels(3)(output), output[:, 3])  # type: ignore[arg-type]
    scores = numbers(2, 2, 4, 4)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, 4:] = True
    torch.testing.assert_close(Region(1, mask)(OrderedDict(out=scores)), scores[:, 1, :2, 2:].mean((1, 2)))
    like = numbers(4, seed=3)
    torch.testing.assert_close(Similarity(like)(output), F.cosine_similarity(output, like[None]))


def test_a_region_of_the_model_is_fixed_on_the_picture() -> None:
    scores = torch.zeros(1, 2, 4, 4)
    scores[0, 1, :2] = 3
    own = Region(1).at(scores)
    changed = torch.full((1, 2, 4, 4), 5.0)
    changed[0, 1, :2] = 1
    assert own(scores).item() == 3
    assert own(changed).item() == 1
    with pytest.raises(TargetError, match="gives no pixel to class 0"):
        Region(0).at(scores + torch.tensor([-1.0, 1.0])[None, :, None, None])


def found(*detections: tuple[list[float], int, float]) -> list[dict[str, Tensor]]:
    boxes, labels, scores = zip(*detections, strict=True)
    return [{"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}]


def test_a_detection_is_looked_for_in_changed_pictures() -> None:
    picture = found(([0, 0, 4, 4], 1, 0.9), ([4, 4, 8, 8], 2, 0.5))
    second = Detection(1).at(picture)
    assert (second.label, second.box) == (2, (4, 4, 8, 8))
    assert second(picture).item() == pytest.approx(0.5)
    # Another order, and half of the overlap: 8 of 24 pixels.
    assert second(found(([6, 4, 10, 8], 2, 0.6), ([4, 4, 8, 8], 1, 0.9))).item() == pytest.approx(0.6 / 3)
    assert second(found(([4, 4, 8, 8], 1, 0.9))).item() == 0
    with pytest.raises(TargetError, match="no detection 5: the model found 2"):
        Detection(5).at(picture)


@pytest.mark.parametrize(
    ("function", "output", "message"),
    [
        (Labels((4,)), torch.zeros(1, 3), "class 4 is out of range: there are 3, 0 to 2"),
        (Labels(("cat",)), torch.zeros(1, 3), "names of the model's classes are not known"),
        (Labels((0,)), torch.zeros(1, 3, 2, 2), "entries of rows"),
        (Region(0), torch.zeros(1, 3), "for segmentations"),
        (Region(0, torch.zeros(2, 2)), torch.zeros(1, 3, 2, 2), "mask of a Region is empty"),
        (Region(0, torch.zeros(2)), torch.zeros(1, 3, 2, 2), r"must be \(H, W\)"),
        (Detection(), torch.zeros(1, 3), "for detectors that return a list"),
        (Similarity(torch.zeros(4)), torch.zeros(1, 3), "has 4 values, those of the model have 3"),
        (Value(3), torch.zeros(1, 3), "value 3 is out of range"),
        (Value((0, 0)), torch.zeros(1, 3), "does not name one entry"),
        (Called(lambda output: output), torch.zeros(1, 3), "must give one value per sample"),
    ],
)
def test_what_does_not_fit(function: TargetFunction, output: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        function(output)


def test_labels_need_one_and_as_many_weights() -> None:
    with pytest.raises(TargetError, match="a label at least"):
        Labels(())
    with pytest.raises(TargetError, match="1 weights for 2 labels"):
        Labels((0, 1), (1.0,))


@pytest.mark.parametrize(
    ("label", "number"), [("tabby", 0), ("TABBY_CAT", 0), ("Egyptian cat", 1), ("crane", None), (2, 2), ("dog", None)]
)
def test_names_of_classes(label: int | str, number: int | None) -> None:
    names = ("tabby, tabby cat", "Egyptian cat", "crane", "crane")
    if number is None:
        with pytest.raises(TargetError, match=r"both called|no class"):
            label_number(label, names)
    else:
        assert label_number(label, names) == number


@pytest.mark.parametrize("method", ["saliency", "grad_cam", "occlusion", "learned_lrp", "LRP gamma"])
def test_one_label_is_the_class(method: str) -> None:
    model, x = net(), images(1)
    by_number = cl.explain(model, x, 2, method)
    by_function = cl.explain(model, x, Labels((2,)), method)
    torch.testing.assert_close(by_function.attribution, by_number.attribution)


def test_rules_explain_a_function() -> None:
    model, x = net(), images(1)
    rules = RuleSet.build(model, x, composite="learned_gradient", gate="channel")
    found = cl.explain(model, x, Labels((1, 3), (1, -1)), rules=rules)
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    (gradient,) = torch.autograd.grad(output[0, 1] - output[0, 3], leaf)
    torch.testing.assert_close(found.attribution, gradient[0])


def test_a_concept_is_a_target() -> None:
    model, x = net(), images(1)
    concept = cl.Concept(torch.randn(32), similarity="cosine")
    found = cl.explain(cl.Embedding(model), x, concept, "saliency")
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(concept(cl.Embedding(model)(leaf)).sum(), leaf)
    torch.testing.assert_close(found.attribution, gradient[0])
    assert (found.target, found.index, found.prediction[:0]) == ("Concept", None, ())


def test_asking_leaves_the_mode_of_the_model() -> None:
    model = net().train()
    assert Asking(model, Labels((0,))).training
    assert not Asking(net(), lambda output: output[:, 0]).training
    assert model.training


def test_a_detector() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 2}
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(**options).eval()
    x = torch.rand(3, SIZE, SIZE)
    found = cl.explain(detector, x, Detection(0), "saliency")
    leaf = x[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector(leaf)[0]["scores"][0], leaf)
    torch.testing.assert_close(found.attribution, gradient[0])
    assert isinstance(detector, nn.Module)
