"""The work of ``learnprop demo --digits``: rules are learned, compared with hand-made ones, and drawn."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from captum_learnprop.attribution.rules.learned import LearnedPropagation
from captum_learnprop.benchmark.comparison import (
    SCORES,
    Method,
    Result,
    choose_treatment,
    measure,
    paired_difference,
)
from captum_learnprop.benchmark.examination import treatment_of
from captum_learnprop.benchmark.hand_made import hand_made
from captum_learnprop.commands._outcome import write_outcome
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import check_folder, write_text
from captum_learnprop.plot import compare, save_figure
from captum_learnprop.scenes import digits_net
from captum_learnprop.scenes.digits_net import weights_metadata
from captum_learnprop.scenes.scenes import SIZE, Questions, make_scenes
from captum_learnprop.tables import columns
from captum_learnprop.training.trainer import RuleTrainer
from zennit_rules import RuleSet

TRAINING_SCENES = 96
VALIDATION_SCENES = 16
FIGURE_SCENES = 3

DELETIONS = 48
UNTRAINED = "shared rules, untrained"
SHARED = "shared rules, learned"
PER_SAMPLE = "learned per sample"
SALIENCY = "saliency"
INTEGRATED = "integrated gradients"
SLOW = (INTEGRATED, PER_SAMPLE)
"""Methods whose time is taken once; that of the others, which take milliseconds, is the fastest of three."""


@dataclass(frozen=True)
class Plan:
    """What the command line asked for."""

    out: Path
    scenes: int
    seed: int
    threads: int
    steps: int
    sample_steps: int | None


def run(plan: Plan) -> None:
    """Does everything the command does.

    Raises:
        LearnpropError: scikit-learn is missing, or a file cannot be written.
    """
    start = time.perf_counter()
    try:
        scenes = make_scenes("pairs", plan.scenes, split="test", seed=plan.seed)
    except ImportError as error:
        raise LearnpropError(str(error)) from error
    check_folder(plan.out)
    model = digits_net.load()
    validation = make_scenes("pairs", VALIDATION_SCENES, split="validation", seed=plan.seed).questions()
    questions = scenes.questions()
    click.echo(_opening(model, questions))

    rules, learning = learn(model, plan)
    results = []
    for method in methods(model, rules, plan):
        click.echo(f"explaining: {method.name}", err=True)
        treatment = choose_treatment(method, validation)
        results.append(measure(method, model, questions, treatment, repeats=1 if method.name in SLOW else 3))
    click.echo("\n" + format_table(results))
    click.echo("\n" + summary(results, learning))

    writers: dict[str, Callable[[Path], Path]] = {
        "figure.png": lambda path: draw(model, questions, results, path),
        "table.csv": lambda path: write_csv(results, path),
        "results.json": lambda path: write_json(results, learning, rules.training, plan, path),
        "rules.safetensors": lambda path: rules.save(path, model),
    }
    write_outcome(plan.out, writers, again="the same --seed learns the same")
    click.echo(f"{time.perf_counter() - start:.0f} s in all")


def learn(model: nn.Module, plan: Plan) -> tuple[RuleSet, dict[str, float]]:
    """Learns shared rules on training scenes, explaining the classifier's own two highest classes; no label is read."""
    images = make_scenes("pairs", TRAINING_SCENES, split="train", seed=plan.seed).images
    click.echo(f"measuring {len(images) * DELETIONS:,} random deletions, then learning from them", err=True)
    trainer = _trainer(model, plan)
    start = time.perf_counter()
    rules = trainer.fit(images, targets_per_image=2, show_progress=True)
    losses = [row["validation loss"] for row in trainer.log if "validation loss" in row]
    return rules, {
        "seconds": time.perf_counter() - start,
        "scenes": TRAINING_SCENES,
        "parameters": sum(parameter.numel() for parameter in rules.parameters()),
        "first validation loss": losses[0],
        "best validation loss": rules.training["validation_loss"],
    }


def _trainer(model: nn.Module, plan: Plan) -> RuleTrainer:
    return RuleTrainer(model, steps=plan.steps, deletions=DELETIONS, seed=plan.seed)


def methods(model: nn.Module, rules: RuleSet, plan: Plan) -> list[Method]:
    """Returns what is compared: hand-made rules, then learned ones; the shared rules have no treatment to choose."""

    def per_sample(images: Tensor, targets: Tensor) -> Tensor:
        return LearnedPropagation(model).attribute(images, targets, n_steps=plan.sample_steps, seed=plan.seed)

    def shared(used: RuleSet) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, targets: LearnedPropagation(model, rules=used).attribute(images, targets)

    return [
        *(
            Method(name, hand_made(name).build(model, torch.full((1, 3, SIZE, SIZE), 0.5)))
            for name in (SALIENCY, "guided backprop", INTEGRATED)
        ),
        Method(PER_SAMPLE, per_sample),
        Method(UNTRAINED, shared(_untrained(model, plan))),
        Method(SHARED, shared(rules), (treatment_of(rules),)),
    ]


def _untrained(model: nn.Module, plan: Plan) -> RuleSet:
    return RuleSet.build(model, torch.full((1, 3, SIZE, SIZE), 0.5), **_trainer(model, plan).build_options)


def table(results: Sequence[Result]) -> list[dict[str, str | float]]:
    """Returns a row per method: scores, standard errors, seconds per image, cost in Saliency calls, treatment."""
    gradient = results[0].seconds
    rows: list[dict[str, str | float]] = []
    for result in results:
        row: dict[str, str | float] = {"method": result.name}
        for score in SCORES:
            row[score] = result.mean(score)
            row[f"{score} standard error"] = result.standard_error(score)
        row |= {"seconds per image": result.seconds, "cost": result.seconds / gradient}
        rows.append(row | {"treatment": str(result.treatment)})
    return rows


def format_table(results: Sequence[Result]) -> str:
    """Returns the table as text; the best of each score is starred."""
    rows = table(results)
    best = {score: (max if higher else min)(float(row[score]) for row in rows) for score, higher in SCORES.items()}
    head = ["method", *(f"{score} {'^' if higher else 'v'}" for score, higher in SCORES.items()),
            "cost (x saliency)", "ms / image", "map treatment"]  # fmt: skip
    lines = []
    for row in rows:
        scores = [
            f"{row[score]:.3f} +- {row[f'{score} standard error']:.3f}" + ("*" if row[score] == best[score] else " ")
            for score in SCORES
        ]
        cost = [f"{row['cost']:.1f}", f"{1000 * float(row['seconds per image']):.1f}"]
        lines.append([str(row["method"]), *scores, *cost, str(row["treatment"])])
    return columns(head, lines)


def summary(results: Sequence[Result], learning: dict[str, float]) -> str:
    """Returns what the table says about the shared rules, score by score, against the best hand-made rule in each."""
    named = {result.name: result for result in results}
    learned = named.pop(SHARED)
    hand_made = [result for name, result in named.items() if name not in (PER_SAMPLE, UNTRAINED)]
    lines = [
        f"{learning['parameters']:.0f} parameters learned in {learning['seconds']:.0f} s from "
        f"{learning['scenes']:.0f} scenes; then one forward and one backward pass per image.",
        "Learned shared rules against the best hand-made rule of each column, same images:",
    ]
    for score, higher in SCORES.items():
        ranked = sorted((result.mean(score), index) for index, result in enumerate(hand_made))
        best = hand_made[ranked[-1 if higher else 0][1]]
        difference, error = paired_difference(learned, best, score)
        wanted = "higher" if higher else "lower"
        lines.append(f"  {score:18} {difference:+.3f} +- {error:.3f} against {best.name} ({wanted} is better)")
    return "\n".join(lines)


def draw(model: nn.Module, questions: Questions, results: Sequence[Result], path: Path) -> Path:
    """Draws the first scenes of which the model names both digits, one row per asked digit."""
    with torch.no_grad():
        probability = model(questions.images).sigmoid().gather(1, questions.targets[:, None])[:, 0]
    pairs = (probability > 0.5).reshape(-1, 2).all(1).nonzero().flatten()[:FIGURE_SCENES]
    chosen = [2 * scene + asked for scene in (pairs.tolist() or [0]) for asked in range(2)]
    drawn = [result for result in results if result.name != UNTRAINED]
    figure = compare(
        {result.name: result.maps[chosen] for result in drawn},
        questions.images[chosen],
        row_titles=[f"where is the {questions.targets[row]}?" for row in chosen],
        outlines=questions.masks[chosen],
        captions={result.name: f"{result.mean('average precision'):.2f}" for result in drawn},
        title="Which pixels are the asked digit? The outline is the truth; "
        f"under each name: average precision on {len(questions)} test questions",
    )
    return save_figure(figure, path)


def write_csv(results: Sequence[Result], path: Path) -> Path:
    """Writes the table as CSV."""
    rows = table(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def write_json(
    results: Sequence[Result], learning: dict[str, float], training: dict[str, Any], plan: Plan, path: Path
) -> Path:
    """Writes the table, the scores of every question, and everything that is needed to repeat the run."""
    document = {
        "options": {**vars(plan), "out": str(plan.out)},
        "rules": {**learning, "training": training},
        "classifier": weights_metadata(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "table": table(results),
        "scores": {
            result.name: {score: values.tolist() for score, values in result.scores.items()}
            for result in results
        },
    }  # fmt: skip
    return write_text(path, json.dumps(document, indent=1) + "\n")


def _opening(model: nn.Module, questions: Questions) -> str:
    with torch.no_grad():
        asked = model(questions.images).sigmoid().gather(1, questions.targets[:, None])
    share = (asked > 0.5).float().mean().item()
    return (
        f"{len(questions)} questions about {len(questions) // 2} test scenes; "
        f"the classifier sees the asked digit in {100 * share:.0f} % of them"
    )
