"""RuleSet: the trainable parameters of one composite on one model, by site; what is trained, saved and shared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ready, rule_document, rule_file
from .core import fingerprint
from .core.buffers import buffers_kept
from .core.coverage import Coverage, check_reach
from .core.fusion import Fusion
from .core.notebook import html_table
from .core.protocols import TrainableComposite
from .core.registry import composite_class, composite_name
from .core.sites import Site
from .errors import RuleError
from .rule_document import FORMAT_VERSION

FUSION = "(fusion)"
"""Stands for a site in the names of the fusion's parameters."""


class RuleSet:
    """The parameters of trainable rules, keyed by site.

    Make one with `RuleSet.build` or `RuleSet.load`. An *open* rule set (as made by a composite that was given none)
    grows a gate at each new site it meets; a *closed* one knows its sites and refuses others.

    Args:
        composite: The composite's class, or its name as in ``zennit.composites.COMPOSITES``.
        config: Its configuration: ``gate``, ``start``, ``pooling``, ``gate_options``, ``rule_options``,
            ``per_sample``.
    """

    def __init__(self, composite: str | type[TrainableComposite], config: Mapping[str, Any] | None = None) -> None:
        self._composite = composite_class(composite) if isinstance(composite, str) else composite
        self.composite_name = composite_name(composite) if isinstance(composite, str) else composite.name
        self.config: dict[str, Any] = dict(config or {})
        self.closed = False
        self.reach_checked = False  # whether somebody has said already which functions have no rule
        self.training: dict[str, Any] = {}
        self.architecture: str | None = None
        self.weights: str | None = None
        self._sites: dict[str, Site] = {}
        self._gates: dict[str, nn.Module] = {}
        self._shared: dict[str, nn.Module] = {}
        self._coverage: Coverage | None = None
        self.fusion: Fusion | None = None

    # -- making ------------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        composite: str = "learned_gradient",
        gate: str | type | None = None,
        start: str | None = None,
        *,
        pooling: str | None = None,
        gate_options: Mapping[str, Any] | None = None,
        rule_options: Mapping[str, Any] | None = None,
        fusion: bool = False,
        per_sample: bool = False,
    ) -> RuleSet:
        """Find the sites of ``model`` by one forward pass and give each a gate at its starting point.

        Args:
            model: The model; it is run once and left as it was.
            example_inputs: What the model takes, batch first: a tensor ``(B, ...)`` or a tuple of arguments.
            composite: Name of a registered composite, or a short one such as ``"lrp"`` (see `registry.SHORT_NAMES`).
            gate: Name or class of a gate; the composite's own choice by default.
            start: ``"gradient"``, ``"deconvnet"`` or ``"guided_backprop"``; the composite's own choice by default.
            pooling: ``"exact"`` leaves max-pools alone; ``"soft"`` gives each a `PoolGate`.
            gate_options: Further arguments of the gate, e.g. ``{"per": "layer"}``.
            rule_options: Options of the composite's other rules, e.g. ``{"gamma": 0.25}``; see the composite.
            fusion: Multiply relevance maps of several depths into the attribution (see `core.fusion.Fusion`).
            per_sample: Give each sample of the batch its own parameters.

        Raises:
            RuleError: If the model cannot be hooked, or no site was reached.
        """
        options: dict[str, Any] = {
            name: value
            for name, value in {
                "gate": gate,
                "start": start,
                "pooling": pooling,
                "gate_options": gate_options,
                "rule_options": rule_options,
                "per_sample": per_sample,
            }.items()
            if value is not None
        }
        instance = composite_class(composite)(**options)
        rules = instance.rules
        args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        if any(isinstance(a, Tensor) and a.numel() == 0 for a in args):
            raise RuleError("example_inputs are empty: the batch needs at least one sample")
        leaves = tuple(_as_leaf(a) for a in args)
        with buffers_kept(model), instance.context(model), torch.enable_grad():
            output = model(*leaves)
            inputs = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad] or [*instance.tracker.embedded]
        rules.close(model, output, inputs)
        if fusion:
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
            rules._fuse(Fusion.choose(rules.sites, tensors)).to(tensors[0].device, _parameter_dtype(tensors[0]))
        return rules

    def _fuse(self, sites: list[str]) -> Fusion:
        self.config["fusion"] = sites
        self.fusion = Fusion(sites)
        return self.fusion

    def close(self, model: nn.Module, output: Any = None, inputs: Iterable[Tensor] | None = None) -> None:
        """Fix the sites met so far as those of ``model``.

        Args:
            model: The model that was run.
            output: Its output with its autograd graph, in which layers that no rule reached are looked for.
            inputs: What is explained; None: whatever leaf of the graph is no parameter.

        Raises:
            RuleError: If there is no site at all, or no linear function has a rule although maps are wrong without.
        """
        inputs = None if inputs is None else tuple(inputs)
        nodes = self._composite.unreached(output, inputs)
        work = self._composite.work(output, inputs)
        coverage = Coverage.of(model, self._sites, self._gates, nodes, self._composite.why_unreached, work)
        self._coverage = self._composite.reviewed(model, coverage)
        if not self._sites:
            raise RuleError(
                f"{type(model).__name__} has no site: its forward pass called no activation that a rule of "
                f"{self.composite_name!r} applies to.\n{self._coverage}"
            )
        if self._composite.needs_coverage and not self.reach_checked:
            check_reach(model, self.composite_name, nodes, work, self._composite.why_unreached)
        self.closed = self.reach_checked = True
        self.architecture = fingerprint.architecture(model)

    def gate_for(self, name: str, kind: str, function: str, z: Tensor, channel_dim: int) -> nn.Module:
        """The gate of a site, made on the first call if the rule set is open.

        Raises:
            RuleError: If the site is unknown to a closed rule set, or its shape does not fit the gate.
        """
        gate = self._gates.get(name)
        if gate is None:
            if self.closed:
                raise RuleError(
                    f"the model called {function} at site {name!r}, which this rule set of {len(self._sites)} sites "
                    "does not have: it was built for another model, input shape or control flow; build it anew"
                )
            site = Site(name, kind, function, tuple(z.shape), channel_dim)
            gate = self._composite.make_gate(self.config, site, self._samples(site))
            self._gates[name] = gate.to(device=z.device, dtype=_parameter_dtype(z))
            self._sites[name] = site
            return self._gates[name]
        shared = self._shared.pop(name, None)
        if shared is not None and z.ndim and getattr(gate, "samples", None) != z.shape[0]:
            gate = self._gates[name] = self._expanded(shared, self._sites[name], z.shape[0])
        self._check_shape(self._sites[name], z, gate)
        reference = next(gate.parameters(), None)
        return gate if reference is None or reference.device == z.device else gate.to(z.device)

    def _samples(self, site: Site) -> int | None:
        return site.shape[0] if self.config.get("per_sample") and site.shape else None

    def _check_shape(self, site: Site, z: Tensor, gate: nn.Module) -> None:
        samples = getattr(gate, "samples", None)
        if samples is not None and samples not in (1, *z.shape[:1]):
            raise RuleError(
                f"site {site.name!r} holds parameters for each of {samples} samples, but got a batch of {z.shape[0]}: "
                "rules learned per sample belong to those samples; build with a shared gate "
                "(channel, quadrant, feature) to use them on others"
            )
        c = site.channel_dim
        whole = getattr(gate, "per_sample", False)
        same = z.ndim == len(site.shape)
        if same and z.ndim > 1:  # else there are no channels: a value per sample, or one for all
            same = tuple(z.shape[1:]) == site.shape[1:] if whole else z.shape[c] == site.shape[c]
        if not same:
            raise RuleError(
                f"site {site.name!r} was built for shape {site.shape} (channels in dimension {c}), "
                f"but got {tuple(z.shape)}"
            )

    # -- using -------------------------------------------------------------------------------------------------------

    def composite(self, canonizers: list[Any] | None = None) -> TrainableComposite:
        """A zennit composite that propagates by these rules, e.g. for ``zennit.attribution.Gradient``."""
        return self._composite(rules=self, canonizers=canonizers)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[TrainableComposite]:
        """Let every gradient of ``model`` be propagated by these rules inside the context.

        Yields:
            The composite; run a second backward pass under its ``inactive()`` if that one should be a plain gradient.

        Raises:
            RuleError: If ``model`` is not the one these rules were built for.
        """
        composite = self.composite()
        with composite.context(model):
            yield composite

    def check_model(self, model: nn.Module, *, check_weights: bool = False) -> None:
        """Refuse a model of another architecture, or with ``check_weights`` one with other weights.

        Raises:
            RuleError: Naming what differs.
        """
        if self.architecture is not None and fingerprint.architecture(model) != self.architecture:
            raise RuleError(
                f"this rule set belongs to another model: its modules or parameter shapes are not those of the "
                f"{type(model).__name__} given (fingerprint {self.architecture}); use the model it was trained on"
            )
        if check_weights and self.weights is not None and fingerprint.weights(model) != self.weights:
            raise RuleError(
                f"this rule set was saved for a {type(model).__name__} with other weights, or the same in another "
                "precision (fingerprint "
                f"{self.weights}); load the same checkpoint, or use RuleSet.load(path, model, check_weights=False)"
            )

    def for_samples(self, samples: int) -> RuleSet:
        """A copy in which each of ``samples`` samples has its own parameters, all starting from these.

        Raises:
            RuleError: If these already belong to another number of samples.
        """
        copy = RuleSet(self.composite_name, {**self.config, "per_sample": True})
        for name, site in self._sites.items():
            old: Any = self._gates[name]
            if old.samples not in (None, 1, samples):
                raise RuleError(f"site {name!r} holds parameters for each of {old.samples} samples, not {samples}")
            copy._gates[name] = copy._expanded(old, site, samples)
            if old.samples is None:
                copy._shared[name] = old  # a site that folds something else into its batch needs more rows
        copy.closed, copy.architecture, copy.weights = self.closed, self.architecture, self.weights
        copy._coverage = self._coverage
        if self.contrast or self.fusion is not None:
            raise RuleError("rules with a contrast stream or fusion are shared by all samples; they cannot be refined")
        return copy

    def _expanded(self, shared: nn.Module, site: Site, rows: int) -> nn.Module:
        """A gate with ``rows`` copies of a shared gate's parameters; notes the site's new shape."""
        site = replace(site, shape=(rows, *site.shape[1:]) if site.shape else ())
        gate = self._composite.make_gate(self.config, site, rows)
        reference = next(shared.parameters(), None)
        gate = gate if reference is None else gate.to(reference)
        with torch.no_grad():
            for ours, theirs in zip(_tensors(gate), _tensors(shared), strict=True):
                ours.copy_(theirs.expand_as(ours))
        self._sites[site.name] = site
        return gate

    # -- looking -----------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in the order of the forward pass."""
        return tuple(self._sites.values())

    @property
    def contrast(self) -> bool:
        """Whether gates look at the signal of the other classes, which costs a backward pass more."""
        return any(getattr(gate, "contrast", False) for gate in self._gates.values())

    def has_site(self, site: str) -> bool:
        """Whether there is a site of that name."""
        return site in self._sites

    def gate(self, site: str) -> nn.Module:
        """The gate at a site."""
        if site not in self._gates:
            raise RuleError(f"no site {site!r}; there are: {', '.join(self._gates)}")
        return self._gates[site]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields ``(<site>::<parameter>, parameter)`` pairs."""
        for site, gate in self._gates.items():
            for name, parameter in gate.named_parameters():
                yield f"{site}::{name}", parameter
        if self.fusion is not None:
            yield f"{FUSION}::raw", self.fusion.raw

    def parameters(self) -> list[nn.Parameter]:
        """Returns all trainable parameters; none of them is in the model's ``state_dict()``."""
        return [parameter for _, parameter in self.named_parameters()]

    def coverage(self) -> Coverage:
        """What has a rule and what has not, and why; prints as a table.

        Raises:
            RuleError: For an open rule set, which does not know its model yet.
        """
        if self._coverage is None:
            raise RuleError("coverage is known once a rule set is built (RuleSet.build) or loaded for a model")
        return self._coverage

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        return f"RuleSet({self.composite_name!r}, {self.config}, sites={len(self._sites)}, parameters={count})"

    def _repr_html_(self) -> str:
        """Shows the sites in a notebook: their functions, rules, parameters, and shares of the multiply-adds."""
        work = {} if self._coverage is None else {row.name: row.multiply_adds for row in self._coverage.rows}
        total = sum(work.values())
        header = ["site", "function", "rule", "parameters", *(["share of work"] if total else [])]
        rows = [
            [
                site.name,
                site.function,
                type(self._gates[site.name]).__name__,
                str(sum(p.numel() for p in self._gates[site.name].parameters())),
                *([f"{work.get(site.name, 0) / total:.1%}"] if total else []),
            ]
            for site in self.sites
        ]
        return html_table(repr(self), header, rows)

    # -- keeping -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Returns detached parameters and buffers of the gates, by ``<site>::<name>``."""
        return {name: tensor.detach() for name, tensor in self._named_tensors()}

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.named_parameters()
        for site, gate in self._gates.items():
            for name, buffer in gate.named_buffers():
                yield f"{site}::{name}", buffer

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy parameters and buffers in; names and shapes must fit exactly."""
        own = dict(self._named_tensors())
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise RuleError(f"parameters do not fit this rule set; differing: {', '.join(odd[:4])}")
        with torch.no_grad():
            for name, parameter in own.items():
                if parameter.shape != state[name].shape:
                    raise RuleError(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(parameter.shape)}")
                parameter.copy_(state[name])

    def save(self, path: str | Path, model: nn.Module | None = None, *, dtype: torch.dtype | None = None) -> Path:
        """Write a ``.safetensors`` file, under a temporary name first.

        Args:
            path: Target; an existing file is replaced in one move.
            model: If given, the fingerprint of its weights is stored and checked on load.
            dtype: Type of the parameters in the file, by default their own; ``torch.float16`` halves it, and is read
                as float32.

        Returns:
            The path.

        Raises:
            RuleError: For an open rule set, parameters that are not finite (in that type), or a folder that does not
                exist.
        """
        if not self.closed:
            raise RuleError("an open rule set has no fixed sites to save; make it with RuleSet.build")
        if not isinstance(self.config.get("gate"), str):
            raise RuleError(
                f"the gate {self.config.get('gate')!r} has no name; register it with zennit_rules.register_gate"
            )
        path = Path(path)
        if path.is_dir():
            raise RuleError(f"cannot write {path}: it is a folder; name a file in it, such as rules.safetensors")
        if not path.parent.is_dir():
            raise RuleError(f"cannot write {path}: the folder {path.parent} does not exist")
        if model is not None:
            self.check_model(model)
            self.weights = fingerprint.weights(model)
        document = {
            "format_version": FORMAT_VERSION,
            "composite": self.composite_name,
            "config": self.config,
            "sites": [vars(site) for site in self.sites],
            "architecture": self.architecture,
            "weights": self.weights,
            "training": self.training,
            "coverage": [] if self._coverage is None else [vars(row) for row in self._coverage.rows],
            "coverage_share": None if self._coverage is None else self._coverage.share,
        }
        tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in self.state_dict().items()}
        try:
            rule_file.check_tensors(tensors)
        except ValueError as error:
            raise RuleError(f"cannot write {path}: parameter {error}, which no map can be made of") from error
        rule_file.write(path, rule_document.KEY, document, tensors)
        return path

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None, *, check_weights: bool = True) -> RuleSet:
        """Read a saved rule set and check that it is whole and belongs to ``model``.

        Args:
            path: A file written by `save`, or the name of a rule set that ships with the package, such as
                ``"efficientnet_lite0/gates"`` (see `ready_rules`); a file of that path comes first.
            model: The model it will be used on; None postpones the check to its use.
            check_weights: Refuse a model of the same architecture with other weights, if the file knows them.

        Raises:
            RuleError: Missing, truncated, changed or foreign file, newer format, unknown composite or gate, another
                model, or something that is no path.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise RuleError(f"rules must be a RuleSet or the path of one, got {type(path).__name__}")
        document, tensors = rule_document.read(ready.located(Path(path)))
        try:
            rules = cls._from_document(document, tensors)
        except RuleError as error:
            raise RuleError(
                f"{path} is damaged, or needs a plugin or version that is not here: {error}; save the rule set again"
            ) from error
        except Exception as error:  # whatever it is that a document makes gates and options raise: the file is at fault
            raise RuleError(f"{path} is damaged ({error!r}); save the rule set again") from error
        if model is not None:
            rules.check_model(model, check_weights=check_weights)
            reference = next(iter(model.parameters()), None)
            if reference is not None:
                rules.to(device=reference.device, dtype=_parameter_dtype(reference))
        return rules

    @classmethod
    def _from_document(cls, document: dict[str, Any], tensors: dict[str, Tensor]) -> RuleSet:
        rule_file.check_tensors(tensors)
        tensors = {name: tensor.to(_parameter_dtype(tensor)) for name, tensor in tensors.items()}
        rules = cls(document["composite"], rule_document.checked_config(document["composite"], document["config"]))
        stored = rule_document.by_site(tensors)
        for fields in rule_document.as_list(document["sites"]):
            site = rule_document.site_of(fields)
            if site.name in rules._sites:
                raise RuleError(f"site {site.name!r} is there twice")
            rules._sites[site.name] = site
            rules._gates[site.name] = rules._stored_gate(site, stored.get(site.name, {}))
        if "fusion" in rules.config:
            fused = [rules._sites[name].name for name in rule_document.as_strings(rules.config["fusion"])]
            rules._fuse(fused).to(dtype=tensors[f"{FUSION}::raw"].dtype)
        rules.load_state_dict(tensors)
        rules.closed = True
        rules.architecture = rule_document.as_string(document["architecture"])
        rules.weights = rule_document.as_string(document["weights"])
        rules.training = {**document["training"]}
        rules._coverage = Coverage(tuple(map(rule_document.row_of, rule_document.as_list(document["coverage"]))))
        return rules

    def _stored_gate(self, site: Site, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The gate of a site in a file.

        Raises:
            RuleError: If its parameters would have other names or shapes than those in the file, before any memory is
                taken for them.
        """
        samples = self._samples(site)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        try:
            with torch.device("meta"):
                planned = self._composite.make_gate(self.config, site, samples)
            wanted = {name: tuple(tensor.shape) for name, tensor in _parameters_and_buffers(planned)}
        except (NotImplementedError, RuntimeError):  # a gate whose making needs values
            wanted = shapes
        if wanted != shapes:
            raise RuleError(
                f"the gate at site {site.name!r} of shape {site.shape} has parameters of shapes {wanted}, "
                f"the file {shapes}"
            )
        gate = self._composite.make_gate(self.config, site, samples)
        return gate.to(dtype=next((tensor.dtype for tensor in tensors.values()), torch.float32))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> RuleSet:
        """Move all parameters in place and return the rule set."""
        for module in (*self._gates.values(), *([] if self.fusion is None else [self.fusion])):
            module.to(device=device, dtype=dtype)
        return self


def _as_leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def _parameters_and_buffers(gate: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from gate.named_parameters()
    yield from gate.named_buffers()


def _tensors(gate: nn.Module) -> Iterator[Tensor]:
    return (tensor for _, tensor in _parameters_and_buffers(gate))


def _parameter_dtype(z: Tensor) -> torch.dtype:
    """Returns the dtype of a site's parameters: those of half-precision sites are kept in float32."""
    return z.dtype if z.dtype in (torch.float32, torch.float64) else torch.float32
