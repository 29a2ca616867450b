"""Coarse maps times the distance from the median colour: how much of a contribution's precision is the factor?

"extremal perturbation x input" multiplies masks by the input minus the median of each channel. The same factor turns
other coarse maps into fine ones. Nothing is smoothed, negative values of maps count as 0.

    python examples/benchmarks/maps_x_input.py                                           # minutes on a core
    python examples/benchmarks/maps_x_input.py --method 'extremal perturbation x input'  # 8 to 12 s a question

Average precision, and on `pairs` class AUC; a method whose name ends in "x input" has the factor already.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from captum_learnprop.benchmark.hand_made import hand_made
from captum_learnprop.evaluation import average_precision, class_auc
from captum_learnprop.scenes import make_scenes, reference_nets
from captum_learnprop.scenes.scenes import Questions

METHODS = ("Grad-CAM", "LayerCAM, early layer", "occlusion")


def distance(images: Tensor) -> Tensor:
    """Sum over channels of the distance from the median, ``(B, H, W)``."""
    median = images.flatten(2).median(2).values[..., None, None]
    return (images - median).abs().sum(1)


def line(name: str, maps: Tensor, asked: Questions) -> str:
    """Scores of maps ``(B, H, W)``."""
    scores = [average_precision(maps, asked.masks)]
    if bool(asked.other_masks.any()):
        scores.append(class_auc(maps, asked.masks, asked.other_masks))
    return f"{name:55s}" + "  ".join(f"{float(values.nanmean()):.3f}" for values in scores)


def main() -> None:
    """Scores of each net and method, with and without the factor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs=2, default=(48, 32), help="of pairs and of digits")
    parser.add_argument("--seed", type=int, default=200)
    parser.add_argument("--method", action="append", help="hand-made method; repeatable")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for family, count in zip(("pairs", "digits"), options.questions, strict=True):
        scenes = make_scenes(family, count // 2 if family == "pairs" else count, split="test", seed=options.seed)
        asked = scenes.questions()
        factor = distance(asked.images)
        print(line(f"{family}: factor alone", factor, asked))
        for net in ("vgg", "resnet", "inception"):
            model = reference_nets.load(net, "digits")
            for name in options.method or METHODS:
                attribution = hand_made(name).build(model, asked.images[:1])(asked.images, asked.targets)
                if name.endswith("x input"):
                    print(line(f"{family}, {net}: {name}", attribution.abs().sum(1), asked), flush=True)
                    continue
                positive = attribution.sum(1).clamp(min=0)
                print(line(f"{family}, {net}: {name}", positive, asked))
                print(line(f"{family}, {net}: {name} x input", positive * factor, asked), flush=True)


if __name__ == "__main__":
    main()
