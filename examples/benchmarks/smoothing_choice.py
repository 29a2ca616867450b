"""Which smoothing suits the maps of trained rules, and which one small deletions choose without knowing what is sought.

    python examples/benchmarks/grid.py --out grid --data digits --net resnet --seeds 0
    python examples/benchmarks/smoothing_choice.py --out grid --data digits --net resnet

Takes the rules that the benchmark of the grid has learned for a net, and prints for each of the smoothings the average
precision of maps of 16 validation questions, and how well maps predict deletions of small boxes from these images.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from captum_learnprop import LearnedPropagation, RuleTrainer
from captum_learnprop.benchmark.grid_data import GRID_DATA, grid_data, trained_net
from captum_learnprop.evaluation import average_precision
from captum_learnprop.maps import postprocess
from captum_learnprop.scenes.photographs import cache_folder
from captum_learnprop.training.examples import Collection
from captum_learnprop.training.parts import Part
from captum_learnprop.training.quantities import quantity
from captum_learnprop.training.rule_maps import RuleMaps
from captum_learnprop.training.smoothing_choice import SMOOTHINGS, correlations
from zennit_rules import RuleSet

QUESTIONS = 16


def main() -> None:
    """Prints one line for each rule set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the grid")
    parser.add_argument("--data", choices=GRID_DATA, required=True)
    parser.add_argument("--net", required=True)
    parser.add_argument("--nets", type=Path, default=None, help="folder of trained nets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = grid_data(arguments.data)
    net = trained_net(arguments.net, data, arguments.nets or cache_folder() / "nets")
    scenes = data.scenes(24, "validation", 0)
    questions = scenes.questions()
    images, targets = data.inputs(questions.images[:QUESTIONS]), questions.targets[:QUESTIONS]
    masks = questions.masks[:QUESTIONS]
    asked = data.inputs(scenes.images)[: QUESTIONS // scenes.targets.shape[1]]
    examples = RuleTrainer(net, deletions=3).measure(asked, targets_per_image=scenes.targets.shape[1])
    what = Collection(quantity("logit"), "logit", targets_per_image=scenes.targets.shape[1])
    print("rules | " + " | ".join(f"{smoothing:g}" for smoothing in SMOOTHINGS))
    for path in sorted((arguments.out / "rules").glob(f"{arguments.net}_{arguments.data}_*_seed0.safetensors")):
        rules = RuleSet.load(path, net)
        sign = rules.training["sign"]
        method = LearnedPropagation(net, rules=rules)
        attribution = torch.cat(
            [method.attribute(*each) for each in zip(images.split(8), targets.split(8), strict=True)]
        )
        predicted = correlations(RuleMaps(net, rules, sign, 0.0), Part.whole(examples), what).mean(0)
        cells = []
        for smoothing, correlation in zip(SMOOTHINGS, predicted.tolist(), strict=True):
            maps = postprocess(attribution, sign, smoothing).reshape(masks.shape)
            cells.append(f"{average_precision(maps, masks).mean():.3f} ({correlation:.2f})")
        variant = re.sub(r"_scenes.*", "", path.stem).rpartition("_")[2]
        print(f"{arguments.data}, {arguments.net}, {variant} | " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
