"""The pass by rules: a model runs once with the rules of a composite in place, then signals run back through it.

Every method, per-sample learning, the trainer and the evaluation pass like this; they differ in what they explain, how
long the rules stay, and whether the result is differentiated::

    leaves = leaves_of((x,))
    with left_as_found(model, leaves), rules_in_place(model, composite):
        run = RulePass.of(model, composite, leaves)
        (attribution,) = run.attributions(run.seed_of(run.select(target)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import output_of
from captum_learnprop.targets import require_finite, select_target
from zennit_rules import explaining
from zennit_rules.core.buffers import buffers_kept
from zennit_rules.core.modules import modules_of
from zennit_rules.core.protocols import TrainableComposite


def leaves_of(inputs: tuple[Tensor, ...], *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """The tensors that gradients are taken of, in the shapes of the inputs.

    Args:
        inputs: ``(B, ...)`` floating-point tensors.
        create_graph: Whether the result is differentiated: inputs that require gradients are then taken themselves.

    Returns:
        Copies that require gradients; the caller's tensors stay as they are.
    """
    return tuple(x if create_graph and x.requires_grad else x.detach().clone().requires_grad_() for x in inputs)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Torch's random numbers begin at a seed (None for 0) inside, and are the caller's again afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(0 if seed is None else seed)
        yield


def in_training_mode(model: Any) -> bool:
    """Whether some module of a model is in training mode, where it may draw random numbers."""
    return isinstance(model, nn.Module) and any(module.training for module in modules_of(model))


@contextmanager
def left_as_found(
    model: Any, leaves: tuple[Tensor, ...] | None = None, *, seed: int | None = None, draws: bool = False
) -> Iterator[None]:
    """A model's buffers, and the caller's random numbers, are after the context what they were before it.

    Args:
        model: A module; a mere function has no buffers.
        leaves: The tensors that passes inside explain, see `zennit_rules.explaining`; None leaves that to the model's
            own arguments.
        seed: Where random numbers begin, 0 for None.
        draws: Whether any are drawn; else they are left alone, which is cheaper.
    """
    random = seeded(seed) if draws else nullcontext()
    explained = nullcontext() if leaves is None else explaining(leaves)
    buffers = buffers_kept(model) if isinstance(model, nn.Module) else nullcontext()
    with random, explained, buffers:
        yield


def second_derivatives(wanted: bool = True) -> AbstractContextManager[Any]:
    """A context in which attention can be differentiated twice: the fused kernels cannot."""
    return sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext()


@contextmanager
def rules_in_place(model: nn.Module, composite: Any, *, create_graph: bool = False) -> Iterator[None]:
    """A composite is on a model, and gradients are recorded, for a forward pass and its backward passes.

    Args:
        model: The model.
        composite: Any composite of zennit.
        create_graph: Whether what the backward passes give is differentiated.
    """
    with second_derivatives(create_graph), composite.context(model), torch.enable_grad():
        yield


@contextmanager
def rules_recorded(model: nn.Module, composite: TrainableComposite) -> Iterator[None]:
    """A composite is on a model for one forward pass, which goes on propagating by the rules afterwards.

    What the backward passes give can be differentiated.
    """
    with torch.enable_grad(), second_derivatives(), composite.recorded(model):
        yield


@dataclass(frozen=True)
class RulePass:
    """A forward pass of a model, from which signals run back by a composite's rules, as often as asked.

    Attributes:
        model: The model.
        composite: It propagates.
        leaves: What is explained, ``(B, ...)`` each.
        output: What the model gave for them, ``(B, ...)``.
    """

    model: nn.Module
    composite: TrainableComposite
    leaves: tuple[Tensor, ...]
    output: Tensor

    @classmethod
    def of(
        cls,
        model: nn.Module,
        composite: TrainableComposite,
        leaves: tuple[Tensor, ...],
        additional: tuple[Any, ...] = (),
        *,
        forward: Callable[..., Any] | None = None,
        known: str = "",
    ) -> RulePass:
        """Run a model while `rules_in_place` or `rules_recorded` has a composite on it.

        Args:
            model: The model.
            composite: The composite that is on it.
            leaves: Inputs that require gradients.
            additional: Further arguments of the model.
            forward: What is called, if it is not the model itself.
            known: What else is known of the shape that the model takes, for the error.

        Raises:
            TargetError: If the output holds no single tensor.
            LearnpropError: If the model does not take inputs of that shape.
        """
        output = output_of(model if forward is None else forward, leaves, additional, model=model, known=known)
        return cls(model, composite, leaves, output)

    def select(self, target: Any) -> Tensor:
        """The explained entry of the output of each sample, ``(B,)``, by captum's conventions.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: If an entry is not finite.
        """
        with torch.enable_grad():
            return require_finite(select_target(self.output, target))

    def seed_of(self, selected: Tensor) -> Tensor:
        """The signal at the output that explains these entries ``(B,)`` of it: their derivative, in its shape."""
        with torch.enable_grad():
            (seed,) = torch.autograd.grad(selected.sum(), self.output, retain_graph=True)
        return seed

    def attributions(self, seed: Tensor, *, create_graph: bool = False, keep: bool = False) -> tuple[Tensor, ...]:
        """Signed attributions of ``sum(output * seed)`` to the leaves, in their shapes.

        Args:
            seed: The signal at the output, see `seed_of`.
            create_graph: Make the result differentiable in the parameters of the rules.
            keep: Keep the pass for further calls; one that is differentiated is kept in any case.

        Raises:
            RunsAgainError: Rules do not reach what activation checkpointing runs again.
        """
        back = partial(
            self.composite.attribute, self.output, self.leaves, seed, create_graph=create_graph,
            retain_graph=True if keep else None,
        )  # fmt: skip
        try:
            return back()
        except CheckpointError as error:  # a part of the model runs again, and finds other rules than before
            if not (keep or create_graph):
                raise _unreached_again() from error
        try:
            with self.composite.recorded(self.model):  # they were gone by now
                return back()
        except CheckpointError as error:
            raise _unreached_again() from error


class RunsAgainError(LearnpropError):
    """Activation checkpointing runs a part of a model again where rules do not reach it."""


def _unreached_again() -> RunsAgainError:
    """What is wrong where rules do not reach a part of the model that runs again in the backward pass."""
    return RunsAgainError(
        "the model runs a part of itself again in the backward pass (activation checkpointing), where rules do not "
        "reach the functions that it calls: switch checkpointing off to explain, it serves the training of weights"
    )
