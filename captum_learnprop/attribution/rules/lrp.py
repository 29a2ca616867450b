"""LearnedLRP: layer-wise relevance propagation with trainable rules, in the place of captum's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from captum.log import log_usage
from torch import Tensor, nn

from zennit_rules import LearnedEpsilonGammaBox, RuleSet
from zennit_rules.core.protocols import TrainableComposite

from ..._compat import _format_output, compute_gradients
from ...errors import LearnpropError
from ...training.pass_by_rules import in_training_mode, leaves_of, left_as_found, rules_in_place
from ..checked_inputs import checked_inputs
from .captum_rules import CaptumRules, check_rule
from .learned import LearnedPropagation, TensorOrTuple

_log = logging.getLogger(__name__)


class LearnedLRP(LearnedPropagation):
    """Drop-in for ``captum.attr.LRP``, on any model and by trained rules.

    Without ``rules`` it does what captum does: the rule at ``module.rule`` (``EpsilonRule``, ``GammaRule``,
    ``Alpha1_Beta0_Rule``, ``IdentityRule``), where there is none ``EpsilonRule`` at linear layers, batch norms, pools
    and sums; activations pass relevance. Unlike captum it runs on every layer: activations of any kind, one- and
    three-dimensional and transposed convolutions, ``Flatten``, modules that are used again, functional calls, and skip
    connections written as ``x + y``, where captum's relevance is not conserved. Rules stay on the modules, and no
    weight is touched. With ``rules`` one forward and one backward pass propagate by them, whatever is at
    ``module.rule``::

        rules = RuleTrainer(model, "learned_epsilon_gamma_box", gate="none").fit(images)
        LearnedLRP(model, rules).attribute(x, target=y)

    Training starts at captum's gamma rule with ``rule_options={"conv": "gamma", "dense": "gamma", "first": "conv",
    "gamma": 0.25, "negative": "alike", "split": "weights", "bias": "whole", "stabilizer": 1e-9}``, and by default where
    the composite starts.

    Relevance starts with the explained output and is scaled like captum's: attributions sum up to the output, but for
    what biases and epsilon take, and what trained gates at activations add or take (``gate="none"`` has none).

    Source: Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation", PLoS ONE 2015 (https://doi.org/10.1371/journal.pone.0130140).

    Args:
        model: The model; returned untouched from every call.
        rules: A `RuleSet` of the composite ``"learned_epsilon_gamma_box"``, or the path of a saved one.

    Raises:
        LearnpropError: If ``model`` is no module.
        PropagationRuleError: Without rules, if a ``module.rule`` is none of captum's; it is a ``TypeError`` too.
        RuleError: For a rule set of another model, or of another composite.
    """

    takes = (LearnedEpsilonGammaBox,)

    def __init__(self, model: nn.Module, rules: RuleSet | str | Path | None = None) -> None:
        super().__init__(model, rules=rules)
        for name, module in model.named_modules() if rules is None else ():
            if getattr(module, "rule", None) is not None and next(module.children(), None) is None:
                check_rule(name, module.rule)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Relevance is a share of the output, not a gradient."""
        return True

    def has_convergence_delta(self) -> bool:
        """Whether ``attribute`` can return a delta."""
        return True

    @log_usage()
    def attribute(
        self,
        inputs: TensorOrTuple,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
        *,
        create_graph: bool = False,
    ) -> Any:
        """Attribute the target's output to the inputs.

        Args:
            inputs: ``(B, ...)`` floating-point tensor or tuple of them.
            target: Explained entry of the output, by captum's conventions.
            additional_forward_args: Further arguments of the model, after ``inputs``; not differentiated.
            return_convergence_delta: Also return what `compute_convergence_delta` says.
            verbose: Print which rule is applied at which call of a layer, on the standard output, as captum does. The
                same lines are always logged, at the level ``DEBUG``, under the name of this module.
            create_graph: Keep the graph of the result, so that it can be differentiated with respect to the rules (and
                to ``inputs`` that require gradients).

        Returns:
            Relevance in the shapes and the container of ``inputs``; with ``return_convergence_delta`` a pair of that
            and the delta ``(B,)``.

        Warns:
            RuleWarning: Without rules, if the model calls a function that relevance passes by the plain gradient.

        Raises:
            TargetError: If the target does not fit the output.
            LearnpropError: For empty, non-finite or integer inputs, rules on modules that are not captum's, and so on.
            RuleError: If the model is compiled or scripted.
        """
        if self.gradient_func is not compute_gradients:
            raise LearnpropError(
                "gradient_func was replaced (by a Neuron* or Layer* class, say), but relevance starts at the output; "
                "to differentiate the result, pass create_graph=True instead"
            )
        tensors, additional = checked_inputs(self.model, inputs, additional_forward_args)
        leaves = leaves_of(tensors, create_graph=create_graph)
        composite = CaptumRules() if self._given is None else self._given
        with (
            left_as_found(self.model, leaves, draws=in_training_mode(self.model)),
            rules_in_place(self.model, composite, create_graph=create_graph),
        ):
            maps, output = self._explain(composite, leaves, target, additional, create_graph)
        _tell_rules(composite, verbose)
        attributions = _format_output(isinstance(inputs, tuple), maps)
        if not return_convergence_delta:
            return attributions
        output = output if create_graph else output.detach()
        return attributions, self.compute_convergence_delta(maps, output)

    def compute_convergence_delta(self, attributions: Tensor | tuple[Tensor, ...], output: Tensor) -> Tensor:
        """How much of the output did not arrive at the inputs: what epsilon, biases and gates took.

        Args:
            attributions: Relevance of the inputs, ``(B, ...)`` each.
            output: Explained output, one value per sample.

        Returns:
            ``output - sum(attributions)`` per sample, ``(B,)``.
        """
        parts = attributions if isinstance(attributions, tuple) else (attributions,)
        arrived = torch.stack([part.flatten(1).sum(1) if part.ndim > 1 else part for part in parts]).sum(0)
        return output.flatten() - arrived

    def _check_reach(self, composite: Any, output: Any, leaves: tuple[Tensor, ...]) -> None:
        """The composite says by itself which functions nobody has a rule for."""


def _tell_rules(composite: TrainableComposite, verbose: bool) -> None:
    if not verbose and not _log.isEnabledFor(logging.DEBUG):
        return
    for line in _applied(composite):
        _log.debug(line)
        if verbose:  # who asks sees it without setting up logging first, as with captum
            print(line)


def _applied(composite: TrainableComposite) -> list[str]:
    """One line for each call of a layer that has a rule, in captum's words."""
    if isinstance(composite, CaptumRules):
        return [f"Applied {_rule_text(rule)} at {site}: {module}" for site, module, rule in composite.applied]
    gates = [(site, composite.rules.gate(site.name)) for site in composite.rules.sites]
    return [f"Applied {gate} at {site.name}: {site.function}" for site, gate in gates if list(gate.parameters())]


def _rule_text(rule: Any) -> str:
    given = ", ".join(f"{name}={value}" for name, value in vars(rule).items() if isinstance(value, (bool, float)))
    return f"{type(rule).__name__}({given})"
