"""Trained rules inside captum's own ``LRP`` object, for code that is given one.

Captum's engine runs as it is: two forward passes, activations that pass relevance, the scaling by the output. What it
would do at the other layers is left to the rule set's composite, which is registered on the model meanwhile: each of
those layers gets a `IdleRule` that changes no weights and hooks nothing. Captum deletes rules after a call, so
they are set anew for each, as plain attributes (a rule that is a module would become part of the model).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captum.attr import LRP, LayerLRP
from torch import Tensor, nn

from zennit_rules import LearnedEpsilonGammaBox, RuleSet
from zennit_rules.core.buffers import buffers_kept

from ..._compat import SUPPORTED_NON_LINEAR_LAYERS, IdleRule
from ...errors import LearnpropError
from .given_rules import given_rules

_LEFT = ("rule", "activations")
"""What captum writes on modules, and does not always take away."""


def attach_rules(lrp: LRP, rules: RuleSet | str | Path) -> LRP:
    """Let a ``captum.attr.LRP`` propagate by trained rules, until `detach_rules`.

        lrp = attach_rules(LRP(model), "rules.safetensors")
        lrp.attribute(x, target=y)  # as often as you like, also through NoiseTunnel

    The result is that of ``LearnedLRP(model, rules)``, by two forward passes instead of one. Rules that were set at
    ``module.rule`` wait meanwhile.

    Args:
        lrp: The object; rules that were attached before are replaced.
        rules: A `RuleSet` of the composite ``"learned_epsilon_gamma_box"``, or the path of a saved one; trained with
            ``gate="none"``, since captum passes relevance through activations unchanged.

    Returns:
        The same object.

    Raises:
        LearnpropError: If ``lrp`` is no ``captum.attr.LRP``, or the rules have parts that captum overrules: gates at
            activations that it treats itself, or such activations called more than once.
        RuleError: For a rule set of another model, or of another composite.
    """
    if not isinstance(lrp, LRP) or isinstance(lrp, LayerLRP):
        raise LearnpropError(f"attach_rules needs a captum.attr.LRP, got {type(lrp).__name__}; or use LearnedLRP")
    rules = given_rules(rules, lrp.model, "attach_rules", LearnedEpsilonGammaBox)
    if rules.contrast or rules.fusion is not None:
        raise LearnpropError(f"captum.attr.LRP runs one backward pass; rules with contrast or fusion take more. {_WAY}")
    _refuse_what_captum_overrules(lrp.model, rules)
    lrp.attribute = _Attribute(lrp, rules)
    return lrp


def detach_rules(lrp: LRP) -> LRP:
    """Make an object plain again; nothing happens if it has no trained rules.

    Returns:
        The same object.
    """
    if isinstance(vars(lrp).get("attribute"), _Attribute):
        del lrp.attribute
    return lrp


_WAY = "Use captum_learnprop.LearnedLRP(model, rules), which has the same arguments"


def _refuse_what_captum_overrules(model: nn.Module, rules: RuleSet) -> None:
    """Captum has hooks of its own at ReLU, Tanh and Dropout modules; all else the composite has for itself."""
    own: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module) not in SUPPORTED_NON_LINEAR_LAYERS:
            continue
        known = next((name for name, other in own.items() if other is module), None)
        if known is not None:
            raise LearnpropError(
                f"one {type(module).__name__} is registered as {known!r} and as {path!r}, where captum.attr.LRP fails. "
                f"{_WAY}"
            )
        own[path] = module
    for site in rules.sites:
        path, _, again = site.name.partition("#")
        if path not in own:
            continue
        if next(rules.gate(site.name).parameters(), None) is not None:
            raise LearnpropError(
                f"the rules have a gate at {site.name!r}, a {site.function}, where captum.attr.LRP always passes "
                f"relevance unchanged; train without gates (gate='none'). {_WAY}"
            )
        if again:
            raise LearnpropError(
                f"the model calls {path!r}, a {site.function}, more than once ({site.name!r}), which captum.attr.LRP "
                f"can mix up. {_WAY}"
            )


class _Attribute:
    """Stands in for the ``attribute`` of an LRP object.

    Args:
        lrp: The object.
        rules: What it propagates by.
    """

    def __init__(self, lrp: LRP, rules: RuleSet) -> None:
        self.lrp, self.rules = lrp, rules

    @property
    def __signature__(self) -> inspect.Signature:
        """Captum's."""
        return inspect.signature(type(self.lrp).attribute.__get__(self.lrp))

    def __call__(self, inputs: Tensor | tuple[Tensor, ...], *args: Any, **options: Any) -> Any:
        """Captum's own ``attribute``, with the rules in place."""
        lrp, model = self.lrp, self.lrp.model
        rules = _rules_at(model, self.rules)
        with rules, _requires_grad_kept(inputs), buffers_kept(model), self.rules.composite().context(model):
            return type(lrp).attribute(lrp, inputs, *args, **options)

    def __wrapped__(self, lrp: LRP, *args: Any, **options: Any) -> Any:
        """What NoiseTunnel and other methods of captum call."""
        return self(*args, **options)


@contextmanager
def _rules_at(model: nn.Module, rules: RuleSet) -> Iterator[None]:
    """Give the layers that captum asks for a rule one, and leave the modules as they were found."""
    found = [
        (module, {name: vars(module)[name] for name in _LEFT if name in vars(module)}) for module in model.modules()
    ]
    try:
        for path, module in model.named_modules():
            for name in _LEFT:
                vars(module).pop(name, None)
            if next(module.children(), None) is None and type(module) not in SUPPORTED_NON_LINEAR_LAYERS:
                object.__setattr__(module, "rule", IdleRule(_gates_text(rules, path)))
        yield
    finally:
        for module, attributes in found:
            for name in _LEFT:
                vars(module).pop(name, None)
            vars(module).update(attributes)


def _gates_text(rules: RuleSet, path: str) -> str:
    """What captum's ``verbose`` calls the rule of a module."""
    gates = [str(rules.gate(site.name)) for site in rules.sites if site.name.partition("#")[0] == path]
    return ", ".join(gates) or "a fixed rule"


@contextmanager
def _requires_grad_kept(inputs: Any) -> Iterator[None]:
    """Captum makes inputs require gradients and, if something fails, leaves them so."""
    tensors = [x for x in (inputs if isinstance(inputs, tuple) else (inputs,)) if isinstance(x, Tensor) and x.is_leaf]
    before = [x.requires_grad for x in tensors]
    try:
        yield
    finally:
        for x, required in zip(tensors, before, strict=True):
            x.requires_grad_(required)
