"""Maps of a small vision transformer, scored on scenes that it has never seen: one table.

The transformer knows digits on textured backgrounds. Sign and smoothing of each method are chosen by average precision
on validation scenes; everything reported is from test scenes, with two digits each, asked about one after the other.

    python examples/benchmarks/vit_quality.py                       # 15 minutes on a core
    python examples/benchmarks/vit_quality.py --scenes 4 --steps 4  # a look

Columns: AP, average precision of the asked digit's pixels, and AUC against those of the other digit; area between the
curves of least and most relevant pixels first (logit, mean colour; higher is better); deletion (probability; lower is
better); box, correlation of the map's sum in random boxes with the fall of the logit; compact, share of values within
5 % of 0; classes, correlation of the maps of the two digits (lower is better); ms per map.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import captum_learnprop as cl
from captum_learnprop.benchmark.hand_made import hand_made
from captum_learnprop.evaluation import (
    average_precision,
    box_sensitivity,
    class_auc,
    compactness,
    deletion,
    morf_lerf_area,
)
from captum_learnprop.evaluation.similarity import pearson
from captum_learnprop.files import write_text
from captum_learnprop.maps import SIGNS, postprocess
from captum_learnprop.scenes import make_scenes, reference_nets
from captum_learnprop.scenes.scenes import Questions
from zennit_rules import RuleSet

Explain = Callable[[Tensor, Tensor], Tensor]

SMOOTHINGS = (0.0, 1 / 64, 2 / 64, 4 / 64)
"""Smoothings of maps to choose from, as fractions of the image's side."""

CAPTUM = ("saliency", "input x gradient", "integrated gradients", "SmoothGrad", "occlusion", "random")
TOKENS: dict[str, type] = {
    "CDAM": cl.CDAM,
    "SmoothCDAM": cl.SmoothCDAM,
    "IntegratedCDAM": cl.IntegratedCDAM,
    "AttentionMap": cl.AttentionMap,
    "AttentionRollout": cl.AttentionRollout,
    "GenericAttention": cl.GenericAttention,
    "TokenAblation": cl.TokenAblation,
}


def token_method(model: nn.Module, kind: type) -> Explain:
    """Maps in the size of the images."""
    method = kind(model)

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(images, targets, output="input", mode="bilinear")
        return found

    return explain


def by_rules(model: nn.Module, rules: RuleSet) -> Explain:
    """Maps by a rule set."""
    method = cl.LearnedPropagation(model, rules=rules)

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(images, target=targets)
        return found.detach()

    return explain


def trained(model: nn.Module, composite: str, gate: str, scenes: int, steps: int, seed: int) -> RuleSet:
    """Rules learned on training scenes, without labels."""
    images = make_scenes("pairs", scenes, seed=seed).images
    return cl.RuleTrainer(model, composite, gate, steps=steps, seed=seed, pooling="exact").fit(images)


def chosen(explain: Explain, questions: Questions) -> tuple[str, float]:
    """Sign and smoothing of the highest average precision."""
    attribution = explain(questions.images, questions.targets)
    options = [(sign, smoothing) for sign in SIGNS for smoothing in SMOOTHINGS]
    scores = [average_precision(postprocess(attribution, *option), questions.masks).mean().item() for option in options]
    return options[scores.index(max(scores))]


def score(model: nn.Module, explain: Explain, sign: str, smoothing: float, questions: Questions) -> dict[str, object]:
    """One row of the table."""
    images, targets = questions.images, questions.targets
    start = time.perf_counter()
    attribution = explain(images, targets)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(images)
    maps = postprocess(attribution, sign, smoothing)
    signed = postprocess(attribution, "signed", smoothing)
    values = {
        "AP": average_precision(maps, questions.masks),
        "AUC": class_auc(maps, questions.masks, questions.other_masks),
        "area": morf_lerf_area(model, images, maps, targets, output="logit", baseline="mean"),
        "deletion": deletion(model, images, maps, targets, output="sigmoid", baseline="mean"),
        "box": box_sensitivity(model, images, signed, targets),
        "compact": compactness(signed),
        "classes": pearson(signed[0::2], signed[1::2]),
    }
    row: dict[str, object] = {name: round(value.double().nanmean().item(), 3) for name, value in values.items()}
    row["AP error"] = round((values["AP"].double().std() / len(images) ** 0.5).item(), 3)
    return {**row, "ms": round(milliseconds), "map": f"{sign} {smoothing * 64:.0f} px"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60, help="test scenes, with two questions each")
    parser.add_argument("--validation-scenes", type=int, default=24)
    parser.add_argument("--training-scenes", type=int, default=200, help="that rules learn on")
    parser.add_argument("--steps", type=int, default=120, help="of the training of rules")
    parser.add_argument("--rules", nargs="*", default=["learned_transformer", "learned_attnlrp"])
    parser.add_argument("--methods", nargs="*", default=[*TOKENS, *CAPTUM], help="beside the rules")
    parser.add_argument("--gate", default="feature")
    parser.add_argument("--weights", type=Path, help="of the transformer, instead of the shipped ones")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the table as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = reference_nets.load("vit", "digits", path=options.weights).requires_grad_(False)
    validation = make_scenes("pairs", options.validation_scenes, split="validation", seed=options.seed).questions()
    test = make_scenes("pairs", options.scenes, split="test", seed=options.seed).questions()
    methods: dict[str, Explain] = {
        name: token_method(model, TOKENS[name]) if name in TOKENS else hand_made(name).build(model, test.images[:1])
        for name in options.methods
    }
    for composite in options.rules:
        start = RuleSet.build(model, validation.images[:2], composite=composite, gate="none")
        methods[f"{composite}, start"] = by_rules(model, start)
        learned = trained(model, composite, options.gate, options.training_scenes, options.steps, options.seed)
        methods[f"{composite}, trained"] = by_rules(model, learned)
    table: dict[str, dict[str, object]] = {}
    for name, explain in methods.items():
        table[name] = score(model, explain, *chosen(explain, validation), test)
        print(f"{name:30}", json.dumps(table[name]), flush=True)
    if options.out is not None:
        write_text(options.out, json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
