"""The linearised forward pass against double backward, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairwise import crossed
from rule_nets import GATE_NAMES, NETS, STARTS, images, prepare, randomise
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm

import zennit_rules as zr
from zennit_rules.core.hook import SiteCall
from zennit_rules.core.tangent import Tape, record


class Middle(nn.Module):
    """An operation on ``(B, 4, 6, 6)`` between two gated convolutions."""

    def __init__(self, operation: Callable[[nn.Module, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.LazyLinear(5)
        self.operation, self.layers = operation, nn.ModuleDict(layers)
        self.position = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Five scores; the activation in front and behind the operation."""
        x = self.operation(self, F.silu(self.first(x)))
        return self.last(F.relu(x).flatten(1))


class Attention(nn.Module):
    """Scaled dot-product attention over tokens, by torch's function or written out."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.qkv, self.out, self.norm, self.written = nn.Linear(4, 12), nn.Linear(4, 4), nn.LayerNorm(4), written

    def forward(self, x: Tensor) -> Tensor:
        """Tokens from ``(B, 4, 6, 6)``."""
        t = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = (h.unflatten(-1, (2, 2)).transpose(1, 2) for h in self.qkv(t).chunk(3, dim=-1))
        if self.written == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.written == "einsum":
            weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(2**-0.5).softmax(-1)
            y = torch.einsum("bhqk,bhkd->bhqd", weights, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) / 2**0.5, dim=-1) @ v
        return t + self.out(y.transpose(1, 2).flatten(2))


def _inplace_add(m: nn.Module, x: Tensor) -> Tensor:
    y = m.layers["conv"](x)
    y += x
    return y


def _excite(m: nn.Module, x: Tensor) -> Tensor:
    return x * torch.sigmoid(m.layers["conv"](x.mean((2, 3), keepdim=True)))


def _softmax_then_write(m: nn.Module, x: Tensor) -> Tensor:
    y = x * 1.0
    weights = y.softmax(1)  # autograd keeps the output, so that y may be written to
    y.add_(1.0)
    return weights * x


def conv() -> nn.Module:
    """Channel-preserving 1x1 convolution."""
    return nn.Conv2d(4, 4, 1)


Operation = tuple[Callable[[nn.Module, Tensor], Tensor], Callable[[], dict[str, nn.Module]]]


def layer(make: Callable[[], nn.Module]) -> Operation:
    """A module as the operation."""
    return (lambda m, x: m.layers["layer"](x)), (lambda: {"layer": make()})


def plain(function: Callable[[nn.Module, Tensor], Tensor], **makers: Callable[[], nn.Module]) -> Operation:
    """A function as the operation."""
    return function, lambda: {name: make() for name, make in makers.items()}


OPERATIONS: dict[str, Operation] = {
    "conv": layer(lambda: nn.Conv2d(4, 4, 3, 2, 1, groups=2)),
    "transposed conv": layer(lambda: nn.ConvTranspose2d(4, 3, 2, 2)),
    "circular conv": layer(lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "batch norm": layer(lambda: nn.BatchNorm2d(4)),
    "batch norm without weights": layer(lambda: nn.BatchNorm2d(4, affine=False)),
    "group norm": layer(lambda: nn.GroupNorm(2, 4)),
    "instance norm": layer(lambda: nn.InstanceNorm2d(4)),
    "layer norm": layer(lambda: nn.LayerNorm((4, 6, 6))),
    "max-pool": layer(lambda: nn.MaxPool2d(3, 2, 1)),
    "max-pool ceil": layer(lambda: nn.MaxPool2d(4, 3, ceil_mode=True)),
    "average pool": layer(lambda: nn.AvgPool2d(2, ceil_mode=True)),
    "adaptive pools": plain(lambda m, x: F.adaptive_avg_pool2d(x, 2) + F.adaptive_max_pool2d(x, 2)),
    "dropout in evaluation": layer(lambda: nn.Sequential(nn.Dropout(), nn.Dropout(inplace=True), nn.Dropout2d())),
    "weight norm": layer(lambda: weight_norm(nn.Conv2d(4, 4, 1))),
    "upsampling": layer(lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "interpolate": plain(lambda m, x: F.interpolate(x, size=(4, 5), mode="nearest")),
    "excitation": plain(_excite, conv=conv),
    "softmax, then write": plain(_softmax_then_write),
    "in-place add": plain(_inplace_add, conv=conv),
    "residual": plain(lambda m, x: x + m.layers["conv"](x) * 0.5, conv=conv),
    "subtraction": plain(lambda m, x: torch.sub(1 - x, m.layers["conv"](x), alpha=2), conv=conv),
    "reverse subtraction": plain(lambda m, x: torch.rsub(x, m.layers["conv"](x), alpha=0.5), conv=conv),
    "cat": plain(lambda m, x: torch.cat([x, m.layers["conv"](x), torch.ones_like(x)], 1), conv=conv),
    "stack": plain(lambda m, x: torch.stack([x, x.neg()], 1).flatten(1, 2)),
    "chunk": plain(lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1]),
    "split and slice": plain(lambda m, x: x.split([1, 3], 1)[1] + x[:, :1] - x[:, None, 1:2, ..., :1].squeeze(1)),
    "pad": plain(lambda m, x: F.pad(F.pad(x, (1, 2), value=3.0), (1, 1, 1, 1), mode="reflect")),
    "permute": plain(lambda m, x: x.permute(0, 2, 3, 1).reshape(len(x), -1, 4).roll(1, 1).transpose(1, 2)),
    "matmul": plain(lambda m, x: x @ x.transpose(-1, -2)),
    "einsum": plain(lambda m, x: torch.einsum("bchw,bdhw->bcd", x, x)),
    "division": plain(lambda m, x: x / (1.5 + x.square())),
    "norm": plain(lambda m, x: F.normalize(x, dim=1)),
    "power and mean": plain(lambda m, x: x.abs().add(1e-3).pow(1.7).mean(1, keepdim=True).sqrt()),
    "detached factor": plain(lambda m, x: x * x.detach().sum(1, keepdim=True)),
    "no_grad factor": plain(lambda m, x: x * _without_grad(x)),
    "parameter added": plain(lambda m, x: x + m.position),
    "parameter expanded like": plain(lambda m, x: x + m.position.expand_as(x)),
    "parameter typed like": plain(lambda m, x: x * m.position.type_as(x) + m.position.to(x)),
    "activated parameter": plain(lambda m, x: x + F.relu(m.position)),
    "activated parameter in place": plain(lambda m, x: x * (m.position * 2).relu_()),
    "where": plain(lambda m, x: torch.where(x > 0.1, x, 0.3 * x)),
    "maximum": plain(lambda m, x: x.amax(1, keepdim=True) + x.max(dim=2, keepdim=True).values),
    "cumulative": plain(lambda m, x: x.cumsum(1) + x.logsumexp(1, keepdim=True)),
    "attention": layer(lambda: Attention("matmul")),
    "attention by einsum": layer(lambda: Attention("einsum")),
    "attention by sdpa": layer(lambda: Attention("sdpa")),
    "multi-head attention": plain(
        lambda m, x: m.layers["mha"](*(x.flatten(2).transpose(1, 2),) * 3)[0],
        mha=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "transformer": plain(
        lambda m, x: m.layers["layer"](x.flatten(2).transpose(1, 2)),
        layer=lambda: nn.TransformerEncoderLayer(4, 2, 8, activation=F.gelu, batch_first=True),
    ),
    "sites in place": plain(lambda m, x: F.elu(m.layers["conv"](x), inplace=True).mul(1.0).tanh_(), conv=conv),
}


def _without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.sigmoid()


def middle(name: str) -> nn.Module:
    """Model around an operation, in float64."""
    function, layers = OPERATIONS[name]
    model = Middle(function, **layers())
    with torch.no_grad():
        model.eval()(torch.zeros(2, 3, 6, 6))
    return prepare(model)


Result = tuple[Tape, list[Tensor], list[Tensor], float]


def both_ways(model: nn.Module, x: Tensor, composite: zr.LearnedComposite) -> Result:
    """The tape, gradients of all parameters by it and by double backward, and the error of Euler's identity."""
    with composite.context(model), sdpa_kernel(SDPBackend.MATH):
        model(x)
        randomise(composite.parameters())
        with record((x,)) as tape:
            out = model(x)
        tape.finish(out)
        seed, v = torch.randn_like(out), torch.randn_like(x)
        maps = torch.autograd.grad(out, x, seed, retain_graph=True)[0]
        live = torch.autograd.grad(out, x, seed, create_graph=True)[0]
        parameters = composite.parameters()
        expected = torch.autograd.grad(live, parameters, v, materialize_grads=True)
        if tape.unsupported is not None:
            return tape, [], list(expected), 0.0
        found: dict[int, Tensor] = {}

        def on_site(call: SiteCall, gradients: dict[str, Tensor]) -> None:
            for name, gradient in gradients.items():
                found[id(call.gate.get_parameter(name))] = gradient

        tangent = tape.push_forward((v,), on_site)
        error = float((maps * v).sum() - (tangent * seed).sum()) / float((maps * v).abs().sum())
    return tape, [found.get(id(p), torch.zeros_like(p)) for p in parameters], list(expected), error


def assert_equal(result: Result) -> None:
    """The tape served, and gave the gradients of double backward."""
    tape, ours, expected, error = result
    assert tape.unsupported is None
    assert sum(float(e.abs().sum()) for e in expected) > 0
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12 + 1e-10 * float(b.abs().max()))
    assert abs(error) < 1e-10


@crossed(gate=GATE_NAMES, start=STARTS, pooling=["exact", "soft"])
def test_gates(gate: str, start: str, pooling: str) -> None:
    for net in NETS.values():
        composite = zr.LearnedGradient(gate=gate, start=start, pooling=pooling, per_sample=gate == "channel")
        assert_equal(both_ways(net(), images(), composite))


def test_gates_that_weigh_positions() -> None:
    for net in NETS.values():
        composite = zr.LearnedGradient(gate="feature", gate_options={"position": True})
        assert_equal(both_ways(net(), images(), composite))


# Right by falling back to double backward: a value that the tape would need is overwritten in place.
FALLS_BACK = {"softmax, then write"}


@crossed(name=list(OPERATIONS), frozen={"frozen": True, "free": False}, gate=["element", "feature"])
def test_operations(name: str, frozen: bool, gate: str) -> None:
    model = middle(name).requires_grad_(not frozen)
    result = both_ways(model, images(2, 6), zr.LearnedGradient(gate=gate, pooling="soft"))
    if name in FALLS_BACK:
        assert result[0].unsupported is not None
    else:
        assert_equal(result)


class Custom(torch.autograd.Function):
    """A square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Its value."""
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """Its gradient."""
        return 2 * g * ctx.saved_tensors[0]


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * x


def _indexed_write(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, 1:]
    return y


def _write_into_view(m: nn.Module, x: Tensor) -> Tensor:
    y = x * 1.0
    y[:, :2].mul_(2)
    return y


def _activation_in_view(m: nn.Module, x: Tensor) -> Tensor:
    y = x * 1.0
    F.relu(y[:, :2], inplace=True)
    return y


def _copy_into_view(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :2].copy_(x[:, 2:])
    return y


UNSUPPORTED: dict[str, Operation] = {
    "indexed write": plain(_indexed_write),
    "in place on a view": plain(_write_into_view),
    "activation in place on a view": plain(_activation_in_view),
    "copy into a view": plain(_copy_into_view),
    "custom Function": plain(lambda m, x: Custom.apply(x)),
    "scripted function": plain(lambda m, x: scripted(x)),
    "dropout": plain(lambda m, x: F.dropout(x, 0.5, training=True)),
    "dropout in place": plain(lambda m, x: F.dropout(x * 1.0, 0.5, training=True, inplace=True)),
    "dropout module in place": plain(
        lambda m, x: m.layers["drop"].train()(x * 1.0), drop=lambda: nn.Dropout(0.5, True)
    ),
    "attention dropout": plain(lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
    "multi-head attention dropout": plain(
        lambda m, x: m.layers["mha"].train()(*(x.flatten(2).transpose(1, 2),) * 3)[0],
        mha=lambda: nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True),
    ),
    "random ReLU": plain(lambda m, x: F.rrelu(x, 0.1, 0.9, training=True)),
    "batch statistics": plain(lambda m, x: F.batch_norm(x, None, None, training=True)),
    "rounding division": plain(lambda m, x: x + torch.div(x, 0.3, rounding_mode="floor")),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_followed_is_said(name: str) -> None:
    function, layers = UNSUPPORTED[name]
    model = Middle(function, **layers())
    with torch.no_grad():
        model.eval()(torch.zeros(2, 3, 6, 6))
    prepare(model)
    x = images(2, 6)
    with zr.LearnedGradient().context(model), sdpa_kernel(SDPBackend.MATH):
        with record((x,)) as tape:
            out = model(x)
        tape.finish(out)
    assert isinstance(tape.unsupported, str)
    assert tape.unsupported


def test_an_output_that_does_not_come_from_the_leaves() -> None:
    x = images()
    with record((x,)) as tape:
        out = Custom.apply(x)
    tape.finish(out)
    assert tape.unsupported is not None


def test_the_value_and_the_map_do_not_change_under_a_tape() -> None:
    for net in NETS.values():
        model, x, composite = net(), images(), zr.LearnedGradient(gate="feature", pooling="soft")
        with composite.context(model):
            out = model(x)
            randomise(composite.parameters())
            (expected,) = torch.autograd.grad(out[:, 0].sum(), x)
            with record((x,)):
                again = model(x)
            assert torch.equal(out, again)
            assert torch.equal(torch.autograd.grad(again[:, 0].sum(), x)[0], expected)


def test_recording_ends_with_its_context() -> None:
    x = images()
    with pytest.raises(KeyboardInterrupt), record((x,)) as tape:
        raise KeyboardInterrupt
    with zr.LearnedGradient().context(model := NETS["vgg"]()):
        model(x)
    assert not tape.calls


def test_a_gate_may_be_updated_while_pulling() -> None:
    model, x = NETS["resnet"](), images()
    composite = zr.LearnedGradient(gate="element")
    with composite.context(model), record((x,)) as tape:
        out = model(x)
    for call in tape.calls:
        call.hook.active = True
    tape.finish(out)
    randomise(composite.parameters())
    v, seed = torch.randn_like(x), torch.randn_like(out)
    torch.autograd.grad(out, x, seed, retain_graph=True)
    found: list[list[Tensor]] = []
    for moving in (False, True):
        found.append([])

        def on_site(call: SiteCall, gradients: dict[str, Tensor], moving: bool = moving) -> None:
            found[-1].append(gradients["raw"].clone())
            if moving:
                with torch.no_grad():
                    call.gate.get_parameter("raw").sub_(gradients["raw"])

        tape.push_forward((v,), on_site)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    torch.autograd.grad(out, x, seed)  # the pass can be used again with the new parameters


class Silent(zr.Gate):
    """Passes nothing on, whatever arrives."""

    def make_parameters(self, shape: tuple[int, ...]) -> None:
        """None."""

    def forward(self, z: Tensor, g: Tensor) -> tuple[float, float]:
        return 0.0, 0.0


@pytest.mark.parametrize("gate", ["none", Silent])
@pytest.mark.parametrize("start", STARTS)
def test_gates_without_parameters(gate: Any, start: str) -> None:
    """Beside gates that have some: the tangent of the output is that of double backward, and of the loss to those."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    model, x = model.double().eval(), torch.rand(2, 1, 8, 8, dtype=torch.double, requires_grad=True)
    composite = zr.LearnedGradient(gate, start, "soft")
    with composite.recorded(model), record((x,)) as tape:
        out = model(x)
    tape.finish(out)
    assert tape.unsupported is None
    with torch.no_grad():
        for parameter in composite.rules.parameters():
            parameter.fill_(0.3)
    found: dict[str, dict[str, Tensor]] = {}
    (r,) = torch.autograd.grad(out[:, 0].sum(), x, retain_graph=True)
    tangent = tape.push_forward((v := torch.randn_like(x),), lambda call, given: found.__setitem__(call.name, given))
    (live,) = torch.autograd.grad(out[:, 0].sum(), x, create_graph=True)
    wanted = torch.autograd.grad(live, composite.parameters(), v, materialize_grads=True)
    assert found["1"] == {}
    assert found["3"] == {}
    torch.testing.assert_close(list(found["2"].values()), list(wanted))
    torch.testing.assert_close((r * v).sum(), tangent[:, 0].sum())
