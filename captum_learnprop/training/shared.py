"""Learn rules that all samples share, by occlusion regression: learn once, then explain with one backward
pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.maps import reduce_channels, smooth
from captum_learnprop.training.occlusion import (
    OcclusionCache,
    build_cache,
    occlusion_loss,
)
from captum_learnprop.training.per_sample import select

if TYPE_CHECKING:
    from zennit_rules import RuleSet

MAX_GRADIENT_NORM = 1.0
"""Steps are clipped to this norm: the loss is bounded, its slope is not where a map is almost constant."""


class FitError(LearnpropError):
    """Rules that cannot be learned from what was given."""


def fit_shared(
    rules: RuleSet,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    steps: int = 120,
    lr: float = 0.03,
    batch_size: int = 16,
    seed: int = 0,
    deletions: int = 48,
    output: str = "sigmoid",
    sign: str = "absolute",
    sigma: float = 1.0,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Adam on the parameters of a rule set, in place; the model is only read.

    Args:
        rules: a rule set of ``model`` whose gates are shared by all samples.
        model: in evaluation mode; maps images to ``(B, classes)``.
        images: ``(N, C, H, W)`` to learn from.
        targets: ``(N,)`` int64, the explained class of each; the model's own prediction will do.
        steps: Adam steps, each on ``batch_size`` images.
        lr: first learning rate; it falls to zero on a cosine.
        batch_size: images per step.
        seed: seed of the deletions and of the batches.
        deletions: deletions per image, see `build_cache`.
        output: the explained quantity, see `build_cache`.
        sign: how an attribution becomes a map, see `reduce_channels`. Use the rules with the same choice.
        sigma: smoothing of the map in pixels. Use the rules with the same choice.
        progress: called with (steps done, steps in all, loss).

    Returns:
        The loss of every step.

    Raises:
        FitError: nothing to learn, model in training mode, or a loss that is not finite (the rules keep
            their last good values).
        OcclusionError: images, targets or options out of range.
    """
    if model.training:
        raise FitError(
            "the model is in training mode, where samples of a batch depend on each other; call model.eval()"
        )

    def attribute(batch: Tensor, asked: Tensor) -> Tensor:
        leaf = batch.detach().requires_grad_()
        with rules.applied(model), torch.enable_grad():
            return torch.autograd.grad(select(model(leaf), asked).sum(), leaf, create_graph=True)[0]

    cache = build_cache(model, images, targets, deletions=deletions, output=output, seed=seed)
    return fit_maps(
        lambda batch, asked: smooth(reduce_channels(attribute(batch, asked), sign), sigma),
        rules.parameters(), images, targets, cache,
        steps=steps, lr=lr, batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip


def fit_maps(
    make_maps: Callable[[Tensor, Tensor], Tensor],
    parameters: Iterable[Tensor],
    images: Tensor,
    targets: Tensor,
    cache: OcclusionCache,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Adam on anything that makes maps: ``make_maps(images, targets) -> (B, H, W)``, differentiable in
    ``parameters``.

    Arguments, result and errors are those of `fit_shared`.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise FitError("no parameter to learn: every gate is fixed; choose gates with parameters, e.g. gate='feature'")
    if steps < 1 or batch_size < 1 or not lr > 0:
        raise FitError(f"steps and batch_size must be at least 1 and lr above 0, got {steps}, {batch_size}, {lr}")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(trained, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    losses: list[float] = []
    for step, index in enumerate(_batches(len(images), batch_size, steps, generator)):
        loss = occlusion_loss(make_maps(images[index], targets[index]), cache[index])
        # torch.autograd.grad, not backward(): the gradients of the user's model and images are not touched.
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        _step(trained, gradients, loss, optimizer, step)
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, steps, losses[-1])
    return losses


def _step(
    trained: list[Tensor],
    gradients: tuple[Tensor | None, ...],
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    finite = loss.isfinite() and all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    if not finite:
        raise FitError(
            f"loss or gradient is not finite at step {step} (loss {loss.item():g}); the rules keep the values of "
            "the step before: try a smaller lr, or look for inputs whose map overflows"
        )
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterable[Tensor]:
    """``steps`` index tensors; every image is used once before any is used again."""
    queue = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(queue) < min(size, count):
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield queue[:size]
        queue = queue[size:]
