"""What a step of an extremal perturbation costs, next to the model's own forward and backward pass.

Four masks of one image at once. The cost of a step is the slope between searches of two lengths, so that what is done
once per call does not count, nor what is searched again where a larger area is worse; searches and passes of the model
are interleaved.

    python examples/benchmarks/extremal_cost.py               # 4 minutes on a core
    python examples/benchmarks/extremal_cost.py --nets cnn64 --runs 9
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from unittest.mock import patch

import torch
from timing import seconds
from torch import Tensor, nn
from torchvision.models import get_model

from captum_learnprop import ExtremalPerturbation
from captum_learnprop.attribution.extremal.rows import Rows

AREAS = (0.05, 0.1, 0.2, 0.4)
SHORT, LONG = 2, 8


def cnn() -> nn.Module:
    """Four convolutions of 32 channels and more, for images of 64 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    "resnet18": (lambda: get_model("resnet18", weights=None), 224, 1.5),
    "vgg11": (lambda: get_model("vgg11", weights=None), 224, 1.15),
    "cnn64": (cnn, 64, 1.6),
}
"""Net, size of its images, and what a step may cost at most."""


def measure(name: str, runs: int) -> dict[str, object]:
    """One row of the table."""
    torch.manual_seed(0)
    make, size, most = NETS[name]
    model = make().eval().requires_grad_(False)
    image = torch.rand(1, 3, size, size)
    batch = image.expand(len(AREAS), -1, -1, -1).clone()
    method = ExtremalPerturbation(model)

    def passes() -> Tensor:
        leaf = batch.clone().requires_grad_()
        return torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]

    def search(steps: int) -> Tensor:
        with patch.object(Rows, "_raise_larger_areas", lambda *args: None):
            masks: Tensor = method.attribute(image, 1, areas=AREAS, n_steps=steps)
        return masks

    own, step = [], []
    for run in range(runs + 1):
        a, short, b, long, c = (
            seconds(passes), seconds(lambda: search(SHORT)), seconds(passes), seconds(lambda: search(LONG)),
            seconds(passes),
        )  # fmt: skip
        if run:  # the first one warms up
            own.append(statistics.median((a, b, c)))
            step.append((long - short) / (LONG - SHORT))
    return {
        "net": name, "size": size, "masks": len(AREAS),
        "forward and backward ms": round(1e3 * statistics.median(own), 1),
        "step ms": round(1e3 * statistics.median(step), 1),
        "step / forward and backward": round(statistics.median(s / o for s, o in zip(step, own, strict=True)), 2),
        "aimed at": most,
    }  # fmt: skip


def main() -> None:
    """Print a row of JSON per net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.nets:
        print(json.dumps(measure(name, options.runs)), flush=True)


if __name__ == "__main__":
    main()
