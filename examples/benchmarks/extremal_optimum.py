"""How high the output is under extremal masks: by area, by number of steps, and against the best of all masks.

    python examples/benchmarks/extremal_optimum.py digits     # pairs of digits, 12 scenes: 5 minutes on a core
    python examples/benchmarks/extremal_optimum.py brute      # small nets of which every mask is tried: 1 minute
    python examples/benchmarks/extremal_optimum.py discs      # models whose best mask is a disc: 2 minutes

`digits` compares with masks of another program, if given: a file of torch.save with ``masks (scenes, areas, H, W)``
found for the very scenes (give the same seed *and* count: scenes depend on both), of about the areas here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from captum_learnprop import ExtremalPerturbation
from captum_learnprop.scenes import digits_net, make_scenes

AREAS = (0.05, 0.1, 0.2, 0.3)
DISCS = (0.02, 0.05, 0.1, 0.2)


def kept(masks: Tensor, area: float) -> Tensor:
    """Masks ``(B, H, W)`` with exactly the area's pixels at 1, the highest."""
    flat = masks.flatten(1)
    highest = flat.topk(round(area * flat.shape[1]), 1).indices
    return torch.zeros_like(flat).scatter_(1, highest, 1.0).reshape(masks.shape)


def variation(masks: Tensor) -> Tensor:
    """Total variation of masks ``(B, H, W)``, ``(B,)``: how rough they are."""
    return masks.diff(dim=1).abs().sum((1, 2)) + masks.diff(dim=2).abs().sum((1, 2))


def digits(count: int, seed: int, steps: list[int], peer: str | None) -> Iterator[dict[str, object]]:
    """The logit under masks of pairs of digits, soft and with the area's pixels kept."""
    model = digits_net.load().requires_grad_(False)
    scenes = make_scenes("pairs", count, split="test", seed=seed)
    x, target = scenes.images, scenes.targets[:, 0]

    @torch.no_grad()
    def rows(name: str, masks: Tensor, seconds: float | None) -> dict[str, object]:
        n = len(masks)

        def logits(number: int, hard: bool) -> Tensor:
            mask = kept(masks[:, number], AREAS[number]) if hard else masks[:, number]
            values: Tensor = model(x[:n] * mask[:, None]).gather(1, target[:n, None])[:, 0]
            return values

        soft, hard = (torch.stack([logits(i, h) for i in range(len(AREAS))], 1) for h in (False, True))
        return {
            "masks": name, "scenes": n, "areas": AREAS, "soft": rounded(soft.mean(0)), "± soft": error(soft),
            "kept": rounded(hard.mean(0)), "± kept": error(hard), "mean": rounded(masks.mean((0, 2, 3)), 3),
            "above one half": rounded((masks > 0.5).float().mean((0, 2, 3)), 3),
            "variation": rounded(torch.stack([variation(each).mean() for each in masks.unbind(1)]), 0),
            "seconds a mask": None if seconds is None else round(seconds, 2),
            "falls by more than 1 %": int((soft.diff(dim=1) < -0.01 * soft[:, :-1].abs()).sum()),
        }  # fmt: skip

    for n_steps in steps:
        began = time.process_time()
        masks = ExtremalPerturbation(model).attribute(x, target, areas=AREAS, perturbation="fade", n_steps=n_steps)
        seconds = (time.process_time() - began) / (count * len(AREAS))
        yield rows(f"{n_steps} steps", masks, seconds)
    if peer is not None:
        stored = torch.load(peer, weights_only=True)
        yield rows(peer, stored["masks"].float(), None)


def rounded(values: Tensor, digits: int = 2) -> list[float]:
    """Numbers for a table."""
    return [round(value, digits) for value in values.tolist()]


def error(values: Tensor) -> list[float]:
    """Standard errors of the columns."""
    return rounded(values.std(0) / len(values) ** 0.5)


def small_net(generator: torch.Generator, number: int) -> tuple[Any, int, int]:
    """A net of 16 to 20 cells, additive, with products of pairs, or with hidden units; its cells and how many to keep.

    Every fourth of those without hidden units is additive.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    cells, ones = (int(torch.randint(*ends, (), generator=generator)) for ends in ((16, 21), (2, 7)))
    each, pairs = normal(cells), normal(cells, cells).triu(1) * (0.5 if number % 4 else 0.0)
    first, last = normal(cells, 12), normal(12)

    def net(x: Tensor) -> Tensor:
        if number % 3 == 2:
            return ((x @ first).relu() @ last)[:, None]
        return (x @ each + ((x @ pairs) * x).sum(1))[:, None]

    return net, cells, ones


def best_of_all(net: Any, cells: int, ones: int) -> float:
    """The highest output under all masks of so many cells."""
    chosen = torch.tensor(list(itertools.combinations(range(cells), ones)))
    return float(net(torch.zeros(len(chosen), cells).scatter_(1, chosen, 1.0)).max())


def small_nets_found(count: int, seed: int) -> dict[str, object]:
    """Shares of the best mask's output that were reached."""
    generator = torch.Generator().manual_seed(seed)
    shares = []
    for number in range(count):
        net, cells, ones = small_net(generator, number)
        _, found = ExtremalPerturbation(net).attribute(torch.ones(1, cells), 0, areas=ones / cells, return_masks=True)
        best = best_of_all(net, cells, ones)
        shares.append(1 - (best - float(found.rewards)) / max(abs(best), 1e-6))
    values = torch.tensor(shares)
    return {
        "nets": count, "within 2 %": round(float((values >= 0.98).float().mean()), 3),
        "exact": round(float((values > 1 - 1e-5).float().mean()), 3), "worst": round(float(values.min()), 3),
    }  # fmt: skip


def discs(sizes: list[int]) -> Iterator[dict[str, object]]:
    """Overlap with a disc, at the disc's own area."""
    for size in sizes:
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        away = (rows - 0.55 * size) ** 2 + (columns - 0.4 * size) ** 2
        for area in DISCS:
            disc = away < area / math.pi * size**2
            own = float(disc.float().mean())
            mask = (
                ExtremalPerturbation(lambda x, disc=disc: x[:, 0, disc].mean(1, keepdim=True)).attribute(
                    torch.ones(1, 1, size, size), 0, areas=own, perturbation="fade"
                )[0, 0]
                > 0.5
            )
            overlap = float((mask & disc).sum() / (mask | disc).sum())
            yield {"size": size, "area": area, "overlap": round(overlap, 3),
                   "realised / area": round(float(mask.float().mean()) / own, 3)}  # fmt: skip


def main() -> None:
    """Print rows of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["digits", "brute", "discs"])
    parser.add_argument("--count", type=int, help="scenes (12) or nets (200)")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 150, 250, 800])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 112, 224])
    parser.add_argument("--peer", metavar="FILE", help="masks of another program")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "digits":
        found = digits(options.count or 12, options.seed, options.steps, options.peer)
    elif options.what == "brute":
        found = iter([small_nets_found(options.count or 200, options.seed)])
    else:
        found = discs(options.sizes)
    for row in found:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
