"""What maps and training cost on a GPU: maps a second, multiples of Saliency, memory, share of the peak.

    python examples/benchmarks/gpu.py                              # about 8 minutes on a GPU
    python examples/benchmarks/gpu.py --models resnet50 --dtypes bfloat16 --seconds 2
    python examples/benchmarks/gpu.py --device cpu --models resnet18 --dtypes float32 --size 64 --batch 2 --seconds 1

Random weights; rules as `RuleTrainer` makes them, off their start, as in ``default_cost.py``. Each task runs until
``--seconds`` are over, after a warm-up, by turns with the others. "Of the peak" is the arithmetic of the model's own
passes (`torch.utils.flop_counter`, twice the forward pass) a second, as a share of what a product of two large matrices
of the same type reaches on the same device. Memory is the most that a task holds beyond the model.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from captum.attr import Saliency
from default_cost import FAMILIES, drawn_model, moved_rules, step
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer

import captum_learnprop as cl
from captum_learnprop.errors import LearnpropError
from captum_learnprop.training.rule_maps import RuleMaps

MODELS = ["resnet50", "efficientnet_b0", "vit_b_16", "convnext_base"]
ROUNDS = 3


def tasks_of(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """Returns what is measured, by name; what a model's type or size forbids is left out with a note."""
    target = torch.arange(len(x), device=x.device)
    plain = Saliency(model)
    tasks: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(model, x),
        "saliency": lambda: plain.attribute(x, target=target),
    }
    for family, composite in FAMILIES.items():
        if isinstance(model, VisionTransformer):
            if family == "DeepLIFT":  # attention costs what its products cost
                continue
            composite = "learned_attnlrp" if family == "LRP" else composite
        try:
            rules = moved_rules(model, x[:2], composite)
        except LearnpropError as error:
            print(f"    {family}: {error}")
            continue
        method, maps = cl.LearnedPropagation(model, rules=rules), RuleMaps(model, rules, "absolute", 0.025)
        tasks[family] = lambda method=method: method.attribute(x, target=target)
        tasks[f"{family}, step"] = lambda maps=maps: step(maps, x, target)
    return tasks


@torch.no_grad()
def forward(model: nn.Module, x: Tensor) -> Tensor:
    """The bare pass that measuring deletions is made of."""
    out: Tensor = model(x)
    return out


def synchronise(device: torch.device) -> None:
    """Wait for what was asked of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Returns the time of one call, from as many as fit."""
    synchronise(device)
    start, calls = time.perf_counter(), 0
    while calls < 1 or time.perf_counter() - start < seconds:
        work()
        synchronise(device)
        calls += 1
    return (time.perf_counter() - start) / calls


def peak(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Returns the operations a second that a product of matrices reaches."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    a @ a
    return 2 * side**3 / seconds_of(lambda: a @ a, device, seconds)


def memory_of(work: Callable[[], object], device: torch.device) -> float | None:
    """Returns the megabytes that a task holds at most beyond what is there; None where nobody counts them."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measure(name: str, dtype: torch.dtype, options: argparse.Namespace, device: torch.device, top: float) -> None:
    """Print the rows of one model."""
    torch.manual_seed(0)
    model = drawn_model(name).to(device, dtype)
    x = torch.randn(options.batch, 3, options.size, options.size).to(device, dtype)
    tasks = tasks_of(model, x)
    with FlopCounterMode(display=False) as counter:
        forward(model, x)
    operations = 2 * counter.get_total_flops()  # and as many back to the input
    memory = {task: memory_of(work, device) for task, work in tasks.items()}
    times: dict[str, list[float]] = {task: [] for task in tasks}
    for _ in range(ROUNDS):
        for task, work in tasks.items():
            times[task].append(seconds_of(work, device, options.seconds / ROUNDS))
    unit = statistics.median(times["saliency"])
    for task, measured in times.items():
        took, held = statistics.median(measured), memory[task]
        share = f"{operations / took / top:.0%}" if task == "saliency" else "-"
        print(
            f"| {name} | {str(dtype).removeprefix('torch.')} | {task} | {options.batch / took:.0f} | {took / unit:.2f} "
            f"| {'-' if held is None else f'{held:.0f}'} | {share} |",
            flush=True,
        )


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each task of each model")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use here; --device cpu tries the script")
    if device.type == "cpu":
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        "| model | type | task | images a second | times Saliency | MB | of the peak |\n|---|---|---|---|---|---|---|"
    )
    for kind in options.dtypes:
        dtype = getattr(torch, kind)
        top = peak(device, dtype, options.seconds)
        for name in options.models:
            measure(name, dtype, options, device, top)


if __name__ == "__main__":
    main()
