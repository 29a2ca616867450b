"""Train the small nets of ``examples/benchmarks/grid.py``: six architectures for MNIST, digits, faces and series.

    python examples/train_grid_nets.py                              # all that are missing
    python examples/train_grid_nets.py --data faces --net convnext  # one of them

Nets are written to the cache (``$LEARNPROP_CACHE/nets``, by default below ~/.cache/captum-learnprop) as safetensors
whose metadata say how they were trained and what they know; what is there is left alone. Four of the nets for digits
ship with the package. Needs the extra ``[grid]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from captum_learnprop.benchmark.grid_data import GRID_DATA, TESTED, is_trained, train_net
from captum_learnprop.benchmark.net_training import Schedule
from captum_learnprop.scenes.grid_nets import ARCHITECTURES, nets_folder


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=GRID_DATA, default=list(GRID_DATA))
    parser.add_argument("--net", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--nets", type=Path, default=nets_folder(), help="folder that they are written to")
    parser.add_argument("--scenes", type=int, help="new scenes per epoch")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--test-scenes", type=int, default=TESTED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="train nets that are there anew")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.data:
        data = GRID_DATA[name]
        for net in (net for net in data.architectures if net in options.net):
            if is_trained(net, data, options.nets) and not options.again:
                continue
            given = {field: getattr(options, field) for field in ("scenes", "epochs", "batch_size", "lr")}
            known = {field: value for field, value in given.items() if value is not None}
            schedule = Schedule(**{**vars(data.schedule_of(net)), **known})
            train_net(
                net, data, options.nets, seed=options.seed, schedule=schedule, tested=options.test_scenes,
                say=lambda text: print(text, flush=True),
            )  # fmt: skip


if __name__ == "__main__":
    main()
