"""LearnedDeepLift: DeepLIFT with a trainable gate at every activation, as a composite."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._compat import Canonizer, Hook
from ..core.buffers import buffers_kept
from ..core.coverage import Coverage
from ..core.dependence import Inputs, tensors_in
from ..core.draws import Draws
from ..core.interpose import Interposed, interpose
from ..core.modules import modules_of
from ..core.registry import register_composite
from ..core.site_functions import ACTIVATION_TYPES, POOLING_TYPES
from ..core.sites import Site
from ..errors import RuleError, RuleWarning
from ..gates import PlainGate
from ..rules.completeness import INCOMPLETE, incomplete_nodes, incompleteness, why_incomplete
from ..rules.rescale import (
    EPS,
    SOFTMAX_TYPES,
    LearnedRescale,
    NotByRows,
    References,
    RescaleMaxPool,
    RescaleSoftmax,
    in_reference_pass,
    reference_pass,
)
from ..rules.rescale_functions import FunctionRules
from ..rules.written_attention import ATTENTION, attention_of
from .base import LearnedComposite

Baseline = Tensor | float

Arguments = tuple[list[Any], dict[str, Any]]
"""What a model is called with."""

_WHOLE_BATCHES: WeakSet[nn.Module] = WeakSet()
"""Models for which one row of the baseline did not do: they have curves or products, or merge rows with others."""

_SOFTMAX: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.softmax: (nn.Softmax, ("input", "dim", "_stacklevel", "dtype")),
    torch.softmax: (nn.Softmax, ("input", "dim", "dtype")),
    Tensor.softmax: (nn.Softmax, ("input", "dim", "dtype")),
    F.log_softmax: (nn.LogSoftmax, ("input", "dim", "_stacklevel", "dtype")),
    torch.log_softmax: (nn.LogSoftmax, ("input", "dim", "dtype")),
    Tensor.log_softmax: (nn.LogSoftmax, ("input", "dim", "dtype")),
    F.softmin: (nn.Softmax, ("input", "dim", "_stacklevel", "dtype")),
    torch.special.softmax: (nn.Softmax, ("input", "dim", "dtype")),
    torch.special.log_softmax: (nn.LogSoftmax, ("input", "dim", "dtype")),
}


class LearnedDeepLift(LearnedComposite):
    """DeepLIFT's rescale rule with gates that start there; "learned_deeplift" in ``COMPOSITES``.

    Before each forward pass of the model on an input, it runs it on the baseline, without gradient and with the other
    arguments unchanged, so that each site knows its reference. Where all rows of the baseline are alike, it runs one,
    if all that is compared is made of lines. Activations get a `LearnedRescale`, max-pools a `RescaleMaxPool`, softmax
    and log-softmax a `RescaleSoftmax`; functional, reused and in-place calls count like any. Products of signals,
    attention, norms, maxima and other functions follow `rescale_functions`; where no complete rule exists,
    `RuleSet.build` warns and the coverage names it.

    `zennit_rules.attribute`, and what builds on it, yields contributions: multipliers times ``input - baseline``. At
    the start they add up to the difference of the outputs, but for functions without a complete rule. A plain
    gradient, as by zennit's ``Gradient(model, composite)``, yields the multipliers themselves.

    Args:
        gate: Name or class of the gates; it and the other arguments are those of `LearnedComposite`.
        rule_options: ``{"baseline": number}``: the baseline of every argument that requires grad, 0 by default. It is
            saved with the rules.

    Attributes:
        baselines: Baselines of the passes to come, instead of the number: a tensor of the input's shape or with one
            row, a number, or a tuple of them, for as many of the model's first arguments. None: the number.
        multiply_by_inputs: Whether `attribute` yields contributions, or multipliers.
        references: What sites saw of the baseline; ``references.eps`` is the difference that counts as none.
    """

    name = "learned_deeplift"
    default_options: ClassVar[Mapping[str, Any]] = {"baseline": 0.0}
    linearised = False
    ends_with_input = True

    def prepare(self) -> None:
        """Makes the memory of references, and the rules of functions that the model calls."""
        self.baselines: Baseline | tuple[Baseline, ...] | None = None
        self.multiply_by_inputs = True
        self.references = References(self.tracker.call_site, EPS)
        self._flow = Hook()
        self.functional_hooks.add(self._flow)
        self._functions = FunctionRules(self.tracker.call_of, self.references, self.flowing)
        self.tracker.on_call = self._call

    def flowing(self) -> bool:
        """Whether the rules of functions count in a backward pass, instead of the gradient."""
        return bool(self._flow.active)

    def register(self, module: nn.Module) -> None:
        """Registers the composite on a model, and lets the rules of functions count."""
        self._flow.active = True
        super().register(module)

    def around(self) -> list[Canonizer]:
        """The run on the baseline, around what counts the calls."""
        return [_ReferenceRun(self)]

    def templates(self) -> list[tuple[tuple[type, ...], Hook]]:
        """Returns the rescale rules of activations, max-pools and softmax."""
        return [
            (ACTIVATION_TYPES, LearnedRescale(self)),
            (POOLING_TYPES, RescaleMaxPool(self)),
            (SOFTMAX_TYPES, RescaleSoftmax(self)),
        ]

    @classmethod
    def make_gate(cls, config: Mapping[str, Any], site: Site, samples: int | None) -> nn.Module:
        """Makes the gate of a site; softmax has nothing to train, nor have max-pools that are not soft."""
        if site.kind == "softmax" or (site.kind == "pooling" and config["pooling"] == "exact"):
            return PlainGate(site.shape, samples=samples, channel_dim=site.channel_dim)
        return super().make_gate(config, site, samples)

    @classmethod
    def checked_options(cls, rule_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the options, whose baseline must be a finite number."""
        options = super().checked_options(rule_options)
        baseline = options["baseline"]
        if isinstance(baseline, bool) or not isinstance(baseline, (int, float)) or not math.isfinite(baseline):
            raise RuleError(
                f"baseline={baseline!r}: rules are saved with a finite number; set a tensor on the composite, as its "
                "attribute baselines"
            )
        return {**options, "baseline": float(baseline)}

    @property
    def has_rules_for_something(self) -> bool:
        """Whether a site or another function with a rule was called."""
        return bool(self.rules.sites) or self._functions.used

    @property
    def baseline(self) -> float:
        """The number that stands for arguments without a baseline of their own."""
        return float(self.rules.config.get("rule_options", self.default_options)["baseline"])

    def baselines_of(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The baselines of the model's first arguments, each in the shape of its input.

        Raises:
            RuleError: If they do not fit the inputs.
        """
        given = self.baseline if self.baselines is None else self.baselines
        if not isinstance(given, tuple):
            given = (given,) if isinstance(given, Tensor) else (given,) * len(inputs)
        if len(given) < len(inputs):
            raise RuleError(f"{len(given)} baselines were given for {len(inputs)} inputs; give a tuple of as many")
        return tuple(_baseline_like(x, b, i) for i, (x, b) in enumerate(zip(inputs, given, strict=False)))

    def finish(self, maps: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns contributions of the leaves, from their multipliers."""
        if not self.multiply_by_inputs:
            return maps
        return tuple(m * (x - b) for m, x, b in zip(maps, leaves, self.baselines_of(leaves), strict=True))

    def gate_at(self, module: nn.Module, kind: str, z: Tensor) -> tuple[str, nn.Module]:
        """Finds the gate of a call, and gives a model that is one site its reference."""
        name, gate = super().gate_at(module, kind, z)
        root = self.tracker.root
        if root is not None and root() is module:  # a model that is one site: nothing is run before its hook
            self.references.keep(name, self.baselines_of((z,))[0])
        return name, gate

    def at_baseline(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments | None:
        """Returns the arguments of the reference pass; None if no argument asks for a gradient, so that none is needed.

        Raises:
            RuleError: If there are more baselines than tensors to begin with.
        """
        if self.baselines is None or isinstance(self.baselines, (int, float)):
            if not any(map(_differentiable, (*args, *kwargs.values()))):
                return None
            fill = self.baseline if self.baselines is None else self.baselines
            swap = partial(_filled, fill=fill)
            return list(map(swap, args)), {name: swap(value) for name, value in kwargs.items()}
        count = len(self.baselines) if isinstance(self.baselines, tuple) else 1
        inputs = args[:count]
        if len(inputs) < count or not all(isinstance(x, Tensor) for x in inputs):
            kinds = ", ".join(type(x).__name__ for x in args) or "none"
            raise RuleError(
                f"{count} baselines were given, for as many tensors that the model takes first; its positional "
                f"arguments are: {kinds}"
            )
        return [*self.baselines_of(inputs), *args[count:]], dict(kwargs)

    def one_row(self, root: nn.Module, given: Any, baseline: Arguments) -> Arguments | None:
        """Returns the arguments of a reference pass of one row; None where that would not stand for all rows.

        It does for baselines whose rows are alike, on a model in evaluation mode that is given nothing else.
        """
        told = self.baselines if isinstance(self.baselines, tuple) else (self.baselines,)
        alike = all(not isinstance(one, Tensor) or one.shape[:1] == (1,) for one in told)
        tensors, references = tensors_in(given), tensors_in(baseline)
        rows = {x.shape[:1] for x in tensors}
        if not alike or len(rows) != 1 or rows <= {torch.Size(), torch.Size((1,))} or root in _WHOLE_BATCHES:
            return None
        if any(map(operator.is_, tensors, references)) or any(module.training for module in modules_of(root)):
            return None
        args, kwargs = baseline
        return list(map(_first_row, args)), {name: _first_row(value) for name, value in kwargs.items()}

    @classmethod
    def unreached(cls, output: Any, inputs: Inputs = None) -> dict[str, int]:
        """Number of autograd nodes by name through which contributions do not add up."""
        return incomplete_nodes(output, inputs)

    @classmethod
    def why_unreached(cls, node: str) -> str:
        """Returns the reason why contributions do not add up through an autograd node."""
        return why_incomplete(node)

    @classmethod
    def reviewed(cls, model: nn.Module, coverage: Coverage) -> Coverage:
        """Drops rows that the graph does not name, which have a rule whoever calls them, and warns of the others."""
        rows = tuple(row for row in coverage.rows if not row.reason.startswith(("not element-wise", "random slope")))
        missed = {row.function: int(row.name.split()[0]) for row in rows if row.reason.startswith(INCOMPLETE)}
        if missed:
            warnings.warn(incompleteness(type(model).__name__, missed), RuleWarning, stacklevel=4)
        return Coverage(rows)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that is no site by itself."""
        if func in _SOFTMAX:
            return self._softmax(func, args, kwargs)
        if func in ATTENTION:
            return self._attention(func, args, kwargs)
        return self._functions(func, args, kwargs)

    def _softmax(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A functional softmax, called as a module that rules find."""
        kind, names = _SOFTMAX[func]
        given = dict(zip(names, args, strict=False)) | kwargs
        z = given.get("input")
        if not isinstance(z, Tensor) or given.get("out") is not None:
            return NotImplemented
        z = z if given.get("dtype") is None else z.to(given["dtype"])
        if not z.is_floating_point():
            return NotImplemented
        child, _ = self.tracker.stand_in(kind, {"dim": given.get("dim")}, False)
        return child(-z if func is F.softmin else z)

    def _attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Writes attention in one call out, in products and a softmax that have rules."""

        def softmax(scores: Tensor) -> Tensor:
            out: Tensor = self._softmax(torch.softmax, (scores, -1), {})
            return out

        def product(a: Tensor, b: Tensor) -> Tensor:
            out = self._functions(torch.matmul, (a, b), {})
            return torch.matmul(a, b) if out is NotImplemented else out

        try:
            return attention_of(func, args, kwargs, softmax, product)
        except RuleError:  # an option that is not written out: its nodes are in the coverage
            return NotImplemented


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _first_row(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) else value


def _filled(value: Any, fill: float) -> Any:
    return torch.full_like(value.detach(), fill) if _differentiable(value) else value


def _baseline_like(x: Tensor, baseline: Any, index: int) -> Tensor:
    """A baseline in the shape, dtype and on the device of its input."""
    if isinstance(baseline, (int, float)) and not isinstance(baseline, bool):
        return torch.full_like(x.detach(), baseline)
    if not isinstance(baseline, Tensor):
        raise RuleError(f"baselines[{index}] must be a number or a tensor, got {type(baseline).__name__}")
    if baseline.ndim != x.ndim or baseline.shape[1:] != x.shape[1:] or baseline.shape[0] not in (1, x.shape[0]):
        raise RuleError(
            f"baselines[{index}] has shape {tuple(baseline.shape)}, its input {tuple(x.shape)}: give it the same, or "
            "with one row"
        )
    return baseline.detach().to(x).expand_as(x).clone()  # a model that works in place needs memory of its own


class _ReferenceRun(Canonizer):
    """Runs the model on the baseline before it runs on the input; zennit puts it on the model and takes it off."""

    def __init__(self, composite: LearnedDeepLift) -> None:
        super().__init__()
        self.composite = composite
        self._handle: Interposed | None = None
        self._running = False

    def apply(self, root_module: nn.Module) -> list[_ReferenceRun]:
        """Put it on the model."""
        self.register(root_module)
        return [self]

    def copy(self) -> _ReferenceRun:
        """One of its own, not registered anywhere."""
        return type(self)(self.composite)

    def register(self, root: nn.Module) -> None:
        """Put it around the model's forward."""
        self.remove()
        self._handle = interpose(root, partial(self._run, root))

    def remove(self) -> None:
        """Take it off, and forget the references; calls that were made keep theirs."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self.composite.references.clear()

    def _run(self, root: nn.Module, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._running or in_reference_pass():  # a model that calls itself
            return call_next(*args, **kwargs)
        self._running = True
        try:
            composite = self.composite
            baseline = composite.at_baseline(args, kwargs) if torch.is_grad_enabled() else None
            row = None if baseline is None else composite.one_row(root, (args, kwargs), baseline)
            composite.references.one_row = row is not None
            if row is not None:
                try:
                    return self._compared(root, call_next, row, args, kwargs)
                except NotByRows:
                    _WHOLE_BATCHES.add(root)
                    composite.references.one_row = False
            return self._compared(root, call_next, baseline, args, kwargs)
        finally:
            self._running = False

    def _compared(
        self,
        root: nn.Module,
        call_next: Callable[..., Any],
        baseline: Arguments | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run the model on the input, after the baseline if there is one."""
        references = self.composite.references
        references.clear()
        if baseline is not None:
            try:
                with reference_pass(), buffers_kept(root), Draws().again():
                    call_next(*baseline[0], **baseline[1])
            except Exception as error:
                if not references.one_row:
                    raise
                raise NotByRows("the model does not take one row") from error
        out = call_next(*args, **kwargs)
        self._check_same_calls()
        return out

    def _check_same_calls(self) -> None:
        """Refuse a baseline that made calls which the input did not: those of others may have got their references."""
        tracker = self.composite.tracker
        more = [name for name in self.composite.references.names if not tracker.called(name)]
        if more:
            raise RuleError(
                f"the baseline went through site {more[0]!r} ({len(more)} such sites), the input did not: "
                "give a baseline that takes the same way through the model"
            )


register_composite(LearnedDeepLift.name, LearnedDeepLift)

__all__ = ["Baseline", "LearnedDeepLift"]
