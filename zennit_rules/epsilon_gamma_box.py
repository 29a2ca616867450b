"""LearnedEpsilonGammaBox: layer-wise relevance propagation with trainable rules, for whole models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ._compat import DisableTorchFunction, Hook
from .activation import ActivationCall, LearnedActivation
from .composites import LearnedComposite
from .contributions import LINEAR_RULES, BoxGate
from .errors import RuleError
from .gates import Weight
from .linear import GatedLinear, LinearCall, LinearRule
from .linear_map import LINEAR_TYPES
from .registry import register_composite
from .relevance import relevance_call, unkept_nodes
from .ruleset import RuleSet
from .sites import ACTIVATION_TYPES, Site

FIRSTS = ("box", "conv")
_LINEAR_NODES = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Embedding")
"""Autograd nodes of linear layers without a rule of ours."""


class PassCall(ActivationCall):
    """A call of an activation that passes relevance on, weighed by a gate."""

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """``(a + b) * g``."""
        weight = _sum(*(self.gate(saved[0], g, self.contrast()) if self.has_contrast else self.gate(saved[0], g)))
        if isinstance(weight, float):
            return g if weight == 1.0 else g * weight
        return g * weight.to(g.dtype)


def _sum(a: Weight, b: Weight) -> Weight:
    return a if isinstance(b, float) and b == 0.0 else a + b


class LearnedPass(LearnedActivation):
    """Zennit rule: relevance passes an activation unchanged but for a gate; at its start zennit's ``Pass``.

    Args:
        gate: See `LearnedActivation`. Both of its weights weigh relevance.
    """

    call_type: ClassVar[type[ActivationCall]] = PassCall


class LearnedEpsilonGammaBox(LearnedComposite):
    """LRP with trainable rules at linear layers, and gates at activations; "learned_epsilon_gamma_box" in zennit.

    What flows backwards is relevance. Linear layers have the rules of `linear`; activations pass relevance, weighed by
    a gate (``gate="none"``: unchanged); sums, products, averages and normalisations, whether modules or functions,
    share it out as in `relevance`, so that skip connections need no canonizer; a batch norm behind a linear layer
    counts to that layer. Start the backward pass with the output itself, as `attribute` does: with epsilon at the last
    layer, positive relevance then speaks for the target whatever the output's sign. While the rules are registered,
    weights of linear layers get no gradient, and reentrant activation checkpointing gives wrong relevance.

    With ``rule_options={"conv": "gamma", "negative": "mirrored", "gamma": 0.25, "low": ..., "high": ...}`` it starts as
    zennit's ``EpsilonGammaBox``. The default start is epsilon at dense layers and z+ at convolutions, with the box rule
    at the first.

    Args:
        rule_options: ``conv`` and ``dense``: rules of convolutions and of ``nn.Linear``, of ``"epsilon"``, ``"gamma"``,
            ``"alpha_beta"``; ``first``: that of the first layer if it is a convolution, ``"box"`` or again ``"conv"``.
            ``gamma`` (up to infinity, z+), ``negative``, ``beta``, ``epsilon``: where the rules start, see
            `contributions`. ``low``, ``high``: bounds of the box, numbers or one per channel; None reads them from the
            inputs that the rule set is built with. ``strength``: share of the box rule against z+ in the first
            layer; ``learn_bounds``: whether bounds are trained. ``per``: ``"channel"`` or ``"layer"``.
            ``bias``, ``split``, ``stabilizer``: see `contributions.ContributionGate`. ``merge``: whether batch norms
            count to the linear layers before them.

    Raises:
        RuleError: For unknown options, or gates that start at another rule than passing relevance on (``"gradient"``).
    """

    name = "learned_epsilon_gamma_box"
    default_gate = "none"
    linearised = False
    starts_with_output = True
    needs_coverage = True
    default_options: ClassVar[Mapping[str, Any]] = {
        "conv": "gamma",
        "dense": "epsilon",
        "first": "box",
        "gamma": math.inf,
        "negative": "z+",
        "beta": 0.0,
        "epsilon": 1e-6,
        "low": None,
        "high": None,
        "strength": 1.0,
        "learn_bounds": False,
        "per": "channel",
        "bias": "shared",
        "split": "contributions",
        "stabilizer": 1e-6,
        "merge": True,
    }

    def prepare(self) -> None:
        """See `LearnedComposite.prepare`."""
        self._made: Any = WeakTensorKeyDictionary()
        self._flow = Hook()
        self.functional_hooks.add(self._flow)
        self.tracker.on_call = self._call

    def _open_rules(self, gate: Any, start: str | None, *rest: Any) -> RuleSet:
        if start not in (None, "gradient"):
            raise RuleError(
                f"start={start!r}: gates of {type(self).__name__} start by passing relevance on, which is 'gradient'; "
                "where its linear rules start is said by rule_options"
            )
        return super()._open_rules(gate, start, *rest)

    @classmethod
    def checked_options(cls, rule_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """See `LearnedComposite.checked_options`."""
        options = super().checked_options(rule_options)
        for name, known in (("conv", LINEAR_RULES), ("dense", LINEAR_RULES), ("first", FIRSTS)):
            if options[name] not in known:
                raise RuleError(f"rule option {name}={options[name]!r}: choose one of {', '.join(known)}")
        for name in ("learn_bounds", "merge"):
            if not isinstance(options[name], bool):
                raise RuleError(f"rule option {name} must be True or False, got {options[name]!r}")
        for name in ("low", "high"):
            if isinstance(options[name], Tensor):
                options[name] = options[name].detach().flatten().tolist()
        if (options["low"] is None) != (options["high"] is None):
            raise RuleError("rule options low and high come together: the bounds of the box rule")
        channels = len(options["low"]) if isinstance(options["low"], (list, tuple)) else 1
        for kind, function in (("linear", "Conv2d"), ("linear", "Linear"), ("first", "Conv2d")):
            # Options out of range are refused now, not at the first call.
            cls.make_gate({"rule_options": options}, Site("", kind, function, (1, channels), 1), None)
        return options

    @classmethod
    def make_gate(cls, config: Mapping[str, Any], site: Site, samples: int | None) -> nn.Module:
        """See `LearnedComposite.make_gate`."""
        if site.kind == "first":
            return _box(config["rule_options"], site, samples)
        if site.kind != "linear":
            return super().make_gate(config, site, samples)
        options = config["rule_options"]
        rule = options["dense" if site.function == "Linear" else "conv"]
        own = {"epsilon": ("epsilon",), "gamma": ("gamma", "negative"), "alpha_beta": ("beta",)}[rule]
        shared = ("per", "bias", "split", "stabilizer")
        given = {name: options[name] for name in (*own, *shared)}
        return LINEAR_RULES[rule](site.shape, samples=samples, channel_dim=site.channel_dim, **given)

    def templates(self) -> list[tuple[tuple[type, ...], Hook]]:
        """See `LearnedComposite.templates`."""
        pools = super().templates()[1:]
        return [(LINEAR_TYPES, LinearRule(gate=self)), (ACTIVATION_TYPES, LearnedPass(self)), *pools]

    def register(self, module: nn.Module) -> None:
        """See `LearnedComposite.register`."""
        self._flow.active = True
        super().register(module)

    @classmethod
    def unreached(cls, output: Any) -> dict[str, int]:
        """Number of autograd nodes by name that relevance would pass by the plain gradient."""
        return unkept_nodes(output)

    @classmethod
    def why_unreached(cls, node: str) -> str:
        """See `LearnedComposite.why_unreached`."""
        return "out of reach: relevance passes it by the plain gradient, which does not conserve it"

    def start_signal(self, output: Tensor, seed: Tensor) -> Tensor:
        """Relevance of the outputs: the outputs themselves, where the seed is 1."""
        return seed * output

    def linear_gate_at(self, module: nn.Module, call: LinearCall, x: Tensor, out: Tensor) -> tuple[str, nn.Module]:
        """Site and gate of the call of a linear layer (see `linear.LinearProvider`)."""
        site = self.tracker.call_site(module)
        function, options = call.map.kind.__name__, self.rules.config["rule_options"]
        self._made[out] = call, x
        if call.map.kind is nn.Linear:
            self.tracker.follow_channels(F.linear, out, ())
        if options["first"] != "box" or call.map.kind is nn.Linear or not self._is_first(x):
            return site, self.rules.gate_for(site, "linear", function, out, call.map.channel_dim(out))
        known = any(site == one.name for one in self.rules.sites)
        gate = self.rules.gate_for(site, "first", function, x, 1)
        if not known and options["low"] is None and isinstance(gate, BoxGate):
            gate.read_bounds(x)
        return site, gate

    @staticmethod
    def _is_first(x: Tensor) -> bool:
        """Whether no linear layer precedes."""
        todo, seen = [x.grad_fn], set()
        while todo:
            node: Any = todo.pop()
            if node is None or node in seen:
                continue
            if isinstance(getattr(node, "call", None), LinearCall) or node.name().startswith(_LINEAR_NODES):
                return False
            seen.add(node)
            todo.extend(parent for parent, _ in node.next_functions)
        return True

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function called in the model's forward pass; NotImplemented if relevance passes it as it is."""
        options = self.rules.config["rule_options"]
        if func is F.batch_norm and options["merge"]:
            merged = self._merged(*args, **kwargs)
            if merged is not None:
                return merged
        return relevance_call(func, args, kwargs, lambda: self._flow.active, options["stabilizer"])

    def _merged(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """The norm's value as that of the linear layer before it; None if there is none, or something lies between."""
        call, x = self._made.get(input, (None, None))
        if call is None or training or running_mean is None or running_var is None or call.overwritten:
            return None
        if call.map.channel_dim(input) != 1:  # the norm's channels are not the layer's
            return None
        scale = (running_var + eps).rsqrt() * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - running_mean * scale
        with DisableTorchFunction():
            value = F.batch_norm(input.detach(), running_mean, running_var, weight, bias, False, momentum, eps)
            merged: Tensor = GatedLinear.apply(x, call.behind(scale, shift, value))
        return merged


def _box(options: Mapping[str, Any], site: Site, samples: int | None) -> BoxGate:
    given = {name: options[name] for name in ("strength", "learn_bounds", "stabilizer")}
    if options["low"] is not None:
        given |= {"low": options["low"], "high": options["high"]}
    return BoxGate(site.shape, samples=samples, channel_dim=site.channel_dim, **given)


register_composite(LearnedEpsilonGammaBox.name, LearnedEpsilonGammaBox)
