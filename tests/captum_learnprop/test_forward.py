"""Every method runs the explained model alike: outputs in containers, squeezed batches, wrong shapes, modes, bytes."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop.errors import InputWarning, TargetError
from captum_learnprop.evaluation import deletion, insertion, morf_lerf_area, part_drops, road
from captum_learnprop.forward import output_of, tensor_of, training_mode, with_batch

LRP = "learned_epsilon_gamma_box"


class Block(nn.Module):
    """One self-attention over tokens ``(B, N, D)``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y)[0]


class Tokens(nn.Module):
    """A class token, 3 x 3 patches and two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(1, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 10, 8))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places)[:, 0])


class Wrapped(nn.Module):
    """A model whose output is something else."""

    def __init__(self, inner: nn.Module, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.make = inner, make
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.make(self.inner(x))


def net(kind: str = "convolutions") -> nn.Module:
    torch.manual_seed(0)
    if kind == "tokens":
        return Tokens().eval()
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 3)).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def layer_of(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def fitted(model: nn.Module, x: Tensor) -> Tensor:
    rules = cl.RuleTrainer(model, gate="channel", steps=1, deletions=4).fit(x, validation=0)
    return cl.LearnedPropagation(model, rules=rules).maps(x, 1)


METRIC: dict[str, Any] = {"steps": 2}
METHODS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "shared rules": lambda m, x: cl.LearnedPropagation(m, gate="channel").attribute(x, 1, n_steps=0),
    "learned per sample": lambda m, x: cl.LearnedPropagation(m).attribute(x, 1, n_steps=2),
    "attnlrp": lambda m, x: cl.LearnedPropagation(m, "learned_attnlrp").attribute(x, 1, n_steps=0),
    "lrp": lambda m, x: cl.LearnedLRP(m).attribute(x, 1),
    "deep_lift": lambda m, x: cl.LearnedDeepLift(m).attribute(x, target=1, normalize=True),
    "guided_backprop": lambda m, x: cl.LearnedGuidedBackprop(m).attribute(x, 1),
    "rect_grad": lambda m, x: cl.RectGrad(m).attribute(x, 1),
    "trainer": fitted,
    "extremal": lambda m, x: cl.ExtremalPerturbation(m).attribute(x, 1, areas=0.2, n_steps=3),
    "layer_extremal": lambda m, x: cl.LayerExtremalPerturbation(m, layer_of(m)).attribute(x, 1, areas=2, n_steps=3),
    "deletion": lambda m, x: deletion(m, x, x[:, 0], torch.ones(len(x)).long(), **METRIC),
    "insertion": lambda m, x: insertion(m, x, x[:, 0], torch.ones(len(x)).long(), **METRIC),
    "morf_lerf_area": lambda m, x: morf_lerf_area(m, x, x[:, 0], torch.ones(len(x)).long(), **METRIC),
    "road": lambda m, x: road(m, x, x[:, 0], torch.ones(len(x)).long(), percentages=[30]),
    "part_drops": lambda m, x: part_drops(m, x, 0.5 * x[:, None], torch.ones(len(x)).long()),
}
TOKEN_METHODS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "cdam": lambda m, x: cl.CDAM(m).attribute(x, 1),
    "smooth_cdam": lambda m, x: cl.SmoothCDAM(m).attribute(x, 1, n_samples=2),
    "integrated_cdam": lambda m, x: cl.IntegratedCDAM(m).attribute(x, 1, n_steps=2),
    "attention": lambda m, x: cl.AttentionMap(m).attribute(x, 1),
    "rollout": lambda m, x: cl.AttentionRollout(m).attribute(x, 1),
    "generic_attention": lambda m, x: cl.GenericAttention(m).attribute(x, 1),
    "token_ablation": lambda m, x: cl.TokenAblation(m).attribute(x, 1),
}
ALL = {
    **{name: ("convolutions", run) for name, run in METHODS.items()},
    **{name: ("tokens", run) for name, run in TOKEN_METHODS.items()},
}
every_method = pytest.mark.parametrize(("kind", "run"), ALL.values(), ids=ALL)
pytestmark = pytest.mark.filterwarnings("ignore::zennit_rules.RuleWarning", "ignore:NeutralMaskWarning")


class Structured(dict[str, Any]):
    """What Hugging Face returns: a dictionary whose entries are attributes as well."""

    __getattr__ = dict.__getitem__


LOGITS = {
    "dictionary": lambda y: {"loss": None, "logits": y},
    "attribute": lambda y: SimpleNamespace(logits=y, hidden=()),
    "structured": lambda y: Structured(logits=y, hidden=(y,)),
}
NO_TENSOR = {
    "tuple": (lambda y: (y, y), r"a tuple of 2 \(\(\d, 3\), \(\d, 3\)\)"),
    "list": (lambda y: [y], r"a list of 1 \(\(\d, 3\)\)"),
    "dictionary": (lambda y: {"scores": y}, r"a dict with 'scores'"),
    "nothing": (lambda y: None, "None"),
    "object": (lambda y: SimpleNamespace(scores=y), "a SimpleNamespace"),
}


@every_method
@pytest.mark.parametrize("make", LOGITS.values(), ids=LOGITS)
def test_logits_of_a_structured_output_are_explained(
    kind: str, run: Callable[..., Any], make: Callable[[Tensor], Any]
) -> None:
    want, got = (run(model, images()) for model in (net(kind), Wrapped(net(kind), make)))
    torch.testing.assert_close(got, want)


@every_method
@pytest.mark.parametrize(("make", "said"), NO_TENSOR.values(), ids=NO_TENSOR)
def test_other_outputs_are_refused_in_the_same_words(
    kind: str, run: Callable[..., Any], make: Callable[[Tensor], Any], said: str
) -> None:
    words = f"^Wrapped returned {said}, but what is explained must be one tensor.*wrap the model in a module"
    with pytest.raises(TargetError, match=words):
        run(Wrapped(net(kind), make), images())


@every_method
def test_a_single_sample_of_a_model_that_squeezes(kind: str, run: Callable[..., Any]) -> None:
    for count in (1, 2):
        want, got = (run(model, images(count)) for model in (net(kind), Wrapped(net(kind), Tensor.squeeze)))
        torch.testing.assert_close(got, want)


def test_a_batch_that_is_squeezed() -> None:
    assert with_batch(torch.ones(3), 1).shape == (1, 3)
    assert with_batch(torch.tensor(1.0), 1).shape == (1,)
    assert with_batch(torch.ones(1, 3), 1).shape == (1, 3)
    assert with_batch(torch.ones(3), 2).shape == (3,)  # whose the entries are cannot be known
    x, squeezed = images(1), Wrapped(net(), Tensor.squeeze)
    one = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    method = cl.LearnedPropagation(Wrapped(one, Tensor.squeeze), gate="channel")
    torch.testing.assert_close(
        method.attribute(x, n_steps=0), cl.LearnedPropagation(one, gate="channel").attribute(x, n_steps=0)
    )
    with pytest.raises(TargetError, match=r"shape \(1, 3\): pass target="):  # all three used to be added up
        cl.LearnedPropagation(squeezed, gate="channel").attribute(x, n_steps=0)


# -- shapes ------------------------------------------------------------------------------------------------------------


@every_method
def test_a_wrong_size_is_named_with_the_one_before(kind: str, run: Callable[..., Any]) -> None:
    model = net(kind)
    run(model, images())
    wrong = torch.randn(2, 1, 16, 16)
    if run is METHODS["trainer"]:
        wrong = torch.randn(8, 1, 16, 16)
    with pytest.raises(cl.LearnpropError, match=r"does not take inputs of shape \(\d, 1, 16, 16\).*last") as caught:
        run(model, wrong)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "it took (B, 1, 12, 12) last" in str(caught.value)
    run(model, images())  # nothing was left behind


@every_method
def test_channels_last_is_named(kind: str, run: Callable[..., Any]) -> None:
    with pytest.raises(cl.LearnpropError, match=r"layer '.*' takes 1 channels, dimension 1 has 12.*movedim\(-1, 1\)"):
        run(net(kind), images().movedim(1, -1))


def test_what_else_is_known_of_a_shape() -> None:
    with pytest.raises(cl.LearnpropError, match=r"the batch dimension is missing: pass inputs\[None\]"):
        cl.ExtremalPerturbation(net()).attribute(torch.rand(1, 12, 12), n_steps=1)
    with pytest.raises(cl.LearnpropError, match="its first layer '0' takes 5 features"):
        cl.LearnedLRP(nn.Sequential(nn.Linear(5, 3), nn.ReLU())).attribute(torch.rand(2, 4), 1)
    with pytest.raises(cl.LearnpropError, match="check the size that it was made for"):
        cl.LearnedLRP(net()).attribute(torch.rand(2, 1, 20, 20), 1)


@pytest.mark.parametrize("method", [cl.LearnedPropagation, cl.LearnedDeepLift, cl.LearnedLRP])
def test_given_rules_say_where_they_were_built(method: Any) -> None:
    name = {cl.LearnedDeepLift: "learned_deeplift", cl.LearnedLRP: LRP}.get(method, "learned_gradient")
    model = net()
    rules = zr.RuleSet.build(model, images(), name, gate="channel")
    with pytest.raises(cl.LearnpropError, match=r"its rules were built where '\d' had the shape \(2, \d, \d+, \d+\)"):
        method(model, rules=rules).attribute(torch.rand(2, 1, 20, 20), target=1)


def test_errors_that_are_not_about_shapes_pass() -> None:
    class Fails(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                return x
            raise self.error

    for error in (RuntimeError("no luck"), torch.OutOfMemoryError("tried to allocate a large size"), KeyError("size")):
        with pytest.raises(type(error), match=str(error.args[0])) as caught:
            output_of(Fails(error), (torch.rand(2, 3),))
        assert caught.value is error
    model = Fails(RuntimeError("shape"))
    output_of(model, (torch.rand(3, 3),))
    with pytest.raises(RuntimeError, match=r"^shape$"):  # it took this shape before: that is not the reason
        output_of(model, (torch.rand(2, 3),))


def test_nothing_is_left_on_a_model() -> None:
    model = net()
    before = set(vars(model))
    cl.LearnedLRP(model).attribute(images(), 1)
    assert set(vars(model)) == before
    pickle.dumps(model)
    copy.deepcopy(model)


# -- modes -------------------------------------------------------------------------------------------------------------


def with_dropout(kind: str) -> nn.Module:
    model = net(kind)
    dropout = nn.Dropout(0.1)
    if isinstance(model, Tokens):
        model.head = nn.Sequential(dropout, model.head)
        return model.eval()
    return nn.Sequential(*model[:-1], dropout, model[-1]).eval()


@every_method
def test_a_model_in_training_mode_is_named_once(kind: str, run: Callable[..., Any]) -> None:
    model = with_dropout(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", zr.RuleWarning)
        run(model, images())
    model.train()
    words = r"the model is in training mode \(module .*call model.eval\(\)"
    if run is METHODS["trainer"]:
        with pytest.raises(cl.LearnpropError, match=words):
            run(model, images())
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(model, images())
        except cl.LearnpropError:
            assert kind == "tokens" or run is METHODS["layer_extremal"]  # runs the model twice, to the same result
    found = [w for w in caught if "in training mode" in str(w.message)]
    assert len(found) == (2 if run is METHODS["morf_lerf_area"] else 1)
    assert all(module.training for module in model.modules())


def test_which_modules_depend_on_the_mode() -> None:
    dependent = [
        nn.Dropout(0.1), nn.Dropout2d(0.5), nn.AlphaDropout(0.2), nn.BatchNorm1d(3), nn.RReLU(),
        nn.InstanceNorm1d(3, track_running_stats=True), nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.LSTM(3, 3, 2, dropout=0.5),
    ]  # fmt: skip
    indifferent = [
        nn.Linear(3, 3), nn.ReLU(), nn.Dropout(0.0), nn.InstanceNorm1d(3), nn.LayerNorm(3), nn.LSTM(3, 3),
        nn.MultiheadAttention(4, 2), nn.BatchNorm1d(3, track_running_stats=False),
        torch.jit.script(nn.Linear(2, 2)),
    ]  # fmt: skip
    for module in dependent:
        assert training_mode(nn.Sequential(module)) is not None, module
        assert training_mode(nn.Sequential(module).eval()) is None
    for module in indifferent:
        assert training_mode(nn.Sequential(module)) is None, module
    assert training_mode(torch.relu) is None
    assert "module Linear" in str(training_mode(nn.Linear(1, 1), strict=True))


# -- bytes -------------------------------------------------------------------------------------------------------------


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()


class Any4(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).flatten(1)[:, :3]


@every_method
def test_pixels_of_bytes_are_named_once(kind: str, run: Callable[..., Any]) -> None:
    if run in (METHODS[name] for name in ("deletion", "insertion", "morf_lerf_area", "road", "part_drops")):
        return  # metrics see what the method saw, which has warned
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(net(kind), pixels(2, 1, 12, 12))
    found = [w for w in caught if issubclass(w.category, InputWarning)]
    assert len(found) == (2 if run is METHODS["trainer"] else 1)  # training, and the maps after it
    assert "divide by 255" in str(found[0].message)


QUIET = {
    "normalised": torch.randn(2, 3, 12, 12),
    "shares": torch.rand(2, 3, 12, 12),
    "table": pixels(4, 144),
    "sequence": pixels(2, 3, 64),
    "one-hot": F.one_hot(torch.arange(12).expand(2, 1, 12), 12).float(),
    "few counts": torch.poisson(torch.full((2, 1, 12, 12), 3.0)),
    "large counts": pixels(2, 1, 12, 12) * 3,
    "two values": (torch.rand(2, 1, 12, 12) > 0.5) * 255.0,
    "many channels": pixels(2, 8, 12, 12),
    "small grid": pixels(2, 1, 4, 4),
    "not whole": pixels(2, 3, 12, 12) / 1.01,
    "signed": pixels(2, 3, 12, 12) - 100,
}


@pytest.mark.parametrize("x", QUIET.values(), ids=QUIET)
def test_no_false_alarm(x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        cl.LearnedPropagation(Any4(), gate="channel").attribute(x, 1, n_steps=0)


@pytest.mark.parametrize("shape", [(2, 3, 12, 12), (2, 12, 12, 3), (1, 1, 8, 8), (1, 1, 8, 8, 8)])
def test_forms_of_images_of_bytes(shape: tuple[int, ...]) -> None:
    with pytest.warns(InputWarning, match="0 to 255"):
        cl.LearnedPropagation(Any4(), gate="channel").attribute(pixels(*shape), 1, n_steps=0)


def test_tensor_of_takes_what_is_there() -> None:
    y = torch.ones(2, 3)
    assert tensor_of(y, None) is y
    assert tensor_of(Structured(logits=y), None) is y
    with pytest.raises(TargetError, match="the model returned a dict with 'logits'"):
        tensor_of({"logits": None}, None)
