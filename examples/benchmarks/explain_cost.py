"""What `explain` takes for one photograph of 640 x 480 pixels by EfficientNet-Lite0, by the rules that ship for it.

    python examples/benchmarks/explain_cost.py --runs 7

One core, the model loaded; all of a call is counted: reading the file, finding the rules by the model's fingerprint,
the prediction, the map, and bringing it to the photograph's size. CPU time, which other programs on the machine change
less than the clock, beside wall-clock time; medians, and the first call by itself. Needs ``[photos]``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from skimage import data

import captum_learnprop as cl
from captum_learnprop.explanation.pictures import picture_of
from captum_learnprop.models import load_model

SIZE = (640, 480)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Returns seconds of CPU and of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    model = load_model("efficientnet_lite:0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cat.jpg"
        image = picture_of(data.chelsea())
        image.resize(SIZE).save(path, quality=95)  # type: ignore[union-attr]
        tasks: dict[str, Callable[[], object]] = {
            "ready gates (the default)": lambda: cl.explain(model, path),
            "ready LRP": lambda: cl.explain(model, path, method="efficientnet_lite0/lrp"),
            "Grad-CAM": lambda: cl.explain(model, path, method="grad_cam"),
            "LRP gamma x Grad-CAM": lambda: cl.explain(model, path, method="LRP gamma x Grad-CAM"),
            "gates, and the figure as PNG": lambda: cl.explain(model, path)._repr_png_(),
        }
        first = {name: timed(work) for name, work in tasks.items()}
        rounds = [{name: timed(work) for name, work in tasks.items()} for _ in range(runs)]
    print("| call | first, CPU s | CPU s | wall s |\n|---|---|---|---|")
    for name in tasks:
        cpu, clock = (statistics.median(one[name][part] for one in rounds) for part in (0, 1))
        print(f"| {name} | {first[name][0]:.2f} | {cpu:.2f} | {clock:.2f} |")


if __name__ == "__main__":
    main()
