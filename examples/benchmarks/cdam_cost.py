"""What CDAM and SmoothCDAM cost on ViT-B/16, next to one forward pass of the model.

One image of 224 pixels; runs are interleaved. The loop runs the whole model once per sample, forward and backward.

    python examples/benchmarks/cdam_cost.py            # 3 minutes on a core
    python examples/benchmarks/cdam_cost.py --runs 9 --loop 0
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from timing import interleaved, seconds
from torchvision.models import get_model

from captum_learnprop import CDAM, IntegratedCDAM, SmoothCDAM


def measure(model_name: str, size: int, samples: int, runs: int, loop: int) -> dict[str, object]:
    """Medians, and ratios to the forward pass."""
    torch.manual_seed(0)
    model = get_model(model_name, weights=None).eval().requires_grad_(False)
    image = torch.rand(1, 3, size, size)
    cdam, smooth, integrated = CDAM(model), SmoothCDAM(model), IntegratedCDAM(model)

    def forward() -> None:
        with torch.no_grad():
            model(image)

    works: dict[str, Callable[[], object]] = {
        "forward": forward,
        "CDAM": lambda: cdam.attribute(image, 1),  # the first call, which warms up, finds the tokens as well
        "SmoothCDAM": lambda: smooth.attribute(image, 1, n_samples=samples),
        "IntegratedCDAM": lambda: integrated.attribute(image, 1, n_steps=samples),
    }
    median = interleaved(works, runs)
    row: dict[str, object] = {"model": model_name, "samples": samples, "forward ms": round(1e3 * median["forward"], 1)}
    row |= {f"{name} / forward": round(value / median["forward"], 2) for name, value in median.items()}
    if loop:
        one = statistics.median([seconds(lambda: cdam.attribute(image, 1)) for _ in range(loop)])
        row["loop of CDAMs / forward"] = round(samples * one / median["forward"], 1)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b_16", help="a vision transformer of torchvision")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--loop", type=int, default=3, help="runs of the loop's pass; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options.model, options.size, options.samples, options.runs, options.loop)))


if __name__ == "__main__":
    main()
