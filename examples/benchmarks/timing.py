"""Wall-clock times of calls, for the scripts beside this file."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Returns the wall-clock time of one call, on a GPU until its work is done."""
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(tasks: Mapping[str, Callable[[], object]], runs: int, device: str = "cpu") -> dict[str, float]:
    """Returns the median seconds of each task over ``runs`` rounds, after one round to warm up.

    Each round runs all tasks, so that the machine's mood hits all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(runs + 1):
        for name, work in tasks.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(values[1:]) for name, values in times.items()}
