"""What a user pays with the defaults: a map by rules as `RuleTrainer` makes them, and the gradient of a training step.

    python examples/benchmarks/default_cost.py --runs 7
    python examples/benchmarks/default_cost.py --models resnet18 efficientnet_b0 --batch 8 --threads 2 --no-steps
    python examples/benchmarks/default_cost.py --memory                     # instead: megabytes of passes and steps

Random weights; all tasks interleaved in one run, as multiples of `captum.attr.Saliency` on the same images in the same
round, medians over rounds. CPU seconds of the process, which a busy machine distorts less than a clock on the wall.
The parameters of the rules are moved off their start, where some rules take a short cut. LRP is that of convolutional
nets, and AttnLRP for transformers; "plain" is LRP without the gates at activations that the trainer adds. A step is one
batch: maps, a loss on them, and its gradient in the rules; reading images and the optimiser are not counted. zennit's
EpsilonPlus runs with the canonizers of `zennit_rules.canonizers_for`. Measuring is what deletions of an image cost, as
a multiple of as many bare forward passes in batches of the same size. Memory is the most that the process holds beyond
what it held before, on Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import GuidedBackprop, Saliency
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_model
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

import captum_learnprop as cl
from captum_learnprop.chunks import rows_together
from captum_learnprop.training.occlusion import DeletionFills, measure_drops
from captum_learnprop.training.options import TrainingOptions
from captum_learnprop.training.quantities import quantity as quantity_named
from captum_learnprop.training.regions import random_regions
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


def measuring(name: str, size: int, runs: int) -> float:
    """Returns what measuring the deletions of an image takes, as a multiple of as many bare forward passes."""
    torch.manual_seed(0)
    model, images, deletions = drawn_model(name), torch.randn(4, 3, size, size), TrainingOptions().deletions
    generator, fills = torch.Generator().manual_seed(0), DeletionFills(TrainingOptions().fill, images)
    regions = random_regions(images[0], deletions, generator, TrainingOptions().regions)
    together = rows_together(TrainingOptions().internal_batch_size, images.shape[1:], torch.device("cpu"))
    whole = images[:1].expand(deletions + 1, -1, -1, -1).contiguous()

    @torch.no_grad()
    def bare() -> None:
        for part in whole.split(together):
            model(part)

    @torch.no_grad()
    def measured() -> None:
        drawn = fills.draw(deletions, 0, generator)
        measure_drops(
            model, images[0], torch.arange(1), regions, drawn, quantity_named("logit"), internal_batch_size=together
        )

    spent: dict[str, list[float]] = {"bare": [], "measured": []}
    for _ in range(runs + 1):
        for column, work in (("bare", bare), ("measured", measured)):
            start = time.process_time()
            work()
            spent[column].append(time.process_time() - start)
    return statistics.median(m / b for m, b in zip(spent["measured"][1:], spent["bare"][1:], strict=True))


def memory(name: str, size: int, batch: int) -> dict[str, float]:
    """Returns the megabytes of each task beyond what was held before."""
    torch.manual_seed(0)
    tasks = tasks_of(name, torch.randn(batch, 3, size, size), steps=True)
    for work in tasks.values():  # what is made once and kept is not counted
        work()
    return {column: peak_of(work) for column, work in tasks.items()}


def peak_of(work: Callable[[], object]) -> float:
    """Returns the megabytes that the process holds at most during some work, beyond what it holds before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _held("VmRSS")
    work()
    return _held("VmHWM") - before


def _held(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


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
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--no-steps", action="store_true", help="leave training steps out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    columns = columns_of(not options.no_steps)
    if options.memory:
        print(f"| model | Saliency, MB | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
        for name in options.models:
            found = memory(name, options.size, options.batch)
            unit = found["saliency"]
            cells = [f"{found[column] / unit:.1f}" if column in found else "-" for column in columns]
            print(f"| {name} | {unit:.0f} | {' | '.join(cells)} |", flush=True)
        return
    columns = [*columns, *([] if options.no_steps else ["measuring"])]
    print(f"| model | Saliency, ms / image | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for name in options.models:
        unit, found = measure(name, options.size, options.batch, options.runs, steps=not options.no_steps)
        if not options.no_steps:
            found["measuring"] = measuring(name, options.size, options.runs)
        cells = [f"{found[column]:.2f}" if column in found else "-" for column in columns]
        print(f"| {name} | {unit:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
