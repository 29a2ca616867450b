"""LearnedDeepLift: DeepLIFT with trainable rules, in the place of captum's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from zennit_rules import LearnedDeepLift as DeepLiftComposite
from zennit_rules import RuleSet, RuleWarning
from zennit_rules.core.draws import Draws
from zennit_rules.core.interpose import is_interposed
from zennit_rules.core.scalars import plain
from zennit_rules.rules.completeness import incomplete_nodes, incompleteness

from ..._compat import _call_custom_attribution_func, _format_output, compute_gradients
from ...errors import LearnpropError
from ...forward import output_of
from ...targets import select_target
from ...training.pass_by_rules import RulePass, leaves_of, left_as_found, rules_in_place
from ..checked_inputs import checked_inputs
from ..shown import ShownAsCall
from .given_rules import built_at, given_rules
from .learned import TensorOrTuple
from .neuron_gradient import maps_of_neuron


class LearnedDeepLift(ShownAsCall, GradientAttribution):
    """Drop-in for ``captum.attr.DeepLift``, which trained rules turn into another one.

    Without ``rules`` it is DeepLIFT with the rescale rule, and equal to captum's where that one is complete. Captum
    silently takes the gradient at GELU, SiLU, PReLU, ReLU6, Hardswish and others, and at functional activations; it
    mixes up reused modules, activations that follow each other, and overlapping windows of max-pools, and its softmax
    and max-pool rules depend on the rest of the batch. Here all of these are sites with a complete rule. With
    ``rules`` their gates weigh the multipliers (see `zennit_rules.LearnedDeepLift`).

    Products of activations, quotients, attention, norms, maxima, ``exp``, ``clamp`` and many more have complete rules
    (see `zennit_rules.rules.rescale_functions`), and dropout in training mode takes the same mask for the baseline. A
    function without one keeps its gradient, as in captum, and a warning names it. The convergence delta tells by how
    much; ``normalize=True`` makes up for it, and for what trained gates add or take.

    Warning:
        Derivatives with ``create_graph=True`` are those to the rules and to inputs that require gradients; the pass of
        the baseline is kept without graph, so the model's weights cannot be trained through it.

    Source: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation Differences",
    ICML 2017 (https://arxiv.org/abs/1704.02685).

    Args:
        model: The model; returned untouched from every call.
        multiply_by_inputs: Whether attributions are contributions, multipliers times ``inputs - baselines``, or the
            multipliers themselves.
        eps: Differences of pre-activations up to this count as none.
        rules: A `RuleSet` of the composite ``"learned_deeplift"``, or the path of a saved one.

    Raises:
        LearnpropError: If ``model`` is no module, or ``eps`` is out of range.
        RuleError: For a rule set of another model or composite.
    """

    def __init__(
        self,
        model: nn.Module,
        multiply_by_inputs: bool = True,
        eps: float = 1e-10,
        *,
        rules: RuleSet | str | Path | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise LearnpropError(
                f"LearnedDeepLift needs an nn.Module whose layers it can reach, got {type(model).__name__}"
            )
        if not isinstance(multiply_by_inputs, bool):
            raise LearnpropError(
                f"multiply_by_inputs must be True or False, got {type(multiply_by_inputs).__name__}; "
                "rules are passed by name: LearnedDeepLift(model, rules=rules)"
            )
        eps = plain(eps)
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
            raise LearnpropError(f"eps must be a finite number of at least 0, got {eps!r}")
        super().__init__(model)
        self.model = model
        self.eps = eps
        self._multiply_by_inputs = multiply_by_inputs
        self.rules = None if rules is None else given_rules(rules, model, "LearnedDeepLift", DeepLiftComposite)

    def arguments(self) -> dict[str, Any]:
        """Arguments by name, for ``repr``."""
        return {
            "model": self.model, "multiply_by_inputs": self._multiply_by_inputs, "eps": self.eps, "rules": self.rules,
        }  # fmt: skip

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are contributions."""
        return self._multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """True: ``return_convergence_delta`` works."""
        return True

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        custom_attribution_func: Callable[..., tuple[Tensor, ...]] | None = None,
        *,
        normalize: bool = False,
        create_graph: bool = False,
    ) -> TensorOrTuple | tuple[TensorOrTuple, Tensor]:
        """Attribute the difference of the target's output between inputs and baselines to the inputs.

        Args:
            inputs: ``(B, ...)`` floating-point tensor or tuple of them.
            baselines: What the inputs are compared with: a number, a tensor of the shape of ``inputs`` or with one row,
                or a tuple of those, one per input. None: the number that ``rules`` were made with, else 0.
            target: Explained entry of the output, by captum's conventions.
            additional_forward_args: Further arguments of the model, after ``inputs``; the same for the baselines.
            return_convergence_delta: Return how far each sample is from completeness, too.
            custom_attribution_func: Makes attributions, instead of ``multiply_by_inputs``, of one to three tuples:
                multipliers, inputs, baselines.
            normalize: Restore completeness: what is missing of ``F(inputs) - F(baselines)`` is added to each sample in
                proportion to the absolute attributions. An attribution that is 0 everywhere stays so.
            create_graph: Keep the graph of the result, so that it can be differentiated with respect to the rules (and
                to ``inputs`` that require gradients).

        Returns:
            Signed maps in the shapes and the container of ``inputs``; with ``return_convergence_delta`` a pair of those
            and the delta ``(B,)``, ``sum(attributions) - (F(inputs) - F(baselines))``.

        Warns:
            RuleWarning: If the model calls a function without a complete rule, and neither of ``normalize`` and
                ``return_convergence_delta`` is set.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: For empty, non-finite or integer inputs, arguments the model does not take, other rules that
                are applied to the model at the same time, and the like.
            RuleError: For baselines that do not fit, or a compiled or scripted model.
        """
        if normalize and (custom_attribution_func is not None or not self._multiply_by_inputs):
            raise LearnpropError(
                "normalize=True adds up contributions: it goes with multiply_by_inputs=True and without "
                "custom_attribution_func"
            )
        if is_interposed(self.model):
            raise LearnpropError(
                "rules are applied to this model already, and DeepLIFT would mix with them: attribute outside of "
                "rules.applied(model)"
            )
        tensors, additional = checked_inputs(self.model, inputs, additional_forward_args)
        leaves = leaves_of(tensors, create_graph=create_graph)
        composite = self._composite(baselines, leaves)
        composite.multiply_by_inputs = self._multiply_by_inputs and custom_attribution_func is None
        references = composite.baselines_of(leaves)
        draws = Draws()
        with left_as_found(self.model, leaves), torch.set_grad_enabled(create_graph):
            warn = not (normalize or return_convergence_delta)
            maps = self._propagate(composite, leaves, target, additional, create_graph, warn)
            if custom_attribution_func is not None:
                given = leaves if create_graph else tuple(x.detach() for x in leaves)
                maps = _call_custom_attribution_func(custom_attribution_func, maps, given, references)
            difference = None
            if normalize or return_convergence_delta:
                difference = self._difference(draws, leaves, references, target, additional)
            if normalize and difference is not None:
                maps = _completed(maps, difference)
        attributions = _format_output(isinstance(inputs, tuple), maps)
        if not return_convergence_delta or difference is None:
            return attributions
        return attributions, (_sum_rows(maps) - difference).detach()

    def attribute_future(self) -> None:
        """Not implemented, as in captum's own gradient methods."""
        raise NotImplementedError("attribute_future is not implemented for LearnedDeepLift")

    def _composite(self, baselines: Any, inputs: tuple[Tensor, ...]) -> DeepLiftComposite:
        """The rules, with the baselines of this call."""
        found: Any = DeepLiftComposite(gate="none") if self.rules is None else self.rules.composite()
        composite: DeepLiftComposite = found
        composite.references.eps = self.eps
        if baselines is None:
            composite.baselines = (composite.baseline,) * len(inputs)
            return composite
        given = tuple(map(plain, baselines)) if isinstance(baselines, tuple) else (plain(baselines),)
        if len(given) != len(inputs):
            raise LearnpropError(
                f"{len(given)} baselines were given for {len(inputs)} inputs; pass a tuple with one for each"
            )
        for i, baseline in enumerate(given):
            numbers = isinstance(baseline, (Tensor, int, float)) and not isinstance(baseline, bool)
            if numbers and not bool(torch.isfinite(torch.as_tensor(baseline)).all()):
                raise LearnpropError(f"baselines[{i}] has values that are NaN or infinite; clean it first")
        composite.baselines = given
        return composite

    def _propagate(
        self,
        composite: DeepLiftComposite,
        leaves: tuple[Tensor, ...],
        target: Any,
        additional: tuple[Any, ...],
        create_graph: bool,
        warn: bool,
    ) -> tuple[Tensor, ...]:
        with rules_in_place(self.model, composite, create_graph=create_graph):
            if self.gradient_func is not compute_gradients:
                return maps_of_neuron(self, composite, leaves, target, additional, create_graph=create_graph)
            run = RulePass.of(
                self.model, composite, leaves, additional, forward=self.forward_func, known=built_at(self.rules)
            )
            selected = run.select(target)
            missed = incomplete_nodes(run.output, leaves)
            if missed and not composite.has_rules_for_something:
                composite.rules.close(self.model, run.output)  # which says that there is no site
            if missed and warn:
                warnings.warn(incompleteness(type(self.model).__name__, missed), RuleWarning, stacklevel=4)
            return run.attributions(run.seed_of(selected), create_graph=create_graph)

    def _difference(
        self,
        draws: Draws,
        inputs: tuple[Tensor, ...],
        baselines: tuple[Tensor, ...],
        target: Any,
        additional: tuple[Any, ...],
    ) -> Tensor:
        """``F(inputs) - F(baselines)``, ``(B,)``, with the dropout masks of the attribution."""
        ends = []
        for given in (inputs, baselines):
            with draws.again():
                ends.append(select_target(output_of(self.forward_func, given, additional, model=self.model), target))
        return ends[0] - ends[1]


def _sum_rows(maps: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([m.flatten(1).sum(dim=1) if m.ndim > 1 else m for m in maps]).sum(dim=0)


def _completed(maps: tuple[Tensor, ...], difference: Tensor) -> tuple[Tensor, ...]:
    """What is missing of the difference ``(B,)``, added in proportion to the absolute attributions."""
    sizes = tuple(m.abs() for m in maps)
    total = _sum_rows(sizes)
    share = (difference - _sum_rows(maps)) / torch.where(total > 0, total, torch.ones_like(total))
    return tuple(m + s * share.reshape(-1, *(1,) * (m.ndim - 1)) for m, s in zip(maps, sizes, strict=True))


__all__ = ["LearnedDeepLift"]
