"""LearnedEpsilonGammaBox: layer-wise relevance propagation with trainable rules, for whole models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .._compat import DisableTorchFunction, Hook
from ..core.batch_norm import BatchNorm
from ..core.coverage import LinearWork, check_reach
from ..core.dependence import Inputs, current, depends_on_input
from ..core.hook import SiteHook
from ..core.linear_calls import function_name, is_linear_function, linear_operands
from ..core.linear_map import ConvolutionMap, LinearOperands
from ..core.registry import register_composite
from ..core.site_functions import ACTIVATION_TYPES
from ..core.sites import Site, recorder
from ..errors import RuleError
from ..gates import Weight
from ..linear_canonizer import LINEAR_TYPES
from ..rules.activation import ActivationCall, LearnedActivation
from ..rules.contributions import LINEAR_RULES, BoxGate
from ..rules.feature_pass import Index
from ..rules.linear import GatedLinear, LinearCall, call_by_rule
from ..rules.relevance import PRODUCTS, relevance_call
from ..rules.relevance_nodes import unkept_nodes
from ..rules.steps import steps_of
from ..rules.work import linear_work
from ..ruleset import RuleSet
from .base import LearnedComposite

FIRSTS = ("box", "conv")
_LINEAR_NODES = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Embedding")
"""Autograd nodes of linear layers without a rule of ours."""


class PassCall(ActivationCall):
    """A call of an activation that passes relevance on, weighed by a gate."""

    def signal(self, saved: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Returns ``(a + b) * g``."""
        if (found := self.in_one_pass(saved, g)) is not None:
            return found
        weight = _total_weight(
            *(self.gate(saved[0], g, self.contrast()) if self.has_contrast else self.gate(saved[0], g))
        )
        if isinstance(weight, float):
            return g if weight == 1.0 else g * weight
        return g * weight.to(g.dtype)

    def factor(self, saved: tuple[Tensor, ...], index: Index) -> None:
        """Returns None: relevance passes unchanged."""


def _total_weight(a: Weight, b: Weight) -> Weight:
    return a if isinstance(b, float) and b == 0.0 else a + b


class LearnedPass(LearnedActivation):
    """Zennit rule: relevance passes an activation unchanged but for a gate; at its start zennit's ``Pass``.

    Args:
        gate: A `Gate`, or a provider that finds one per site. Both of its weights weigh relevance.
    """

    call_type: ClassVar[type[ActivationCall]] = PassCall


class _ClaimedModule(SiteHook):
    """Marks a module whose linear function has a rule of the composite, so that no later one of a mix takes it."""

    def applies(self, module: nn.Module) -> bool:
        """The work is done where the function is called."""
        return False


class LearnedEpsilonGammaBox(LearnedComposite):
    """LRP with trainable rules at linear layers, and gates at activations; "learned_epsilon_gamma_box" in zennit.

    What flows backwards is relevance. Linear layers have the rules of `linear`; activations pass relevance, weighed by
    a gate (``gate="none"``: unchanged); sums, products, averages and normalisations, whether modules or functions,
    share it out as in `relevance`, so that skip connections need no canonizer; a batch norm behind a linear layer
    counts to that layer. Start the backward pass with the output itself, as `attribute` does: with epsilon at the last
    layer, positive relevance then speaks for the target whatever the output's sign. While the rules are registered,
    weights of linear layers get no gradient, and reentrant activation checkpointing gives wrong relevance.

    With ``gamma=0.25, low=..., high=...`` it starts as zennit's ``EpsilonGammaBox``. The default start is epsilon
    at dense layers and z+ at convolutions, with the box rule at the first.

    Args:
        low: Lowest possible input, a number, one per channel, or a tensor like the input; this and what follows as in
            zennit's ``EpsilonGammaBox``, and short for the rule options of that name.
        high: Highest possible input.
        epsilon: Of the epsilon rule.
        gamma: Of convolutions. A finite one is that of zennit's gamma rule (``negative="mirrored"``).
        stabilizer: Epsilon of the denominators of all other rules.
        zero_params: ``"bias"`` lets biases take no relevance.
        first_map: Entries as in ``layer_map`` for the first module that fits one.
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

    def __init__(
        self,
        gate: str | type | None = None,
        start: str | None = None,
        pooling: str = "exact",
        *,
        low: Any = None,
        high: Any = None,
        epsilon: float | None = None,
        gamma: float | None = None,
        stabilizer: float | None = None,
        zero_params: str | list[str] | None = None,
        first_map: list[Any] | None = None,
        gate_options: Mapping[str, Any] | None = None,
        rule_options: Mapping[str, Any] | None = None,
        per_sample: bool = False,
        rules: RuleSet | str | Path | None = None,
        layer_map: list[Any] | None = None,
        canonizers: list[Any] | None = None,
    ) -> None:
        named = {"low": low, "high": high, "epsilon": epsilon, "gamma": gamma, "stabilizer": stabilizer}
        own = {name: value for name, value in named.items() if value is not None}
        if zero_params is not None:
            own["bias"] = _bias_option(zero_params)
        if own and rules is not None:
            raise RuleError(f"{', '.join(own)} were given with a rule set, which has its own; leave them out")
        if rule_options is None or isinstance(rule_options, Mapping):
            rule_options = _merged_options(own, rule_options or {})
        self._first_map = list(first_map or [])
        super().__init__(
            gate, start, pooling, gate_options=gate_options, rule_options=rule_options or None, per_sample=per_sample,
            rules=rules, layer_map=layer_map, canonizers=canonizers,
        )  # fmt: skip

    def mapping(self, ctx: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """Returns the hook of a module; the first that fits ``first_map`` has the one from there."""
        if not ctx.get("first_layer_visited", False):
            for types, hook in self._first_map:
                if isinstance(module, types):
                    ctx["first_layer_visited"] = True
                    found: Hook = hook
                    return found
        return super().mapping(ctx, name, module)

    def prepare(self) -> None:
        """Takes over the calls of functions, and remembers what linear layers made and what was padded."""
        self._linear_outputs: Any = WeakTensorKeyDictionary()
        self._padded: Any = WeakTensorKeyDictionary()
        self._flow = SiteHook(self)
        self.functional_hooks.add(self._flow)
        self.tracker.on_call = self._call
        self.tracker.on_output = self._check_reach

    def _check_reach(self, output: Any) -> None:
        """Say once for rules that grow as they are used what they do not reach; built ones have said it."""
        root = None if self.tracker.root is None else self.tracker.root()
        if root is None or self.rules.reach_checked or self.rules.closed or not torch.is_grad_enabled():
            return
        nodes, work = self.unreached(output, current()), self.work(output, current())
        self.rules.reach_checked = True
        check_reach(root, self.name or type(self).__name__, nodes, work, self.why_unreached)

    def _open_rules(self, gate: Any, start: str | None, *rest: Any) -> RuleSet:
        if start not in (None, "gradient"):
            raise RuleError(
                f"start={start!r}: gates of {type(self).__name__} start by passing relevance on, which is 'gradient'; "
                "where its linear rules start is said by rule_options"
            )
        return super()._open_rules(gate, start, *rest)

    @classmethod
    def checked_options(cls, rule_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the options, checked by making a gate of each kind."""
        options = super().checked_options(rule_options)
        for name, known in (("conv", LINEAR_RULES), ("dense", LINEAR_RULES), ("first", FIRSTS)):
            if options[name] not in known:
                raise RuleError(f"rule option {name}={options[name]!r}: choose one of {', '.join(known)}")
        for name in ("learn_bounds", "merge"):
            if not isinstance(options[name], bool):
                raise RuleError(f"rule option {name} must be True or False, got {options[name]!r}")
        for name in ("low", "high"):
            if isinstance(options[name], Tensor):
                options[name] = _per_channel(name, options[name].detach())
        if (options["low"] is None) != (options["high"] is None):
            raise RuleError("rule options low and high come together: the bounds of the box rule")
        channels = len(options["low"]) if isinstance(options["low"], (list, tuple)) else 1
        for kind, function in (("linear", "Conv2d"), ("linear", "Linear"), ("first", "Conv2d")):
            # Options out of range are refused now, not at the first call.
            cls.make_gate({"rule_options": options}, Site("", kind, function, (1, channels), 1), None)
        return options

    @classmethod
    def make_gate(cls, config: Mapping[str, Any], site: Site, samples: int | None) -> nn.Module:
        """Makes the gate of a linear layer by its rule, that of the first layer, or that of an activation."""
        if site.kind == "first":
            return _box_gate(config["rule_options"], site, samples)
        if site.kind != "linear":
            return super().make_gate(config, site, samples)
        options = config["rule_options"]
        rule = options["conv" if site.function.startswith("Conv") else "dense"]
        own = {"epsilon": ("epsilon",), "gamma": ("gamma", "negative"), "alpha_beta": ("beta",)}[rule]
        shared = ("per", "bias", "split", "stabilizer")
        given = {name: options[name] for name in (*own, *shared)}
        return LINEAR_RULES[rule](site.shape, samples=samples, channel_dim=site.channel_dim, **given)

    def templates(self) -> list[tuple[tuple[type, ...], Hook]]:
        """Returns the hooks: linear modules are claimed, activations pass relevance on."""
        pools = super().templates()[1:]
        return [(LINEAR_TYPES, _ClaimedModule(self)), (ACTIVATION_TYPES, LearnedPass(self)), *pools]

    def register(self, module: nn.Module) -> None:
        """Registers the composite on a model, and lets relevance flow through functions."""
        self._flow.active = True
        super().register(module)

    @classmethod
    def unreached(cls, output: Any, inputs: Inputs = None) -> dict[str, int]:
        """Number of autograd nodes by name that relevance would pass by the plain gradient."""
        return unkept_nodes(output, inputs)

    @classmethod
    def work(cls, output: Any, inputs: Inputs = None) -> LinearWork:
        """Counts the multiply-adds of linear functions by site, and of those without a rule."""
        return linear_work(output, inputs)

    @classmethod
    def why_unreached(cls, node: str) -> str:
        """Returns the reason why an autograd node of `unreached` has no rule; it is the same for all."""
        return "out of reach: relevance passes it by the plain gradient, which does not conserve it"

    def start_signal(self, output: Tensor, seed: Tensor) -> Tensor:
        """Returns the relevance of the outputs: the outputs themselves, where the seed is 1."""
        return seed * output

    def linear_gate_at(self, site: str, call: LinearCall, x: Tensor, out: Tensor) -> nn.Module:
        """The gate of the call of a linear layer with input ``x`` and output ``out``."""
        options, linear = self.rules.config["rule_options"], call.map
        if options["first"] != "box" or not isinstance(linear, ConvolutionMap) or not self._is_first(x):
            return self.rules.gate_for(site, "linear", linear.name, out, linear.channel_dim(out))
        known = any(site == one.name for one in self.rules.sites)
        gate = self.rules.gate_for(site, "first", linear.name, x, 1)
        if not known and options["low"] is None and isinstance(gate, BoxGate):
            gate.read_bounds(linear.own(x))
        return gate

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
        parts = steps_of(func, args, kwargs) if torch.is_grad_enabled() else None
        if parts is not None:
            with self.tracker.written_out():
                return parts()
        if is_linear_function(func):
            return self._linear(func, args, kwargs)
        if func is F.batch_norm and options["merge"]:
            merged = self._merged(BatchNorm(*args, **kwargs))
            if merged is not None:
                return merged
        if func is F.pad:
            return self._pad(args, kwargs)
        return self._relevance(func, args, kwargs)

    def _relevance(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function with a fixed rule."""
        stabilizer = self.rules.config["rule_options"]["stabilizer"]
        return relevance_call(func, args, kwargs, lambda: self._flow.active, stabilizer)

    def _linear(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A linear function, which is a site if one of its operands depends on the input."""
        site = self.tracker.linear_call(function_name(func))  # each call counts, whatever it depends on today
        with DisableTorchFunction():
            operands = linear_operands(func, args, kwargs, depends_on_input) if torch.is_grad_enabled() else None
        if operands is None or self._is_product(site, func):
            return self._relevance(func, args, kwargs)
        operands = self._with_padding(operands)
        call, out = call_by_rule(self._flow, operands, func, args, kwargs)
        call.name, call.gate = site, self.linear_gate_at(site, call, operands.x, out)
        self._linear_outputs[out] = call, operands.x
        listener = recorder.get()
        if listener is not None:
            listener.site(call, operands.x, out)
        return out

    def _is_product(self, site: str, func: Any) -> bool:
        """Whether a rule set knows this call as a product of two signals, one of which is no input today."""
        return self.rules.closed and func in PRODUCTS and not self.rules.has_site(site)

    def _pad(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pads, and remembers it: the zeros are no input of the layer behind it."""
        with DisableTorchFunction():
            out = F.pad(*args, **kwargs)
        given = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
        if given.get("mode", "constant") == "constant" and not given.get("value"):
            self._padded[out] = list(given["pad"])
        return out

    def _with_padding(self, operands: LinearOperands) -> LinearOperands:
        """The call, if its input was padded with zeros just before."""
        pads = self._padded.get(operands.x)
        if pads is None or not isinstance(operands.map, ConvolutionMap) or operands.map.padding is not None:
            return operands
        return replace(operands, map=replace(operands.map, padding=pads))

    def _merged(self, norm: BatchNorm) -> Tensor | None:
        """The norm's value as that of the linear layer before it; None if there is none, or something lies between."""
        call, x = self._linear_outputs.get(norm.input, (None, None))
        if call is None or not norm.is_line or call.overwritten:
            return None
        if norm.input.ndim < 2 or call.map.channel_dim(norm.input) != 1:  # the norm's channels are not the layer's
            return None
        scale, shift = norm.scale, norm.shift
        with DisableTorchFunction():
            merged: Tensor = GatedLinear.apply(x, call.behind(scale, shift, norm.value(norm.input.detach())))
        return merged


def _bias_option(zero_params: Any) -> str:
    """The option ``bias`` that stands for zennit's ``zero_params``."""
    if zero_params in ("bias", ["bias"], ("bias",)):
        return "zero"
    if zero_params in ([], ()):
        return "shared"
    raise RuleError(f"zero_params={zero_params!r}: only biases can be left out, 'bias'")


def _merged_options(own: dict[str, Any], rule_options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of zennit's composite as rule options; a finite gamma is that of zennit's gamma rule."""
    both = own.keys() & rule_options.keys()
    if both:
        raise RuleError(f"{', '.join(sorted(both))} is given twice, as an argument and in rule_options")
    if math.isfinite(own.get("gamma", math.inf)) and "negative" not in rule_options:
        own = {**own, "negative": "mirrored"}
    return {**own, **rule_options}


def _per_channel(name: str, bound: Tensor) -> list[float]:
    """A bound of the box as numbers per channel, from a tensor ``(C,)`` or one that broadcasts to the input."""
    if bound.ndim > 1:
        rest = [dim for dim in range(bound.ndim) if dim != 1]
        low, high = bound.amin(rest), bound.amax(rest)
        if not torch.equal(low, high):
            raise RuleError(
                f"{name} of shape {tuple(bound.shape)} differs within a channel; give a number, or one per channel"
            )
        bound = low
    values: list[float] = bound.flatten().tolist()
    return values


def _box_gate(options: Mapping[str, Any], site: Site, samples: int | None) -> BoxGate:
    given = {name: options[name] for name in ("strength", "learn_bounds", "stabilizer")}
    if options["low"] is not None:
        given |= {"low": options["low"], "high": options["high"]}
    return BoxGate(site.shape, samples=samples, channel_dim=site.channel_dim, **given)


register_composite(LearnedEpsilonGammaBox.name, LearnedEpsilonGammaBox)
