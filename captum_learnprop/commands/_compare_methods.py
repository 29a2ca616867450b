"""The work of ``learnprop evaluate``: cells, tables and a figure."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from captum_learnprop.benchmark import suite as benchmark
from captum_learnprop.benchmark.cost_figure import SCORE, Mean, cost_figure, mean_scores
from captum_learnprop.benchmark.forecast import Remaining, forecast, forecast_cells, require_time, together
from captum_learnprop.benchmark.kept_maps import galleries
from captum_learnprop.benchmark.page import to_html
from captum_learnprop.benchmark.plan import Place
from captum_learnprop.benchmark.report import to_markdown
from captum_learnprop.benchmark.settings import default_variants, photograph_variants
from captum_learnprop.benchmark.suite import Suite
from captum_learnprop.benchmark.summary import Row, differences, summarise
from captum_learnprop.commands._evaluate_request import Plan as Plan
from captum_learnprop.commands._own_nets import PHOTOS, candidate, is_about_own_nets, source
from captum_learnprop.commands._suite_choices import MODELS, SCENES
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import WriteError, check_folder, write_text
from captum_learnprop.plot import save_figure
from captum_learnprop.scenes.reference_nets import ARCHITECTURES
from captum_learnprop.tables import columns
from zennit_rules import RuleSet
from zennit_rules.core.registry import SHORT_NAMES
from zennit_rules.ready import located

RESULTS, TABLE, FIGURE, PAGE = "results.json", "table.md", "figure.png", "report.html"

DRAWN_SCENES, PHOTOGRAPHED_SCENES = 128, 72
"""Scenes that rules learn from, of digits and of photographs."""

SHOWN_EVERY = 2.0
"""Seconds between lines of progress, so that a log stays readable."""

PACKAGES = ("captum-learnprop", "torch", "torchvision", "captum", "zennit", "numpy", "scikit-learn")


def run(plan: Plan) -> None:
    """Does everything the command does.

    Raises:
        LearnpropError: The request cannot be carried out as given, or a file cannot be written.
    """
    suite = suite_of(plan)
    check_folder(plan.out)
    counted = Counted()
    try:
        if plan.report_only:
            cells = benchmark.read_cells(suite, plan.out)
        else:
            plan.out.mkdir(parents=True, exist_ok=True)
            places = benchmark.places(suite, plan.out)
            remaining = forecast_of(places, plan.max_hours) if suite.candidates else None
            with _progress(counted, remaining) as progress:
                cells = benchmark.run(suite, plan.out, progress=progress, plan=places)
    except (ImportError, FileNotFoundError) as error:
        raise LearnpropError(str(error)) from error
    except OSError as error:
        raise LearnpropError(
            f"{_unwritten(error, plan)}; {counted.done} of {counted.total} cells are kept in {plan.out}: make room, "
            "the same command goes on"
        ) from error
    rows = summarise(cells)
    click.echo(overview(rows))
    try:
        for path in write_report(rows, plan, [*caveats_of(suite), *too_few(rows, suite)]):
            click.echo(f"wrote {path}")
    except OSError as error:
        raise LearnpropError(
            f"{_unwritten(error, plan)}; all {len(cells)} cells are kept in {plan.out}: make room, and run the same "
            "command with --report-only"
        ) from error


@dataclass
class Counted:
    """Cells of a run, as far as it got."""

    done: int = 0
    total: int = 0


def _unwritten(error: OSError, plan: Plan) -> str:
    return str(error) if isinstance(error, WriteError) else f"cannot write to {plan.out}: {error}"


def full_name(composite: str) -> str:
    """Returns the name of a composite for a short one; any other as it is."""
    return SHORT_NAMES.get(composite, composite)


def suite_of(plan: Plan) -> Suite:
    """Returns the suite that the command line asked for.

    Raises:
        LearnpropError: A net or scenes cannot be had, or they do not go together.
    """
    options: dict[str, Any] = {} if plan.sample_steps is None else {"sample_steps": plan.sample_steps}
    options |= {
        "methods": plan.method, "metrics": plan.metric, "training_seeds": plan.seeds, "questions": plan.questions,
        "tuning_questions": max(1, plan.questions // 2), "training_steps": plan.steps, "seed": plan.seed,
        "rules": tuple(map(located, plan.rules)),
    }  # fmt: skip
    if is_about_own_nets(plan.model, plan.scenes):
        return Suite.of_candidates(
            [candidate(spec, plan) for spec in plan.model],
            [source(name, plan) for name in plan.scenes or (PHOTOS,)],
            variants=photograph_variants(plan.composite),
            training_scenes=plan.training_scenes or PHOTOGRAPHED_SCENES,
            seen_among=plan.seen_among,
            **options,
        )
    return Suite(
        architectures=plan.model or MODELS,
        families=plan.scenes or SCENES,
        variants=default_variants(plan.composite),
        training_scenes=plan.training_scenes or DRAWN_SCENES,
        **options,
    )


def caveats_of(suite: Suite) -> list[str]:
    """Returns what must be said beside the figures of a suite, such as that splits share objects."""
    sizes = dict.fromkeys(one.side for one in suite.candidates)
    return list(dict.fromkeys(text for source in suite.sources for size in sizes for text in source.caveats(size)))


def too_few(rows: Sequence[Row], suite: Suite) -> list[str]:
    """Returns a sentence for each net and scenes that have fewer questions than were asked for."""
    found = []
    for model, scenes in dict.fromkeys((row.model, row.scenes) for row in rows if suite.candidates):
        room = [row for row in rows if (row.model, row.scenes) == (model, scenes)]
        asked = max((values.shape[1] for row in room for values in row.samples.values()), default=suite.questions)
        if asked < suite.questions:
            found.append(f"{model}, {scenes}: {asked} of {suite.questions} questions, there are no more such scenes")
            click.echo(f"warning: {found[-1]}", err=True)
    return found


def write_report(rows: Sequence[Row], plan: Plan, caveats: Sequence[str] = ()) -> list[Path]:
    """Writes tables, figures, and everything that is needed to repeat the run."""
    about = provenance(plan)
    if reached := _reach(dict.fromkeys(row.model for row in rows)):
        about["multiply-adds with a rule of LRP"] = reached
    if caveats:
        about["to bear in mind"] = list(caveats)
    facts = "\n".join(f"- {name}: {_words(value)}" for name, value in about.items())
    written = [
        write_text(plan.out / RESULTS, json.dumps(document(rows, about), indent=1) + "\n"),
        write_text(plan.out / TABLE, f"{to_markdown(rows)}\n## How it was made\n\n{facts}\n"),
    ]
    figures = []
    figure = cost_figure(rows, threads=plan.threads)
    if figure is not None:
        written.append(save_figure(figure, plan.out / FIGURE))
        figures.append(("Cost and quality", written[-1]))
    page = to_html(rows, about=about, figures=figures, galleries=galleries(plan.out, rows), caveats=caveats)
    return [*written, write_text(plan.out / PAGE, page)]


def _reach(models: Iterable[str]) -> dict[str, str]:
    """Returns the share of each net's multiply-adds that LRP has a rule for; below all of it, its rows are wrong."""
    shares = {}
    for name in ARCHITECTURES.keys() & set(models):
        net = ARCHITECTURES[name]().eval()
        rules = RuleSet.build(net, torch.rand(1, 3, 64, 64), "learned_epsilon_gamma_box", gate="none")
        shares[name] = f"{rules.coverage().share:.1%}"
    return dict(sorted(shares.items()))


def document(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    """Returns the results for JSON; numbers without a value are null. Scores of single samples are in the cells."""
    table = []
    for row in rows:
        fields = asdict(row)
        del fields["samples"]
        table.append(fields)
    return _without_nan({**about, "rows": table, "paired differences": [asdict(one) for one in differences(rows)]})


def provenance(plan: Plan) -> dict[str, Any]:
    """Returns the command line, seeds, versions and hardware."""
    return {
        "command": shlex.join(["learnprop", *sys.argv[1:]]),
        "options": {name: [str(one) for one in value] if isinstance(value, tuple) else _simple(value)
                    for name, value in vars(plan).items()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": plan.threads, "system": platform.platform()},
    }  # fmt: skip


def overview(rows: Sequence[Row]) -> str:
    """Returns a table of average precision, averaged over the scene families of each net, one column per net."""
    nets = {model: mean_scores(rows, model) for model in dict.fromkeys(row.model for row in rows)}
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        known = [means.get(method) for means in nets.values()]
        lines.append([method, *("-" if one is None else _number(one) for one in known)])
    return columns([SCORE, *nets], lines)


def _number(mean: Mean) -> str:
    return f"{mean.score:.3f}" + ("" if math.isnan(mean.error) else f" ± {mean.error:.3f}") + mean.row.mark


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            f"{name} {_words(one)}" for name, one in value.items() if one not in (None, []) and one is not False
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _simple(value: Any) -> Any:
    return value if isinstance(value, (int, str, type(None))) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """Returns the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def forecast_of(places: Sequence[Place], max_hours: float) -> list[float]:
    """Returns the seconds that each cell will take, and says how long all of them will.

    Raises:
        LearnpropError: That is longer than the run may take.
    """
    found, seconds = [], []
    for place in places:
        work, times = place.work(), place.times()
        found.append(forecast(work, times))
        seconds += forecast_cells(work, times)
    whole = together(found)
    click.echo(f"{sum(one > 0 for one in seconds)} cells to compute, {whole}", err=True)
    require_time(whole, max_hours)
    return seconds


@contextmanager
def _progress(counted: Counted, forecasts: Sequence[float] | None = None) -> Iterator[Callable[[int, int, str], None]]:
    """Draws a bar of cells; with forecasts one of the work, and what is left of it in words."""
    remaining = None if forecasts is None else Remaining(forecasts)
    form = "{l_bar}{bar}| {n_fmt}/{total_fmt} cells [{elapsed}{postfix}]" if remaining else None
    with tqdm(unit="cell", dynamic_ncols=True, bar_format=form) as bar:
        began = shown = time.perf_counter()

        def advance(done: int, total: int, text: str) -> None:
            nonlocal began, shown
            now = time.perf_counter()
            if remaining is not None and forecasts is not None:
                if done > counted.done:
                    remaining.done(forecasts[counted.done], now - began)
                    began = now
                running = forecasts[done] if done < len(forecasts) else 0.0
                bar.set_postfix_str(remaining.text(running, now - began), refresh=False)
            counted.done, counted.total = done, total
            bar.total = total
            bar.set_description_str(text, refresh=False)
            bar.update(done - bar.n)
            if now - shown > SHOWN_EVERY:
                shown = now
                bar.refresh()

        yield advance
