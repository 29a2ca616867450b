"""Maps that are differentiable in shared rules by one linearised forward pass (see `zennit_rules.core.tangent`).

Double backward gives the same gradient, and serves the rules that have no linearised pass: it keeps the signals that
arrive at sites, and computes again what a rule made of them (`zennit_rules.core.recomputed`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.training.pass_by_rules import RulePass
from zennit_rules import RuleSet
from zennit_rules.core.hook import SiteCall
from zennit_rules.core.recomputed import rules_alone
from zennit_rules.core.tangent import Tape

_LOG = logging.getLogger(__name__)

# A linear map's transpose satisfies <v, A g> = <A' v, g> up to rounding; anything beyond this is a fault.
_TOLERANCE = {torch.float64: 1e-8}
_TOLERANCE_LOW = 1e-2


def mismatch(maps: Sequence[Tensor], v: Sequence[Tensor], tangent: Tensor, seed: Tensor) -> str | None:
    """Returns how a linearised pass differs from the backward pass it should be the transpose of, or None.

    Args:
        maps: What the backward pass gave for ``seed``.
        v: What was carried forwards, in the shapes of the maps.
        tangent: What that gave, in the shape of ``seed``.
        seed: What the backward pass began with.
    """
    left = sum(float((a.double() * b.double()).sum()) for a, b in zip(maps, v, strict=True))
    right = float((tangent.double() * seed.double()).sum())
    size = sum(float((a.double() * b.double()).abs().sum()) for a, b in zip(maps, v, strict=True))
    size = max(size, float((tangent.double() * seed.double()).abs().sum()))
    if abs(left - right) <= _TOLERANCE.get(tangent.dtype, _TOLERANCE_LOW) * size:
        return None
    return f"the linearised pass does not match the backward pass ({left:.6g} against {right:.6g})"


def linearised_map(run: RulePass, tape: Tape, rules: RuleSet, seed: Tensor) -> Tensor:
    """Returns the attribution of the one input of a pass, differentiable in the rules' parameters.

    Args:
        run: The pass, kept.
        tape: What it recorded, finished.
        rules: The rules that it propagates by.
        seed: The signal at the output.
    """
    found: Tensor = _LinearisedMap.apply(run, tape, rules, seed, *rules.parameters())
    return found


def doubly_differentiated(run: RulePass, seed: Tensor) -> Tensor:
    """Returns the same by recording the backward pass, of which signals are kept alone."""
    with torch.enable_grad(), rules_alone():
        return run.attributions(seed, create_graph=True, keep=True)[0]


class _LinearisedMap(torch.autograd.Function):
    """A backward pass by rules, whose transpose gives the gradient of the parameters at every site."""

    @staticmethod
    def forward(ctx: Any, run: RulePass, tape: Tape, rules: RuleSet, seed: Tensor, *parameters: Tensor) -> Tensor:
        """The attribution."""
        (found,) = run.attributions(seed, keep=True)
        ctx.pass_, ctx.tape, ctx.rules, ctx.map = run, tape, rules, found
        ctx.signals = [call.g for call in tape.calls]  # another target's pass would write over them
        ctx.versions = [parameter._version for parameter in parameters]
        ctx.save_for_backward(seed)
        return found.view_as(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, towards: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the parameters."""
        (seed,) = ctx.saved_tensors
        run, tape, rules = ctx.pass_, ctx.tape, ctx.rules
        if [parameter._version for parameter in rules.parameters()] != ctx.versions:
            raise RuntimeError("the parameters of the rules were changed in place between a map and its gradient")
        for call, signal in zip(tape.calls, ctx.signals, strict=True):
            call.g = signal
        gradients: dict[str, Tensor] = {}

        def add(call: SiteCall, found: dict[str, Tensor]) -> None:
            for name, gradient in found.items():
                key = f"{call.name}::{name}"
                gradients[key] = gradients[key] + gradient if key in gradients else gradient

        try:
            tangent = tape.push_forward((towards,), add)
            fault = mismatch((ctx.map,), (towards,), tangent, seed)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            fault = f"an operation of the model cannot be linearised ({error})"
        if fault is None:
            return None, None, None, None, *(gradients.get(name) for name, _ in rules.named_parameters())
        _LOG.info("learning by double backward: %s", fault)
        tape.unsupported = fault
        live = doubly_differentiated(run, seed)
        return None, None, None, None, *torch.autograd.grad(live, rules.parameters(), towards, allow_unused=True)
