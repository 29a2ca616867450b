"""Captum's LRP rules as a composite: they run on any model, and trained rules can be compared with them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit.core import Hook, RemovableHandle, RemovableHandleList

from zennit_rules import LearnedEpsilonGammaBox
from zennit_rules.core.dependence import depends_on_input
from zennit_rules.core.interpose import interpose
from zennit_rules.core.site_functions import POOLING_TYPES, is_pooling
from zennit_rules.linear_canonizer import LINEAR_TYPES
from zennit_rules.rules.contributions import ContributionGate, EpsilonGate, GammaGate, stabilized
from zennit_rules.rules.linear import LinearCall
from zennit_rules.rules.relevance import RelevanceCall, Signals, relevance_call, share

from ..._compat import (
    SUPPORTED_LAYERS_WITH_RULES,
    Alpha1_Beta0_Rule,
    EpsilonRule,
    GammaRule,
    IdentityRule,
    PropagationRule,
)
from ...errors import LearnpropError, PropagationRuleError

KNOWN = (EpsilonRule, GammaRule, Alpha1_Beta0_Rule, IdentityRule)


class CaptumRules(LearnedEpsilonGammaBox):
    """What ``captum.attr.LRP`` does: the rule at ``module.rule``, else epsilon at linear layers, norms and max-pools.

    Activations pass relevance. Layers and functional calls that captum has no rule for follow
    `zennit_rules.rules.relevance`, with captum's epsilon.

    Attributes:
        applied: Site, layer and rule of each call of a layer that captum would give a rule.
    """

    name = ""

    def __init__(self, *, canonizers: list[Any] | None = None) -> None:
        self.applied: list[tuple[str, nn.Module, PropagationRule]] = []
        super().__init__(rule_options={"merge": False}, canonizers=canonizers)

    def mapping(self, ctx: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """Hook of a module.

        Raises:
            LearnpropError: If its rule is none of captum's own, or changes weights of a layer that is not linear.
        """
        rule = getattr(module, "rule", None)
        if next(module.children(), None) is not None:  # captum looks at modules without children only
            return super().mapping(ctx, name, module)
        linear = isinstance(module, LINEAR_TYPES)
        if rule is None:
            ruled = is_pooling(module) or type(module) in SUPPORTED_LAYERS_WITH_RULES.keys() - POOLING_TYPES
            return _LayerRule(self, EpsilonRule(), name) if ruled and not linear else super().mapping(ctx, name, module)
        check_rule(name, rule)
        if linear and type(rule) is not IdentityRule:
            return super().mapping(ctx, name, module)
        if not linear and type(rule) in (GammaRule, Alpha1_Beta0_Rule):
            if getattr(module, "weight", None) is not None:
                raise LearnpropError(
                    f"module {name!r} has the rule {type(rule).__name__}, which would change the weights of a "
                    f"{type(module).__name__}; give it an EpsilonRule or an IdentityRule"
                )
            rule = EpsilonRule()  # what is left of it without weights
        return _LayerRule(self, rule, name)

    def linear_gate_at(self, site: str, call: LinearCall, x: Tensor, out: Tensor) -> nn.Module:
        """The gate of the call of a linear function: by the rule of the module that calls it."""
        module = self.tracker.module
        assert module is not None
        rule = getattr(module, "rule", None) or EpsilonRule()
        self.applied.append((site, module, rule))
        dtype = torch.promote_types(out.dtype, torch.float32)  # as everywhere, half-precision sites have float32 gates
        return linear_gate(rule).to(device=out.device, dtype=dtype)

    def flowing(self) -> bool:
        """Whether relevance flows in a backward pass, instead of the gradient."""
        return bool(self._flow.active)

    def _relevance(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        epsilon = EpsilonRule().STABILITY_FACTOR
        if func is not F.batch_norm:
            return relevance_call(func, args, kwargs, self.flowing, epsilon)
        x = args[0] if args else kwargs["input"]
        if not (torch.is_grad_enabled() and depends_on_input(x)):
            return NotImplemented
        return RelevanceCall(func, args, kwargs, share, self.flowing, epsilon).run()


def check_rule(name: str, rule: Any) -> None:
    """Refuse what is none of captum's rules.

    Raises:
        PropagationRuleError: Naming the module.
    """
    if type(rule) not in KNOWN:
        said = type(rule).__name__ if isinstance(rule, PropagationRule) else repr(rule)
        raise PropagationRuleError(
            f"module {name!r} has the rule {said}; LearnedLRP knows captum's own: "
            f"{', '.join(known.__name__ for known in KNOWN)}"
        )


def linear_gate(rule: PropagationRule) -> ContributionGate:
    """The gate of a linear layer that does what one of captum's rules does."""
    options: dict[str, Any] = {
        "per": "layer", "split": "weights", "bias": "zero" if getattr(rule, "set_bias_to_zero", False) else "whole",
    }  # fmt: skip
    if isinstance(rule, EpsilonRule):
        return EpsilonGate(epsilon=rule.STABILITY_FACTOR, **options)
    options["stabilizer"] = rule.STABILITY_FACTOR
    if isinstance(rule, GammaRule):
        return GammaGate(gamma=rule.gamma, negative="alike", **options)
    return _PositiveGate(**options)


class _PositiveGate(ContributionGate):
    """``Alpha1_Beta0_Rule``: weights below 0 are left out; a bias counts, whatever its sign."""

    needs_parts = (False, True)

    def forward(
        self, relevance: Tensor, z: Tensor, positive: Tensor | None, negative: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Relevance per unit of contribution: all of it for positive ones and the bias, none for negative ones."""
        assert negative is not None
        per_unit = relevance / stabilized(z - negative, self.stabilizer)
        return per_unit, torch.zeros_like(per_unit)


class _LayerRule(Hook):
    """A rule of captum at a layer that is not linear, or captum's identity rule."""

    def __init__(self, composite: CaptumRules, rule: PropagationRule, name: str) -> None:
        super().__init__()
        self.composite, self.rule, self.name = composite, rule, name

    def copy(self) -> _LayerRule:
        """The same rule."""
        return type(self)(self.composite, self.rule, self.name)

    def pre_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keeps the hook alive while it is registered."""

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Register on ``module`` and return the handles."""
        around = interpose(module, lambda call_next, *args, **kwargs: self._around(module, call_next, args, kwargs))
        return RemovableHandleList([RemovableHandle(self), module.register_forward_pre_hook(self.pre_forward), around])

    def _around(self, module: nn.Module, call_next: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not (torch.is_grad_enabled() and any(value.requires_grad for value in given)):
            return call_next(*args, **kwargs)
        self.composite.applied.append((self.name, module, self.rule))
        way = _identity if isinstance(self.rule, IdentityRule) else share
        epsilon = self.rule.STABILITY_FACTOR
        return RelevanceCall(call_next, args, kwargs, way, self.composite.flowing, epsilon).run()


def _identity(call: RelevanceCall, operands: tuple[Tensor, ...], relevance: Tensor) -> Signals:
    """All to the first operand."""
    return [relevance, *[None] * (len(operands) - 1)]
