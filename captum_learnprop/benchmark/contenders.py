"""The methods of the benchmark by name: hand-made ones, searched ones, and those that learn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.gamma_grid import GRIDS, Grid
from captum_learnprop.benchmark.hand_made import HAND_MADE, Explain, HandMade
from captum_learnprop.benchmark.hand_made_tokens import TOKEN_METHODS
from captum_learnprop.benchmark.identity import file_stem
from captum_learnprop.benchmark.nets import Subject
from captum_learnprop.benchmark.rule_families import DEEP_LIFT, GATES
from captum_learnprop.benchmark.settings import TRANSFORMER_VARIANTS, Settings, composite_of
from captum_learnprop.benchmark.summary import LEARNED
from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.sample_occlusion import SampleOcclusion
from zennit_rules import RuleSet
from zennit_rules.core import fingerprint

REFINEMENT_STEPS = 5
"""Steps that refined shared rules learn for each image."""

TRUTH, CONTROL = "ground truth", "control"
"""Name and family of the true pixels as a map: what removal curves make of them shows how far those can be trusted."""

TOKEN = "token"
"""Family of methods that only transformers have."""

PER_SAMPLE = "learned per sample"
REFINED = "shared + refined"

UNTRAINED = "untrained"
"""Family of what learned methods, of the family `LEARNED`, start from; beside those of `hand_made.FAMILIES`."""

GIVEN = "rules "
"""What the names of rules from files begin with."""

ONE_PASS, CONTRAST_PASS, REFERENCE_PASS, STEP_PASSES = 2, 1, 1, 4
"""Passes through the net of an explanation by given rules, those that a contrast stream and a reference input add, and
those of each learning step."""

DELETION_PASSES = SampleOcclusion().total
"""Passes of a sample's deletions."""


@dataclass(frozen=True)
class Contender:
    """A method of the benchmark.

    Attributes:
        name: Name of the method, as in tables.
        family: One of `hand_made.FAMILIES`, ``"learned"`` or ``"untrained"``.
        passes: Number of forward and backward passes per image; of token methods see `passes_on`.
        build: A function ``(subject, net, seed) -> explain`` of images in [0, 1]; the net is the subject's or a
            randomised copy of it.
        seeded: Whether it is learned anew for every training seed.
        variant: The learned variant that it needs, or None.
        options: What else decides its outcome.
        rules: A function ``(subject, seed) -> rules`` whose treatment its maps get; None to choose one on the tuning
            scenes.
        seconds: A function ``(subject, seed) -> seconds`` of training or search, None where they are not known.
        fits: Whether it is for a net; others have no cell of it.
        composite: Name of the composite of rules from a file, or None.
    """

    name: str
    family: str
    passes: int
    build: Callable[[Subject, nn.Module, int], Explain]
    seeded: bool = False
    variant: str | None = None
    options: str = ""
    rules: Callable[[Subject, int], RuleSet] | None = None
    seconds: Callable[[Subject, int], float | None] = lambda subject, seed: None
    fits: Callable[[Subject], bool] = lambda subject: True
    composite: str | None = None

    @property
    def selective(self) -> bool:
        """Whether it is for transformers alone."""
        return self.family == TOKEN or self.variant in TRANSFORMER_VARIANTS

    def passes_on(self, subject: Subject) -> int:
        """Returns the number of passes per image on a net: over tokens it depends on how many there are."""
        return subject.hand_made[self.name].passes if self.family == TOKEN else self.passes


def every_contender(settings: Settings, rules: Sequence[Path] = (), *, own_net: bool = False) -> list[Contender]:
    """Returns all methods, in the order of the tables.

    Args:
        settings: What decides the outcome of methods; names the learned variants.
        rules: Files of further rule sets.
        own_net: Whether a net of the user's own is compared on: token methods belong to transformers, and gamma grids,
            which take as long as training, to the reference nets.

    Raises:
        LearnpropError: The files of two methods would have one name.
    """
    found = [_hand_made(one) for one in HAND_MADE.values()]
    found += map(_over_tokens, TOKEN_METHODS) if own_net else [_searched(settings, grid) for grid in GRIDS]
    found.append(Contender(TRUTH, CONTROL, 0, _no_build))
    for name, options in settings.variants.items():
        found += _variant(name, options)
    found += _adaptive(settings)
    found += [_given(path) for path in rules]
    _require_own_files(found)
    return found


def given_name(path: Path) -> str:
    """Returns the name of the method that the rules of a file are."""
    return f"{GIVEN}{path.stem}"


def _require_own_files(every: Sequence[Contender]) -> None:
    names: dict[str, str] = {}
    for one in every:
        other = names.setdefault(file_stem(one.name), one.name)
        if other != one.name or [each.name for each in every].count(one.name) > 1:
            raise LearnpropError(
                f"the cells of {other!r} and {one.name!r} would have the same file names; "
                "rename one of the variants or rule files"
            )


def _no_build(subject: Subject, net: nn.Module, seed: int) -> Explain:
    raise LearnpropError(f"{TRUTH} is made from the questions")


def _hand_made(method: HandMade) -> Contender:
    def build(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return method.build(subject.on_pixels(net), subject.example)

    return Contender(method.name, method.family, method.passes, build, options=method.options)


def _over_tokens(name: str) -> Contender:
    """Returns a method that only transformers have; its passes depend on how many tokens they have."""

    def build(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return subject.hand_made[name].build(subject.on_pixels(net), subject.example)

    return Contender(name, TOKEN, 0, build, fits=lambda subject: name in subject.hand_made)


def _searched(settings: Settings, grid: Grid) -> Contender:
    """Returns LRP with the gammas that a search finds for the net."""

    def build(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return subject.searched(grid).best.setting.lrp()(subject.on_pixels(net), subject.example)

    return Contender(
        grid.name, "lrp", ONE_PASS, build,
        options=json.dumps(settings.search_options(grid), default=repr),
        seconds=lambda subject, seed: subject.searched(grid).seconds,
    )  # fmt: skip


def _variant(name: str, options: Mapping[str, Any]) -> list[Contender]:
    """Returns the untrained start of a variant, and what it learns."""
    passes = _passes(options)

    def untrained(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return _by_rules(subject, net, subject.untrained(name))

    def trained(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return _by_rules(subject, net, subject.trained(name, seed))

    def fits(subject: Subject) -> bool:
        return name not in TRANSFORMER_VARIANTS or subject.is_transformer

    return [
        Contender(f"{name}, untrained", UNTRAINED, passes, untrained, variant=name, fits=fits),
        Contender(
            f"{name}, learned", LEARNED, passes, trained, seeded=True, variant=name, fits=fits, **_trained_rules(name)
        ),
    ]


def _trained_rules(variant: str) -> dict[str, Any]:
    """Returns the fields of a contender that are about the rules of a variant."""

    def rules(subject: Subject, seed: int) -> RuleSet:
        return subject.trained(variant, seed)

    return {"rules": rules, "seconds": lambda subject, seed: _training_seconds(rules(subject, seed))}


def _training_seconds(rules: RuleSet) -> float | None:
    return rules.training.get("seconds")


def _passes(options: Mapping[str, Any]) -> int:
    """Returns the passes of an explanation by rules of a variant's options."""
    return passes_of(composite_of(options), bool((options.get("gate_options") or {}).get("contrast")))


def passes_of(composite: str, contrast: bool) -> int:
    """Returns the passes through the net of an explanation by rules.

    Args:
        composite: Name of their composite.
        contrast: Whether their gates have a contrast stream.
    """
    return ONE_PASS + CONTRAST_PASS * contrast + REFERENCE_PASS * (composite == DEEP_LIFT)


def _adaptive(settings: Settings) -> list[Contender]:
    """Returns the methods that learn for the image they explain."""

    def per_sample(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return _by_learning(subject, LearnedPropagation(net), settings.sample_steps, seed)

    passes = ONE_PASS + DELETION_PASSES + STEP_PASSES * settings.sample_steps
    found = [
        Contender(
            PER_SAMPLE,
            LEARNED,
            passes,
            per_sample,
            seeded=True,
            options=f"{settings.sample_steps} steps, occlusion",
        )
    ]
    first = next((name for name, options in settings.variants.items() if composite_of(options) == GATES), None)
    if first is None:
        return found

    def refined(subject: Subject, net: nn.Module, seed: int) -> Explain:
        method = LearnedPropagation(net, rules=subject.trained(first, seed))
        return _by_learning(subject, method, REFINEMENT_STEPS, seed)

    refining_passes = _passes(settings.variants[first]) + DELETION_PASSES + STEP_PASSES * REFINEMENT_STEPS
    refining = Contender(
        REFINED,
        LEARNED,
        refining_passes,
        refined,
        seeded=True,
        variant=first,
        options=f"{REFINEMENT_STEPS} steps, occlusion",
        **_trained_rules(first),
    )
    return [*found, refining]


def _given(path: Path) -> Contender:
    """Returns the rule set of a file, for the net it was trained on."""

    def load(subject: Subject) -> RuleSet:
        return RuleSet.load(path, subject.net)

    def fits(subject: Subject) -> bool:
        same = rules.architecture in (None, fingerprint.architecture(subject.net))
        return same and rules.weights in (None, subject.weights)

    rules = RuleSet.load(path)
    return Contender(
        given_name(path),
        LEARNED,
        passes_of(rules.composite_name, rules.contrast),
        lambda subject, net, seed: _by_rules(subject, net, load(subject)),
        options=hashlib.sha256(path.read_bytes()).hexdigest(),
        rules=lambda subject, seed: load(subject),
        seconds=lambda subject, seed: _training_seconds(rules),
        fits=fits,
        composite=rules.composite_name,
    )


def _by_rules(subject: Subject, net: nn.Module, rules: RuleSet) -> Explain:
    method = LearnedPropagation(net, rules=rules)
    # What the net takes may have another shape than the image: a series has no height.
    return lambda images, targets: method.attribute(subject.inputs(images), targets).reshape(images.shape)


def _by_learning(subject: Subject, method: LearnedPropagation, steps: int, seed: int) -> Explain:
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(subject.inputs(images), targets, n_steps=steps, seed=seed)
        return found.reshape(images.shape)

    return explain
