"""The benchmark: nets x scenes x methods x training seeds, cell by cell, with every sample's scores kept.

A cell is written when it is done and skipped when it is there, so that a run can be interrupted, and processes with
different nets can share a folder (see `cells`). Rules are trained once per net, variant and seed, and saved beside the
cells; for the digits on pairs of digits, used for all families of that net. So are the gammas that a search finds for
a net (see `nets`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.cells import (
    FOLDER,
    Cell,
    cell_path,
    empty_cell,
    read_cell,
    require_same_settings,
    settings_of,
)
from captum_learnprop.benchmark.contenders import Contender, every_contender, given_name
from captum_learnprop.benchmark.examination import Examination
from captum_learnprop.benchmark.identity import SettingsError, file_stem, require_same
from captum_learnprop.benchmark.nets import TRAINING_FAMILY, ReferenceSubject, Subject
from captum_learnprop.benchmark.own_net import SEEN_AMONG, OwnNet, scene_settings_of
from captum_learnprop.benchmark.plan import Place
from captum_learnprop.benchmark.scorecard import scores_of
from captum_learnprop.benchmark.settings import Settings, default_variants
from captum_learnprop.benchmark.summary import NOT_RUN
from captum_learnprop.errors import LearnpropError, did_you_mean
from captum_learnprop.scenes import reference_nets
from captum_learnprop.scenes.scenes import FAMILIES, SIZE
from captum_learnprop.scenes.source import SceneSource
from zennit_rules._moved import renamed

__all__ = [
    "Contender",
    "SettingsError",
    "Subject",
    "Suite",
    "contenders",
    "default_variants",
    "read_cells",
    "run",
]


MOST_PASSES = 1000
"""Methods with more passes per image are compared on nets of the user's own only where they are named."""


@dataclass(frozen=True)
class Suite(Settings):
    """What is compared, on what, how.

    Attributes:
        architectures: Names of nets, of `reference_nets.ARCHITECTURES`.
        families: Scene families.
        methods: Names of methods; empty for all (see `contenders`), of candidates for those of at most `MOST_PASSES`.
        metrics: Names of metrics, see `scorecard.scores_of`; empty for all columns of the tables.
        training_seeds: Seeds that learned methods are trained with.
        rules: Files of further rule sets to compare.
        candidates: Nets of the user's own; ``architectures`` are then their names.
        sources: Scenes that candidates are asked about; ``families`` are then their names.
        seen_among: Candidates are asked about scenes whose classes are among this many highest ones; 0 for all.

    Raises:
        LearnpropError: A net, scene family or method that does not exist, or a number out of range.
        LearnpropError: A score that does not exist.
    """

    architectures: tuple[str, ...] = tuple(reference_nets.ARCHITECTURES)
    families: tuple[str, ...] = tuple(FAMILIES)
    methods: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    training_seeds: tuple[int, ...] = (0, 1, 2)
    rules: tuple[Path, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    sources: tuple[SceneSource, ...] = ()
    seen_among: int = SEEN_AMONG

    @classmethod
    def of_candidates(cls, candidates: Sequence[Candidate], sources: Sequence[SceneSource], **options: Any) -> Suite:
        """Returns a suite on nets of the user's own.

        Args:
            candidates: The nets, with different names.
            sources: The scenes, with different names.
            options: Further fields.
        """
        return cls(
            architectures=tuple(one.name for one in candidates),
            families=tuple(one.name for one in sources),
            candidates=tuple(candidates),
            sources=tuple(sources),
            **options,
        )

    def __post_init__(self) -> None:
        if self.candidates:
            _require_different([file_stem(one.name) for one in self.candidates], "models")
            _require_different([one.name for one in self.sources], "scenes")
        else:
            _require_known("model", self.architectures, reference_nets.ARCHITECTURES)
            _require_known("scenes", self.families, FAMILIES)
        scores_of(self.metrics)
        contenders(self)
        for name in ("questions", "tuning_questions", "training_scenes"):
            if getattr(self, name) < 1:
                raise LearnpropError(f"{name} must be at least 1, got {getattr(self, name)}")
        seeds = self.training_seeds
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise LearnpropError(f"training_seeds must be one or more different numbers of at least 0, got {seeds}")

    def scores_of(self, kind: str) -> list[str]:
        """Returns the names of the scores that are asked for and defined on a kind of scenes, a scene family."""
        return [one.name for one in scores_of(self.metrics) if one.defined_on(kind)]

    def own_settings(self, name: str, family: str) -> dict[str, Any]:
        """Returns what a cell on a candidate must have been computed with, but for the method; empty for others."""
        for candidate in self.candidates:
            for source in self.sources:
                if (candidate.name, source.name) == (name, family):
                    return {"weights": candidate.weights, **scene_settings_of(candidate, source, self.seen_among)}
        return {}

    def side_of(self, name: str) -> int:
        """Returns the height and width of the images of a net in pixels."""
        return next((one.side for one in self.candidates if one.name == name), SIZE)

    def subject(self, name: str, group: str, out: Path) -> Subject:
        """Returns a net of the suite.

        Args:
            name: One of ``architectures``.
            group: The task of a reference net; of a candidate, the name of the scenes.
            out: Folder of the benchmark.
        """
        if not self.candidates:
            return ReferenceSubject(self, name, group, out)
        (candidate,) = (one for one in self.candidates if one.name == name)
        (source,) = (one for one in self.sources if one.name == group)
        return OwnNet(self, candidate, source, out, others=self.candidates, seen_among=self.seen_among)


def contenders(suite: Suite) -> list[Contender]:
    """Returns the methods of a suite, in the order of its tables.

    Raises:
        LearnpropError: A method does not exist, or the files of two would have one name.
    """
    every = every_contender(suite, suite.rules, own_net=bool(suite.candidates))
    if not suite.methods:
        return [one for one in every if one.passes <= MOST_PASSES] if suite.candidates else every
    wanted = {*suite.methods, *map(given_name, suite.rules)}
    _require_known("method", suite.methods, [one.name for one in every])
    return [one for one in every if one.name in wanted]


def run(
    suite: Suite,
    out: Path,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    plan: Sequence[Place] | None = None,
) -> list[Cell]:
    """Works off the cells that are missing, and returns all.

    Args:
        suite: What is compared.
        out: Folder for ``cells`` and ``rules``.
        progress: Called with (cells done, cells in all, what is worked on).
        plan: What `places` returned, where it was asked already.

    Raises:
        SettingsError: The folder holds cells or rules of other settings or nets.
        LearnpropError: Given rules fit none of the nets, or a file is damaged.
    """
    report = progress or (lambda done, total, text: None)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    everything = places(suite, out) if plan is None else plan
    cells: list[Cell] = []
    total = sum(len(place.rows) for place in everything)
    for place in everything:
        subject, family = place.subject, place.family
        examination = Examination(subject, family, place.scores)
        for contender, seed in place.rows:
            where = f"{subject.name}, {family}: {contender.name}" + (f", seed {seed}" if contender.seeded else "")
            subject.progress = partial(_report_part, report, len(cells), total, where)
            report(len(cells), total, where)
            cells.append(examination.cell(contender, seed))
    report(len(cells), total, "done")
    _require_given(suite, cells)
    return cells


def places(suite: Suite, out: Path) -> list[Place]:
    """Returns what a suite has to do, net by net and scenes by scenes.

    Args:
        suite: What is compared.
        out: Folder of the benchmark.
    """
    found: list[Place] = []
    for name, group, families, rows in _by_net(list(_plan(suite, contenders(suite)))):
        subject = suite.subject(name, group, out)
        fitting = [(contender, seed) for contender, seed in rows if contender.fits(subject)]
        found += [Place(subject, family, fitting, suite.scores_of(subject.kind(family))) for family in families]
    return found


def _report_part(report: Callable[[int, int, str], None], done: int, total: int, where: str, part: str) -> None:
    report(done, total, f"{where} ({part})")


def read_cells(suite: Suite, out: Path) -> list[Cell]:
    """Returns the cells of a suite that are in a folder, the others with the error `NOT_RUN`; computes nothing.

    Raises:
        SettingsError: A cell is of other settings, or cells are of several nets where there should be one.
        LearnpropError: There is no cell, or one is damaged.
    """
    cells: list[Cell] = []
    weights: dict[tuple[str, str], str] = {}
    methods = contenders(suite)
    for architecture, task, family, rows in _plan(suite, methods):
        own = suite.own_settings(architecture, family)
        for contender, seed in rows:
            path = cell_path(out, architecture, family, contender, seed)
            if not path.is_file():
                cells.append(empty_cell(architecture, family, contender, seed, error=NOT_RUN))
                continue
            cell = read_cell(path)
            require_same_settings(cell["settings"], settings_of(suite, contender, suite.side_of(architecture)), path)
            net = weights.setdefault((architecture, task), cell["settings"]["weights"])
            require_same(cell["settings"], {"weights": net, **own}, path)
            cells.append(cell)
    found = {cell["method"] for cell in cells if cell["error"] != NOT_RUN}
    if not found:
        raise LearnpropError(f"no cell of these models, scenes and methods in {str(out / FOLDER)!r}; run it first")
    # Given rules are for one net, token methods for transformers: that others have no cell of them says nothing.
    given = {given_name(path) for path in suite.rules} & found
    selective = {one.name for one in methods if one.selective}
    run_there = {(cell["model"], cell["method"]) for cell in cells if cell["error"] != NOT_RUN}
    silent = {
        (cell["model"], cell["method"])
        for cell in cells
        if cell["method"] in given or (cell["method"] in selective and (cell["model"], cell["method"]) not in run_there)
    }
    return [cell for cell in cells if cell["error"] != NOT_RUN or (cell["model"], cell["method"]) not in silent]


Rows = list[tuple[Contender, int]]


def _plan(suite: Suite, methods: Sequence[Contender]) -> Iterator[tuple[str, str, str, Rows]]:
    """Yields architecture, task, family and what is to be done there; the families of a net in a row."""
    rows = [(one, seed) for one in methods for seed in (suite.training_seeds if one.seeded else (0,))]
    for architecture in suite.architectures:
        if suite.candidates:
            yield from ((architecture, family, family, rows) for family in suite.families)
            continue
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


def _require_given(suite: Suite, cells: Sequence[Mapping[str, Any]]) -> None:
    for path in suite.rules:
        if not any(cell["method"] == given_name(path) for cell in cells):
            raise LearnpropError(f"the rules of {path} fit none of the nets {', '.join(suite.architectures)}")


def _require_different(names: Sequence[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise LearnpropError(
                f"two {what} have the name {name!r}, and their results would share files; name one of them"
            )


def _require_known(kind: str, names: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise LearnpropError(
                f"unknown {kind} {name!r}; choose from {', '.join(map(repr, known))}{did_you_mean(name, known)}"
            )


__getattr__ = renamed(__name__, {"BenchmarkError": "LearnpropError"})
