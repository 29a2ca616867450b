"""Rows of tables, series and texts in `explain`: exact where the answer is known, and the map of the method itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas  # comes with quantus
import pytest
import torch
import transformers
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import captum_learnprop as cl
from captum_learnprop.errors import LearnpropError
from captum_learnprop.explanation.value_methods import VALUE_METHODS
from captum_learnprop.explanation.values import values_given

NAMES = ("age", "height", "weight", "income")


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3)).eval()


def mlp(features: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def series_net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(*layers).eval()


class Tokenizer:
    """Words in the order of their letters: the number of a word is its length."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}

    def convert_ids_to_tokens(self, numbers: list[int]) -> list[str]:
        return ["w" * number for number in numbers]


def text_net(**options: Any) -> cl.OnEmbeddings:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}, **options,
    )  # fmt: skip
    return cl.OnEmbeddings(transformers.BertForSequenceClassification(config).eval(), Tokenizer())


def row() -> Tensor:
    return torch.randn(4, generator=torch.Generator().manual_seed(1))


# -- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["input x gradient", "integrated gradients", "DeepLift", "occlusion"])
def test_of_a_linear_model_attributions_are_weights_times_input(method: str) -> None:
    net, x = linear(), row()
    found = cl.explain(net, x, 1, method, features=NAMES)
    expected = net[0].weight[1].detach() * x
    torch.testing.assert_close(found.map, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.attribution, expected, rtol=1e-4, atol=1e-5)
    assert (found.kind, found.names, found.sign) == ("row", NAMES, "signed")


def test_saliency_is_the_finite_difference() -> None:
    net, x = mlp().double(), row().double()
    found = cl.explain(net, x, 2, "saliency").map
    steps = 1e-6 * torch.eye(4, dtype=torch.float64)
    with torch.no_grad():
        expected = (net(x + steps)[:, 2] - net(x - steps)[:, 2]) / 2e-6
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_without_a_method_it_is_complete() -> None:
    net, x = mlp(), row()
    found = cl.explain(net, x, 0)
    assert found.method == "integrated gradients"
    with torch.no_grad():
        loss = (net(x[None]) - net(torch.zeros(1, 4)))[0, 0]
    assert float(found.map.sum()) == pytest.approx(float(loss), abs=0.02)


@pytest.mark.parametrize("given", [row().numpy(), row().tolist(), row()[None].numpy(), row()[None]])
def test_forms_of_a_row(given: Any) -> None:
    torch.testing.assert_close(cl.explain(mlp(), given, 1, "saliency").map, cl.explain(mlp(), row(), 1, "saliency").map)


def test_several_rows_have_an_explanation_each() -> None:
    x = torch.randn(3, 4)
    found = cl.explain(mlp(), x, None, ["saliency", "occlusion"], features=NAMES)
    assert len(found) == 6
    torch.testing.assert_close(found[2].map, cl.explain(mlp(), x[1], None, "saliency").map)
    assert [one.title for one in found[:3]] == ["row 0", "row 0", "row 1"]
    assert found._repr_png_().startswith(b"\x89PNG")


# -- series ----------------------------------------------------------------------------------------------------------


def test_occlusion_of_a_series_is_what_the_output_loses() -> None:
    net, x = series_net(), torch.randn(2, 9)
    found = cl.explain(net, x, 1, "occlusion").map
    with torch.no_grad():
        without = torch.stack([x * (torch.arange(9) != place) for place in range(9)])
        expected = net(x[None])[0, 1] - net(without)[:, 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_of_series_and_their_channels() -> None:
    found = cl.explain(series_net(), torch.randn(2, 2, 9), 0, "saliency", features=["left", "right"])
    assert [one.map.shape for one in found] == [(9,), (9,)]
    assert found[0].attribution.shape == (2, 9)
    assert found[0].names == ("left", "right")


# -- texts -----------------------------------------------------------------------------------------------------------


def test_a_text_model_on_embeddings_is_the_model() -> None:
    net = text_net()
    numbers = torch.tensor([[3, 5, 7, 2]])
    padded = torch.tensor([[3, 5, 7, 2, 0, 0]])
    with torch.no_grad():
        expected = net.net(input_ids=numbers).logits
        masked = net.net(input_ids=padded, attention_mask=(padded > 0).long()).logits
        torch.testing.assert_close(net(net.embed(numbers)), expected)
        torch.testing.assert_close(net(net.embed([numbers[0], [1] * 6]))[:1], masked)


def test_the_map_of_a_text_is_the_gradient_at_its_embedding() -> None:
    net = text_net()
    found = cl.explain(net, "a few words", "good", "input x gradient")
    leaf = net.net.get_input_embeddings()(torch.tensor([[1, 3, 5]])).detach().requires_grad_()
    gradient = torch.autograd.grad(net.net(inputs_embeds=leaf).logits[0, 1], leaf)[0]
    torch.testing.assert_close(found.map, (leaf * gradient).sum(2)[0].detach(), rtol=1e-4, atol=1e-7)
    assert found.names == ("w", "www", "wwwww")
    assert found.prediction[0].name in ("bad", "good")


def test_tokens_are_coloured_and_escaped(tmp_path: Path) -> None:
    found = cl.explain(text_net(), [3, 5], 1, "saliency", features=["<b>", "is"])
    page = found._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    colours = re.findall("background:(#[0-9a-f]{6})", page)
    assert len(colours) == 2
    strongest = int(found.map.abs().argmax())
    assert colours[strongest] == ("#67001f" if found.map[strongest] > 0 else "#053061")
    assert found.save(tmp_path / "text.png").stat().st_size > 0
    assert found.save(tmp_path / "text.safetensors").stat().st_size > 0


# -- rules, and what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["row", "series", "text"])
def test_the_map_by_rules_is_that_of_maps(kind: str) -> None:
    texts = text_net()
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(1, 20, (16, 6), generator=generator)
    net, data, given = {
        "row": (mlp(), torch.randn(16, 4), None),
        "series": (series_net(), torch.randn(16, 2, 12), None),
        "text": (texts, texts.embed(numbers), numbers[0]),
    }[kind]
    rules = cl.RuleTrainer(net, steps=2, deletions=8).fit(data)
    found = cl.explain(net, data[0] if given is None else given, 1, rules=rules)
    torch.testing.assert_close(found.map, cl.LearnedPropagation(net, rules=rules).maps(data[:1], 1)[0])
    assert found.sign == rules.training["sign"]


def test_rules_for_a_table_are_not_worse_than_their_start() -> None:
    data = load_breast_cancer()
    x = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0), dtype=torch.float32)
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:400]), y[:400]).backward()
        optimizer.step()
    trainer = cl.RuleTrainer(net.eval(), steps=20)
    trainer.fit(x[:120])
    losses = [one["validation loss"] for one in trainer.log if "validation loss" in one]
    assert min(losses) < losses[0] - 0.01


REFUSED = {
    "a method for pictures": (lambda: cl.explain(mlp(), row(), 0, "grad_cam"), "Grad-CAM is for pictures"),
    "too few names": (lambda: cl.explain(mlp(), row(), features=["age"]), "features= names 4 features here"),
    "names of a picture": (
        lambda: cl.explain("digits_cnn", np.zeros((8, 8, 3), np.uint8), features=NAMES), "and this is a picture",
    ),
    "a gap": (lambda: cl.explain(mlp(), [1.0, float("nan"), 0.0, 2.0], features=NAMES), "'height' is NaN or infinite"),
    "another number of features": (lambda: cl.explain(mlp(), torch.ones(5)), "takes 4 features"),
    "a text without tokenizer": (
        lambda: cl.explain(cl.OnEmbeddings(text_net().net), "a text"), "a text needs the model's tokenizer",
    ),
    "a token of another tokenizer": (lambda: cl.explain(text_net(), [3, 99]), "token 99 is out of range"),
    "too long a text": (lambda: cl.explain(text_net(), [3] * 13), "has 13 tokens, and"),
    "no text": (lambda: cl.explain(text_net(), []), "whole numbers (T,), at least one"),
    "no text model": (lambda: cl.OnEmbeddings(mlp()), "text models of Hugging Face"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes(mistake: str) -> None:
    make, message = REFUSED[mistake]
    with pytest.raises(LearnpropError, match=re.escape(message)):
        make()


def test_pictures_stay_pictures() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()).eval()
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
    assert values_given(transformers.ResNetForImageClassification(config), torch.rand(3, 8, 8)) is None
    for given in (torch.rand(3, 8, 8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), "cat.png"):
        assert values_given(conv, given) is None


@pytest.mark.parametrize("method", VALUE_METHODS)
@pytest.mark.parametrize("kind", ["row", "series"])
def test_every_method_gives_signed_maps_of_both(method: str, kind: str) -> None:
    net, x = (mlp(), row()) if kind == "row" else (series_net(), torch.randn(2, 9))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = cl.explain(net, x, 1, method)
    assert found.map.shape == x.shape[-1:]
    assert found._repr_png_().startswith(b"\x89PNG")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_table_of_pandas_names_its_features() -> None:
    values = torch.stack([row(), -row()])
    table = pandas.DataFrame(values.numpy(), columns=list(NAMES))
    net = linear()
    expected = cl.explain(net, values, 1, features=NAMES)
    found = cl.explain(net, table, 1)
    assert [one.names for one in found] == [NAMES, NAMES]
    assert cl.explain(net, table.iloc[1], 1).names == NAMES  # a series of pandas is a row
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.map, other.map)
