"""A method by its name, made and called with what the command line gave for it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from captum.attr import LRP, Deconvolution, DeepLift, GradientAttribution, GuidedBackprop
from torch import Tensor, nn

from captum_learnprop.attribution.extremal.found_masks import ExtremalMasks
from captum_learnprop.attribution.extremal.inputs import ExtremalPerturbation
from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.hand_made import GREY, HAND_MADE, hand_made_for
from captum_learnprop.benchmark.hand_made_tokens import TOKEN_METHODS
from captum_learnprop.commands._attribute_request import Request
from captum_learnprop.commands._drawing import drawing_of
from captum_learnprop.commands._own_options import FLAGS, OWN
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.explanation.treatments import MapTreatment
from captum_learnprop.plugins import get_manager
from captum_learnprop.progress import in_terminal
from zennit_rules import RuleSet, composite_class

_LOG = logging.getLogger(__name__)

Attribute: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attributions ``(B, C, H', W')`` of images ``(B, 3, H, W)`` in [0, 1], the same as inputs, and targets ``(B,)``."""


def _no_curves() -> Tensor | None:
    """Returns no curves."""
    return None


@dataclass(frozen=True)
class Explainer:
    """A method that is made for a model.

    Attributes:
        attribute: Gives attributions of images in [0, 1], of the same images as inputs of the model, and of targets.
        drawing: How they are drawn.
        curves: Gives, after a call, the curves of its extremal masks ``(B, P, 2)``: areas and the shares of the output
            that they preserve; None for other methods and variants.
    """

    attribute: Attribute
    drawing: MapTreatment
    curves: Callable[[], Tensor | None] = _no_curves


def explainer(request: Request, candidate: Candidate) -> Explainer:
    """Builds the method of a request for a model.

    Raises:
        LearnpropError: There is no such method, it cannot explain the model, or an option means nothing to it.
    """
    known = get_manager().available("method")
    name = request.method
    if name not in known and (name in HAND_MADE or name in TOKEN_METHODS):
        (attribute, method, rules), curves = _by_hand(request, candidate), _no_curves
    elif name not in known:
        names = [*sorted(known), *HAND_MADE, *TOKEN_METHODS]
        raise LearnpropError(f"unknown method {name!r}{did_you_mean(name, names) or ';'} available: {', '.join(names)}")
    else:
        attribute, method, rules, curves = _registered(request, candidate.net)
    usual = drawing_of(name, method, rules)
    asked = {each: getattr(request, each) for each in ("sign", "smoothing", "outlines")}
    drawing = replace(usual, **{each: value for each, value in asked.items() if value is not None})
    return Explainer(attribute, drawing, curves)


def _by_hand(request: Request, candidate: Candidate) -> tuple[Attribute, None, None]:
    """Returns a hand-made method of `learnprop evaluate`; it takes no options."""
    given = [FLAGS.get(name, f"--{name}") for name in _built(request)]
    given += ["--steps"] * (request.steps is not None)
    given += [f"--method-option {name}" for name in request.method_option]
    if given:
        raise LearnpropError(f"{given[0]} means nothing to the method {request.method}; leave it out")
    if request.rules is not None:
        raise LearnpropError(f"--rules needs a gradient-based method, {request.method} is none")
    model = candidate.on_pixels()
    example = torch.full((1, *candidate.shape), GREY, device=next(model.parameters(), torch.zeros(0)).device)
    methods = HAND_MADE if request.method in HAND_MADE else hand_made_for(model, example)
    if request.method not in methods:
        raise LearnpropError(f"{request.method} is for transformers, and {candidate.name} is none that is known")
    explain = methods[request.method].build(model, example)

    def attribute(pixels: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return _checked(explain(pixels, targets), inputs, request.method, "").detach()

    return attribute, None, None


def _registered(
    request: Request, model: nn.Module
) -> tuple[Attribute, Any, RuleSet | None, Callable[[], Tensor | None]]:
    """Returns a method that a plugin, or ours, has registered, with what it made, its rules and its curves."""
    entry = get_manager().get("method", request.method)
    factory = entry.resolve()
    built = _built(request)
    for name in built:
        _require(factory, name, FLAGS.get(name, f"--{name}"), request.method)
    named = inspect.signature(factory).parameters
    built |= {name: value for name, value in request.method_option.items() if name in named}
    rules = _rules(request, model)
    takes_rules = rules is not None and _accepts(factory, "rules")
    method = entry.make(model, **built, **({"rules": rules} if takes_rules else {}))
    if not callable(getattr(method, "attribute", None)):
        raise LearnpropError(f"{entry.label}: it gave {method!r:.80}, which has no attribute()")
    options = _attribute_options(request, method, built)
    wants_gradient = isinstance(method, GradientAttribution)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    if rules is not None and not takes_rules:
        _check_gradient_method(request.method, method)
        _warn_of_other_seeds(rules, request.method)

        def around() -> AbstractContextManager[Any]:
            return rules.applied(model)

    found: list[Any] = []
    extremal = isinstance(method, ExtremalPerturbation)
    if extremal:
        options = {"show_progress": in_terminal(), **options, "return_masks": True}

    def attribute(pixels: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        with around():
            # Captum warns at every call when it must ask for the gradient itself.
            inputs = inputs.detach().requires_grad_(wants_gradient)
            with entry.used(options):
                attribution: Any = method.attribute(inputs, target=targets, **options)
        if extremal:
            attribution, found[:] = attribution[0], [attribution[1]]
        return _checked(attribution, inputs, request.method, entry.label if entry.home else "").detach()

    def curves() -> Tensor | None:
        return _curves_of(found[0]) if found and options.get("variant", "preserve") == "preserve" else None

    return attribute, method, rules, curves


def _curves_of(found: ExtremalMasks) -> Tensor:
    """Returns areas and the shares of the output that masks preserve, counted from the input without any."""
    shares = found.preserved(found.rewards)
    return torch.stack([found.areas.expand_as(shares).to(shares), shares], 2).detach().cpu()


def _built(request: Request) -> dict[str, Any]:
    """Returns what the method is made with, as far as it was given."""
    given = {name: getattr(request, name) for name in ("composite", "gate", "start", "pooling")}
    given["rule_options"] = request.rule_option or None
    return {name: value for name, value in given.items() if value is not None}


def _rules(request: Request, model: nn.Module) -> RuleSet | None:
    if request.rules is None:
        return None
    return RuleSet.load(request.rules, model)


def _attribute_options(request: Request, method: Any, built: dict[str, Any]) -> dict[str, Any]:
    """Returns what this method's ``attribute`` gets beside inputs and target: not what the method is built with."""
    options: dict[str, Any] = {}
    if request.steps is not None:
        _require(method.attribute, "n_steps", "--steps", request.method)
        options["n_steps"] = request.steps
    parameters = inspect.signature(method.attribute).parameters
    if "seed" in parameters:
        options["seed"] = request.seed
    if "output" in parameters and parameters["output"].default == "patches":  # methods for tokens
        options["output"] = "input"
    if "abs" in parameters:  # captum's Saliency drops the sign unless told otherwise
        options["abs"] = False
    for name in request.method_option.keys() - built.keys():
        known = {**inspect.signature(type(method)).parameters, **parameters}.keys() - {"self", *OWN}
        _require(method.attribute, name, f"--method-option {name}", request.method, known)
        options[name] = request.method_option[name]
    return options


def _accepts(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _require(function: Callable[..., Any], name: str, option: str, method: str, known: Iterable[str] = ()) -> None:
    if not _accepts(function, name):
        raise LearnpropError(
            f"{option} means nothing to the method {method}; leave it out{did_you_mean(name, sorted(known))}"
        )


def _check_gradient_method(name: str, method: Any) -> None:
    if not isinstance(method, GradientAttribution):
        raise LearnpropError(f"--rules needs a gradient-based method, {name} is none")
    if isinstance(method, (GuidedBackprop, Deconvolution, DeepLift, LRP)):
        raise LearnpropError(f"--rules cannot be combined with {name}, which has backward rules of its own")


def _warn_of_other_seeds(rules: RuleSet, method: str) -> None:
    """Warns where relevance starts with the output, or contributions end with the input: plain gradients do neither."""
    used = composite_class(rules.composite_name)
    if used.starts_with_output or used.ends_with_input:
        _LOG.warning(
            "%s neither starts nor ends as rules of %s do, so its maps may have another sign or scale; use --method "
            "learned_propagation",
            method,
            rules.composite_name,
        )


def _checked(attribution: Any, inputs: Tensor, method: str, label: str) -> Tensor:
    if isinstance(attribution, tuple) and attribution:
        attribution = attribution[0]
    if isinstance(attribution, torch.Tensor) and attribution.ndim == 4 and len(attribution) == len(inputs):
        return attribution
    found = tuple(attribution.shape) if isinstance(attribution, torch.Tensor) else type(attribution).__name__
    whose = f"{label}: " if label else ""
    raise LearnpropError(f"{whose}{method} gave {found} for images {tuple(inputs.shape)}, expected (B, C, H, W)")
