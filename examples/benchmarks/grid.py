"""Trained rules on five data sets and six architectures: one command, one table.

    python examples/benchmarks/grid.py --out grid                             # everything: some hours on a core
    python examples/benchmarks/grid.py --out grid --data mnist --net vgg vit --seeds 0
    python examples/benchmarks/grid.py --out grid --report-only

Trains the nets that are missing (see ``examples/train_grid_nets.py``), learns rules on them, and scores rules, their
untrained starts and hand-made methods of at most two backward passes on test scenes. What is done is kept in OUT, so
that the command goes on where it was interrupted; processes with other ``--data`` or ``--net`` may share OUT. Writes
``grid.md`` of the cells that are there. Photographs need ``learnprop data photos`` and the extra ``[photos]``, the
others ``[grid]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from captum_learnprop.benchmark.candidate import Candidate
from captum_learnprop.benchmark.grid_data import GRID_DATA, is_trained, train_net
from captum_learnprop.benchmark.grid_suites import candidate_of, suite_of
from captum_learnprop.benchmark.grid_table import to_markdown
from captum_learnprop.benchmark.suite import Suite, read_cells, run
from captum_learnprop.benchmark.summary import summarise
from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import write_text
from captum_learnprop.models import load_model, preprocessing_of
from captum_learnprop.scenes.grid_nets import ARCHITECTURES, nets_folder
from captum_learnprop.scenes.photographs import photograph_source

TABLE = "grid.md"

PHOTOS, PHOTO_NETS = "photos", ("efficientnet_lite:0", "efficientnet_lite:1", "efficientnet_lite:2")
"""Real nets stand in the place of trained ones."""


def main() -> None:
    """Do what is missing, then write the table."""
    options = parse()
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {text}", flush=True)

    def progress(done: int, total: int, text: str) -> None:
        if ", step " not in text:  # a log stays readable
            say(f"{done}/{total}  {text}")

    if not options.report_only:
        for suite in suites(options, train=True, say=say):
            run(suite, options.out, progress=progress)
            report(options)
    print(f"wrote {report(options)}")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cells, learned rules and the table")
    parser.add_argument("--data", nargs="+", choices=(*GRID_DATA, PHOTOS), default=[*GRID_DATA, PHOTOS])
    parser.add_argument("--net", nargs="+", choices=(*ARCHITECTURES, *PHOTO_NETS), help="all by default")
    parser.add_argument("--nets", type=Path, default=nets_folder(), help="folder of trained nets")
    parser.add_argument("--seeds", default="0,1,2", help="training seeds of the rules, separated by commas")
    parser.add_argument("--methods", nargs="+", default=[], help="as in tables; by default all of the grid")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--steps", type=int, help="of the training of rules")
    parser.add_argument("--training-scenes", type=int, help="that rules learn from")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--net-seed", type=int, default=0, help="of the training of nets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report-only", action="store_true", help="write the table of the cells that are there")
    return parser.parse_args()


def suites(options: argparse.Namespace, *, train: bool = False, say: Any = print) -> Iterator[Suite]:
    """One suite for each data set and net, one after the other; nets that are not there are trained or left out."""
    given: dict[str, Any] = {
        "questions": options.questions, "tuning_questions": max(1, options.questions // 2), "seed": options.seed,
        "training_seeds": tuple(dict.fromkeys(int(seed) for seed in options.seeds.split(","))),
        "training_steps": options.steps, "methods": tuple(options.methods),
    }  # fmt: skip
    if options.training_scenes is not None:
        given["training_scenes"] = options.training_scenes
    for name in options.data:
        if name == PHOTOS:
            yield from photograph_suites(wanted(PHOTO_NETS, options), given)
            continue
        data = GRID_DATA[name]
        for net in wanted(data.architectures, options):
            if not is_trained(net, data, options.nets):
                if not train:
                    continue
                train_net(net, data, options.nets, seed=options.net_seed, say=say)
            # Questions are about scenes that the net has right: what it does not see, no map can find.
            among = data.source.questions_per_scene
            yield suite_of(candidate_of(net, data, options.nets), data.source, seen_among=among, **given)


def photograph_suites(nets: Sequence[str], given: dict[str, Any]) -> Iterator[Suite]:
    """The suites of the real nets, as ``learnprop evaluate`` asks them."""
    for spec in nets:
        net = load_model(spec)
        yield suite_of(Candidate(spec, net, preprocessing_of(spec, net)), photograph_source(objects=2), **given)


def wanted(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """The names that were asked for."""
    return [name for name in names if options.net is None or name in options.net]


def report(options: argparse.Namespace) -> Path:
    """The table of the cells that are there."""
    cells = []
    for suite in suites(options):
        try:
            found = read_cells(suite, options.out)
        except LearnpropError as error:
            print(f"left out: {error}")
            continue
        cells += [cell for cell in found if cell["error"] != "not run"]
    return write_text(options.out / TABLE, to_markdown(summarise(cells)))


if __name__ == "__main__":
    main()
