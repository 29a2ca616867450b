"""Composites: which trainable rule goes to which layer, registered by name with zennit."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock, get_ident
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._compat import Canonizer, Hook, LayerMapComposite, RemovableHandle, RemovableHandleList
from ..core import fingerprint
from ..core.coverage import Coverage, LinearWork, unreached_nodes, why_unreached
from ..core.dependence import Inputs
from ..core.modules import modules_of
from ..core.names import did_you_mean
from ..core.plain_copies import plain_copies
from ..core.scalars import plain_options
from ..core.site_functions import ACTIVATION_TYPES, POOLING_TYPES
from ..core.sites import Site, SiteTracker
from ..core.streams import Streams, other_classes
from ..errors import RuleError
from ..gates import STARTS, gate_class
from ..rules.activation import LearnedActivation
from ..rules.pooling import LearnedMaxPool, PoolGate
from ..ruleset import RuleSet

POOLINGS = ("exact", "soft")

_registering = RLock()
"""One thread at a time: whether a composite is free is asked and answered in one go."""


class LearnedComposite(LayerMapComposite):
    """A gate at every activation, starting at a textbook rule.

    A composite is used like any of zennit's: ``with composite.context(model): ...``. Its parameters live in
    ``composite.rules``; without ``rules`` they are made as the first forward pass meets the sites, for each model that
    it is registered on anew, and ``composite.rules`` are those of the last one.

    Args:
        gate: Name or class of the gates.
        start: Rule they start at.
        pooling: ``"exact"`` leaves max-pools their own gradient, ``"soft"`` puts a `LearnedMaxPool` there.
        gate_options: Further arguments of the gates.
        rule_options: Options of the composite's other rules, see its class; `default_options` has their defaults.
        per_sample: Each sample of the batch gets its own parameters.
        rules: A `RuleSet` (or the path of one) to propagate by; the configuration above is then the rule set's.
        layer_map: Entries that take precedence, as in zennit: ``[(types, hook), ...]``.
        canonizers: Zennit canonizers, applied before the rules.

    Raises:
        RuleError: For unknown names.
    """

    name: ClassVar[str] = ""
    default_start: ClassVar[str] = "gradient"
    default_gate: ClassVar[str | type] = "channel"
    default_rules: ClassVar[Any] = None
    default_options: ClassVar[Mapping[str, Any]] = {}
    linearised: ClassVar[bool] = True
    """Whether gradients of the rules may come from one linearised forward pass (see `tangent`)."""
    starts_with_output: ClassVar[bool] = False
    """Whether `start_signal` depends on the output: what flows backwards is relevance, not a gradient."""
    ends_with_input: ClassVar[bool] = False
    """Whether `finish` depends on the input: what a plain gradient gives is not the attribution yet."""
    needs_coverage: ClassVar[bool] = False
    """Whether maps are wrong where a function has no rule, so that building rules must warn of it."""

    def __init__(
        self,
        gate: str | type | None = None,
        start: str | None = None,
        pooling: str = "exact",
        *,
        gate_options: Mapping[str, Any] | None = None,
        rule_options: Mapping[str, Any] | None = None,
        per_sample: bool = False,
        rules: RuleSet | str | Path | None = None,
        layer_map: list[Any] | None = None,
        canonizers: list[Any] | None = None,
    ) -> None:
        self.unverified = rules is None or not isinstance(rules, RuleSet)  # not yet checked against a model's weights
        self._verified: weakref.ref[nn.Module] | None = None
        self._thread = 0
        rules = self.default_rules if rules is None else rules
        # For composites that are given no rules: each model gets its own.
        self._rules_by_model: weakref.WeakKeyDictionary[nn.Module, RuleSet] | None = None
        if rules is None:
            self._rules_by_model = weakref.WeakKeyDictionary()
            rules = self._open_rules(gate, start, pooling, gate_options, rule_options, per_sample)
        elif not isinstance(rules, RuleSet):
            rules = RuleSet.load(rules)
        for option, value in (("gate", gate), ("start", start)):
            if value is not None and (getattr(value, "name", "") or value) != rules.config[option]:
                raise RuleError(
                    f"{option}={value!r} was given, but the rule set has {rules.config[option]!r}; leave it out"
                )
        if self.name and rules.composite_name != self.name:
            raise RuleError(
                f"a rule set of the composite {rules.composite_name!r} was given to {type(self).__name__} "
                f"({self.name!r}); use rules.composite()"
            )
        self.rules: RuleSet = rules
        self.streams = Streams(fused=rules.fusion is not None)
        self.tracker = SiteTracker(self._hook_functional)
        self.tracker.is_ours = self._leaves_functions
        self.functional_hooks: weakref.WeakSet[Hook] = weakref.WeakSet()
        self.prepare()
        super().__init__(
            layer_map=[*(layer_map or []), *self.templates()],
            canonizers=[*(canonizers or []), self.tracker, *self.around()],
        )

    def prepare(self) -> None:
        """Set up what a subclass needs of its own; its rules, streams and tracker are there."""

    def around(self) -> list[Canonizer]:
        """Canonizers of the composite's own, applied after the tracker: what they put around the model is outermost."""
        return []

    def templates(self) -> list[tuple[tuple[type, ...], Hook]]:
        """Which hook goes to which types of modules; the first match counts."""
        pools = [(POOLING_TYPES, LearnedMaxPool(self))] if self.rules.config["pooling"] == "soft" else []
        return [(ACTIVATION_TYPES, LearnedActivation(self)), *pools]

    @classmethod
    def make_gate(cls, config: Mapping[str, Any], site: Site, samples: int | None) -> nn.Module:
        """The gate of a site, with its parameters at their start.

        Args:
            config: Configuration of the rule set.
            site: The site; its shape decides those of the parameters.
            samples: None shares the parameters over samples; a number gives each its own.

        Raises:
            RuleError: For options that the gate does not take.
        """
        if site.kind == "pooling":
            return PoolGate(samples=samples)
        known, options = gate_class(config["gate"]), config.get("gate_options", {})
        try:
            return known(site.shape, start=config["start"], samples=samples, channel_dim=site.channel_dim, **options)
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in options:
                raise RuleError(f"{known.__name__} does not take gate_options={options}: {error}") from error
            raise RuleError(f"{known.__name__} does not take {unknown[1]}: gate_options={options}") from error

    @classmethod
    def checked_options(cls, rule_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """The composite's own options, complete and in plain types.

        Raises:
            RuleError: For an option that it does not have.
        """
        if rule_options is not None and not isinstance(rule_options, Mapping):
            raise RuleError(f"rule_options must be a mapping such as {{'gamma': 0.25}}, got {rule_options!r}")
        given = plain_options(rule_options) or {}
        for option in given.keys() - cls.default_options.keys():
            known = ", ".join(cls.default_options) or "none"
            hint = did_you_mean(option, cls.default_options)
            raise RuleError(f"{cls.__name__} has no rule option {option!r}; it has: {known}{hint}")
        return {**cls.default_options, **given}

    @classmethod
    def unreached(cls, output: Any, inputs: Inputs = None) -> dict[str, int]:
        """Number of autograd nodes by name, from inputs to an output, that should have a rule and have none.

        Args:
            output: What the model returned, with its graph.
            inputs: What is explained; None: whatever leaf of the graph is no parameter.
        """
        return unreached_nodes(output)

    @classmethod
    def work(cls, output: Any, inputs: Inputs = None) -> LinearWork:
        """Counts the multiply-adds of linear functions, where these need a rule."""
        return LinearWork()

    @classmethod
    def why_unreached(cls, node: str) -> str:
        """Returns the reason why such a node has no rule."""
        return why_unreached(node)

    @classmethod
    def reviewed(cls, model: nn.Module, coverage: Coverage) -> Coverage:
        """The composite's last word on its coverage of a model: it may know better, or warn."""
        return coverage

    def start_signal(self, output: Tensor, seed: Tensor) -> Tensor:
        """What the backward pass starts with, so that positive attributions speak for ``sum(output * seed)``."""
        return seed

    def finish(self, maps: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns attributions, from what arrived at the leaves."""
        return maps

    def attribute(
        self,
        output: Tensor,
        leaves: tuple[Tensor, ...],
        seed: Tensor,
        *,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> tuple[Tensor, ...]:
        """Returns signed attributions of ``sum(output * seed)`` to the leaves, with every stream the rules ask for.

        The composite was registered on the model during the forward pass, and is still active.

        Args:
            output: What the model returned for the leaves; ``(B, classes)`` where there is a contrast stream.
            leaves: Inputs that require gradients.
            seed: Signal at the output, in its shape.
            create_graph: Make the result differentiable in the parameters of the rules.
            retain_graph: Keep the forward graph, for a further call; ``create_graph`` by default.

        Raises:
            RuleError: For a contrast stream, if the output has no other classes.
        """
        streams, rules = self.streams, self.rules
        fusion = rules.fusion
        start = self.start_signal(output, seed)
        with streams.passes(() if fusion is None else fusion.names) as arrived, torch.enable_grad():
            if rules.contrast:
                with streams.other_classes():
                    torch.autograd.grad(
                        output, leaves, self.start_signal(output, other_classes(output, seed)),
                        retain_graph=True, create_graph=create_graph, allow_unused=True,
                    )  # fmt: skip
            maps = torch.autograd.grad(
                output, leaves, start, retain_graph=retain_graph, create_graph=create_graph, materialize_grads=True
            )
        with torch.set_grad_enabled(create_graph):
            maps = self.finish(maps, leaves)
            if fusion is None:
                return maps
            fused = fusion(maps, arrived)
        return fused if create_graph else tuple(part.detach() for part in fused)

    def _open_rules(
        self,
        gate: Any,
        start: str | None,
        pooling: str,
        gate_options: Mapping[str, Any] | None,
        rule_options: Mapping[str, Any] | None,
        per_sample: bool,
    ) -> RuleSet:
        gate = self.default_gate if gate is None else gate
        start = self.default_start if start is None else start
        known = gate_class(gate)
        if start not in STARTS:
            raise RuleError(f"unknown start {start!r}; choose one of {', '.join(STARTS)}{did_you_mean(start, STARTS)}")
        if pooling not in POOLINGS:
            hint = did_you_mean(pooling, POOLINGS)
            raise RuleError(f"unknown pooling {pooling!r}; choose one of {', '.join(POOLINGS)}{hint}")
        config = {
            "gate": known.name or known,
            "start": start,
            "pooling": pooling,
            "gate_options": dict(gate_options or {}),
            "per_sample": per_sample,
        }
        options = self.checked_options(rule_options)
        return RuleSet(type(self), {**config, **({"rule_options": options} if options else {})})

    def parameters(self) -> list[nn.Parameter]:
        """The rule set's parameters (empty before the first forward pass if no rule set was given)."""
        return self.rules.parameters()

    def register(self, module: nn.Module) -> None:
        """Register on a model; undone by ``remove()``, and at once if something fails on the way.

        Raises:
            RuleError: If the rules belong to another model, where rules that came from a file are checked against its
                weights too; or if another thread has registered the composite.
        """
        with _registering:
            if self.handles and self._thread != get_ident():
                raise RuleError(
                    f"this {type(self).__name__} is registered on a model by another thread; give each thread one of "
                    "its own, for rules that exist: rules.composite()"
                )
            self._thread = get_ident()
            try:
                self._take_rules(module)
                super().register(module)
            except BaseException:
                self.remove()
                raise

    def _take_rules(self, module: nn.Module) -> None:
        """Check the rules against a model; a composite that was given none has some for each model."""
        if self._verified is not None and self._verified() is module:
            return
        if self._rules_by_model is not None:
            self.rules = self._rules_for(module, self._rules_by_model)
        self.rules.check_model(module, check_weights=self.unverified)
        self._verified = weakref.ref(module)

    def _rules_for(self, module: nn.Module, opened: MutableMapping[nn.Module, RuleSet]) -> RuleSet:
        if module in opened:
            return opened[module]
        rules = RuleSet(type(self), self.rules.config) if self.rules.sites else self.rules
        for other in [one for one, of in opened.items() if of is rules]:  # met no site there
            del opened[other]
        rules.architecture = fingerprint.architecture(module)
        opened[module] = rules
        return rules

    @contextmanager
    def recorded(self, model: nn.Module) -> Iterator[LearnedComposite]:
        """Hook the model for one forward pass, which goes on propagating by the rules when the model is free again.

        Raises:
            RuleError: If the model is one that `register` refuses.
        """
        hooks: list[Hook] = []
        with self.context(model):
            yield self
            hooks = list(self.hook_refs)
        for hook in hooks:
            hook.active = True

    def mapping(self, ctx: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """Returns the hook of a module; the model itself gets the switch of its functional calls."""
        hook = super().mapping(ctx, name, module)
        return _FunctionalSwitch(self) if hook is None and not name else hook

    def gate_at(self, module: nn.Module, kind: str, z: Tensor) -> tuple[str, nn.Module]:
        """Returns the site and the gate of the call being made (see `hook.GateProvider`)."""
        name = self.tracker.call_site(module)
        return name, self.rules.gate_for(name, kind, type(module).__name__, z, self.tracker.channel_dim(z))

    def skip(self, module: nn.Module) -> None:
        """Count a call without a gate (see `hook.GateProvider`)."""
        self.tracker.call_site(module)

    @staticmethod
    def _leaves_functions(hook: Hook) -> bool:
        """Whether a hook leaves the functions that its module calls to the composite that it belongs to.

        Hooks of another composite of this package are those of another thread; they do nothing in this one.
        """
        owners = getattr(hook, "gate", None), getattr(hook, "composite", None)
        return any(isinstance(owner, LearnedComposite) for owner in owners)

    def _hook_functional(self, stand_in: nn.Module, path: str) -> RemovableHandleList | None:
        template = self.module_map({}, path, stand_in)
        if template is None:
            return None
        hook: Hook = template.copy()
        self.functional_hooks.add(hook)
        return hook.register(stand_in)


class _FunctionalSwitch(Hook):
    """Passes ``active`` on to the hooks of functional calls.

    Those are made during the forward pass, when the composite around (a ``MixedComposite``, say) has already listed the
    hooks that its ``inactive()`` switches.
    """

    def __init__(self, composite: LearnedComposite) -> None:
        self.composite = composite
        super().__init__()

    @property
    def active(self) -> bool:
        """Whether functional calls propagate by their rules."""
        return self._active

    @active.setter
    def active(self, value: bool) -> None:
        self._active = value
        for hook in self.composite.functional_hooks:
            hook.active = value

    def copy(self) -> _FunctionalSwitch:
        """A switch of the same hooks."""
        return type(self)(self.composite)

    def pre_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keeps the switch alive while it is registered."""

    def remove(self) -> None:
        """Ends the rules: passes recorded so far propagate by the plain gradient from here on."""
        super().remove()
        self.active = False

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Register on the model and return the handles."""
        hooked = module.register_forward_pre_hook(self.pre_forward)
        # All modules: a layer map may put rules of zennit where none of ours are.
        copies = [plain_copies(each) for each in modules_of(module)]
        return RemovableHandleList([RemovableHandle(self), hooked, *copies])
