"""Conservation: does the relevance that LRP starts with arrive at the input?

A share of 1 means that the attribution divides the output up completely, so that its values can be read in units of the
output. What is missing, or was added, on the way:

* *biases* take relevance that no input gets (``zero_params="bias"`` in zennit's rules gives it to the inputs), and
  where nothing but a bias speaks for an output, its relevance is lost even then;
* the *epsilon* of a rule takes ``epsilon / |z|`` of what passes, much where contributions cancel;
* *functions without a rule* pass the plain gradient: a sum of two branches doubles the relevance, a gate scales it
  (`zennit_rules.canonizers_for` gives them rules; ``zennit_rules.unkept_nodes`` names the others);
* *trained gates* at activations weigh what passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from zennit.composites import COMPOSITES

from captum_learnprop.errors import LearnpropError
from captum_learnprop.tables import html
from captum_learnprop.training.pass_by_rules import leaves_of, rules_in_place
from captum_learnprop.wording import counted
from zennit_rules import LearnedEpsilonGammaBox, RuleSet, composite_class
from zennit_rules.composites import LearnedComposite
from zennit_rules.rules.contributions import ContributionGate

Makers = tuple[Callable[..., Any], Callable[..., Any]]
"""What makes a composite from ``canonizers=``: by its rules as they are, and with biases that take none."""


def conservation(relevance: Tensor | tuple[Tensor, ...], output_relevance: Tensor) -> Tensor:
    """Returns the share of the output's relevance that arrived at the input, ``(B,)`` float64; 1 is conservation.

    Formula:
        ``sum_i R_i(input) / sum_j R_j(output)``.

    Source:
        Bach et al., *On Pixel-wise Explanations for Non-linear Classifier Decisions by Layer-wise Relevance
        Propagation*, PLOS ONE 2015.

    Args:
        relevance: Signed attribution ``(B, ...)``, or one per input.
        output_relevance: What the backward pass started with, ``(B, ...)``; for LRP the explained logit.

    Raises:
        LearnpropError: batches differ, a value is not finite, or an output's relevance sums to 0.

    Example:
        >>> conservation(torch.tensor([[1.5, 0.5]]), torch.tensor([[2.5]]))
        tensor([0.8000], dtype=torch.float64)
    """
    parts = relevance if isinstance(relevance, tuple) else (relevance,)
    count = len(output_relevance) if output_relevance.dim() else 0
    for part in parts:
        if not count or not part.dim() or len(part) != count:
            raise LearnpropError(
                f"relevance {tuple(part.shape)} and output_relevance {tuple(output_relevance.shape)} must be "
                "(B, ...) with the same B, at least 1"
            )
    arrived = torch.stack([_sums(part) for part in parts]).sum(0)
    started = _sums(output_relevance)
    for name, sums in (("relevance", arrived), ("output_relevance", started)):
        if not bool(sums.isfinite().all()):
            raise LearnpropError(f"{name} of sample {int((~sums.isfinite()).nonzero()[0])} has NaN or infinite values")
    if bool((started == 0).any()):
        raise LearnpropError(
            f"output_relevance of sample {int((started == 0).nonzero()[0])} sums to 0: nothing to conserve"
        )
    return arrived / started


def _sums(values: Tensor) -> Tensor:
    return values.detach().double().reshape(len(values), -1).sum(1)


@dataclass(frozen=True)
class Conservation:
    """How much relevance arrives under a composite.

    Attributes:
        with_biases: Share by the composite's rules as they are, ``(B,)``.
        without_biases: Share if biases take none, ``(B,)``.
    """

    with_biases: Tensor
    without_biases: Tensor

    def __repr__(self) -> str:
        shares = f"{self.with_biases.mean().item():.3f} with biases, {self.without_biases.mean().item():.3f} without"
        return f"Conservation({counted(len(self.with_biases), 'sample')}: {shares})"

    def _repr_html_(self) -> str:
        """Returns both shares of each sample as a table, for a notebook."""
        pairs = zip(self.with_biases.tolist(), self.without_biases.tolist(), strict=True)
        rows = [[str(sample), f"{given:.3f}", f"{none:.3f}"] for sample, (given, none) in enumerate(pairs)]
        return html(["sample", "arrives with biases", "without biases"], rows)


def measure_conservation(
    model: nn.Module,
    composite: str | Callable[..., Any] | RuleSet,
    inputs: Tensor,
    targets: Tensor,
    *,
    canonizers: Sequence[Any] = (),
) -> Conservation:
    """Returns the conservation of an LRP composite on a model, with and without biases.

    Formula:
        `conservation` of the map and the explained logit.

    Args:
        model: A model that maps inputs to ``(B, classes)``; in evaluation mode.
        composite: What makes the composite from ``zero_params=`` and ``canonizers=``: a class of zennit, a
            ``functools.partial`` of one that needs more arguments, or a name in ``zennit.composites.COMPOSITES``.
            The one learned composite of relevance is `zennit_rules.LearnedEpsilonGammaBox`, in any of these forms or as
            a `RuleSet` of it.
        inputs: ``(B, ...)``.
        targets: Classes, ``(B,)`` int64; their logits are the relevance to conserve.
        canonizers: Canonizers of the composite, for instance ``zennit_rules.canonizers_for(model, inputs)``.

    Raises:
        LearnpropError: an unknown name, a composite that does not propagate relevance or cannot be made, or shapes that
            do not fit.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
        >>> for layer in (model[0], model[2]):
        ...     _ = nn.init.eye_(layer.weight)
        >>> measure_conservation(model, "epsilon_plus", torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
        Conservation(1 sample: 1.000 with biases, 1.000 without)
    """
    makers = _makers(_named(composite) if isinstance(composite, str) else composite)
    if not isinstance(targets, Tensor):
        raise LearnpropError(f"targets must be an int64 tensor, got {type(targets).__name__}")
    if targets.shape != inputs.shape[:1] or targets.dtype != torch.int64:
        raise LearnpropError(
            f"targets must be int64 of shape {tuple(inputs.shape[:1])}, got {targets.dtype} of {tuple(targets.shape)}"
        )
    shares = [_share(model, _made(make, list(canonizers)), inputs, targets) for make in makers]
    return Conservation(*shares)


def _named(name: str) -> Callable[..., Any]:
    # Gates on the gradient conserve nothing.
    known = {one: kind for one, kind in COMPOSITES.items() if _propagates_relevance(kind)}
    if name not in known:
        raise LearnpropError(f"there is no composite {name!r} of relevance; choose one of {', '.join(sorted(known))}")
    made: Callable[..., Any] = known[name]
    return made


def _propagates_relevance(kind: Any) -> bool:
    learned = isinstance(kind, type) and issubclass(kind, LearnedComposite)
    return not learned or issubclass(kind, LearnedEpsilonGammaBox)


def _makers(composite: Callable[..., Any] | RuleSet) -> Makers:
    given = composite.keywords if isinstance(composite, partial) else {}
    rules: Any = composite
    if not isinstance(composite, RuleSet):
        kind = composite.func if isinstance(composite, partial) else composite
        if not (isinstance(kind, type) and issubclass(kind, LearnedComposite)):
            return partial(composite, zero_params=None), partial(composite, zero_params=["bias"])
        if not _propagates_relevance(kind):
            raise LearnpropError(f"{kind.__name__} does not propagate relevance, which is what conservation is about")
        rules = given.get("rules", kind.default_rules)
        if rules is None:
            options = {**(given.get("rule_options") or {}), "bias": "zero"}
            return composite, partial(composite, rule_options=options)
        rules = rules if isinstance(rules, RuleSet) else RuleSet.load(rules)
    if not _propagates_relevance(composite_class(rules.composite_name)):
        raise LearnpropError(
            f"rules of {rules.composite_name!r} do not propagate relevance, which is what is conserved"
        )
    return rules.composite, _without_biases(rules).composite


def _without_biases(rules: RuleSet) -> RuleSet:
    """A copy of rules in which biases take no relevance."""
    rules = copy.deepcopy(rules)
    for site in rules.sites:
        gate = rules.gate(site.name)
        if isinstance(gate, ContributionGate):
            gate.bias = "zero"
    return rules


def _made(make: Callable[..., Any], canonizers: list[Any]) -> Any:
    try:
        return make(canonizers=canonizers)
    except TypeError as error:
        raise LearnpropError(
            f"the composite cannot be made from canonizers and zero_params alone ({error}); pass a functools.partial "
            "of its class with what else it needs"
        ) from error


def _share(model: nn.Module, composite: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    (leaf,) = leaves_of((inputs,))
    try:
        with rules_in_place(model, composite):
            output = model(leaf)
            if output.dim() != 2:
                raise LearnpropError(f"the model must return (B, classes), got {tuple(output.shape)}")
            start = torch.zeros_like(output).scatter(1, targets[:, None], output.detach().gather(1, targets[:, None]))
            (relevance,) = torch.autograd.grad(output, leaf, start)
    finally:
        composite.remove()  # a composite that fails while it is registered leaves its canonizers behind
    return conservation(relevance, start)
