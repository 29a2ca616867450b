"""Copies and pickles of a model in use: they are those of the plain model."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel
from zennit.composites import EpsilonPlus, LayerMapComposite, MixedComposite
from zennit.rules import Pass

import zennit_rules as zr
from zennit_rules.core.plain_copies import plain_copies


class Net(nn.Module):
    """A functional activation, a batch norm to merge, a module in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.stem(x)).flatten(1))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().double().eval()
    model.stem[1].running_mean.normal_()
    model.stem[1].running_var.uniform_(0.5, 2)
    return model


def images() -> Tensor:
    return torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def saved(model: nn.Module) -> Any:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": saved,
    "average": lambda model: AveragedModel(model).module,
}
each_copy = pytest.mark.parametrize("how", COPIES)


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]


def assert_plain(twin: nn.Module, like: nn.Module) -> None:
    """The attributes of a model that nothing was ever put on, and its values."""
    for (name, ours), (_, theirs) in zip(twin.named_modules(), like.named_modules(), strict=True):
        assert vars(ours).keys() == vars(theirs).keys(), name
        assert not ours._forward_pre_hooks, name
        assert not ours._forward_hooks, name
    states = twin.state_dict(), like.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    torch.testing.assert_close(twin(images()), like(images()))
    torch.testing.assert_close(gradient(twin, images()), gradient(like, images()))


@each_copy
@pytest.mark.parametrize("name", ["gates", "lrp", "deeplift", "attnlrp", "rect_grad"])
def test_in_use(how: str, name: str) -> None:
    model = net()
    rules = zr.RuleSet.build(model, images(), name)
    with rules.applied(model):
        twin = COPIES[how](model)
        part = COPIES[how](model.stem)
    assert_plain(twin, net())
    assert_plain(nn.Sequential(part), nn.Sequential(net().stem))
    assert_plain(model, net())


@each_copy
def test_under_zennits_own_rules_and_merged_norms(how: str) -> None:
    model = net()
    with EpsilonPlus(canonizers=zr.canonizers_for(model, images())).context(model):
        assert not torch.equal(model.stem[0].weight, net().stem[0].weight)
        twin = COPIES[how](model)
    assert_plain(twin, net())
    assert twin.stem[0].bias is None
    assert_plain(model, net())


@each_copy
def test_beside_another_composite(how: str) -> None:
    model = net()
    mixed = MixedComposite([zr.LearnedGradient(), LayerMapComposite([(nn.BatchNorm2d, Pass())])])
    with mixed.context(model):
        twin = COPIES[how](model)
    assert_plain(twin, net())


def test_the_users_own_hooks_and_forward_are_copied() -> None:
    model, mine = net(), lambda module, args: None
    model.head.register_forward_pre_hook(mine)
    model.stem[2].forward = torch.tanh
    with zr.LearnedGradient().context(model):
        twin = copy.deepcopy(model)
    assert list(twin.head._forward_pre_hooks.values()) == [mine]
    assert twin.stem[2].forward is torch.tanh


def test_a_shallow_copy_shares_its_modules() -> None:
    model = net()
    with zr.LearnedGradient().context(model):
        twin = copy.copy(model)
    assert twin.stem is model.stem
    assert_plain(twin, net())


def test_a_class_with_a_deepcopy_of_its_own() -> None:
    model = fx.symbolic_trace(net())
    with zr.LearnedGradient().context(model):
        twin = copy.deepcopy(model)
    torch.testing.assert_close(gradient(twin, images()), gradient(net(), images()))
    assert "forward" not in vars(twin)
    assert "__deepcopy__" not in vars(model)


def test_the_last_handle_gives_the_module_back() -> None:
    module = nn.ReLU()
    before = dict(vars(module))
    first, second = plain_copies(module), plain_copies(module)
    first.remove()
    first.remove()
    assert "__reduce_ex__" in vars(module)
    second.remove()
    assert vars(module) == before
