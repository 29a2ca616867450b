"""Rules of transformers in the trainer and in the method for single samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
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


def test_single_samples_learn() -> None:
    model, x = vit(), images()
    method = cl.LearnedPropagation(model, composite="learned_transformer", gate="element")
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    start = method.attribute(x, target=1, n_steps=0)
    torch.testing.assert_close(start, gradient, rtol=1e-3, atol=1e-6)
    learned = method.attribute(x, target=1, n_steps=3)
    assert (learned - start).abs().max() > 1e-3 * float(start.abs().max())
