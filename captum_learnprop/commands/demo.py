"""``learnprop demo``: learn rules for a small net, compare them with hand-made ones, draw the result."""

from __future__ import annotations

import csv
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captum_learnprop.errors import LearnpropError

# torch takes seconds to import: the help must not wait for it.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from captum_learnprop.evaluation.comparison import Method, Result
    from captum_learnprop.evaluation.scenes import Questions, Scenes
    from zennit_rules import RuleSet

TRAINING_SCENES = 96
VALIDATION_SCENES = 16
FIGURE_SCENES = 3

GATE = "feature"
START = "gradient"
POOLING = "soft"
LEARNING_RATE = 0.03
BATCH_SIZE = 12

UNTRAINED = "learned, untrained start"
SHARED = "learned, shared"
PER_SAMPLE = "learned, per sample"
SALIENCY = "saliency"


@dataclass(frozen=True)
class Plan:
    """What the command line asked for."""

    out: Path
    scenes: int
    seed: int
    threads: int | None
    steps: int
    sample_steps: int | None


@click.command("demo")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("learnprop-demo"), show_default=True,
    help="Folder for the figure, the tables and the learned rules.",
)  # fmt: skip
@click.option("--scenes", type=click.IntRange(1), default=24, show_default=True, help="Test scenes, two digits each.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of scenes and learning.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads; torch decides by default.")
@click.option(
    "--steps", type=click.IntRange(1), default=100, show_default=True, help="Learning steps of the shared rules."
)
@click.option(
    "--sample-steps", type=click.IntRange(1), default=None,
    help="Learning steps of the rules learned per sample; the method's own number by default.",
)  # fmt: skip
def command(**options: Any) -> None:
    """Learn rules for a small digit classifier, compare and draw them.

    The classifier is shipped, the digits come with scikit-learn: nothing is downloaded. Each scene holds two digits of
    different classes in clutter; a method is asked for one of them and scored against the pixels that digit has.
    """
    plan = Plan(**options)
    with _threads(plan.threads):
        run(plan)


def run(plan: Plan) -> None:
    """Everything the command does."""
    from captum_learnprop.evaluation import digits_net
    from captum_learnprop.evaluation.comparison import choose_treatment, measure
    from captum_learnprop.evaluation.scenes import make_scenes

    start = time.perf_counter()
    try:
        scenes = make_scenes("pairs", plan.scenes, split="test", seed=plan.seed)
    except ImportError as error:
        raise LearnpropError(str(error)) from error
    plan.out.mkdir(parents=True, exist_ok=True)
    model = digits_net.load()
    validation = make_scenes("pairs", VALIDATION_SCENES, split="validation", seed=plan.seed).questions()
    questions = scenes.questions()
    click.echo(_opening(model, scenes))

    rules, learning = learn(model, plan)
    results = []
    for method in methods(model, rules, plan):
        click.echo(f"explaining {len(questions)} questions: {method.name}", err=True)
        treatment = choose_treatment(method, validation)
        repeats = 1 if method.name == PER_SAMPLE else 3
        results.append(measure(method, model, questions, treatment, repeats=repeats))
    click.echo("\n" + format_table(results))
    click.echo("\n" + summary(results, learning))

    paths = [
        write_csv(results, plan.out / "table.csv"),
        write_json(results, learning, plan, plan.out / "results.json"),
        draw(model, scenes, questions, results, plan.out / "figure.png"),
        rules.save(plan.out / "rules.safetensors", model),
    ]
    click.echo("\nwrote " + ", ".join(str(path) for path in paths))
    click.echo(f"{time.perf_counter() - start:.0f} s in all")


def learn(model: nn.Module, plan: Plan) -> tuple[RuleSet, dict[str, float]]:
    """Shared rules from training scenes; the model's own training digits, the class of each digit as target."""
    from captum_learnprop.evaluation.scenes import make_scenes
    from captum_learnprop.training.shared import fit_shared

    scenes = make_scenes("pairs", TRAINING_SCENES, split="train", seed=plan.seed)
    training = scenes.questions()
    rules = _new_rules(model, training.images[:2])
    start = time.perf_counter()
    with _progress("learning shared rules", plan.steps) as advance:
        losses = fit_shared(
            rules, model, training.images, training.targets,
            steps=plan.steps, lr=LEARNING_RATE, batch_size=BATCH_SIZE, seed=plan.seed, progress=advance,
        )  # fmt: skip
    parameters = sum(parameter.numel() for parameter in rules.parameters())
    tail = losses[-5:]
    return rules, {
        "seconds": time.perf_counter() - start,
        "images": float(len(scenes)),
        "parameters": float(parameters),
        "first loss": losses[0],
        "last loss": sum(tail) / len(tail),
    }


def methods(model: nn.Module, rules: RuleSet, plan: Plan) -> list[Method]:
    """Hand-made methods, which choose their treatment, and learned ones, which have one."""
    from captum.attr import GuidedBackprop, IntegratedGradients, Saliency

    from captum_learnprop.attribution.learned import LearnedPropagation
    from captum_learnprop.evaluation.comparison import Method, Treatment

    def guided(images: Tensor, targets: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
            return GuidedBackprop(model).attribute(images, target=targets)

    def integrated(images: Tensor, targets: Tensor) -> Tensor:
        method = IntegratedGradients(model)
        return method.attribute(images, target=targets, n_steps=50, internal_batch_size=256).to(images.dtype)

    def per_sample(images: Tensor, targets: Tensor) -> Tensor:
        method = LearnedPropagation(model)
        return method.attribute(images, target=targets, n_steps=plan.sample_steps, seed=plan.seed)

    def one_backward(used: RuleSet) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, targets: LearnedPropagation(model, rules=used).attribute(images, target=targets)

    fixed = (Treatment(),)
    untrained = _new_rules(model, plan_example(model))
    return [
        Method(SALIENCY, lambda images, targets: Saliency(model).attribute(images, target=targets, abs=False)),
        Method("guided backprop", guided),
        Method("integrated gradients", integrated),
        Method(PER_SAMPLE, per_sample, fixed),
        Method(UNTRAINED, one_backward(untrained), fixed),
        Method(SHARED, one_backward(rules), fixed),
    ]


def plan_example(model: nn.Module) -> Tensor:
    """One image of the size of a scene, for finding sites."""
    import torch

    from captum_learnprop.evaluation.scenes import SIZE

    return torch.full((1, 3, SIZE, SIZE), 0.5)


def _new_rules(model: nn.Module, example: Tensor) -> RuleSet:
    from zennit_rules import RuleSet

    return RuleSet.build(model, example, composite="learned_gradient", gate=GATE, start=START, pooling=POOLING)
