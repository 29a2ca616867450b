"""What a user pays with the defaults: a map by rules as `RuleTrainer` makes them, and the gradient of a training step.

    python examples/benchmarks/default_cost.py --runs 7
    python examples/benchmarks/default_cost.py --models resnet18 efficientnet_b0 --batch 8 --threads 2 --no-steps

Random weights; all tasks interleaved in one run, as multiples of `captum.attr.Saliency` on the same images in the same
round, medians over rounds. CPU seconds of the process, which a busy machine distorts less than a clock on the wall.
The parameters of the rules are moved off their start, where some rules take a short cut. LRP is that of convolutional
nets, and AttnLRP for transformers; "plain" is LRP without the gates at activations that the trainer adds. A step is one
batch: maps, a loss on them, and its gradient in the rules; reading images and the optimiser are not counted. zennit's
EpsilonPlus runs with the canonizers of `zennit_rules.canonizers_for`.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from captum.attr import GuidedBackprop, Saliency
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_model
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

import captum_learnprop as cl
from captum_learnprop.training.rule_maps import RuleMaps
from zennit_rules import RuleSet, canonizers_for

FAMILIES = {"gates": "learned_gradient", "LRP": "learned_epsilon_gamma_box", "DeepLIFT": "learned_deeplift"}
MODELS = ["resnet18", "resnet50", "vgg11", "efficientnet_b0", "vit_b_16"]


def moved_rules(model: nn.Module, x: Tensor, composite: str, *, gates: bool = True) -> RuleSet:
    """Returns rules as a training begins with, each parameter off its start."""
    options = dict(cl.RuleTrainer(model, composite).build_options)
    if not gates:
        options.pop("gate_options", None)
        options["gate"] = "none"
    rules = RuleSet.build(model, x, **options)
    with torch.no_grad():
        for parameter in rules.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return rules


def step(maps: RuleMaps, x: Tensor, target: Tensor) -> None:
    """The gradient of a loss on maps in the rules."""
    found = maps.record(x, create_graph=True).explain(target)
    torch.autograd.grad(found.square().sum(), maps.rules.parameters(), allow_unused=True)


def drawn_model(name: str) -> nn.Module:
    """Returns a net with random weights; a transformer's last layer, which begins at 0, too."""
    model = get_model(name, weights=None).eval()
    if isinstance(model, VisionTransformer):
        nn.init.normal_(model.heads[-1].weight, std=0.02)  # type: ignore[arg-type]
    return model.requires_grad_(False)


def tasks_of(name: str, x: Tensor, *, steps: bool) -> dict[str, Callable[[], object]]:
    """Returns what is measured, by column."""
    model, target = drawn_model(name), torch.arange(len(x))
    guided, plain = GuidedBackprop(drawn_model(name)), drawn_model(name)
    tasks: dict[str, Callable[[], object]] = {
        "saliency": lambda: Saliency(model).attribute(x, target=target),
        "GuidedBackprop": lambda: guided.attribute(x, target=target),
    }
    transformer = isinstance(model, VisionTransformer)
    for family, composite in FAMILIES.items():
        if transformer and family == "DeepLIFT":  # not one of the table: attention costs what its products cost
            continue
        composite = "learned_attnlrp" if transformer and family == "LRP" else composite
        for gates in (True, False) if family == "LRP" else (True,):
            rules = moved_rules(model, x, composite, gates=gates)
            method, maps = cl.LearnedPropagation(model, rules=rules), RuleMaps(model, rules, "absolute", 0.025)
            column = family if gates else f"{family}, plain"
            tasks[column] = lambda method=method: method.attribute(x, target=target)
            if steps and gates:
                tasks[f"{column}, step"] = lambda maps=maps: step(maps, x, target)
    if not transformer:
        seed, canonizers = torch.eye(1000)[target], canonizers_for(plain, x)

        def epsilon_plus() -> None:
            with Gradient(plain, EpsilonPlus(canonizers=canonizers)) as attributor:
                attributor(x, seed)

        tasks["zennit EpsilonPlus"] = epsilon_plus
    return tasks


def measure(name: str, size: int, batch: int, runs: int, *, steps: bool) -> tuple[float, dict[str, float]]:
    """Returns the milliseconds of Saliency per image, and multiples of it by column."""
    torch.manual_seed(0)
    tasks = tasks_of(name, torch.randn(batch, 3, size, size), steps=steps)
    spent: dict[str, list[float]] = {column: [] for column in tasks}
    for _ in range(runs + 1):
        for column, work in tasks.items():
            start = time.process_time()
            work()
            spent[column].append(time.process_time() - start)
    base = spent.pop("saliency")[1:]
    ratios = {
        column: statistics.median(one / unit for one, unit in zip(values[1:], base, strict=True))
        for column, values in spent.items()
    }
    return 1000 * statistics.median(base) / batch, ratios


def columns_of(steps: bool) -> list[str]:
    """Returns the headings of the table, but for the first two."""
    own = [column for family in FAMILIES for column in (family, *(["LRP, plain"] if family == "LRP" else []),
                                                         *([f"{family}, step"] if steps else []))]  # fmt: skip
    return ["GuidedBackprop", *own, "zennit EpsilonPlus"]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-steps", action="store_true", help="leave training steps out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    columns = columns_of(not options.no_steps)
    print(f"| model | Saliency, ms / image | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for name in options.models:
        unit, found = measure(name, options.size, options.batch, options.runs, steps=not options.no_steps)
        cells = [f"{found[column]:.2f}" if column in found else "-" for column in columns]
        print(f"| {name} | {unit:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
