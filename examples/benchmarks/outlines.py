"""What smoothing along the outlines of a photograph adds to each method: average precision and more, with and without.

    learnprop data photos
    learnprop evaluate --model efficientnet_lite:0 --scenes photos --seeds 0 --out DIR       # trains the rules
    python examples/benchmarks/outlines.py --out DIR --model efficientnet_lite:0

Scenes, questions and rules are those of ``learnprop evaluate``. *Without*, maps are treated as there: hand-made ones
with the sign and Gaussian smoothing that suit them best on validation scenes, those of rules as they were trained.
*With*, maps follow outlines after that (`maps.follow_outlines`): hand-made methods choose sign, smoothing and radius
(.1, .15 or .2 of the side) on the same validation scenes; rules keep what they were trained with, and get one radius,
``--outlines``, whatever the net. Everything is scored on test scenes; differences are paired over scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from on_photographs import explained, subject_of
from torch import Tensor, nn

from captum_learnprop.benchmark.comparison import best_of, standard_error, treatments_of
from captum_learnprop.benchmark.contenders import Contender, every_contender
from captum_learnprop.benchmark.examination import treatment_of
from captum_learnprop.benchmark.own_net import OwnNet
from captum_learnprop.benchmark.scorecard import Case, score
from captum_learnprop.evaluation import average_precision
from captum_learnprop.evaluation.similarity import spearman
from captum_learnprop.files import write_text
from captum_learnprop.maps import SIGNS, postprocess
from captum_learnprop.scenes.scenes import Questions

METHODS = (
    "random", "centre prior", "saliency", "DeepLift", "Grad-CAM", "guided Grad-CAM", "LRP gamma",
    "LRP gamma x Grad-CAM", "intensity x Grad-CAM", "gates, learned", "LRP, z+ start + fusion, learned",
)  # fmt: skip
RADII = (0.1, 0.15, 0.2)
SMOOTHINGS = (0.0, 1 / 64, 3 / 64)
RANDOMISED = 24
"""Questions that the likeness to maps of nets with random weights is measured on."""

Finish = Callable[[Tensor, Tensor], Tensor]
"""``(attribution, images) -> maps``."""


def finish(sign: str, smoothing: float, outlines: float) -> Finish:
    """Returns what makes maps of attributions."""
    return lambda attribution, images: postprocess(attribution, sign, smoothing, outlines, images)


def finishes(
    contender: Contender, subject: OwnNet, seed: int, tuning: Questions, radius: float
) -> tuple[Finish, Finish]:
    """Returns how maps of a method are finished without outlines and with them."""
    side = subject.side
    if contender.rules is not None:
        own = treatment_of(contender.rules(subject, seed), side)
        return finish(own.sign, own.sigma / side, 0.0), finish(own.sign, own.sigma / side, radius)
    attribution = explained(contender.build(subject, subject.net, seed), tuning)
    plain = best_of(treatments_of(side), attribution, lambda maps: average_precision(maps, tuning.masks))
    choices = list(product(SIGNS, SMOOTHINGS, RADII))
    found = [
        average_precision(finish(*choice)(attribution, tuning.images), tuning.masks).mean().item() for choice in choices
    ]
    return finish(plain.sign, plain.sigma / side, 0.0), finish(*choices[found.index(max(found))])


def randomisation(
    contender: Contender, subject: OwnNet, seed: int, treat: Finish, maps: Tensor, asked: Questions
) -> Tensor:
    """Returns how alike maps are to those of nets with random weights: absolute rank correlation, per question."""

    def other(net: nn.Module) -> Tensor:
        drawn = treat(explained(contender.build(subject, net, seed), asked[:RANDOMISED]), asked.images[:RANDOMISED])
        return spearman(maps[:RANDOMISED].abs(), drawn.abs()).abs()

    return torch.stack([other(net) for net in subject.random_nets]).nanmean(0)


def main() -> None:
    """Explain, treat, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of learnprop evaluate; outlines.json goes there"
    )
    parser.add_argument("--model", action="append", required=True, help="may be repeated")
    parser.add_argument("--method", action="append", help="may be repeated; all by default")
    parser.add_argument("--seeds", default="0", help="training seeds of learned rules")
    parser.add_argument("--outlines", type=float, default=0.15, help="radius for maps of rules")
    parser.add_argument("--metric", action="append", help="further columns, e.g. 'deletion, blur' or randomisation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = tuple(map(int, options.seeds.split(",")))
    names = ["average precision", "class AUC", "pointing game", *(options.metric or [])]
    results = options.out / "outlines.json"
    kept = json.loads(results.read_text()) if results.is_file() else {}
    for spec in options.model:
        subject = subject_of(spec, options.out, training_seeds=seeds)
        tuning, asked = (subject.questions("photos", split) for split in ("validation", "test"))
        case = Case(subject.model, asked, subject.output)
        print(
            f"\n{spec}, {len(asked)} questions\n\n| method | maps | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}"
        )
        every = {one.name: one for one in every_contender(subject.settings, own_net=True)}
        for name in options.method or METHODS:
            contender = every[name]
            found: dict[str, dict[str, list[Tensor]]] = {"plain": {}, "outlines": {}}
            for seed in seeds if contender.seeded else (0,):
                treats = finishes(contender, subject, seed, tuning, options.outlines)
                attribution = explained(contender.build(subject, subject.net, seed), asked)
                for kind, treat in zip(found, treats, strict=True):
                    maps = treat(attribution, asked.images)
                    for metric in names:
                        if metric == "randomisation":
                            values = randomisation(contender, subject, seed, treat, maps, asked)
                        else:
                            values = score(metric).rate(case, maps)
                        found[kind].setdefault(metric, []).append(values.double())
            for kind, values_of in found.items():
                rows = {metric: torch.stack(values).mean(0) for metric, values in values_of.items()}
                kept[f"{spec}|{name}|{kind}"] = {
                    "scenes": asked.scenes.tolist(),
                    **{metric: rows[metric].tolist() for metric in names},
                }
                cells = [
                    f"{values.mean():.3f} ± {standard_error(values, asked.scenes[: len(values)]):.3f}"
                    for values in rows.values()
                ]
                print(f"| {name} | {kind} | {' | '.join(cells)} |", flush=True)
            write_text(results, json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
