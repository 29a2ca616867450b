"""What attributions by trainable rules cost, next to captum's Saliency and GuidedBackprop.

Measures, per model, image size and number of threads, interleaved so that the machine's mood hits all alike:

* one-backward use of a rule set, in captum GuidedBackprop calls;
* one learning step of per-sample ElementGate, in captum Saliency calls, by the linearised pass and by plain double
  backward, whose gate gradients are compared as well;
* peak memory of that step against Saliency's, each in a process of its own (Linux).

    python examples/benchmarks/cost.py                        # the whole table, about 15 minutes on two cores
    python examples/benchmarks/cost.py --models resnet18 --sizes 96 --threads 1 --runs 7
    python examples/benchmarks/cost.py --device cuda
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import GuidedBackprop, Saliency
from timing import interleaved
from torch import Tensor, nn
from torchvision.models import get_model

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop.attribution.rules.learned import DEFAULT_LR, DEFAULT_MASK, DEFAULT_OBJECTIVE
from captum_learnprop.tables import markdown
from captum_learnprop.training.per_sample import Descent, OriginalPass, Step

TARGET = 1


def problem(name: str, size: int, batch: int, device: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights and random inputs, seeded."""
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval().to(device)
    return model, torch.randn(batch, 3, size, size, device=device)


def learning_step(
    model: nn.Module, x: Tensor, *, double_backward: bool = False
) -> tuple[Callable[[], None], OriginalPass]:
    """One step of per-sample ElementGate, on a forward pass that is made once, here."""
    composite = zr.LearnedGradient(gate="element", per_sample=True)
    original = OriginalPass(model, composite, (x.clone().requires_grad_(),), TARGET, ())
    if double_backward:
        original.fallback = "asked for"
    step = Step(original, lambda masked: model(*masked), TARGET, DEFAULT_MASK, DEFAULT_OBJECTIVE, Descent(DEFAULT_LR))
    return lambda: step.run(update=True), original


def gradient_error(model: nn.Module, x: Tensor) -> float:
    """Largest relative difference of gate gradients between the linearised pass and double backward, float64."""
    model, x = model.double(), x.double()
    _, original = learning_step(model, x)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in original.rules.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(x.device) / 3)
    maps = original.attributions()
    v = (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device),)
    found: list[dict[str, Tensor]] = []
    for fallback in (None, "asked for"):
        original.fallback, gradients = fallback, {}
        original.rule_gradients(maps, v, lambda site, gate, g, into=gradients: into.update({site: g["raw"]}))
        found.append(gradients)
    model.float()
    return max(float((found[0][s] - found[1][s]).abs().max() / found[1][s].abs().max()) for s in found[1])


def speed(name: str, size: int, batch: int, threads: int, runs: int, device: str) -> dict[str, object]:
    """One row of the table."""
    torch.set_num_threads(threads)
    model, x = problem(name, size, batch, device)
    rules = zr.RuleSet.build(model, x, gate="channel")
    saliency, guided = Saliency(model), GuidedBackprop(model)
    learned = cl.LearnedPropagation(model, rules=rules)
    fast, original = learning_step(model, x)
    fast()
    fallback = original.fallback
    slow, _ = learning_step(model, x, double_backward=True)
    t = interleaved(
        {
            "saliency": lambda: saliency.attribute(x, target=TARGET),
            "guided": lambda: guided.attribute(x, target=TARGET),
            "one backward": lambda: learned.attribute(x, target=TARGET),
            "step": fast,
            "step by double backward": slow,
        },
        runs,
        device,
    )
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "threads": threads,
        "saliency ms": round(1e3 * t["saliency"], 1),
        "one backward / guided": round(t["one backward"] / t["guided"], 3),
        "step / saliency": round(t["step"] / t["saliency"], 3),
        "double backward / saliency": round(t["step by double backward"] / t["saliency"], 3),
        "gradient error": f"{gradient_error(model, x[:1]):.1e}",
        "fallback": fallback,
    }


def peak_bytes(task: str, name: str, size: int, batch: int, device: str) -> dict[str, int]:
    """Peak memory of one task in this fresh process: in all, and above what the loaded model takes."""
    torch.set_num_threads(1)
    model, x = problem(name, size, batch, device)
    if device != "cpu":
        weights = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        with torch.no_grad():
            model(x)  # allocator and kernels warm, so that their own memory is not counted
        Path("/proc/self/clear_refs").write_text("5")
        weights = _status("VmRSS")
    if task == "saliency":
        Saliency(model).attribute(x, target=TARGET)
    else:
        step, _ = learning_step(model, x)
        for _ in range(2):
            step()
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else _status("VmHWM")
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"above": peak - weights, "with model": peak - weights + parameters}


def _status(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return 1024 * int(line.split()[1])


def memory(name: str, size: int, batch: int, device: str) -> dict[str, object]:
    """Peak memory of a step against Saliency's, each measured in a process of its own."""
    peaks = {}
    for task in ("saliency", "step"):
        arguments = ["--peak", task, "--models", name, "--sizes", str(size), "--batch", str(batch), "--device", device]
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
        peaks[task] = json.loads(done.stdout.splitlines()[-1])
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "saliency MiB": peaks["saliency"]["with model"] >> 20,
        "step MiB": peaks["step"]["with model"] >> 20,
        "step / saliency": round(peaks["step"]["with model"] / peaks["saliency"]["with model"], 2),
        "without the model": round(peaks["step"]["above"] / peaks["saliency"]["above"], 2),
    }


def show(rows: list[dict[str, object]]) -> None:
    """Print rows as a Markdown table."""
    names = list(rows[0])
    print(markdown(names, [[str(row[name]) for name in names] for row in rows]), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "vgg11"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[96, 224])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak", choices=["saliency", "step"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # captum warns on every call
    name, size = options.models[0], options.sizes[0]
    if options.peak:
        print(json.dumps(peak_bytes(options.peak, name, size, options.batch, options.device)))
        return
    cases = [(name, size) for name in options.models for size in options.sizes]
    print(f"torch {torch.__version__}, {options.device}, medians of {options.runs} interleaved runs\n")
    show([speed(n, s, options.batch, t, options.runs, options.device) for n, s in cases for t in options.threads])
    if not options.no_memory:
        show([memory(n, s, options.batch, options.device) for n, s in cases])


if __name__ == "__main__":
    main()
