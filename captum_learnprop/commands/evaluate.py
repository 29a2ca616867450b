"""``learnprop evaluate``: compare methods on scenes with known ground truth, with error bars."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captum_learnprop.commands._one_of import OneOf
from captum_learnprop.commands._one_process import one_process
from captum_learnprop.commands._threads import threads
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import WriteError, check_folder
from captum_learnprop.tables import columns

# torch takes seconds to import: the help must not wait for it.
if TYPE_CHECKING:
    from captum_learnprop.benchmark.cost_figure import Mean
    from captum_learnprop.benchmark.suite import Suite
    from captum_learnprop.benchmark.summary import Row

MODELS = ("vgg", "resnet", "inception")
SCENES = ("digits", "pairs", "grid", "patch", "parts")
COMPOSITES = ("learned_gradient", "learned_guided_backprop", "learned_deeplift", "learned_epsilon_gamma_box")

RESULTS, TABLE, FIGURE = "results.json", "table.md", "figure.png"

PACKAGES = ("captum-learnprop", "torch", "torchvision", "captum", "zennit", "numpy", "scikit-learn")


class Seeds(click.ParamType):
    """Whole numbers of at least 0, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Returns the numbers, each once."""
        if isinstance(value, tuple):
            return value
        try:
            seeds = tuple(dict.fromkeys(int(part) for part in value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 0,1,2", param, ctx)
        if min(seeds) < 0:
            self.fail(f"{value!r} has a negative number", param, ctx)
        return seeds


class Family(OneOf):
    """A composite, by its name or a short one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the full name."""
        from zennit_rules.core.registry import SHORT_NAMES  # imports torch, which --help must not wait for

        return super().convert(SHORT_NAMES.get(value, value), param, ctx)


@dataclass(frozen=True)
class Plan:
    """What the command line asked for."""

    model: tuple[str, ...]
    scenes: tuple[str, ...]
    composite: tuple[str, ...]
    method: tuple[str, ...]
    metric: tuple[str, ...]
    seeds: tuple[int, ...]
    questions: int
    seed: int
    steps: int | None
    sample_steps: int | None
    training_scenes: int
    rules: tuple[Path, ...]
    out: Path
    report_only: bool
    threads: int


@click.command("evaluate")
@click.option("--model", multiple=True, type=OneOf(MODELS), help="Reference net; all by default. Repeatable.")
@click.option("--scenes", multiple=True, type=OneOf(SCENES), help="Scene family; all by default. Repeatable.")
@click.option(
    "--composite", multiple=True, type=Family(COMPOSITES),
    help="Family of trained rules; all by default. Repeatable.",
)  # fmt: skip
@click.option("--method", multiple=True, help="Method, as in the tables; all by default. Repeatable.")
@click.option(
    "--metric",
    multiple=True,
    help="Metric, of a plugin too, or a heading of the tables; all headings by default. Repeatable.",
)
@click.option("--seeds", type=Seeds(), default="0,1,2", show_default=True, help="Training seeds of learned methods.")
@click.option("--questions", type=click.IntRange(1), default=48, show_default=True, help="Questions per family.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the scenes.")
@click.option("--steps", type=click.IntRange(1), default=None, help="Training steps, for a quick run.")
@click.option("--sample-steps", type=click.IntRange(1), default=None, help="Steps of the rules learned per sample.")
@click.option(
    "--training-scenes", type=click.IntRange(2), default=128, show_default=True, help="Scenes that rules learn from."
)
@click.option(
    "--rules", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A rule set of a reference net, as a further method. Repeatable.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("learnprop-evaluation"),
    show_default=True, help="Folder for cells, learned rules, tables and figure; a run goes on where it stopped.",
)  # fmt: skip
@click.option("--report-only", is_flag=True, help="Write tables and figure of the cells that are there.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads.")
@click.pass_context
def command(ctx: click.Context, **options: Any) -> None:
    """Compare methods on scenes with known ground truth.

    Small trained nets and all scenes are made offline. Rules are learned without labels on training scenes, once per
    net and training seed; every hand-made method gets the treatment of its maps that is best on validation scenes;
    all are scored on test scenes. Writes results.json, table.md and figure.png.

    Interrupt it at will: what is done is kept in OUT. Processes with different --model may share OUT; run the whole
    once more with --report-only for one table.
    """
    one_process(ctx)
    plan = Plan(**options)
    with threads(plan.threads):
        run(plan)


def run(plan: Plan) -> None:
    """Does everything the command does.

    Raises:
        LearnpropError: The request cannot be carried out as given, or a file cannot be written.
    """
    from captum_learnprop.benchmark import suite as benchmark
    from captum_learnprop.benchmark.summary import summarise

    suite = suite_of(plan)
    check_folder(plan.out)
    counted = Counted()
    try:
        if plan.report_only:
            cells = benchmark.read_cells(suite, plan.out)
        else:
            plan.out.mkdir(parents=True, exist_ok=True)
            with _progress(counted) as progress:
                cells = benchmark.run(suite, plan.out, progress=progress)
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
        for path in write_report(rows, plan):
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


def suite_of(plan: Plan) -> Suite:
    """Returns the suite that the command line asked for."""
    from captum_learnprop.benchmark.suite import Suite, default_variants

    options: dict[str, Any] = {} if plan.sample_steps is None else {"sample_steps": plan.sample_steps}
    return Suite(
        architectures=plan.model or MODELS,
        families=plan.scenes or SCENES,
        variants=default_variants(plan.composite),
        methods=plan.method,
        metrics=plan.metric,
        training_seeds=plan.seeds,
        questions=plan.questions,
        tuning_questions=max(1, plan.questions // 2),
        training_scenes=plan.training_scenes,
        training_steps=plan.steps,
        seed=plan.seed,
        rules=plan.rules,
        **options,
    )


def write_report(rows: Sequence[Row], plan: Plan) -> list[Path]:
    """Writes tables, figure, and everything that is needed to repeat the run."""
    from captum_learnprop.benchmark.cost_figure import cost_figure
    from captum_learnprop.benchmark.report import to_markdown
    from captum_learnprop.files import write_text
    from captum_learnprop.plot import save_figure

    about = {**provenance(plan), "multiply-adds with a rule of LRP": _reach(dict.fromkeys(row.model for row in rows))}
    facts = "\n".join(f"- {name}: {_words(value)}" for name, value in about.items())
    written = [
        write_text(plan.out / RESULTS, json.dumps(document(rows, about), indent=1) + "\n"),
        write_text(plan.out / TABLE, f"{to_markdown(rows)}\n## How it was made\n\n{facts}\n"),
    ]
    figure = cost_figure(rows, threads=plan.threads)
    return written if figure is None else [*written, save_figure(figure, plan.out / FIGURE)]


def _reach(models: Iterable[str]) -> dict[str, str]:
    """Returns the share of each net's multiply-adds that LRP has a rule for; below all of it, its rows are wrong."""
    import torch

    from captum_learnprop.scenes.reference_nets import ARCHITECTURES
    from zennit_rules import RuleSet

    shares = {}
    for name in ARCHITECTURES.keys() & set(models):
        net = ARCHITECTURES[name]().eval()
        rules = RuleSet.build(net, torch.rand(1, 3, 64, 64), "learned_epsilon_gamma_box", gate="none")
        shares[name] = f"{rules.coverage().share:.1%}"
    return dict(sorted(shares.items()))


def document(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    """Returns the results for JSON; numbers without a value are null. Scores of single samples are in the cells."""
    from captum_learnprop.benchmark.summary import differences

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
    from captum_learnprop.benchmark.cost_figure import SCORE, mean_scores

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


@contextmanager
def _progress(counted: Counted) -> Iterator[Callable[[int, int, str], None]]:
    from tqdm import tqdm

    with tqdm(unit="cell", dynamic_ncols=True) as bar:

        def advance(done: int, total: int, text: str) -> None:
            counted.done, counted.total = done, total
            bar.total = total
            bar.set_description_str(text, refresh=False)
            bar.update(done - bar.n)

        yield advance
