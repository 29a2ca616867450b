"""Rules of transformers in the trainer and in the method for single samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import captum_learnprop as cl


def vit() -> VisionTransformer:
    model = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval().requires_grad_(False)
    torch.nn.init.normal_(model.heads.head.weight)
    return model


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("composite", ["learned_transformer", "learned_attnlrp"])
def test_trainer_improves_on_the_start(composite: str) -> None:
    model, x = vit(), images(8)
    trainer = cl.RuleTrainer(
        model, composite, "channel", steps=12, batch_size=6, deletions=16, validate_every=4, fill="colours"
    )
    rules = trainer.fit(x, validation=x)
    losses = [row["validation loss"] for row in trainer.log if "validation loss" in row]
    assert min(losses[1:]) < losses[0]
    moved = {
        site.kind for site in rules.sites if any(float(p.abs().max()) > 0 for p in rules.gate(site.name).parameters())
    }
    assert moved == {"activation", "norm", "softmax", "product"}


class Masked(nn.Module):
    """Attention to the tokens up to each, as in GPT; a feature a token."""

    def __init__(self, low: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.last = nn.Linear(1, 8), nn.Linear(8, 3)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("mask", torch.full((6, 6), low).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x[..., None])
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2) + self.mask
        return self.last((torch.softmax(scores, -1) @ self.value(tokens)).mean(1))


@pytest.mark.parametrize("low", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("composite", ["learned_transformer", "learned_attnlrp"])
def test_masked_attention_trains_as_with_a_low_score(composite: str, low: float) -> None:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))

    def trained(model: nn.Module) -> Tensor:
        rules = cl.RuleTrainer(model, composite, steps=3, deletions=8).fit(x)
        return cl.LearnedPropagation(model, rules=rules).attribute(x, target=1)

    found = trained(Masked(low).eval())
    assert found.isfinite().all()
    torch.testing.assert_close(found, trained(Masked(-1e10).eval()))


def test_single_samples_learn() -> None:
    model, x = vit(), images()
    method = cl.LearnedPropagation(model, composite="learned_transformer", gate="element")
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    start = method.attribute(x, target=1, n_steps=0)
    torch.testing.assert_close(start, gradient, rtol=1e-3, atol=1e-6)
    learned = method.attribute(x, target=1, n_steps=3)
    assert (learned - start).abs().max() > 1e-3 * float(start.abs().max())
