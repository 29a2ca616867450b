"""A forward pass under a rule in which every linear layer's input and every activation is known, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.evaluation.backward_rules import BackwardRule
from captum_learnprop.evaluation.checks import require_batch_size, require_targets
from captum_learnprop.evaluation.profiles import LayerProfile
from captum_learnprop.training.pass_by_rules import RulePass, leaves_of, rules_in_place
from zennit_rules.core.linear_map import DenseMap, LinearOperands
from zennit_rules.core.linear_watch import linear_calls_watched
from zennit_rules.core.sites import recorder


@dataclass
class NotedTensors:
    """Tensors of one forward pass."""

    names: list[str] = field(default_factory=list)
    layers: list[Tensor] = field(default_factory=list)
    channel_dims: list[int] = field(default_factory=list)
    sites: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def linear(self, name: str, module: nn.Module, operands: LinearOperands, call: Callable[[], Tensor]) -> Tensor:
        """Notes the input of a linear function."""
        if torch.is_grad_enabled():
            self.names.append(name)
            self.layers.append(operands.x)
            self.channel_dims.append(operands.x.dim() - 1 if isinstance(operands.map, DenseMap) else 1)
        return call()

    def site(self, call: Any, z: Tensor, out: Tensor) -> None:
        """Notes an activation."""
        if z is not out and z.shape == out.shape and torch.is_grad_enabled():
            self.sites.append((call.name, z, out))


@contextmanager
def _tensors_noted(points: NotedTensors) -> Iterator[None]:
    token = recorder.set(points)
    try:
        yield
    finally:
        recorder.reset(token)


@dataclass(frozen=True)
class WatchedPass:
    """A forward pass under a rule whose tensors are known; the rule is still on the model."""

    rule: BackwardRule
    run: RulePass
    points: NotedTensors

    @classmethod
    @contextmanager
    def of(cls, model: nn.Module, rule: BackwardRule, inputs: Tensor) -> Iterator[WatchedPass]:
        """Run the model.

        Raises:
            LearnpropError: If no layer is called.
        """
        points, composite = NotedTensors(), rule.rules.composite()
        with linear_calls_watched(model, points.linear), rules_in_place(model, composite):
            with _tensors_noted(points):
                run = RulePass.of(model, composite, leaves_of((inputs,)))
            if not points.layers:
                raise LearnpropError(f"{type(model).__name__} calls no convolution or linear layer")
            yield cls(rule, run, points)

    def signals(self, targets: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns what arrives at tensors of the pass."""
        seed = self.rule.seed(self.run.composite, self.run.output, targets)
        return self.pulled(self.run.output, seed, tensors)

    def pulled(self, start: Tensor, seed: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns what arrives at tensors of the pass if ``seed`` starts at another."""
        found = torch.autograd.grad(start, tensors, seed, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if s is None else s for x, s in zip(tensors, found, strict=True)]


def layer_profile(
    model: nn.Module,
    rule: BackwardRule,
    inputs: Tensor,
    targets: Tensor,
    scores: Callable[[WatchedPass, Tensor], Tensor],
    internal_batch_size: int,
) -> LayerProfile:
    """Returns scores of a pass, gathered over the batch.

    Args:
        model: In evaluation mode; comes back untouched.
        rule: What propagates.
        inputs: ``(B, C, *spatial)``.
        targets: ``(B,)`` int64.
        scores: Makes ``(L, b)`` of a pass of the samples with these numbers, ``(b,)``; it may rename the layers.
        internal_batch_size: Largest ``b``.

    Raises:
        LearnpropError: If inputs and targets do not fit, or the model calls no layer.
    """
    if not len(inputs):
        raise LearnpropError(f"inputs must be (B, C, ...) and not empty, got {tuple(inputs.shape)}")
    require_targets(targets, len(inputs))
    require_batch_size(internal_batch_size)
    names: tuple[str, ...] = ()
    chunks = []
    for rows in torch.arange(len(inputs), device=inputs.device).split(internal_batch_size):
        with WatchedPass.of(model, rule, inputs[rows]) as run:
            chunks.append(scores(run, rows))
            names = tuple(run.points.names)
    return LayerProfile(names, torch.cat(chunks, 1))
