"""The benchmark: nets x scenes x methods x training seeds, cell by cell, with every sample's scores kept.

A *cell* is one method on one scene family of one net, for learned methods with one training seed. It is written as
JSON when it is done and skipped when it is there, so that a run can be interrupted, and processes with different nets
can share a folder. Rules are trained once per net, variant and seed, and saved beside the cells; for the digits on
pairs of digits, used for all families of that net. So are the gammas that a search finds for a net.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.attribution.rules.learned import DEFAULT_STEPS, LearnedPropagation
from captum_learnprop.benchmark.comparison import TREATMENTS, Treatment, best_treatment, treatments_at
from captum_learnprop.benchmark.gamma_grid import GRIDS, Grid, Search, search
from captum_learnprop.benchmark.hand_made import GREY, HAND_MADE, Explain, HandMade
from captum_learnprop.benchmark.rule_families import DEEP_LIFT, GATES, GUIDED, LRP
from captum_learnprop.benchmark.scorecard import RANDOMISATION, Case, in_table_order, score, scores_of
from captum_learnprop.benchmark.summary import NOT_RUN
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.evaluation.randomization import randomized
from captum_learnprop.evaluation.similarity import spearman
from captum_learnprop.files import write_text
from captum_learnprop.maps import reduce_channels
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.scenes import FAMILIES, QUESTIONS_PER_SCENE, SIZE, Questions, make_scenes
from captum_learnprop.training.terms import RandomizationContrast
from captum_learnprop.training.trainer import (
    HELD_OUT,
    SHOWN,
    Options,
    RuleTrainer,
    held_out_images,
    training_defaults,
)
from zennit_rules import RuleError, RuleSet
from zennit_rules.core import fingerprint

VERSION = 1
"""Of cells and of all constants that decide their scores: part of the settings of a cell."""

BATCH = 32
"""Images explained together."""

TRAINING_FAMILY = {"digits": "pairs", "patch": "patch", "parts": "parts"}
"""Whose training scenes the rules of a task's net are learned from."""

RANDOM_NETS = 2
"""Re-initialised nets that `RANDOMISATION` is the mean of."""

RANDOMISED_QUESTIONS = 24
"""Questions that `RANDOMISATION` is measured on, the first ones: it costs as many explanations for every such net."""

REFINEMENT_STEPS = 5

TRUTH, CONTROL = "ground truth", "control"
"""The true pixels as a map: what removal curves make of them shows how far those can be trusted."""

PER_SAMPLE = "learned per sample"
REFINED = "shared + refined"
LEARNED, UNTRAINED = "learned", "untrained"
"""Families of methods beside those of `hand_made.FAMILIES`."""

_FAILURES = (LearnpropError, RuntimeError, ValueError, AssertionError, NotImplementedError, IndexError)
"""What methods raise for nets that they cannot explain."""

ONE_PASS, CONTRAST_PASS, REFERENCE_PASS, STEP_PASSES = 2, 1, 1, 4
"""Passes of an explanation by given rules; of a contrast stream more; of rules that also run the model on a reference;
of each learning step."""

SEARCH_SEED = 0
"""Of the gamma grids: one search for each net."""


class BenchmarkError(LearnpropError):
    """A benchmark that cannot be run as asked."""


class SettingsError(BenchmarkError):
    """A folder with results of other settings or nets."""


def default_variants(composites: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Learned variants by name: options of `RuleTrainer`.

    Args:
        composites: whose; of all by default.
    """
    differs = training_defaults(GATES).term + 1.5 * RandomizationContrast(compression="log")
    every: dict[str, dict[str, Any]] = {
        "gates": {},
        "gates + contrast stream": {"gate_options": {"position": True, "contrast": True}},
        "gates + randomization": {"objective": differs},
        "gates + fusion": {"fusion": True},
        "guided backprop, gates": {"composite": GUIDED},
        "DeepLift": {"composite": DEEP_LIFT, "rule_options": {"baseline": GREY}},
        "LRP": {"composite": LRP},
        "LRP, z+ start": {"composite": LRP, "rule_options": {"strength": 0.0}},
    }
    return {name: one for name, one in every.items() if not composites or composite_of(one) in composites}


def composite_of(options: Mapping[str, Any]) -> str:
    """The composite of a variant."""
    return str(options.get("composite", GATES))


@dataclass(frozen=True)
class Suite:
    """What is compared, on what, how.

    Attributes:
        architectures: of `reference_nets.ARCHITECTURES`.
        families: scene families.
        variants: learned variants, options of `RuleTrainer` by name.
        methods: names of methods; empty for all: see `contenders`.
        metrics: names of metrics, see `scores_of`; empty for all columns of the tables.
        training_seeds: of the learned methods.
        questions: asked per family on the split ``"test"``, at least; scenes are not cut.
        tuning_questions: the same on ``"validation"``, where treatments are chosen.
        training_scenes: on ``"train"``, for each net.
        training_steps: of each variant; None is the trainer's own number.
        sample_steps: of the rules learned per sample.
        seed: of the scenes.
        rules: files of further rule sets to compare.
    """

    architectures: tuple[str, ...] = tuple(reference_nets.ARCHITECTURES)
    families: tuple[str, ...] = tuple(FAMILIES)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=default_variants)
    methods: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    training_seeds: tuple[int, ...] = (0, 1, 2)
    questions: int = 48
    tuning_questions: int = 24
    training_scenes: int = 128
    training_steps: int | None = None
    sample_steps: int = DEFAULT_STEPS
    seed: int = 0
    rules: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        _known("model", self.architectures, reference_nets.ARCHITECTURES)
        _known("scenes", self.families, FAMILIES)
        scores_of(self.metrics)
        contenders(self)
        for name in ("questions", "tuning_questions", "training_scenes"):
            if getattr(self, name) < 1:
                raise BenchmarkError(f"{name} must be at least 1, got {getattr(self, name)}")
        seeds = self.training_seeds
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise BenchmarkError(f"training_seeds must be one or more different numbers of at least 0, got {seeds}")

    def scores_of(self, family: str) -> list[str]:
        """The scores that are asked for and defined on a family."""
        return [one.name for one in scores_of(self.metrics) if one.defined_on(family)]

    def trainer(self, variant: str | None, model: nn.Module, seed: int = 0) -> RuleTrainer:
        """The trainer of a variant, with the trainer's own options for None."""
        options = {} if variant is None else dict(self.variants[variant])
        if self.training_steps is not None:
            options["steps"] = self.training_steps
        return RuleTrainer(model, seed=seed, **options)

    def lrp_training(self, model: nn.Module, seed: int = 0) -> RuleTrainer:
        """A trainer with the examples, the smoothing and the budget that LRP rules are trained with."""
        own = [one for one in self.variants.values() if composite_of(one) == LRP]
        first = (own or list(default_variants((LRP,)).values()))[0]
        options = {name: value for name, value in first.items() if name in Options.__dataclass_fields__}
        if self.training_steps is not None:
            options["steps"] = self.training_steps
        return RuleTrainer(model, seed=seed, **options)

    def training_options(self, variant: str | None) -> dict[str, Any]:
        """All options of a variant's training but for the seed, in plain types; of every trainer's for None."""
        return _training_options(self.trainer(variant, nn.Identity()))  # options do not depend on the net

    @property
    def smoothing(self) -> float:
        """Of the first learned variant, in pixels; of the trainer's default where there is none."""
        options = self.training_options(next(iter(self.variants), None))
        return round(options["smoothing"] * SIZE, 6)


@dataclass(frozen=True)
class Contender:
    """A method of the benchmark.

    Attributes:
        name: as in tables.
        family: one of `hand_made.FAMILIES`, ``"learned"`` or ``"untrained"``.
        passes: forward and backward passes per image.
        build: ``(subject, net, seed) -> explain``; the net is the subject's or a randomised copy of it.
        seeded: whether it is learned anew for every training seed.
        variant: the learned variant that it needs, or None.
        options: what else decides its outcome.
        rules: ``(subject, seed) -> rules`` whose treatment its maps get; None to choose one on the tuning scenes.
        seconds: ``(subject, seed) -> seconds`` of training or search, None where they are not known.
        fits: whether it is for a net; others have no cell of it.
        composite: of rules from a file.
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


def contenders(suite: Suite) -> list[Contender]:
    """The methods of a suite, in the order of its tables.

    Raises:
        BenchmarkError: a method that does not exist, or two whose files would have one name.
    """
    every = [_hand_made(one) for one in HAND_MADE.values()]
    every += [_searched(suite, grid) for grid in GRIDS]
    every.append(Contender(TRUTH, CONTROL, 0, _no_build))
    for name, options in suite.variants.items():
        every += _variant(name, options)
    every += _adaptive(suite)
    for path in suite.rules:
        every.append(_given(path))
    _require_own_files(every)
    if not suite.methods:
        return every
    wanted = {*suite.methods, *map(_given_name, suite.rules)}
    _known("method", suite.methods, [one.name for one in every])
    return [one for one in every if one.name in wanted]


def _require_own_files(every: Sequence[Contender]) -> None:
    names: dict[str, str] = {}
    for one in every:
        other = names.setdefault(_slug(one.name), one.name)
        if other != one.name or [each.name for each in every].count(one.name) > 1:
            raise BenchmarkError(
                f"the cells of {other!r} and {one.name!r} would have the same file names; "
                "rename one of the variants or rule files"
            )


def _no_build(subject: Subject, net: nn.Module, seed: int) -> Explain:
    raise BenchmarkError(f"{TRUTH} is made from the questions")


def _hand_made(method: HandMade) -> Contender:
    return Contender(
        method.name, method.family, method.passes, lambda subject, net, seed: method.build(net), options=method.options
    )


def _searched(suite: Suite, grid: Grid) -> Contender:
    """LRP with the gammas that a search finds for the net."""

    def build(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return subject.searched(grid).best.setting.lrp()(net)

    return Contender(
        grid.name, "lrp", ONE_PASS, build,
        options=json.dumps(_search_options(suite, grid), default=repr),
        seconds=lambda subject, seed: subject.searched(grid).seconds,
    )  # fmt: skip


def _search_options(suite: Suite, grid: Grid) -> dict[str, Any]:
    """What decides the outcome of a search on a net, but for the scenes."""
    training = suite.lrp_training(nn.Identity()).options
    names = ("quantity", "smoothing", "deletions", "steps", "batch_size", "validate_every")
    return {**vars(grid), "seed": SEARCH_SEED, "term": training_defaults(LRP).term.config(),
            **{name: getattr(training, name) for name in names}}  # fmt: skip


def _variant(name: str, options: Mapping[str, Any]) -> list[Contender]:
    """The untrained start of a variant, and what it learns."""
    passes = _passes(options)

    def untrained(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return _by_rules(net, subject.untrained(name))

    def trained(subject: Subject, net: nn.Module, seed: int) -> Explain:
        return _by_rules(net, subject.trained(name, seed))

    def rules(subject: Subject, seed: int) -> RuleSet:
        return subject.trained(name, seed)

    def seconds(subject: Subject, seed: int) -> float | None:
        return _seconds(rules(subject, seed))

    return [
        Contender(f"{name}, untrained", UNTRAINED, passes, untrained, variant=name),
        Contender(
            f"{name}, learned", LEARNED, passes, trained, seeded=True, variant=name, rules=rules, seconds=seconds
        ),
    ]


def _seconds(rules: RuleSet) -> float | None:
    """That rules were trained."""
    return rules.training.get("seconds")


def _passes(options: Mapping[str, Any]) -> int:
    """Of an explanation by rules of these options."""
    return _passes_of(composite_of(options), bool((options.get("gate_options") or {}).get("contrast")))


def _passes_of(composite: str, contrast: bool) -> int:
    return ONE_PASS + CONTRAST_PASS * contrast + REFERENCE_PASS * (composite == DEEP_LIFT)


def _adaptive(suite: Suite) -> list[Contender]:
    """Methods that learn for the image they explain."""

    def per_sample(subject: Subject, net: nn.Module, seed: int) -> Explain:
        method = LearnedPropagation(net)
        return lambda images, targets: method.attribute(images, targets, n_steps=suite.sample_steps, seed=seed)

    passes = ONE_PASS + STEP_PASSES * suite.sample_steps
    found = [Contender(PER_SAMPLE, LEARNED, passes, per_sample, seeded=True, options=f"{suite.sample_steps} steps")]
    first = next((name for name, options in suite.variants.items() if composite_of(options) == GATES), None)
    if first is None:
        return found

    def refined(subject: Subject, net: nn.Module, seed: int) -> Explain:
        method = LearnedPropagation(net, rules=subject.trained(first, seed))
        return lambda images, targets: method.attribute(images, targets, n_steps=REFINEMENT_STEPS, seed=seed)

    def rules(subject: Subject, seed: int) -> RuleSet:
        return subject.trained(first, seed)

    passes = _passes(suite.variants[first]) + STEP_PASSES * REFINEMENT_STEPS
    refining = Contender(
        REFINED, LEARNED, passes, refined, seeded=True, variant=first, options=f"{REFINEMENT_STEPS} steps", rules=rules,
        seconds=lambda subject, seed: _seconds(rules(subject, seed)),
    )  # fmt: skip
    return [*found, refining]


def _given(path: Path) -> Contender:
    """A rule set from a file, for the net it was trained on."""

    def load(subject: Subject) -> RuleSet:
        return RuleSet.load(path, subject.model)

    def fits(subject: Subject) -> bool:
        same = rules.architecture in (None, fingerprint.architecture(subject.model))
        return same and rules.weights in (None, subject.weights)

    rules = RuleSet.load(path)
    return Contender(
        _given_name(path),
        LEARNED,
        _passes_of(rules.composite_name, rules.contrast),
        lambda subject, net, seed: _by_rules(net, load(subject)),
        options=hashlib.sha256(path.read_bytes()).hexdigest(),
        rules=lambda subject, seed: load(subject),
        seconds=lambda subject, seed: _seconds(rules),
        fits=fits,
        composite=rules.composite_name,
    )


def _given_name(path: Path) -> str:
    return f"rules {path.stem}"


def _by_rules(net: nn.Module, rules: RuleSet) -> Explain:
    method = LearnedPropagation(net, rules=rules)
    return lambda images, targets: method.attribute(images, targets)


def treatment_of(rules: RuleSet) -> Treatment:
    """The sign and the smoothing in pixels that rules were trained with."""
    return Treatment(rules.training.get("sign", "absolute"), rules.training.get("smoothing", 0.0) * SIZE)


class Subject:
    """A trained net with everything that methods share on it.

    Args:
        suite: what is compared.
        architecture: of the net.
        task: of the net.
        out: folder of the benchmark.
    """

    def __init__(self, suite: Suite, architecture: str, task: str, out: Path) -> None:
        self.suite, self.architecture, self.task, self.out = suite, architecture, task, out
        self.model = reference_nets.load(architecture, task)
        self.output = reference_nets.OUTPUT_OF_TASK[task]
        self.weights = fingerprint.weights(self.model)
        self.progress: Callable[[str], None] = lambda text: None
        self._rules: dict[tuple[str, int], RuleSet] = {}
        self._searches: dict[str, Search] = {}

    @cached_property
    def training_images(self) -> Tensor:
        """Images that rules are learned from, and batch norms of re-initialised nets are measured on."""
        family = TRAINING_FAMILY[self.task]
        return make_scenes(family, self.suite.training_scenes, split="train", seed=self.suite.seed).images

    @cached_property
    def judges(self) -> list[nn.Module]:
        """The nets of the other architectures, trained on their own for the same task."""
        others = [name for name in reference_nets.ARCHITECTURES if name != self.architecture]
        return [reference_nets.load(name, self.task) for name in others]

    @cached_property
    def random_nets(self) -> list[nn.Module]:
        """The net with all weights drawn anew."""
        images = self.training_images[:BATCH]
        return [randomized(self.model, seed=seed, recalibrate=images).eval() for seed in range(RANDOM_NETS)]

    def untrained(self, variant: str) -> RuleSet:
        """What a variant starts from."""
        trainer = self.suite.trainer(variant, self.model)
        return RuleSet.build(self.model, self.training_images[:SHOWN], **trainer.build_options)

    def trained(self, variant: str, seed: int) -> RuleSet:
        """The rules of a variant: from memory, from their file, or learned now."""
        key = (variant, seed)
        if key not in self._rules:
            path = self.rules_path(variant, seed)
            known = path.is_file()
            self._rules[key] = self._load(variant, seed, path) if known else self._train(variant, seed, path)
        return self._rules[key]

    def rules_path(self, variant: str, seed: int) -> Path:
        """Where the rules of a variant are kept."""
        name = f"{self.architecture}_{self.task}_{_slug(variant)}_scenes{self.suite.seed}_seed{seed}.safetensors"
        return self.out / "rules" / name

    def _load(self, variant: str, seed: int, path: Path) -> RuleSet:
        rules = RuleSet.load(path, self.model)
        wanted = {**self.suite.training_options(variant), "images": self.suite.training_scenes, "seed": seed}
        _require_same(rules.training, {name: wanted[name] for name in rules.training if name in wanted}, path)
        _require_same(_form(rules), _form(self.untrained(variant)), path)
        return rules

    def _train(self, variant: str, seed: int, path: Path) -> RuleSet:
        self.progress(f"learning {variant}, seed {seed}")
        trainer = self.suite.trainer(variant, self.model, seed)
        rules = trainer.fit(self.training_images, **self._examples(seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        rules.save(path, self.model)
        return rules

    def _examples(self, seed: int) -> dict[str, Any]:
        """What is explained in training, and where it is kept.

        Deletions depend on the net and the seed, not on the variant: they are measured once.
        """
        name = f"{self.architecture}_{self.task}_scenes{self.suite.seed}_seed{seed}"
        return {"targets_per_image": self.targets_per_image, "examples_dir": self.out / "examples" / name}

    @property
    def targets_per_image(self) -> int:
        """Classes of a training image that are explained: as many as there are objects."""
        return QUESTIONS_PER_SCENE[TRAINING_FAMILY[self.task]]

    def searched(self, grid: Grid) -> Search:
        """The search of a grid: from memory, from its file, or made now, going on where it was interrupted."""
        if grid.name not in self._searches:
            name = f"{self.architecture}_{self.task}_{_slug(grid.name)}_scenes{self.suite.seed}.json"
            self._searches[grid.name] = self._search(grid, self.out / "rules" / name)
        return self._searches[grid.name]

    def _search(self, grid: Grid, path: Path) -> Search:
        """With as many attribution passes as the training of LRP rules takes, on the same images and deletions."""
        trainer = self.suite.lrp_training(self.model, SEARCH_SEED)
        images, each = len(self.training_images), self.targets_per_image
        held_out = held_out_images(images, HELD_OUT)
        budget = trainer.options.passes((images - held_out) * each, held_out * each)
        options = {**_search_options(self.suite, grid), "images": images, "budget": budget, "weights": self.weights}
        known = _kept_search(path, _plain(options))
        if known is not None and known.finished:
            return known
        self.progress(f"measuring for {grid.name}")
        path.parent.mkdir(parents=True, exist_ok=True)

        def keep(found: Search) -> None:
            write_text(path, json.dumps({"options": options, **found.config()}, default=repr))
            self.progress(f"{len(found.trace)} of {found.settings} settings")

        return search(
            self.model, grid, trainer.measure(self.training_images, **self._examples(SEARCH_SEED)), budget=budget,
            smoothing=trainer.options.smoothing, seed=SEARCH_SEED, known=known, on_scored=keep,
        )  # fmt: skip

    def questions(self, family: str, split: str) -> Questions:
        """What is asked on a split of a family."""
        number = self.suite.questions if split == "test" else self.suite.tuning_questions
        return _questions(family, split, number, self.suite.seed)


def _training_options(trainer: RuleTrainer) -> dict[str, Any]:
    options = {**vars(trainer.options), **trainer.build_options, "objective": trainer.objective.config()}
    del options["seed"]
    return _plain(options)


def _kept_search(path: Path, options: Mapping[str, Any]) -> Search | None:
    """A search in a file, finished or not; None where there is none."""
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = Search.of(kept)
        before = kept["options"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path} is damaged ({error!r}); delete it to search again") from error
    _require_same(before, options, path)
    return found


def _form(rules: RuleSet) -> dict[str, Any]:
    """What rules are made of, but for their parameters."""
    return _plain({"fusion": False, **rules.config, "composite": rules.composite_name})


def run(suite: Suite, out: Path, *, progress: Callable[[int, int, str], None] | None = None) -> list[dict[str, Any]]:
    """Work off the cells that are missing, and return all.

    Args:
        suite: what is compared.
        out: folder for ``cells`` and ``rules``.
        progress: called with (cells done, cells in all, what is worked on).

    Raises:
        SettingsError: the folder holds cells or rules of other settings or nets.
        BenchmarkError: given rules fit none of the nets.
    """
    report = progress or (lambda done, total, text: None)
    (out / "cells").mkdir(parents=True, exist_ok=True)
    methods = contenders(suite)
    plan = list(_plan(suite, methods))
    cells: list[dict[str, Any]] = []
    total = sum(len(methods_and_seeds) for *_, methods_and_seeds in plan)
    for architecture, task, families, rows in _by_net(plan):
        subject = Subject(suite, architecture, task, out)
        for family in families:
            room = _Room(subject, family)
            for contender, seed in rows:
                where = f"{architecture}, {family}: {contender.name}" + (f", seed {seed}" if contender.seeded else "")
                subject.progress = partial(_report_part, report, len(cells), total, where)
                report(len(cells), total, where)
                cell = room.cell(contender, seed)
                if cell is not None:
                    cells.append(cell)
    report(len(cells), total, "done")
    _require_given(suite, cells)
    return cells


def _report_part(report: Callable[[int, int, str], None], done: int, total: int, where: str, part: str) -> None:
    report(done, total, f"{where} ({part})")


def read_cells(suite: Suite, out: Path) -> list[dict[str, Any]]:
    """The cells of a suite that are in a folder, those that are not with the error `NOT_RUN`; nothing is computed.

    Raises:
        SettingsError: a cell of other settings, or cells of several nets where there should be one.
        BenchmarkError: there is none.
    """
    cells: list[dict[str, Any]] = []
    weights: dict[tuple[str, str], str] = {}
    for architecture, task, family, rows in _plan(suite, contenders(suite)):
        for contender, seed in rows:
            path = cell_path(out, architecture, family, contender, seed)
            if not path.is_file():
                cells.append(_empty_cell(architecture, family, contender, seed, error=NOT_RUN))
                continue
            cell = _read(path)
            _require_same_settings(cell["settings"], settings_of(suite, contender), path)
            net = weights.setdefault((architecture, task), cell["settings"]["weights"])
            _require_same(cell["settings"], {"weights": net}, path)
            cells.append(cell)
    found = {cell["method"] for cell in cells if cell["error"] != NOT_RUN}
    if not found:
        raise BenchmarkError(f"no cell of these models, scenes and methods in {str(out / 'cells')!r}; run it first")
    # Given rules are for one net: that others have no cell of them says nothing.
    given = {_given_name(path) for path in suite.rules} & found
    return [cell for cell in cells if cell["error"] != NOT_RUN or cell["method"] not in given]


def cell_path(out: Path, architecture: str, family: str, contender: Contender, seed: int) -> Path:
    """The file of a cell."""
    last = f"seed{seed}" if contender.seeded else "once"
    return out / "cells" / f"{architecture}_{family}_{_slug(contender.name)}_{last}.json"


Rows = list[tuple[Contender, int]]


def _plan(suite: Suite, methods: Sequence[Contender]) -> Iterator[tuple[str, str, str, Rows]]:
    """Architecture, task, family and what is to be done there; the families of a net in a row."""
    rows = [(one, seed) for one in methods for seed in (suite.training_seeds if one.seeded else (0,))]
    for architecture in suite.architectures:
        for family in sorted(suite.families, key=lambda name: list(TRAINING_FAMILY).index(_task(name))):
            yield architecture, _task(family), family, rows


def _by_net(plan: Sequence[tuple[str, str, str, Rows]]) -> Iterator[tuple[str, str, list[str], Rows]]:
    nets: dict[tuple[str, str], tuple[list[str], Rows]] = {}
    for architecture, task, family, rows in plan:
        nets.setdefault((architecture, task), ([], rows))[0].append(family)
    for (architecture, task), (families, rows) in nets.items():
        yield architecture, task, families, rows


def _task(family: str) -> str:
    return reference_nets.TASK_OF_FAMILY[family]


class _Room:
    """One scene family of one net, where all methods answer the same questions."""

    def __init__(self, subject: Subject, family: str) -> None:
        self.subject, self.family, self.suite = subject, family, subject.suite
        self.wanted = self.suite.scores_of(family)

    @cached_property
    def tuning(self) -> Questions:
        return self.subject.questions(self.family, "validation")

    @cached_property
    def case(self) -> Case:
        subject = self.subject
        return Case(subject.model, subject.questions(self.family, "test"), subject.output, subject.judges)

    @cached_property
    def recognised(self) -> float:
        """Share of the questions whose class the net names: above one half, or the highest."""
        questions = self.case.questions
        with torch.no_grad():
            outputs = torch.cat([self.subject.model(images) for images in questions.images.split(BATCH)])
        asked = outputs.gather(1, questions.targets[:, None])[:, 0]
        named = asked > 0 if self.subject.output == "sigmoid" else asked == outputs.amax(1)
        return named.double().mean().item()

    def cell(self, contender: Contender, seed: int) -> dict[str, Any] | None:
        """The cell, from its file or computed; None for rules of another net."""
        if not contender.fits(self.subject):
            return None
        path = cell_path(self.subject.out, self.subject.architecture, self.family, contender, seed)
        settings = {**settings_of(self.suite, contender), "weights": self.subject.weights}
        wanted, kept = self.wanted, None
        if path.is_file():
            before = _read(path)
            _require_same_settings(before["settings"], settings, path)
            if before["error"] is None:
                kept, wanted = before, [name for name in self.wanted if name not in before["scores"]]
        if kept is not None and not wanted:
            return kept
        found = _empty_cell(self.subject.architecture, self.family, contender, seed) | {"settings": settings}
        try:
            found |= self._measured(contender, seed, wanted)
            if kept is not None and kept["treatment"] != found["treatment"]:  # scores of other maps
                kept = None
                found |= self._measured(contender, seed, self.wanted)
        except SettingsError:
            raise
        except _FAILURES as error:
            if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                raise  # a full disk says nothing of the method
            known = isinstance(error, (LearnpropError, RuleError))
            found["error"] = str(error) if known else f"{type(error).__name__}: {error}"
            if kept is not None:
                return found  # what is in the file is worth more
        if kept is not None:
            _add_scores(kept, found)
        write_text(path, json.dumps(found, indent=1) + "\n")
        return found

    def _measured(self, contender: Contender, seed: int, wanted: Sequence[str]) -> dict[str, Any]:
        subject, questions = self.subject, self.case.questions
        explain = self._explain(contender, subject.model, seed)
        tuned = _explained(explain, self.tuning.images, self.tuning.targets)
        rules = None if contender.rules is None else contender.rules(subject, seed)
        learned = None if rules is None else treatment_of(rules)
        treatment = learned or best_treatment(tuned, self.tuning.masks, TREATMENTS)
        attribution, seconds = _timed(explain, questions)
        maps = treatment(attribution)
        scores = {name: score(name).rate(self.case, maps) for name in wanted if name != RANDOMISATION}
        if RANDOMISATION in wanted:
            scores[RANDOMISATION] = self._randomisation(contender, seed, treatment, maps)
        alike = learned or best_treatment(tuned, self.tuning.masks, treatments_at(self.suite.smoothing))
        same = alike(attribution)
        cheap = [name for name in wanted if score(name).cheap]
        return {
            "treatment": vars(treatment),
            "same smoothing": {
                "treatment": vars(alike),
                "scores": {name: _numbers(score(name).rate(self.case, same)) for name in cheap},
            },
            "recognised": round(self.recognised, 6),
            "seconds": seconds,
            "training seconds": contender.seconds(subject, seed),
            "scores": {name: _numbers(values) for name, values in scores.items()},
        }

    def _explain(self, contender: Contender, net: nn.Module, seed: int) -> Explain:
        return self._truth if contender.name == TRUTH else contender.build(self.subject, net, seed)

    def _truth(self, images: Tensor, targets: Tensor) -> Tensor:
        """The pixels of the asked object ``(B, 1, H, W)``, found by image and target: what a perfect detector draws."""
        found = []
        for image, target in zip(images, targets, strict=True):
            for questions in (self.case.questions, self.tuning):
                same = (questions.targets == target) & (questions.images == image).flatten(1).all(1)
                if same.any():
                    found.append(questions.masks[int(same.nonzero()[0])])
                    break
        return torch.stack(found)[:, None].to(images)

    def _randomisation(self, contender: Contender, seed: int, treatment: Treatment, maps: Tensor) -> Tensor:
        """Absolute rank correlation of absolute maps with those of re-initialised nets; NaN beyond the first ones."""
        first, questions, similar = slice(RANDOMISED_QUESTIONS), self.case.questions, []
        for net in self.subject.random_nets:
            explain = self._explain(contender, net, seed)
            other = treatment(_explained(explain, questions.images[first], questions.targets[first]))
            similar.append(spearman(maps[first].abs(), other.abs()).abs())
        values = torch.full((len(maps),), torch.nan, dtype=torch.float64)
        values[first] = torch.stack(similar).nanmean(0)
        return values


def settings_of(suite: Suite, contender: Contender) -> dict[str, Any]:
    """What decides the scores of a method, but for the net."""
    settings: dict[str, Any] = {
        "version": VERSION,
        "questions": suite.questions,
        "tuning questions": suite.tuning_questions,
        "seed": suite.seed,
        "training scenes": suite.training_scenes,  # batch norms of re-initialised nets are measured on them
        "same smoothing": suite.smoothing,
        "method options": contender.options,
    }
    if contender.family in (LEARNED, UNTRAINED):
        settings["training steps"] = suite.training_steps
    if contender.variant is not None:
        settings["training options"] = suite.training_options(contender.variant)
    return settings


_FIRST_CELLS = {"version": 1, "training scenes": 128, "same smoothing": 1.6}
"""Settings that the first cells left out, as they were."""


def _complete(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Settings of a cell with what the first cells left out or had elsewhere."""
    found = {**settings, **{name: value for name, value in _FIRST_CELLS.items() if name not in settings}}
    if "version" not in settings and found["method options"].startswith("{"):
        found["training options"] = json.loads(found["method options"])
        found["method options"] = "5 steps" if method == REFINED else ""
    return found


def _require_same_settings(kept: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Options that the trainer got later were at their defaults before."""
    plain = {name: value for name, value in wanted.items() if name != "training options"}
    _require_same(kept, plain, path)
    if "training options" in wanted:
        defaults = _training_options(RuleTrainer(nn.Identity()))
        _require_same({**defaults, **kept.get("training options", {})}, wanted["training options"], path)


def _empty_cell(architecture: str, family: str, contender: Contender, seed: int, *, error: str | None = None) -> Any:
    return {
        "model": architecture, "scenes": family, "method": contender.name, "family": contender.family,
        "seed": seed if contender.seeded else None, "passes": contender.passes, "settings": {}, "error": error,
        "composite": contender.composite, "scores": {},
    }  # fmt: skip


def _add_scores(kept: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Scores of a cell that were there before, in the order of the tables."""
    for old, new in ((kept, found), (kept["same smoothing"], found["same smoothing"])):
        scores = {**old["scores"], **new["scores"]}
        new["scores"] = {name: scores[name] for name in in_table_order(scores)}


def _explained(explain: Explain, images: Tensor, targets: Tensor) -> Tensor:
    chunks = zip(images.split(BATCH), targets.split(BATCH), strict=True)
    attribution = torch.cat([explain(*chunk).detach() for chunk in chunks])
    reduce_channels(attribution)
    if not attribution.isfinite().all():
        raise BenchmarkError(f"{int((~attribution.isfinite()).sum())} values of the attribution are not finite")
    return attribution


def _timed(explain: Explain, questions: Questions, *, enough: float = 1.0, repeats: int = 3) -> tuple[Tensor, float]:
    """The attribution, and seconds per image; quick methods are repeated and the fastest time counts."""
    fastest = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        attribution = _explained(explain, questions.images, questions.targets)
        passed = time.perf_counter() - start
        fastest = min(fastest, passed)
        if passed > enough:
            break
    return attribution, fastest / len(questions)


def _questions(family: str, split: str, number: int, seed: int) -> Questions:
    scenes = math.ceil(number / QUESTIONS_PER_SCENE[family])
    return make_scenes(family, scenes, split=split, seed=seed, counterfactuals=family == "parts").questions()


def _numbers(values: Tensor) -> list[float | None]:
    """For JSON: six decimals, None for NaN."""
    return [None if math.isnan(value) else round(value, 6) for value in values.double().tolist()]


def _read(path: Path) -> dict[str, Any]:
    try:
        cell: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cell["settings"] = _complete(cell["settings"], cell["method"])
        cell["scores"], cell["error"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path} is damaged ({error!r}); delete it to compute it again") from error
    return cell


def _require_same(kept: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    for name in wanted:
        if kept.get(name) != wanted[name]:
            raise SettingsError(
                f"{path} was computed with {name} {kept.get(name)!r}, this run has {wanted[name]!r}; "
                "choose another folder, or delete the old cells and rules"
            )


def _require_given(suite: Suite, cells: Sequence[Mapping[str, Any]]) -> None:
    for path in suite.rules:
        if not any(cell["method"] == _given_name(path) for cell in cells):
            raise BenchmarkError(f"the rules of {path} fit none of the nets {', '.join(suite.architectures)}")


def _known(kind: str, names: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise BenchmarkError(
                f"unknown {kind} {name!r}; choose from {', '.join(map(repr, known))}{did_you_mean(name, known)}"
            )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """As they are after a way through JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(options, default=repr))
    return plain


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", " plus ")).strip("-")
