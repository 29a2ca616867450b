"""`explain`: any picture, any model; the same map as everywhere, in the picture's own size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_nets import CLASSES, SIZE, net
from torch import Tensor, nn
from torchvision import transforms
from untouched import differences, snapshot

import captum_learnprop as cl
from captum_learnprop.errors import InputWarning
from captum_learnprop.explanation import Explanation, Explanations
from captum_learnprop.images import Preprocessing
from captum_learnprop.maps import postprocess
from captum_learnprop.scenes import reference_nets
from zennit_rules import RuleSet

PREPARED = Preprocessing(SIZE, SIZE, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
NAMES = ("tabby, tabby cat", "Egyptian cat", "dog", "boat")


def photograph(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def model() -> nn.Module:
    found = net()
    found.preprocessing = PREPARED
    found.class_names = NAMES
    return found


def rules_of(model: nn.Module, **training: object) -> RuleSet:
    rules = RuleSet.build(model, torch.zeros(1, 3, SIZE, SIZE), composite="learned_gradient", gate="channel")
    with torch.no_grad():
        for number, parameter in enumerate(rules.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    rules.training = dict(training)
    return rules


def test_the_map_by_rules_is_that_of_maps(model: nn.Module, tmp_path: Path) -> None:
    rules = rules_of(model, sign="signed", smoothing=0.1, outlines=0.06)
    x = PREPARED.normalize(torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    wanted = cl.LearnedPropagation(model, rules=rules).maps(x, target=2)
    found = cl.explain(model, x, target=2, rules=rules)
    torch.testing.assert_close(torch.stack([one.map for one in found]), wanted)
    path = tmp_path / "kept.safetensors"
    rules.save(path, model)
    again = cl.explain(model, x[0], "dog", path)
    torch.testing.assert_close(again.map, wanted[0])
    assert (again.method, again.index, again.sign, again.smoothing) == ("kept", 2, "signed", 0.1)


def test_the_map_is_the_postprocessed_attribution(model: nn.Module) -> None:
    x = PREPARED.normalize(torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    one = cl.explain(model, x, 1, "saliency", sign="positive", smoothing=0.05)
    torch.testing.assert_close(one.map, postprocess(one.attribution[None], "positive", 0.05)[0])
    leaf = x[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[0, 1], leaf)
    std = torch.tensor(PREPARED.std)[:, None, None]
    torch.testing.assert_close(one.attribution, gradient[0] / std)  # of the picture in [0, 1]


@pytest.mark.parametrize("method", ["grad_cam", "LRP gamma", "Saliency", "occlusion", "learned_lrp"])
def test_the_model_is_untouched(model: nn.Module, method: str) -> None:
    before = snapshot(model)
    cl.explain(model, photograph(), method=method)
    assert differences(before, snapshot(model)) == []


def test_every_kind_of_picture_is_the_same_picture(model: nn.Module, tmp_path: Path) -> None:
    array = photograph()
    path = tmp_path / "cat.png"
    Image.fromarray(array).save(path)
    tensor = torch.from_numpy(array)
    kinds = [
        array,
        path,
        str(path),
        Image.fromarray(array),
        array / 255,
        np.moveaxis(array, -1, 0),
        tensor.movedim(-1, 0),
    ]
    found = cl.explain(model, kinds, target="egyptian_cat", method="input x gradient")
    assert len(found) == len(kinds)
    for one in found:
        assert one.map.shape == (24, 32)
        torch.testing.assert_close(one.map, found[0].map)
        torch.testing.assert_close(one.image, tensor.movedim(-1, 0).float() / 255)
    assert [one.title for one in found][:3] == ["image 0", "cat.png", "cat.png"]


def test_grey_and_transparent_pictures(model: nn.Module) -> None:
    grey = photograph()[..., 0]
    whole = cl.explain(model, np.repeat(grey[..., None], 3, 2), 0, "saliency")
    torch.testing.assert_close(cl.explain(model, grey, 0, "saliency").map, whole.map)
    clear = np.dstack([photograph(), np.full((24, 32), 255, np.uint8)])
    torch.testing.assert_close(
        cl.explain(model, clear, 0, "saliency").map, cl.explain(model, photograph(), 0, "saliency").map
    )


def test_the_crop_lies_in_its_place(model: nn.Module) -> None:
    one = cl.explain(model, photograph(), 0, "saliency")  # of 16 x 21 columns 2 to 18
    assert (one.frame.rows, one.frame.columns, one.frame.complete) == (slice(0, 24), slice(3, 27), False)
    assert not one.map[:, :3].any()
    assert not one.map[:, 27:].any()
    assert one.map[:, 3:27].min() > 0


def test_a_bright_patch_is_found_where_it_is() -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0].square().sum((1, 2)), x.sum((1, 2, 3))], 1)

    array = np.zeros((40, 80, 3), np.uint8)
    array[8:14, 50:58] = 255
    for prepare in (Preprocessing(20, 20, squeeze=True).without_normalization(), transforms.ToTensor()):
        one = cl.explain(Bright(), array, 0, "input_x_gradient", preprocessing=prepare, smoothing=0.0)
        rows, columns = (one.map > one.map.max() / 2).nonzero().unbind(1)
        assert abs(rows.double().mean() - 10.5) < 1
        assert abs(columns.double().mean() - 53.5) < 1


def test_targets_methods_and_pictures_side_by_side(model: nn.Module) -> None:
    found = cl.explain(model, [photograph(), photograph(20, 20)], ["dog", 3], ["saliency", "grad_cam", "smooth-grad"])
    assert isinstance(found, Explanations)
    assert [(one.target, one.method) for one in found][:4] == [
        ("dog", "saliency"), ("dog", "Grad-CAM"), ("dog", "SmoothGrad"), ("boat", "saliency"),
    ]  # fmt: skip
    assert len(found) == 12
    assert found[6].map.shape == (20, 20)
    assert len(found[:3]) == 3
    figure = found.figure()
    assert len(figure.axes) == 4 * 4
    assert found._repr_png_().startswith(b"\x89PNG")


def test_the_prediction_has_names_and_probabilities(model: nn.Module) -> None:
    one = cl.explain(model, photograph(), method="saliency")
    assert isinstance(one, Explanation)
    chances = model(PREPARED.normalize(PREPARED.pixels(Image.fromarray(photograph())))[None]).softmax(1)[0]
    assert [guess.index for guess in one.prediction] == chances.argsort(descending=True).tolist()
    assert one.prediction[0].name == one.target == NAMES[int(chances.argmax())]
    assert sum(guess.probability for guess in one.prediction) == pytest.approx(1, abs=1e-5)
    assert len(one.prediction) == CLASSES
    assert one.cost.passes == 2
    assert one.cost.seconds > 0


def test_classes_that_do_not_exclude_each_other_have_sigmoids(model: nn.Module) -> None:
    model.multi_label = True
    one = cl.explain(model, photograph(), method="saliency")
    x = PREPARED.normalize(PREPARED.pixels(Image.fromarray(photograph())))[None]
    assert one.prediction[0].probability == pytest.approx(model(x).sigmoid().max().item(), abs=1e-6)


def test_without_a_method_the_strongest_untrained_is_taken(model: nn.Module) -> None:
    assert cl.explain(model, photograph()).method == "LRP gamma x Grad-CAM"


def test_the_next_is_taken_where_one_cannot() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sin().sum((1, 2, 3)), x.sum((1, 2, 3))], 1)

    one = cl.explain(Odd(), torch.rand(3, 8, 8), 0)
    assert one.method == "integrated gradients"


def test_files_of_figures_and_numbers(model: nn.Module, tmp_path: Path) -> None:
    from safetensors import safe_open

    one = cl.explain(model, photograph(), method="saliency")
    assert one.save(tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(one.save(tmp_path / "map.safetensors"), framework="pt") as file:
        torch.testing.assert_close(file.get_tensor("map"), one.map)
        assert '"saliency"' in file.metadata()["learnprop_explanation"]
    with pytest.raises(cl.LearnpropError, match="suffix"):
        one.save(tmp_path / "map")
    with pytest.raises(cl.LearnpropError, match="one by one"):
        cl.explain(model, [photograph()], method="saliency").save(tmp_path / "all.safetensors")


def test_a_notebook_shows_figure_and_words(model: nn.Module) -> None:
    one = cl.explain(model, photograph(), target=0, method="saliency")
    assert "data:image/png;base64," in one._repr_html_()
    assert "tabby" in one._repr_html_()
    assert repr(one).startswith("Explanation('tabby, tabby cat' by 'saliency', map 24 x 32, ")


def test_grey_nets_get_grey_pictures() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 3)).eval()
    with pytest.warns(InputWarning, match="does not say how pictures become its input"):
        one = cl.explain(model, photograph(), 0, "saliency", size=28)
    assert one.attribution.shape == (1, 28, 28)
    assert one.map.shape == (24, 32)


def test_an_own_size_and_normalisation(model: nn.Module) -> None:
    del model.preprocessing
    one = cl.explain(model, photograph(), 0, "saliency", size=SIZE, mean=PREPARED.mean, std=PREPARED.std)
    squeezed = Preprocessing(SIZE, SIZE, PREPARED.mean, PREPARED.std, squeeze=True)
    torch.testing.assert_close(one.map, cl.explain(model, photograph(), 0, "saliency", preprocessing=squeezed).map)


def test_no_grad_around_does_no_harm(model: nn.Module) -> None:
    with torch.no_grad():
        assert cl.explain(model, photograph(), method="saliency").map.max() > 0


def test_numbers_of_an_embedding_are_no_classes() -> None:
    vit = reference_nets.load("vit", "digits")
    embedding, pictures = cl.Embedding(vit), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = cl.explain(embedding, pictures[0], cl.Concept.of(embedding, pictures, similarity="cosine"), "CDAM")
    assert found.prediction == ()
    assert len(cl.explain(vit, pictures[0], 3, "CDAM").prediction) == 5
