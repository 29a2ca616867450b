"""Methods by name, as functions of a model's input: hand-made ones, those of plugins, and trained rules."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from captum.attr import GradientAttribution
from torch import Tensor, nn

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.attribution.tokens.layout import TensorOutput
from captum_learnprop.benchmark.candidate import OnPixels
from captum_learnprop.benchmark.contenders import passes_of
from captum_learnprop.benchmark.hand_made import HAND_MADE, HandMade
from captum_learnprop.benchmark.hand_made_tokens import TOKEN_METHODS, token_method, transformer_in
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.explanation.treatments import MapTreatment, treatment_for
from captum_learnprop.explanation.value_methods import FOR_VALUES, VALUE_METHODS
from captum_learnprop.images import Preprocessing
from captum_learnprop.plugins import get_manager
from captum_learnprop.plugins.entry import Entry
from captum_learnprop.targets import Asking, TargetFunction
from zennit_rules import RuleError, RuleSet, ready_rules
from zennit_rules.core import fingerprint

Rules: TypeAlias = RuleSet | str | Path

FOR_TRANSFORMERS = ("integrated gradients", "GenericAttention")
"""What explains a vision transformer for which no rules are known, the first that can: of the methods before training
the first has the highest average precision in ``docs/results/transformers.md`` (.757; occlusion .747, GenericAttention
.577, CDAM .524)."""

FOR_OTHERS = ("LRP gamma x Grad-CAM", "guided Grad-CAM", "Grad-CAM", "integrated gradients")
"""What explains any other net for which no rules are known, the first that can: in ``docs/evaluation/photographs.md``
the first has the highest average precision over three nets among hand-made methods (.795, .788, .810; guided Grad-CAM
.798, .770, .773). The control that draws the picture is left out."""


@dataclass(frozen=True)
class Question:
    """What a method is asked about: one model, one input, one entry or function of the output.

    Attributes:
        net: The model, which takes normalised inputs.
        input: ``(1, C, h, w)``.
        mean: Mean of the normalisation for each channel, of pixels in [0, 1].
        std: Its deviation.
        target: Number of the explained output; 0 where there is a function.
        function: What is explained in place of one output, or None.
        structured: Whether the model returns a structure with logits, which captum's classes do not know.
        is_picture: Whether the input is one; else a row ``(1, F)`` or a series ``(1, C, T)``, and no pixels.
    """

    net: nn.Module
    input: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target: int
    function: TargetFunction | None = None
    structured: bool = False
    is_picture: bool = True

    @property
    def asked(self) -> nn.Module:
        """The model, with the function behind it where there is one; it returns a tensor."""
        if self.function is not None:
            return Asking(self.net, self.function)
        return TensorOutput(self.net) if self.structured else self.net

    @property
    def on_pixels(self) -> nn.Module:
        """The same for pixels in [0, 1]."""
        return OnPixels(self.asked, Preprocessing(mean=self.mean, std=self.std))

    @property
    def pixels(self) -> Tensor:
        """The input as pixels in [0, 1], ``(1, C, h, w)``."""
        mean, std = (self.input.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.input * std + mean

    @property
    def targets(self) -> Tensor:
        """The target of the one row, ``(1,)``."""
        return torch.tensor([self.target], device=self.input.device)


_AS_IT_IS = MapTreatment("signed")


@dataclass(frozen=True)
class Method:
    """A method that explains one input.

    Attributes:
        name: What it is called in figures.
        treatment: How its attributions become maps.
        build: Makes it for a question: a function without arguments that gives the attribution ``(1, C, h, w)``. It
            raises a `LearnpropError` with the reason where it cannot.
        passes: Number of forward and backward passes through the net, None where it is not known.
        preprocessing: Of trained rules, how images became inputs in the training, where they say so.
        of_values: How attributions of inputs that are no pictures become maps: as they are, for no table chose
            anything; those of rules as they were trained.
    """

    name: str
    treatment: MapTreatment
    build: Callable[[Question], Callable[[], Tensor]]
    passes: Callable[[Question], int | None] = lambda question: None
    preprocessing: Preprocessing | None = None
    of_values: MapTreatment = _AS_IT_IS


def find_methods(
    method: str | Rules | Sequence[Any] | None, rules: Rules | Sequence[Rules] | None, net: nn.Module
) -> list[Method] | None:
    """Returns the methods of names and the rule sets, in order: rules first; None where neither is given.

    Args:
        method: A name or several, see `method_named`; a rule set counts as one.
        rules: A rule set, its file or its ready name, or several.
        net: The model that rules are for.

    Raises:
        LearnpropError: There is no such method.
        RuleError: Rules belong to another model, or their file cannot be used.
    """
    wanted = [rules_method(one, net) for one in _each(rules)]
    for one in _each(method):
        wanted.append(rules_method(one, net) if _are_rules(one) else method_named(one))
    return wanted or None


def _each(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _are_rules(given: Any) -> bool:
    if isinstance(given, (RuleSet, os.PathLike)):
        return True
    return isinstance(given, str) and (given.endswith(".safetensors") or given in ready_rules())


def method_names() -> list[str]:
    """Returns the names of all methods: hand-made ones, those over tokens, and those of plugins."""
    hand_made = [*HAND_MADE, *TOKEN_METHODS]
    known = {_plain(name) for name in hand_made}
    return hand_made + [name for name in get_manager().available("method") if _plain(name) not in known]


def method_named(name: Any) -> Method:
    """Returns a method by its name.

    Args:
        name: One of `method_names`; upper case, spaces, hyphens and underscores do not count, so that ``"grad_cam"`` is
            ``"Grad-CAM"``.

    Raises:
        LearnpropError: There is no such method.
    """
    if not isinstance(name, str):
        raise LearnpropError(f"a method is a name, a rule set or its file, got {type(name).__name__}")
    found = {_plain(one): one for one in method_names()}.get(_plain(name))
    if found is None:
        known = [*method_names(), *ready_rules()]
        raise LearnpropError(
            f"there is no method {name!r}{did_you_mean(name, known) or ': choose one of ' + ', '.join(known)}"
        )
    if found in HAND_MADE:
        return _hand_made(HAND_MADE[found])
    if found in TOKEN_METHODS:
        return _over_tokens(found)
    return _of_plugin(get_manager().get("method", found))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.casefold())


def _hand_made(method: HandMade) -> Method:
    def build(question: Question) -> Callable[[], Tensor]:
        if not question.is_picture:
            return _of_values(method.name, question)
        pixels = question.pixels
        _require_pixels(pixels, method.name)
        explain = method.build(question.on_pixels, pixels)
        return lambda: explain(pixels, question.targets)

    def passes(question: Question) -> int | None:
        return method.passes if question.is_picture else VALUE_METHODS[method.name].passes

    return Method(method.name, treatment_for(method.name), build, passes)


def _of_values(name: str, question: Question) -> Callable[[], Tensor]:
    """Returns a hand-made method for a row, a series or a text.

    Raises:
        LearnpropError: It is for pictures.
    """
    if name not in VALUE_METHODS:
        raise LearnpropError(
            f"{name} is for pictures: explain rows, series and texts by trained rules, a method of a plugin, or one of "
            f"{', '.join(VALUE_METHODS)}"
        )
    explain = VALUE_METHODS[name].build(question.asked, question.input)
    return lambda: explain(question.input, question.targets)


def _over_tokens(name: str) -> Method:
    def passes(question: Question) -> int | None:
        if not question.is_picture:
            return None
        anatomy = transformer_in(question.on_pixels, question.pixels)
        return None if anatomy is None else TOKEN_METHODS[name].passes(anatomy.grid[0] * anatomy.grid[1])

    method = _hand_made(HandMade(name, "token", 0, token_method(TOKEN_METHODS[name])))
    return replace(method, passes=passes)


def _require_pixels(pixels: Tensor, name: str) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    if low < -_MARGIN or high > 1 + _MARGIN:
        raise LearnpropError(
            f"{name} is for pictures in [0, 1], and by the normalisation that is known this input is one of {low:.2f} "
            f"to {high:.2f}: say how it was made with mean= and std=, or give the picture itself"
        )


_MARGIN = 0.05
"""How far interpolation takes pixels beyond black and white."""


def rules_method(given: Rules, net: nn.Module) -> Method:
    """Returns trained rules as a method.

    Args:
        given: A rule set, its file, or the name of one that ships with the package.
        net: The model that it is for.

    Raises:
        RuleError: It belongs to another model, or its file cannot be used.
    """
    if isinstance(given, RuleSet):
        given.check_model(net)
        rules, name = given, f"trained {given.composite_name}"
    else:
        rules = RuleSet.load(given, net)
        name = str(given) if str(given) in ready_rules() else Path(given).stem

    def build(question: Question) -> Callable[[], Tensor]:
        method = _asking(LearnedPropagation(question.net, rules=rules), question)
        return lambda: method.attribute(question.input, question.targets)

    def passes(question: Question) -> int:
        return passes_of(rules.composite_name, rules.contrast)

    treatment = MapTreatment.of_rules(rules)
    return Method(name, treatment, build, passes, _preprocessing_of(rules), treatment)


def _preprocessing_of(rules: RuleSet) -> Preprocessing | None:
    """Returns how images became inputs in the training, as ``learnprop train`` writes it into the file."""
    kept = rules.training.get("preprocessing")
    if not isinstance(kept, dict) or not {"resize", "crop", "mean", "std"} <= set(kept):
        return None
    known = {name: value for name, value in kept.items() if name in Preprocessing.__dataclass_fields__}
    return Preprocessing(**{**known, "mean": tuple(known["mean"]), "std": tuple(known["std"])})


def _asking(method: LearnedPropagation, question: Question) -> LearnedPropagation:
    """Returns a method that explains the function of the question, if it has one.

    The rules stay those of the model, whose modules a wrapper would give other names.
    """
    function = question.function
    if function is not None:
        method.forward_func = lambda *inputs: function(question.net(*inputs)).reshape(-1, 1)
    return method


def _of_plugin(entry: Entry) -> Method:
    name = entry.record.name

    def build(question: Question) -> Callable[[], Tensor]:
        if issubclass_of_learned(entry.resolve()):
            method = _asking(entry.make(question.net), question)
        else:
            method = entry.make(question.asked)
        parameters = inspect.signature(method.attribute).parameters
        options: dict[str, Any] = {"output": "input"} if _over_patches(parameters) else {}
        options |= {"abs": False} if "abs" in parameters else {}
        options |= {"seed": 0} if "seed" in parameters else {}

        def explain() -> Tensor:
            inputs = question.input.detach().requires_grad_(isinstance(method, GradientAttribution))
            with entry.used(options):
                found = method.attribute(inputs, target=question.targets, **options)
            return _checked(found, question.input, name)

        return explain

    if name == "learned_propagation":
        return Method(name, treatment_for(name), build, of_values=treatment_for(name))
    return Method(name, treatment_for(name), build)


def issubclass_of_learned(factory: Any) -> bool:
    """Returns whether a factory makes methods that propagate by rules."""
    return inspect.isclass(factory) and issubclass(factory, LearnedPropagation)


def _over_patches(parameters: Any) -> bool:
    return "output" in parameters and parameters["output"].default == "patches"


def _checked(found: Any, inputs: Tensor, name: str) -> Tensor:
    if isinstance(found, tuple) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != inputs.ndim or len(found) != 1:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        expected = {2: "(1, F)", 3: "(1, C, T)"}.get(inputs.ndim, "(1, C, H, W)")
        raise LearnpropError(f"{name} gave {what} for an input {tuple(inputs.shape)}, expected {expected}")
    return found.detach()


def ready_rules_for(net: nn.Module) -> list[str]:
    """Returns the names of the rule sets that ship for a model, told by the fingerprint of its weights."""
    kind = fingerprint.architecture(net)
    fitting = [name for name in ready_rules() if _ready(name).architecture == kind]
    if not fitting:
        return []
    weights = fingerprint.weights(net)
    return [name for name in fitting if _ready(name).weights == weights]


@lru_cache(maxsize=8)
def _ready(name: str) -> RuleSet:
    return RuleSet.load(name)


def usual_methods(question: Question) -> list[Method]:
    """Returns what explains a model where nothing is asked for: methods of which the first that can is taken.

    Rules that ship for the model come first (of several the first by name: gates, which find a little more than LRP in
    half the time), else `FOR_TRANSFORMERS` or `FOR_OTHERS`.
    """
    ready = ready_rules_for(question.net)
    if ready:
        return [rules_method(ready[0], question.net)]
    if not question.is_picture:
        return [method_named(name) for name in FOR_VALUES]
    transformer = transformer_in(question.on_pixels, question.pixels) is not None
    return [method_named(name) for name in (FOR_TRANSFORMERS if transformer else FOR_OTHERS)]


def built(methods: Sequence[Method], question: Question) -> tuple[Method, Callable[[], Tensor]]:
    """Returns the first of several methods that can explain a question, made for it.

    Raises:
        LearnpropError: None of them can, with the reason of each.
    """
    reasons = []
    for method in methods:
        try:
            return method, method.build(question)
        except (LearnpropError, RuleError, NotImplementedError) as error:
            if len(methods) == 1:
                raise
            reasons.append(f"{method.name}: {error}")
    raise LearnpropError("no method can explain this model. " + "; ".join(reasons))
