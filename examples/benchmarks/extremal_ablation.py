"""Which parts of the search for extremal masks raise the output: each is changed alone, on pairs of digits.

    python examples/benchmarks/extremal_ablation.py             # 8 scenes, 5 minutes on a core
    python examples/benchmarks/extremal_ablation.py --only "as it is" "area as a penalty"

*Soft* is the output under the mask, *kept* with exactly the area's pixels: a mask that was found with a penalty has
another area than it was asked for, so that only the second can be compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from extremal_optimum import error, kept, rounded, small_nets_found
from torch import Tensor

from captum_learnprop import ExtremalPerturbation
from captum_learnprop.attribution.extremal import mask_search
from captum_learnprop.attribution.extremal.areas import Edges, level_of, ones_of
from captum_learnprop.attribution.extremal.rows import Rows
from captum_learnprop.scenes import digits_net, make_scenes

AREAS = (0.05, 0.1, 0.2, 0.3)

WEIGHT, GROWTH = 300.0, 1.0035
"""Weight of the paper's penalty at the first step, and by what it grows at every step."""


class Penalised(Edges):
    """Fields are masks, and the area is pulled at by ``weight ||sorted(mask) - (0 .. 0 1 .. 1)||^2 / N``."""

    def __init__(self, shape: tuple[int, ...], count: int, like: Tensor) -> None:
        super().__init__(shape, count, like)
        self.weight = WEIGHT
        self.pull = torch.zeros(count, 1)

    def masks(self, fields: Tensor, areas: Tensor, softness: float) -> Tensor:
        """The fields themselves, ``(R, *shape)``."""
        flat = fields.flatten(1)
        wanted = (flat > level_of(flat, ones_of(areas, self.shape))).to(flat)
        self.pull = 2 * (flat - wanted) / flat.shape[1]
        return fields.clone()

    def constant(self, areas: Tensor) -> Tensor:
        """Masks that are the area everywhere; the penalty pulls at nothing yet."""
        mask = super().constant(areas)
        self.pull = torch.zeros_like(mask.flatten(1))
        return mask

    def to_fields(self, to_masks: Tensor) -> Tensor:
        """Derivatives of the reward less the penalty."""
        self.weight *= GROWTH
        return to_masks - self.weight * self.pull.reshape(to_masks.shape)


def last_kept(best: Any, rows: Tensor, rewards: Tensor, masks: Any, parameters: Any) -> None:
    """Keep the last masks, whatever their reward: under a penalty, the highest is that of the largest mask."""
    best.rewards[rows] = rewards
    for places, values in ((best.masks, masks), (best.parameters, parameters)):
        for place, value in zip(places, values, strict=True):
            place[rows] = value


@contextmanager
def penalty(growing: bool) -> Iterator[None]:
    """The area is a penalty, whose weight grows as in the paper or not."""
    growth = GROWTH if growing else 1.0
    with (
        patch.object(mask_search, "Edges", Penalised),
        patch.object(mask_search._Best, "keep", last_kept),
        patch.dict(globals(), GROWTH=growth),
    ):
        yield


@contextmanager
def area_at_once() -> Iterator[None]:
    """Every round has the wanted area from its first step."""
    begin = mask_search._Round.__init__

    def at_once(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.from_area = self.wanted

    with patch.object(mask_search._Round, "__init__", at_once):
        yield


def constants(**values: Any) -> Any:
    """Other constants of the search."""
    return patch.multiple(mask_search, **values)


def own_length(factor: float) -> Any:
    """Steps as long as the gradient, times a factor."""
    return patch.object(mask_search, "_of_length_one", lambda gradient: factor * gradient)


def nothing_carried() -> Any:
    """No search from the mask of a smaller area."""
    return patch.object(Rows, "_raise_larger_areas", lambda *args: None)


GENTLE, FAR = mask_search.AGAIN
CHANGES: dict[str, tuple[Callable[[], Any] | None, dict[str, Any]]] = {
    "as it is": (None, {}),
    "area as a penalty, weight grows": (lambda: penalty(True), {"n_steps": 100}),
    "area as a penalty, constant weight": (lambda: penalty(False), {"n_steps": 100}),
    "the wanted area from the first step": (area_at_once, {}),
    "hard edges from the first step": (lambda: constants(SOFT=1.0), {}),
    "steps of the gradient's length, x 10": (lambda: own_length(10.0), {}),
    "steps of the gradient's length, x 100": (lambda: own_length(100.0), {}),
    "no momentum": (lambda: constants(MOMENTUM=0.0), {}),
    "one round (100 steps)": (None, {"n_steps": 100}),
    "250 steps": (None, {"n_steps": 250}),
    "further rounds gentle only, 250 steps": (lambda: constants(AGAIN=(GENTLE,)), {"n_steps": 250}),
    "further rounds from afar only, 250 steps": (lambda: constants(AGAIN=(FAR,)), {"n_steps": 250}),
    "nothing carried along areas": (nothing_carried, {}),
    "sigma 3/64": (None, {"sigma": 3 / 64}),
    "sigma 3/16": (None, {"sigma": 3 / 16}),
    "step 1/56": (None, {"step": 1 / 56}),
}


def digits(count: int, seed: int, only: list[str]) -> Iterator[dict[str, object]]:
    """A row for each change."""
    model = digits_net.load().requires_grad_(False)
    scenes = make_scenes("pairs", count, split="test", seed=seed)
    x, target = scenes.images, scenes.targets[:, 0]

    @torch.no_grad()
    def outputs(masks: Tensor) -> Tensor:
        values = [model(x * one[:, None]).gather(1, target[:, None])[:, 0] for one in masks.unbind(1)]
        return torch.stack(values, 1)

    for name in only:
        change, options = CHANGES[name]
        began = time.process_time()
        with nullcontext() if change is None else change():
            masks = ExtremalPerturbation(model).attribute(x, target, areas=AREAS, perturbation="fade", **options)
        seconds = time.process_time() - began
        soft = outputs(masks)
        hard = outputs(torch.stack([kept(masks[:, i], area) for i, area in enumerate(AREAS)], 1))
        yield {
            "search": name, "scenes": count, "soft": rounded(soft.mean(0), 1), "kept": rounded(hard.mean(0), 1),
            "mean soft": rounded(soft.mean(1).mean(0, True), 1), "mean kept": rounded(hard.mean(1).mean(0, True), 1),
            "± kept": error(hard.mean(1, keepdim=True)), "mean of masks": rounded(masks.mean((0, 2, 3)), 3),
            "falls": int((soft.diff(dim=1) < -0.01 * soft[:, :-1].abs()).sum()),
            "seconds a mask": round(seconds / masks[:, :, 0, 0].numel(), 2),
        }  # fmt: skip


def exchanges(count: int, seed: int) -> Iterator[dict[str, object]]:
    """Shares of the best of all masks without the exchanges of the end, and with them."""
    yield {"search": "as it is", **small_nets_found(count, seed)}
    with patch.object(mask_search, "best_swaps", lambda reward, spaces, masks, rows: list(masks)):
        yield {"search": "no exchanges in the end", **small_nets_found(count, seed)}


def main() -> None:
    """Print rows of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8, help="scenes")
    parser.add_argument("--nets", type=int, default=100, help="small nets; 0 for none")
    parser.add_argument("--seed", type=int, default=91)
    parser.add_argument("--only", nargs="+", choices=list(CHANGES), default=list(CHANGES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for row in digits(options.count, options.seed, options.only):
        print(json.dumps(row), flush=True)
    for row in exchanges(options.nets, options.seed) if options.nets else ():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
