"""What a training made, and how to use it, in a few lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from captum_learnprop.commands._train_request import Request
from zennit_rules import RuleSet


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
        rules: The rules, as they were saved.
        seconds: Duration of the whole run.
    """

    rules: RuleSet
    seconds: float


def stopped(request: Request) -> str:
    if request.resume is not None and request.resume.is_file():
        return f"stopped; the same command goes on from {request.resume}"
    if request.examples_dir is not None:
        return f"stopped; what was measured is in {request.examples_dir} and used again"
    return "stopped; --examples-dir keeps what was measured, --resume where the training stood"


def summary(request: Request, result: Result) -> Iterator[str]:
    """Yields lines that say what a run made and how to use it."""
    rules, training = result.rules, result.rules.training
    yield (
        f"rules of {len(rules.sites)} sites, {sum(p.numel() for p in rules.parameters())} numbers, learned from "
        f"{training['training_rows']} rows in {training['steps_done']} steps, {result.seconds:.0f} s in all"
    )
    if any(row.is_linear for row in rules.coverage().rows):
        yield f"{rules.coverage().share:.1%} of the net's multiply-adds have a rule"
    if training["stopped"] is not None:
        yield f"stopped early: {training['stopped']}"
    if training["validation_loss"] is None:
        yield "no image was held out: these are the rules of the last step"
    else:
        yield (
            f"best validation loss {training['validation_loss']:.4f} at step {training['best_step']}, "
            f"{training['start_validation_loss']:.4f} untrained ({training['validation_rows']} rows held out)"
        )
        if training["best_step"] == 0:
            yield "no step was better than the start: try more images or steps, or a smaller --lr"
    yield f"written to {request.out}; explain images by them with"
    yield "  " + shlex.join(_usage(request)) + " --images DIR --out DIR"
    sign, smoothing = training["sign"], training["smoothing"]
    smoothed = f"smoothed by {smoothing:g} of the shorter side" if smoothing else "not smoothed"
    outlines = training["outlines"]
    followed, images = (", following outlines,", f", {outlines:g}, images") if outlines else ("", "")
    chosen = ", chosen on held-out images" if training["chooses_smoothing"] else ""
    yield f"maps are {sign} and {smoothed}{followed}{chosen}: make yours alike, by"
    yield f"  captum_learnprop.maps.postprocess(attribution, {sign!r}, {smoothing:g}{images})"


def _usage(request: Request) -> list[str]:
    given: dict[str, object] = {
        "--weights": request.weights,
        "--checkpoint": request.checkpoint,
        "--size": request.size,
    }
    if request.normalization != "auto":
        given["--normalization"] = request.normalization
    for name in ("mean", "std"):
        values = getattr(request, name)
        if values is not None:
            given[f"--{name}"] = ",".join(f"{value:g}" for value in values)
    if request.classes is not None:
        given["--classes"] = str(request.classes)
    options = [str(part) for option, value in given.items() if value is not None for part in (option, value)]
    return ["learnprop", "attribute", "--model", request.model, *options, "--method", "learned_propagation",
            "--rules", str(request.out)]  # fmt: skip
