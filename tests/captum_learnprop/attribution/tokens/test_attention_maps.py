from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairwise import crossed
from torch import Tensor, nn
from transformer_zoo import FAMILIES, make
from untouched import assert_untouched, snapshot

import captum_learnprop as cl
from zennit_rules import RuleError
from zennit_rules.rules.written_attention import attention_of

TARGET = torch.tensor([1, 5, 3])
METHODS = (cl.AttentionMap, cl.AttentionRollout, cl.GenericAttention)
# Different numbers of tokens in its blocks: there is no product of attention over layers.
STACKED = [name for name in FAMILIES if name != "timm CaiT"]


def images(name: str = "torchvision") -> Tensor:
    return torch.rand(3, 3, *FAMILIES[name].size, generator=torch.Generator().manual_seed(1))


def weights_of(name: str, model: Any, x: Tensor, *, graph: bool = False) -> tuple[list[Tensor], Tensor]:
    """Weights ``(B, heads, N, N)`` of all layers and the logits, by each library's own means."""
    kept: list[Tensor] = []
    if name == "torchvision":
        # Rotated out of the fused call: the module's own slow path, asked for weights by head.
        def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

        blocks = [block.self_attention for block in model.encoder.layers]
        handles = [block.register_forward_pre_hook(ask, with_kwargs=True) for block in blocks]
        handles += [block.register_forward_hook(lambda m, a, out: kept.append(out[1])) for block in blocks]
        output = model(x)
        for handle in handles:
            handle.remove()
        return kept, output
    if name == "timm DeiT distilled":
        for block in model.blocks:
            block.attn.fused_attn = False

        def keep(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            kept.append(out.detach().requires_grad_() if graph and not out.requires_grad else out)
            return kept[-1]

        handles = [block.attn.attn_drop.register_forward_hook(keep) for block in model.blocks]
        output = model(x)
        for handle in handles:
            handle.remove()
        for block in model.blocks:
            block.attn.fused_attn = True
        return kept, output
    model.set_attn_implementation("eager")
    output = model(x, output_attentions=True)
    model.set_attn_implementation("sdpa")
    return list(output.attentions), output.logits


class TestAttentionMap:
    """Mean over heads of what the class token attends to."""

    @pytest.mark.parametrize("name", ["torchvision", "timm DeiT distilled", "Hugging Face ViT"])
    @pytest.mark.parametrize("heads", ["mean", "max", "min"])
    def test_is_what_the_library_shows(self, name: str, heads: str) -> None:
        model, x = make(name), images(name)
        weights, _ = weights_of(name, model, x)
        fused = weights[-1].mean(1) if heads == "mean" else getattr(weights[-1], f"a{heads}")(1)
        found, prefix = cl.AttentionMap(model).attribute(x, heads=heads, prefix_scores=True)
        torch.testing.assert_close(torch.cat([prefix, found.flatten(1)], 1), fused[:, 0], rtol=1e-4, atol=1e-6)
        first = cl.AttentionMap(model, next(m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)
                                            and len(m) == 3)[0]).attribute(x)  # fmt: skip
        torch.testing.assert_close(
            first.flatten(1), weights[0].mean(1)[:, 0, FAMILIES[name].prefix :], rtol=1e-4, atol=1e-6
        )

    def test_without_prefix_it_is_the_mean_over_queries(self) -> None:
        model, x = make("Hugging Face SigLIP"), images("Hugging Face SigLIP")
        found = cl.AttentionMap(model).attribute(x)
        torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(3))

    @pytest.mark.parametrize("name", FAMILIES)
    def test_families(self, name: str) -> None:
        found, prefix = cl.AttentionMap(make(name)).attribute(images(name), prefix_scores=True)
        assert bool((found >= 0).all())
        torch.testing.assert_close(found.sum((1, 2, 3)) + prefix.sum(1), torch.ones(3))


class TestProducts:
    """Rollout and relevance through all layers."""

    @pytest.mark.parametrize("name", ["torchvision", "timm DeiT distilled", "Hugging Face ViT"])
    def test_rollout(self, name: str) -> None:
        model, x = make(name), images(name)
        weights, _ = weights_of(name, model, x)
        expected = torch.eye(weights[0].shape[-1])
        for each in weights:
            expected = (0.5 * each.mean(1) + 0.5 * torch.eye(each.shape[-1])) @ expected
        found = cl.AttentionRollout(model).attribute(x)
        torch.testing.assert_close(found.flatten(1), expected[:, 0, FAMILIES[name].prefix :], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", ["timm DeiT distilled", "Hugging Face ViT"])
    def test_generic_attention(self, name: str) -> None:
        model, x = make(name), images(name)
        weights, logits = weights_of(name, model, x, graph=True)
        gradients = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), weights)
        expected = torch.eye(weights[0].shape[-1]).expand(3, -1, -1)
        for each, gradient in zip(weights, gradients, strict=True):
            expected = expected + (each * gradient).clamp(min=0).mean(1) @ expected
        found = cl.GenericAttention(model).attribute(x, TARGET)
        expected = expected[:, 0, FAMILIES[name].prefix :]
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(found.flatten(1), expected.detach(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", STACKED)
    @pytest.mark.parametrize("method", METHODS)
    def test_batch_is_singles(self, method: Any, name: str) -> None:
        model, x = make(name), images(name)
        together = method(model).attribute(x, TARGET)
        singles = torch.cat([method(model).attribute(x[i : i + 1], int(TARGET[i])) for i in range(3)])
        torch.testing.assert_close(together, singles, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("method", [cl.AttentionRollout, cl.GenericAttention])
    def test_layers_with_other_tokens(self, method: Any) -> None:
        with pytest.raises(cl.LearnpropError, match="attend among different tokens"):
            method(make("timm CaiT")).attribute(images(), TARGET)

    @pytest.mark.parametrize("method", METHODS)
    def test_frozen_and_untouched(self, method: Any) -> None:
        model, x = make("timm ViT").requires_grad_(False), images("timm ViT")
        before = snapshot(model, x)
        with torch.no_grad():
            found = method(model).attribute(x, TARGET)
        assert found.abs().max() > 0
        assert not found.requires_grad
        assert_untouched(before, model, x)

    @pytest.mark.parametrize("method", METHODS)
    def test_unknown_options(self, method: Any) -> None:
        with pytest.raises(cl.LearnpropError, match="unknown output 'x'"):
            method(make("torchvision")).attribute(images(), 1, output="x")

    def test_unknown_heads(self) -> None:
        with pytest.raises(cl.LearnpropError, match="unknown heads 'sum'"):
            cl.AttentionMap(make("torchvision")).attribute(images(), heads="sum")


class TestTokenAblation:
    """The fall of the output without a token."""

    @staticmethod
    def by_hand(model: Any, x: Tensor) -> Tensor:
        tokens = torch.cat([model.class_token.expand(3, -1, -1), model._process_input(x)], 1)
        tokens = tokens + model.encoder.pos_embedding

        def score(left: Tensor) -> Tensor:
            logits = model.heads(model.encoder.ln(model.encoder.layers(left))[:, 0])
            return logits.gather(1, TARGET[:, None])[:, 0]

        return torch.stack(
            [score(tokens) - score(torch.cat([tokens[:, :i], tokens[:, i + 1 :]], 1)) for i in range(1, 17)], 1
        )

    @pytest.mark.parametrize("rows", [None, 7])
    def test_is_a_loop_over_shorter_sequences(self, rows: int | None) -> None:
        model, x = make("torchvision").double(), images().double()
        with torch.no_grad():
            expected = self.by_hand(model, x)
        found = cl.TokenAblation(model).attribute(x, TARGET, internal_batch_size=rows)
        assert (found.flatten(1) - expected).abs().max() < 1e-12
        assert expected.abs().max() > 1e-3

    @pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.ablates])
    def test_batch_is_singles(self, name: str) -> None:
        model, x = make(name), images(name)
        together = cl.TokenAblation(model).attribute(x, TARGET)
        singles = torch.cat([cl.TokenAblation(model).attribute(x[i : i + 1], int(TARGET[i])) for i in range(3)])
        torch.testing.assert_close(together, singles, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.ablates])
    def test_models_that_need_all_tokens_say_so(self, name: str) -> None:
        """Rotary positions would silently move to other tokens: what is left must attend as before."""
        with pytest.raises(cl.LearnpropError, match=r"cannot do without a token|positions change"):
            cl.TokenAblation(make(name)).attribute(images(name), TARGET)

    def test_output_without_several_patches_is_that_of_a_shorter_sequence(self) -> None:
        model, x = make("torchvision").double(), images().double()
        method, gone = cl.TokenAblation(model), [15, 0, 7]
        with torch.no_grad():
            tokens = torch.cat([model.class_token.expand(3, -1, -1), model._process_input(x)], 1)
            tokens = tokens + model.encoder.pos_embedding
            left = [0, *(1 + i for i in range(16) if i not in gone)]
            expected = model.heads(model.encoder.ln(model.encoder.layers(tokens[:, left]))[:, 0])
            whole = model(x)
        assert (method.output_without(x, gone) - expected).abs().max() < 1e-12
        assert (method.output_without(x, []) - whole).abs().max() < 1e-12
        assert (expected - whole).abs().max() > 1e-3

    @pytest.mark.parametrize(
        ("gone", "message"), [([16], "no patch 16: they are 0 to 15"), (list(range(16)), "no patch is left of 16")]
    )
    def test_patches_that_cannot_leave(self, gone: list[int], message: str) -> None:
        with pytest.raises(cl.LearnpropError, match=message):
            cl.TokenAblation(make("torchvision")).output_without(images(), gone)

    def test_untouched(self) -> None:
        model, x = make("torchvision"), images()
        before = snapshot(model, x)
        cl.TokenAblation(model).output_without(x, [3])
        cl.TokenAblation(model, model.encoder.layers[1]).attribute(x, TARGET, prefix_scores=False)
        assert_untouched(before, model, x)


class TestAttentionOf:
    """torch's attention functions, written out."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"scale": 0.3},
            {"is_causal": True},
            {"attn_mask": torch.randn(5, 5).double()},
            {"attn_mask": torch.ones(5, 5).tril().bool()},
        ],
    )
    def test_scaled_dot_product(self, options: dict[str, Any]) -> None:
        q, k, v = torch.randn(3, 2, 4, 5, 6).double()
        found = attention_of(F.scaled_dot_product_attention, (q, k, v), options)
        torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, **options))

    def test_grouped_queries(self) -> None:
        q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6), torch.randn(2, 2, 5, 6)
        expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        torch.testing.assert_close(
            attention_of(F.scaled_dot_product_attention, (q, k, v), {"enable_gqa": True}), expected
        )

    @crossed(kdim=[None, 7], bias=[True, False], flat=[True, False], masks=["none", "padding", "both", "by head"])
    def test_multi_head(self, kdim: int | None, bias: bool, flat: bool, masks: str) -> None:
        module = nn.MultiheadAttention(8, 2, bias=bias, kdim=kdim, vdim=kdim).double().eval()
        shape = (5,) if flat else (5, 3)
        query, key = torch.randn(*shape, 8).double(), torch.randn(*shape, kdim or 8).double()
        options: dict[str, Any] = {"average_attn_weights": False}
        if masks in ("padding", "both"):
            options["key_padding_mask"] = torch.tensor([False, False, True, False, True]).expand(*shape[1:], 5)
        if masks == "both":
            options["attn_mask"] = torch.randn(5, 5).double()
            options["key_padding_mask"] = torch.zeros(*shape[1:], 5).double()
        if masks == "by head":
            options["attn_mask"] = torch.randn(2 if flat else 6, 5, 5).double()
        kept: dict[str, Any] = {}
        original: Callable[..., Any] = F.multi_head_attention_forward

        class Written(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is original:
                    kept["called"] = True
                    return attention_of(func, args, kwargs or {})
                return func(*args, **(kwargs or {}))

        expected = module(query, key, key, **options)
        with Written():
            found = module(query, key, key, **options)
        assert kept["called"]
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
    def test_what_is_not_written_out(self, options: dict[str, bool]) -> None:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.patches = nn.Conv2d(3, 8, 8, 8)
                self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

            def forward(self, x: Tensor) -> Tensor:
                tokens = self.patches(x).flatten(2).transpose(1, 2)
                return self.attention(tokens, tokens, tokens)[0].mean(1)

        with pytest.raises(RuleError, match="cannot be written out"):
            cl.AttentionMap(Block().eval()).attribute(images())
