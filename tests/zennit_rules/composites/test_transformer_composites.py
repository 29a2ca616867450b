"""Rules of transformers: against the gradient, and against AttnLRP by matrices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from pairwise import crossed
from rule_nets import assert_gradient, one_hot, randomise, score
from torch import Tensor, nn
from untouched import assert_untouched, snapshot

import zennit_rules as zr

KINDS = ("fused", "written", "module")


class Block(nn.Module):
    """A pre-norm block whose attention is called in one of three ways."""

    def __init__(self, kind: str, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.kind = kind
        self.norm1, self.norm2 = norm(8), norm(8)
        if kind == "module":
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        else:
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.act, self.down = nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.down(self.act(self.up(self.norm2(x))))

    def attend(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            return self.attention(x, x, x, need_weights=False)[0]
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.kind == "fused":
            z = F.scaled_dot_product_attention(q, k, v)
        else:
            z = ((q * 0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.out(z.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """What other nets have: SiLU, squeeze and excitation, a gated unit, RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gate, self.down = nn.RMSNorm(8), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)
        self.squeeze = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = self.down(F.silu(self.gate(y)) * self.up(y))
        return x + torch.mul(y, torch.sigmoid(self.squeeze(y.mean(1, keepdim=True))))


class Net(nn.Module):
    """Blocks, a norm, the first token."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x))[:, 0])


def net(kind: str) -> nn.Module:
    torch.manual_seed(3)
    model = Net(*(Gated() for _ in range(2))) if kind == "gated" else Net(Block(kind), Block(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.double().eval().requires_grad_(False)


def tokens(batch: int = 2, count: int = 5) -> Tensor:
    return torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(5)).double()


def build(model: nn.Module, x: Tensor, composite: str = "learned_transformer", **options: Any) -> zr.RuleSet:
    return zr.RuleSet.build(model, x, composite=composite, **options)


def signal(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    output = model(leaf)
    return torch.autograd.grad(output, leaf, one_hot(output))[0]


def maps(rules: zr.RuleSet, model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    with rules.applied(model) as composite:
        output = model(leaf)
        return zr.attribute(composite, output, (leaf,), one_hot(output), **options)[0]


# -- AttnLRP, by matrices --------------------------------------------------------------------------------------------


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None, relevance: Tensor) -> Tensor:
    """``R_i = sum_j x_i W_ji R_j / z_j``, the bias taking its part."""
    z = x @ matrix.T + (0 if bias is None else bias)
    return x * ((relevance / z) @ matrix)


def normalised(x: Tensor, norm: nn.LayerNorm, relevance: Tensor) -> Tensor:
    """Centring by its matrix, division by the deviation passes relevance on, weight and bias."""
    size = x.shape[-1]
    centring = torch.eye(size).to(x) - 1 / size
    centred = x @ centring.T
    unit = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    relevance = relevance * (unit * norm.weight) / (unit * norm.weight + norm.bias)
    return linear(x, centring, None, relevance)


def added(left: Tensor, right: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    return left * relevance / (left + right), right * relevance / (left + right)


def multiplied(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """The uniform rule: ``R_ji = sum_p a_ji b_ip R_jp / (2 o_jp)`` and alike for ``b``."""
    ratio = relevance / (2 * (a @ b))
    return a * (ratio @ b.transpose(-2, -1)), b * (a.transpose(-2, -1) @ ratio)


def block_relevance(block: Block, x: Tensor, relevance: Tensor) -> Tensor:
    normed = block.norm1(x)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in block.qkv(normed).chunk(3, -1))
    scores = q @ k.transpose(-2, -1) / math.sqrt(4)
    weights = scores.softmax(-1)
    z = (weights @ v).transpose(1, 2).flatten(2)
    middle = x + block.out(z)
    hidden = block.up(block.norm2(middle))

    stay, branch = added(middle, block.down(block.act(hidden)), relevance)
    branch = linear(block.act(hidden), block.down.weight, block.down.bias, branch)  # GELU passes it on unchanged
    branch = linear(block.norm2(middle), block.up.weight, block.up.bias, branch)
    at_middle = stay + normalised(middle, block.norm2, branch)

    stay, branch = added(x, block.out(z), at_middle)
    branch = linear(z, block.out.weight, block.out.bias, branch).unflatten(-1, (2, 4)).transpose(1, 2)
    at_weights, at_v = multiplied(weights, v, branch)
    at_scores = scores * (at_weights - weights * at_weights.sum(-1, keepdim=True))
    at_q, at_k = multiplied(q / math.sqrt(4), k.transpose(-2, -1), at_scores)
    together = torch.cat([t.transpose(1, 2).flatten(2) for t in (at_q, at_k.transpose(-2, -1), at_v)], -1)
    branch = linear(normed, block.qkv.weight, block.qkv.bias, together)
    return stay + normalised(x, block.norm1, branch)


def attn_lrp(model: Any, x: Tensor) -> Tensor:
    states = [x]
    for block in model.blocks:
        states.append(block(states[-1]))
    normed = model.norm(states[-1])
    output = model.head(normed[:, 0])
    first = linear(normed[:, 0], model.head.weight, model.head.bias, one_hot(output) * output)
    relevance = torch.zeros_like(normed)
    relevance[:, 0] = first
    relevance = normalised(states[-1], model.norm, relevance)
    for block, state in zip(reversed(model.blocks), reversed(states[:-1]), strict=True):
        relevance = block_relevance(block, state, relevance)
    return relevance


class TestStarts:
    """Both composites are known rules before anything is learned."""

    @pytest.mark.parametrize("kind", [*KINDS, "gated"])
    @pytest.mark.parametrize("gate", ["channel", "element", "feature", "quadrant", "none"])
    def test_gradient(self, kind: str, gate: str) -> None:
        model, x = net(kind), tokens()
        rules = build(model, x, gate=gate)
        expected = signal(model, x)
        assert (maps(rules, model, x) - expected).abs().max() < 1e-12
        assert expected.abs().max() > 1e-2

    @pytest.mark.parametrize("kind", ["fused", "written"])
    def test_attn_lrp(self, kind: str) -> None:
        model, x = net(kind), tokens()
        expected = attn_lrp(model, x)
        found = maps(build(model, x, "learned_attnlrp"), model, x)
        assert (found - expected).abs().max() < 1e-10 * float(expected.abs().max())
        assert (signal(model, x) * x - expected).abs().max() > 0.1 * float(expected.abs().max())

    def test_attn_lrp_of_a_multi_head_module(self) -> None:
        model, x = net("module"), tokens()
        other = Net(Block("fused"), Block("fused")).double().eval()
        names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias", "out_proj": "out"}
        state = {}
        for name, value in model.state_dict().items():
            for old, new in names.items():
                name = name.replace(f"attention.{old}", new)
            state[name] = value
        other.load_state_dict(state)
        torch.testing.assert_close(model(x), other(x))
        found = maps(build(model, x, "learned_attnlrp"), model, x)
        torch.testing.assert_close(found, attn_lrp(other, x), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("options", [{"mix": 0.0, "product": 1.0}])
    def test_options_reach_from_one_to_the_other(self, options: dict[str, float]) -> None:
        model, x = net("fused"), tokens()
        back = build(model, x, "learned_attnlrp", rule_options=options)
        torch.testing.assert_close(maps(back, model, x), signal(model, x) * x)

    @pytest.mark.parametrize(
        ("name", "kinds"),
        [
            ("convnext_tiny", {"norm": 23, "activation": 18}),
            ("swin_t", {"norm": 29, "product": 24, "softmax": 12, "activation": 12}),
            ("efficientnet_b0", {"activation": 65, "product": 16}),
            ("mobilenet_v3_small", {"activation": 42, "product": 9}),
        ],
    )
    def test_other_nets_are_covered(self, name: str, kinds: dict[str, int]) -> None:
        model = torchvision.models.get_model(name).eval().requires_grad_(False)
        x = torch.rand(1, 3, 32, 32)
        rules = build(model, x)
        assert {kind: sum(site.kind == kind for site in rules.sites) for kind in kinds} == kinds
        assert rules.coverage().complete
        expected = signal(model, x)
        torch.testing.assert_close(maps(rules, model, x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

    def test_sites_are_named_after_where_they_are(self) -> None:
        names = [site.name for site in build(net("module"), tokens()).sites]
        assert names[:6] == [
            "blocks.0.norm1", "blocks.0.attention.scores", "blocks.0.attention.softmax", "blocks.0.attention.values",
            "blocks.0.norm2", "blocks.0.act",
        ]  # fmt: skip
        modules = nn.Sequential(nn.RMSNorm(8), nn.Softmax(-1)).double()
        assert [site.name for site in build(modules, tokens()).sites] == ["0", "1"]
        assert all(row.rule for row in build(modules, tokens()).coverage().rows)
        coverage = build(net("module"), tokens()).coverage()
        assert all(row.rule for row in coverage.rows), str(coverage)


class TestRules:
    """Each rule alone, by hand."""

    @pytest.mark.parametrize("centred", [True, False])
    def test_norm_with_a_constant_deviation(self, centred: bool) -> None:
        norm = (nn.LayerNorm(8) if centred else nn.RMSNorm(8, eps=1e-5)).double()
        nn.init.normal_(norm.weight)
        model, x, g = nn.Sequential(nn.Identity(), norm), tokens(), torch.randn(2, 5, 8).double()
        rules = build(model, x, rule_options={"mix": 1.0})
        leaf = x.clone().requires_grad_()
        with rules.applied(model):
            (found,) = torch.autograd.grad(model(leaf), leaf, g)
        detached = x.clone().requires_grad_()
        middle = detached - detached.mean(-1, keepdim=True) if centred else detached
        out = middle / (middle.square().mean(-1, keepdim=True) + 1e-5).sqrt().detach() * norm.weight
        torch.testing.assert_close(found, torch.autograd.grad(out, detached, g)[0])

    @pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.GELU("tanh")])
    def test_activation_passes_relevance_on(self, act: nn.Module) -> None:
        x = tokens()
        x[0, 0, 0] = 0.0
        rules = build(nn.Sequential(act), x, "learned_attnlrp")
        leaf, g = x.clone().requires_grad_(), torch.randn(2, 5, 8).double()
        model = nn.Sequential(act)
        with rules.applied(model):
            out = model(leaf)
            (found,) = torch.autograd.grad(out, leaf, g)
        torch.testing.assert_close(found * x, g * out)
        assert bool(found.isfinite().all())

    def test_product_weights(self) -> None:
        class Product(nn.Module):
            def forward(self, a: Tensor, b: Tensor) -> Tensor:
                return a @ b

        model, a, b = Product(), torch.randn(2, 3, 4).double(), torch.randn(2, 4, 3).double()
        rules = build(model, (a, b))  # type: ignore[arg-type]
        gate: Any = rules.gate(rules.sites[0].name)
        with torch.no_grad():
            gate.raw.copy_(torch.tensor([[0.3, -0.7]]))
        leaves, g = (a.clone().requires_grad_(), b.clone().requires_grad_()), torch.randn(2, 3, 3).double()
        with rules.applied(model):
            found = torch.autograd.grad(model(*leaves), leaves, g)
        torch.testing.assert_close(found[0], (1 + math.tanh(0.3)) * g @ b.transpose(1, 2))
        torch.testing.assert_close(found[1], (1 + math.tanh(-0.7)) * a.transpose(1, 2) @ g)

    def test_heads_have_weights_of_their_own(self) -> None:
        model, x = net("fused"), tokens()
        rules = build(model, x, gate="channel")
        gate: Any = rules.gate("blocks.1.softmax")
        assert gate.raw.shape == (1, 2, 1, 1)
        with torch.no_grad():
            gate.raw[0, 1] = -20.0  # the softmax of head 1 passes nothing on
        block = model.blocks[1]
        leaf = x.clone().requires_grad_()
        before = model.blocks[0](leaf)
        normed = block.norm1(before)
        query, key, value = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in block.qkv(normed).chunk(3, -1))
        weights = ((query * 0.5) @ key.transpose(-2, -1)).softmax(-1)
        weights = torch.cat([weights[:, :1], weights[:, 1:].detach()], 1)
        middle = before + block.out((weights @ value).transpose(1, 2).flatten(2))
        last = middle + block.down(block.act(block.up(block.norm2(middle))))
        output = model.head(model.norm(last)[:, 0])
        (expected,) = torch.autograd.grad(output, leaf, one_hot(output))
        torch.testing.assert_close(maps(rules, model, x), expected)


class TestTraining:
    """Parameters learn by double backpropagation."""

    @crossed(gate=["channel", "feature"], composite=["learned_transformer", "learned_attnlrp"], kind=[*KINDS, "gated"])
    def test_finite_differences(self, kind: str, composite: str, gate: str) -> None:
        model, x = net(kind), tokens()
        rules = build(model, x, composite, gate=gate)
        randomise(rules.parameters())
        value = score(maps(rules, model, x, create_graph=True))
        gradients = torch.autograd.grad(value, rules.parameters())
        assert_gradient(lambda: score(maps(rules, model, x)), rules.parameters(), gradients)
        assert sum(float(g.abs().max()) > 0 for g in gradients) == len(gradients)

    @pytest.mark.parametrize("kind", [*KINDS, "gated"])
    def test_value_does_not_depend_on_create_graph(self, kind: str) -> None:
        model, x = net(kind), tokens()
        rules = build(model, x, "learned_attnlrp", gate="feature")
        randomise(rules.parameters())
        plain, recorded = maps(rules, model, x), maps(rules, model, x, create_graph=True).detach()
        # torch takes another kernel for RMSNorm when gradients are recorded.
        torch.testing.assert_close(recorded, plain, rtol=1e-12, atol=0 if kind != "gated" else 1e-14)

    def test_batch_is_singles(self) -> None:
        model, x = net("fused"), tokens(3)
        rules = build(model, x, gate="feature")
        randomise(rules.parameters())
        singles = torch.cat([maps(rules, model, x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(maps(rules, model, x), singles)

    def test_other_numbers_of_tokens(self) -> None:
        model = net("fused")
        rules = build(model, tokens(), gate="channel")
        torch.testing.assert_close(maps(rules, model, tokens(2, 9)), signal(model, tokens(2, 9)))

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        model, x = net("module"), tokens()
        rules = build(model, x, "learned_attnlrp", gate="feature")
        randomise(rules.parameters())
        rules.save(tmp_path / "rules.safetensors")
        again = zr.RuleSet.load(tmp_path / "rules.safetensors", model)
        assert torch.equal(maps(again, model, x), maps(rules, model, x))

    def test_samples_may_have_parameters_of_their_own(self) -> None:
        model, x = net("fused"), tokens(2)
        rules = build(model, x, gate="channel", per_sample=True)
        with torch.no_grad():
            for parameter in rules.parameters():
                parameter[1:] = 0.3
        torch.testing.assert_close(maps(rules, model, x)[0], signal(model, x)[0])
        assert (maps(rules, model, x)[1] - signal(model, x)[1]).abs().max() > 1e-3


class TestTheModelIsTheUsers:
    """Values are the model's, nothing stays behind."""

    @pytest.mark.parametrize("kind", [*KINDS, "gated"])
    def test_value_and_model_are_as_before(self, kind: str) -> None:
        model, x = net(kind), tokens()
        rules = build(model, x)
        before, value = snapshot(model, x), model(x)
        leaf = x.clone().requires_grad_()
        with rules.applied(model):
            torch.testing.assert_close(model(leaf).detach(), value, rtol=1e-12, atol=1e-12)
        assert_untouched(before, model, x)

    def test_inactive_is_the_gradient(self) -> None:
        model, x = net("fused"), tokens()
        rules = build(model, x, rule_options={"mix": 1.0, "product": 0.5})
        leaf = x.clone().requires_grad_()
        with rules.applied(model) as composite:
            output = model(leaf)
            with composite.inactive():
                (plain,) = torch.autograd.grad(output, leaf, one_hot(output), retain_graph=True)
            (ruled,) = torch.autograd.grad(output, leaf, one_hot(output))
        torch.testing.assert_close(plain, signal(model, x))
        assert (ruled - plain).abs().max() > 1e-3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mix": 1.5}, "mix=1.5"),
            ({"product": 0.0}, "product=0.0"),
            ({"mix": "lrp"}, "must be a number"),
            ({"gamma": 1.0}, "no rule option 'gamma'"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(zr.RuleError, match=message):
            build(net("fused"), tokens(), rule_options=options)
