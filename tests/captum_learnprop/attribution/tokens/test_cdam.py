from __future__ import annotations

import doctest
import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import timm
import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer
from transformer_zoo import FAMILIES, make
from untouched import assert_untouched, snapshot

import captum_learnprop as cl

TARGET = torch.tensor([1, 5, 3])
METHODS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "plain": lambda model: cl.CDAM(model).attribute,
    "smooth": lambda model: lambda *a, **k: cl.SmoothCDAM(model).attribute(*a, n_samples=4, **k),
    "integrated": lambda model: lambda *a, **k: cl.IntegratedCDAM(model).attribute(*a, n_steps=4, **k),
    "average": lambda model: lambda *a, **k: cl.IntegratedCDAM(model).attribute(*a, n_steps=4, form="average", **k),
}


def images(name: str = "torchvision", count: int = 3) -> Tensor:
    return torch.rand(count, 3, *FAMILIES[name].size, generator=torch.Generator().manual_seed(1))


class Logits(nn.Module):
    """A model of Hugging Face as captum wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, x: Tensor) -> Tensor:
        output = self.model(x)
        for name in ("logits", "image_embeds", "pooler_output"):
            if getattr(output, name, None) is not None:
                return getattr(output, name)
        return output


def all_tokens(result: tuple[Tensor, Tensor]) -> Tensor:
    """Scores ``(B, N)`` of a method called with ``prefix_scores=True``."""
    return torch.cat([result[1], result[0].flatten(1)], 1)


class TestFamilies:
    """Every model works with no argument but itself."""

    @pytest.mark.parametrize("name", FAMILIES)
    def test_is_captums_gradient_times_activation_at_the_norm(self, name: str) -> None:
        model, x = make(name), images(name)
        wrapped = Logits(model)
        reference = LayerGradientXActivation(wrapped, model.get_submodule(FAMILIES[name].norm))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.PatchReadingWarning)
            found, prefix = cl.CDAM(model).attribute(x, target=TARGET, prefix_scores=True)
        expected = reference.attribute(x, target=TARGET).sum(-1)
        rows, columns = (n // 8 for n in FAMILIES[name].size)
        assert found.shape == (3, 1, rows, columns)
        assert prefix.shape == (3, FAMILIES[name].prefix)
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(all_tokens((found, prefix)), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize("method", METHODS)
    def test_batch_is_singles(self, name: str, method: str) -> None:
        model, x = make(name), images(name)
        attribute = METHODS[method](model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.PatchReadingWarning)
            together = attribute(x, TARGET)
            singles = torch.cat([attribute(x[i : i + 1], int(TARGET[i])) for i in range(3)])
        torch.testing.assert_close(together, singles, rtol=1e-4, atol=1e-5 * float(singles.abs().max()))

    @pytest.mark.parametrize("name", FAMILIES)
    def test_warns_once_where_the_head_reads_patches(self, name: str) -> None:
        method = cl.CDAM(make(name))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                method.attribute(images(name), target=TARGET)
        assert sum(w.category is cl.PatchReadingWarning for w in caught) == int(FAMILIES[name].pooled)


def attention_times_relevance(model: Any, x: Tensor, target: Tensor) -> Tensor:
    """``sum_h a_i (rho~_i + (rho_i - rhobar) kappa_i)`` of patches, by matrices (see the module's source)."""
    block, dimension = model.encoder.layers[-1], model.hidden_dim
    attention = block.self_attention
    heads = attention.num_heads
    size = dimension // heads
    seen: dict[str, Tensor] = {}
    handles = [
        block.ln_1.register_forward_hook(lambda m, a, out: seen.update(t=out.detach())),
        attention.register_forward_hook(
            lambda m, a, out: (seen.setdefault("z", out[0].detach().requires_grad_()), None)
        ),
    ]
    score = model(x).gather(1, target[:, None]).sum()
    for handle in handles:
        handle.remove()
    (u,) = torch.autograd.grad(score, seen["z"])
    assert u[:, 1:].abs().max() == 0
    t = seen["t"]
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    u = u[:, 0] @ attention.out_proj.weight  # (B, D), by head
    q = (t[:, 0] @ wq.T + bq).unflatten(-1, (heads, size)) / math.sqrt(size)
    k = (t @ wk.T + bk).unflatten(-1, (heads, size))
    a = torch.einsum("bhd,bnhd->bhn", q, k).softmax(-1)
    u = u.unflatten(-1, (heads, size))
    bare = torch.einsum("bhd,bnhd->bhn", u, (t @ wv.T).unflatten(-1, (heads, size)))
    rho = torch.einsum("bhd,bnhd->bhn", u, (t @ wv.T + bv).unflatten(-1, (heads, size)))
    kappa = torch.einsum("bhd,bnhd->bhn", q, (t @ wk.T).unflatten(-1, (heads, size)))
    mean = (a * rho).sum(-1, keepdim=True)
    return (a * (bare + (rho - mean) * kappa)).sum(1)[:, 1:]


class TestDefinition:
    """What the score is."""

    def test_identity_attention_times_relevance(self) -> None:
        model = make("torchvision").double()
        x = images().double()
        found = cl.CDAM(model).attribute(x, target=TARGET).flatten(1)
        expected = attention_times_relevance(model, x, TARGET)
        assert (found - expected).abs().max() < 1e-10
        assert expected.abs().max() > 1e-3

    def test_block_input_has_no_score(self) -> None:
        model = make("torchvision").double()
        block = model.encoder.layers[-1]
        at_input = LayerGradientXActivation(model, block).attribute(
            images().double(), target=TARGET, attribute_to_layer_input=True
        )
        assert at_input.sum(-1)[:, 1:].abs().max() < 1e-4  # the norm's epsilon alone
        assert cl.CDAM(model).attribute(images().double(), target=TARGET).abs().max() > 1e-2

    def test_layer_chooses_an_earlier_block(self) -> None:
        model, x = make("torchvision"), images()
        block = model.encoder.layers[1]
        expected = LayerGradientXActivation(model, block.ln_1).attribute(x, target=TARGET).sum(-1)
        for layer in (block, block.self_attention):
            found = all_tokens(cl.CDAM(model, layer).attribute(x, target=TARGET, prefix_scores=True))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    def test_target_as_a_function(self) -> None:
        model, x = make("torchvision"), images()
        margin = cl.CDAM(model).attribute(x, target=lambda out: out[:, 2] - out[:, 4])
        parts = [cl.CDAM(model).attribute(x, target=c) for c in (2, 4)]
        torch.testing.assert_close(margin, parts[0] - parts[1], rtol=1e-4, atol=1e-6)

    def test_output_at_the_size_of_the_images(self) -> None:
        model, x = make("timm ViT"), images("timm ViT")
        patches = cl.CDAM(model).attribute(x, target=TARGET)
        nearest = cl.CDAM(model).attribute(x, target=TARGET, output="input")
        assert torch.equal(nearest, patches.repeat_interleave(8, 2).repeat_interleave(8, 3))
        assert cl.CDAM(model).attribute(x, target=TARGET, output="input", mode="bilinear").shape == (3, 1, 32, 48)


def by_loop(model: Any, x: Tensor, target: Tensor, points: Callable[[Tensor, int], Tensor], n: int) -> list[Tensor]:
    """Tokens and gradients at every point, by a run of the whole model for each: ``[(T^k, df/dT^k), ...]``."""
    norm, found = model.encoder.layers[-1].ln_1, []
    for k in range(n):
        kept = {}

        def leaf(module: nn.Module, args: Any, out: Tensor, k: int = k, kept: dict[str, Tensor] = kept) -> Tensor:
            kept["t"] = points(out.detach(), k).requires_grad_()
            return kept["t"]

        handle = norm.register_forward_hook(leaf)
        score = model(x).gather(1, target[:, None]).sum()
        handle.remove()
        (gradient,) = torch.autograd.grad(score, kept["t"])
        found.append((kept["t"].detach(), gradient))
    return found


class TestManyPoints:
    """Smooth and integrated forms: the last block in one batch is the loop over the whole model."""

    @pytest.mark.parametrize("rows", [None, 5])
    def test_smooth(self, rows: int | None) -> None:
        model, x = make("torchvision").double(), images().double()
        noise = torch.randn(4, 17, 32, generator=torch.Generator().manual_seed(7)).double()

        def points(t: Tensor, k: int) -> Tensor:
            return t + noise[k] * 0.1 * (t.amax((1, 2), True) - t.amin((1, 2), True))

        expected = torch.stack([(t * g).sum(-1) for t, g in by_loop(model, x, TARGET, points, 4)]).mean(0)
        found = cl.SmoothCDAM(model).attribute(
            x, TARGET, n_samples=4, noise_level=0.1, seed=7, internal_batch_size=rows, prefix_scores=True
        )
        assert (all_tokens(found) - expected).abs().max() < 1e-12

    def test_smooth_without_noise_is_plain(self) -> None:
        model, x = make("torchvision").double(), images().double()
        plain = cl.CDAM(model).attribute(x, TARGET)
        assert (cl.SmoothCDAM(model).attribute(x, TARGET, n_samples=3, noise_level=0) - plain).abs().max() < 1e-14

    def test_average(self) -> None:
        model, x = make("torchvision").double(), images().double()
        runs = by_loop(model, x, TARGET, lambda t, k: t * k / 4, 5)
        expected = torch.stack([(t * g).sum(-1) for t, g in runs]).mean(0)
        found = cl.IntegratedCDAM(model).attribute(x, TARGET, n_steps=4, form="average", prefix_scores=True)
        assert (all_tokens(found) - expected).abs().max() < 1e-12

    @pytest.mark.parametrize("name", ["torchvision", "timm DINOv2 registers", "Hugging Face DeiT"])
    def test_integrated_is_complete(self, name: str) -> None:
        model, x = make(name).double(), images(name).double()
        norm, tokens = model.get_submodule(FAMILIES[name].norm), {}
        model_of = Logits(model)
        with torch.no_grad():
            whole = model_of(x).gather(1, TARGET[:, None])[:, 0]
            handle = norm.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
            none = model_of(x).gather(1, TARGET[:, None])[:, 0]
            handle.remove()
        patches, prefix, delta = cl.IntegratedCDAM(model).attribute(
            x, TARGET, n_steps=60, prefix_scores=True, return_convergence_delta=True
        )
        tokens = all_tokens((patches, prefix))
        torch.testing.assert_close(tokens.sum(1), whole - none, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(delta, tokens.sum(1) - (whole - none), rtol=0, atol=1e-12)
        assert (whole - none).abs().min() > 1e-3

    def test_noise_of_a_sample_is_its_own(self) -> None:
        model, x = make("torchvision"), images()
        alone = cl.SmoothCDAM(model).attribute(x[:1], 1, n_samples=3)
        x[1] *= 100  # another range beside it
        torch.testing.assert_close(cl.SmoothCDAM(model).attribute(x, TARGET, n_samples=3)[:1], alone)


class TestConcepts:
    """Similarity to images as the target."""

    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    def test_gradient_is_that_of_the_similarity(self, similarity: str) -> None:
        model, x = make("torchvision").double(), images().double()
        embedding = cl.Embedding(model)
        concept = cl.Concept.of(embedding, x[:2], similarity)
        with torch.no_grad():
            features = model.encoder.ln(model.encoder.layers(_embedded(model, x)))[:, 0]
        torch.testing.assert_close(embedding(x).detach(), features)
        mean = features[:2].mean(0)

        def similar(e: Tensor) -> Tensor:
            value = e @ mean
            return value if similarity == "dot" else value / e.norm(dim=1) / mean.norm()

        torch.testing.assert_close(concept(features), similar(features))
        found = cl.CDAM(embedding).attribute(x, target=concept)
        torch.testing.assert_close(found, cl.CDAM(embedding).attribute(x, target=similar))
        assert found.abs().max() > 1e-4

    def test_embedding_of_hugging_face_is_its_pooled_output(self) -> None:
        model = make("Hugging Face DINOv3")
        x = images("Hugging Face DINOv3")
        concept = cl.Concept.of(model, x[:1])
        assert torch.equal(concept.embedding, model(x[:1]).pooler_output[0].detach())
        assert cl.CDAM(model).attribute(x, target=concept).shape == (3, 1, 4, 6)

    def test_what_does_not_fit_is_said(self) -> None:
        with pytest.raises(cl.LearnpropError, match="unknown similarity 'l2'"):
            cl.Concept(torch.ones(3), "l2")
        with pytest.raises(cl.LearnpropError, match="vector"):
            cl.Concept(torch.ones(2, 3))
        with pytest.raises(cl.LearnpropError, match=r"9 dimensions, the model's output is \(3, 7\)"):
            cl.CDAM(make("torchvision")).attribute(images(), target=cl.Concept(torch.ones(9)))


def _embedded(model: Any, x: Tensor) -> Tensor:
    tokens = model._process_input(x)
    return torch.cat([model.class_token.expand(len(x), -1, -1), tokens], 1) + model.encoder.pos_embedding


class TestTheModelIsTheUsers:
    """Nothing stays behind."""

    @pytest.mark.parametrize("method", METHODS)
    def test_frozen_and_untouched(self, method: str) -> None:
        model, x = make("timm ViT"), images("timm ViT").requires_grad_()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        before = snapshot(model, x)
        with torch.no_grad():
            found = METHODS[method](model)(x, TARGET)
        assert found.abs().max() > 0
        assert not found.requires_grad
        assert_untouched(before, model, x)

    @pytest.mark.parametrize("method", METHODS)
    def test_after_an_exception(self, method: str) -> None:
        model = make("torchvision")

        def fails(output: Tensor) -> Tensor:
            raise KeyboardInterrupt

        before = snapshot(model)
        with pytest.raises(KeyboardInterrupt):
            METHODS[method](model)(images(), fails)
        assert_untouched(before, model)

    def test_fused_and_unfused_agree(self) -> None:
        model, x = make("timm ViT"), images("timm ViT")
        fused = cl.CDAM(model).attribute(x, TARGET)
        for block in model.blocks:
            block.attn.fused_attn = False
        torch.testing.assert_close(cl.CDAM(model).attribute(x, TARGET), fused, rtol=1e-4, atol=1e-6)

    def test_half_precision(self) -> None:
        model, x = make("torchvision"), images()
        exact = cl.CDAM(model).attribute(x, TARGET)
        half = cl.CDAM(model.bfloat16()).attribute(x.bfloat16(), TARGET)
        assert half.dtype is torch.float32
        assert torch.nn.functional.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > 0.98

    def test_other_sizes_of_images_need_no_new_method(self) -> None:
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=7,
            dynamic_img_size=True,
        ).eval()  # fmt: skip
        method = cl.CDAM(model)
        for size in ((32, 32), (40, 64)):
            assert method.attribute(torch.rand(2, 3, *size), 1).shape == (2, 1, size[0] // 8, size[1] // 8)


class TestErrors:
    """What cannot be explained is said, with the way out."""

    def test_a_convolutional_net(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(7))
        net(images())
        with pytest.raises(cl.LearnpropError, match="calls no attention over tokens"):
            cl.CDAM(net).attribute(images(), TARGET)

    def test_windows(self) -> None:
        swin = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=7).eval()
        with pytest.raises(cl.LearnpropError, match="as in Swin"):
            cl.CDAM(swin).attribute(images(), TARGET)

    def test_a_grid_that_does_not_fit(self) -> None:
        with pytest.raises(cl.LearnpropError, match="1 prefix tokens and a grid of 3 x 4 make 13 tokens"):
            cl.CDAM(make("torchvision"), num_prefix_tokens=1, grid_size=(3, 4)).attribute(images(), TARGET)
        with pytest.raises(cl.LearnpropError, match="pass grid_size"):
            cl.CDAM(make("torchvision"), num_prefix_tokens=0).attribute(images(), TARGET)

    def test_given_layout(self) -> None:
        model = make("torchvision")
        found, prefix = cl.CDAM(model, num_prefix_tokens=5, grid_size=(2, 6)).attribute(
            images(), TARGET, prefix_scores=True
        )
        assert found.shape == (3, 1, 2, 6)
        assert torch.equal(
            all_tokens((found, prefix)), all_tokens(cl.CDAM(model).attribute(images(), TARGET, prefix_scores=True))
        )

    def test_a_layer_without_one_attention(self) -> None:
        model = make("torchvision")
        with pytest.raises(cl.LearnpropError, match="contains 0 attention modules"):
            cl.CDAM(model, model.heads).attribute(images(), TARGET)
        with pytest.raises(cl.LearnpropError, match="contains 3 attention modules"):
            cl.CDAM(model, model.encoder).attribute(images(), TARGET)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"output": "pixels"}, "unknown output 'pixels'"),
            ({"mode": "cubic"}, "unknown mode 'cubic'"),
            ({"target": 9}, "target 9 does not fit"),
            ({"target": lambda out: out}, r"one number per sample, \(3,\), but gave \(3, 7\)"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(cl.LearnpropError, match=message):
            cl.CDAM(make("torchvision")).attribute(images(), **{"target": 1, **options})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_steps": 0}, "n_steps must be"),
            ({"form": "mean"}, "unknown form 'mean'"),
            ({"form": "average", "return_convergence_delta": True}, "has no delta"),
        ],
    )
    def test_options_of_paths(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(cl.LearnpropError, match=message):
            cl.IntegratedCDAM(make("torchvision")).attribute(images(), 1, **options)

    def test_structured_output_without_logits(self) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = make("torchvision")

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"scores": self.inner(x)}

        with pytest.raises(cl.LearnpropError, match="Odd returned a dict with 'scores'"):
            cl.CDAM(Odd()).attribute(images(), 1)


def test_captums_interface() -> None:
    """Subclasses of captum's bases, with its properties."""
    model = make("torchvision")
    for method in (cl.CDAM, cl.SmoothCDAM, cl.IntegratedCDAM):
        assert issubclass(method, captum.attr.LayerAttribution)
        assert method(model).multiplies_by_inputs
        assert not method(model).has_convergence_delta()
    tunnel = captum.attr.NoiseTunnel(cl.CDAM(model))
    assert tunnel.attribute(images(), nt_samples=3, stdevs=0.1, target=1).shape == (3, 1, 4, 4)


@pytest.mark.parametrize("name", ["cdam", "concepts"])
def test_examples_in_docstrings(name: str) -> None:
    """They run, and give what they say."""
    found = doctest.testmod(importlib.import_module(f"captum_learnprop.attribution.tokens.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
