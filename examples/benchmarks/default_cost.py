"""What a user pays with the defaults: a map by rules as `RuleTrainer` makes them, and the gradient of a training step.

    python examples/benchmarks/default_cost.py --runs 7
    python examples/benchmarks/default_cost.py --models resnet18 efficientnet_b0 --batch 8 --threads 2

Random weights; all tasks interleaved in one run, medians, as multiples of `captum.attr.Saliency` on the same images.
The parameters of the rules are moved off their start, where some rules take a short cut. A step is one batch: maps, a
loss on them, and its gradient in the rules; reading images and the optimiser are not counted.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from captum.attr import GuidedBackprop, Saliency
from timing import interleaved
from torch import Tensor, nn
from torchvision.models import get_model

import captum_learnprop as cl
from captum_learnprop.training.rule_maps import RuleMaps
from zennit_rules import RuleSet

FAMILIES = {"gates": "learned_gradient", "LRP": "learned_epsilon_gamma_box", "DeepLIFT": "learned_deeplift"}


def moved_rules(model: nn.Module, x: Tensor, composite: str) -> RuleSet:
    """Returns rules as a training begins with, each parameter off its start."""
    trainer = cl.RuleTrainer(model, composite)
    rules = RuleSet.build(model, x, **trainer.build_options)
    with torch.no_grad():
        for parameter in rules.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return rules


def step(maps: RuleMaps, x: Tensor, target: Tensor) -> None:
    """The gradient of a loss on maps in the rules."""
    found = maps.record(x, create_graph=True).explain(target)
    torch.autograd.grad(found.square().sum(), maps.rules.parameters(), allow_unused=True)


def measure(name: str, size: int, batch: int, runs: int) -> list[str]:
    """Returns the cells of one row of the table."""
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval().requires_grad_(False)
    x, target = torch.randn(batch, 3, size, size), torch.arange(batch)
    guided = GuidedBackprop(get_model(name, weights=None).eval())
    tasks = {
        "saliency": lambda: Saliency(model).attribute(x, target=target),
        "GuidedBackprop": lambda: guided.attribute(x, target=target),
    }
    for family, composite in FAMILIES.items():
        rules = moved_rules(model, x, composite)
        method, maps = cl.LearnedPropagation(model, rules=rules), RuleMaps(model, rules, "absolute", 0.025)
        tasks[family] = lambda method=method: method.attribute(x, target=target)
        tasks[f"{family}, step"] = lambda maps=maps: step(maps, x, target)
    seconds = interleaved(tasks, runs)
    base = seconds.pop("saliency")
    return [f"{name}, {size} px", f"{1000 * base / batch:.0f}", *(f"{value / base:.2f}" for value in seconds.values())]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "vgg11", "efficientnet_b0"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    columns = ["GuidedBackprop", *(one for family in FAMILIES for one in (family, f"{family}, step"))]
    print(f"| model | Saliency, ms / image | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for name in options.models:
        print(f"| {' | '.join(measure(name, options.size, options.batch, options.runs))} |", flush=True)


if __name__ == "__main__":
    main()
