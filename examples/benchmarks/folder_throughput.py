"""Images a second of ``learnprop attribute`` beside a bare loop, of two processes beside one, and its memory.

    python examples/benchmarks/folder_throughput.py --images 500 --rounds 1 --memory 2000

The bare loop reads each image, predicts its class and explains it, and keeps nothing; the command also draws, writes
and reports. Both run in one process, in turns, on one thread, and are compared by wall time and by processor time,
which a busy machine changes less. Two processes begin together, after both have imported everything. Pictures are
drawn at random from scikit-image's photographs, nets have random weights: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import Saliency
from PIL import Image
from skimage import data

from captum_learnprop.commands import _attribute_images, _attribute_shards
from captum_learnprop.commands._attribute_request import Report, Request
from captum_learnprop.commands._processes import Process
from captum_learnprop.images import Preprocessing, read_image
from captum_learnprop.models import load_model

BATCH = 8


def draw_pictures(folder: Path, count: int, seed: int) -> None:
    """Writes JPEG files of 500 x 375 pixels, crops of photographs of scikit-image."""
    folder.mkdir(parents=True)
    photographs = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    generator = np.random.default_rng(seed)
    for number in range(count):
        photograph = Image.fromarray(photographs[number % len(photographs)])
        left, top = (int(generator.integers(0, side // 3)) for side in photograph.size)
        crop = photograph.crop((left, top, *photograph.size)).resize((500, 375))
        crop.save(folder / f"{number:06d}.jpg", quality=90)


def request_of(images: Path, out: Path, arguments: argparse.Namespace, **changed: Any) -> Request:
    """Returns the request of a command line."""
    given: dict[str, Any] = dict.fromkeys(Request.__dataclass_fields__)
    given |= {
        "model": arguments.model, "normalization": "auto", "device": "cpu", "seed": 0, "method": "saliency",
        "rule_option": {}, "method_option": {}, "images": images, "recursive": False, "target": "predicted",
        "out": out, "overwrite": False, "hdf5": False, "dataset_file": False, "batch_size": BATCH, "threads": 1,
    }  # fmt: skip
    return Request(**{**given, **changed})


def bare_loop(images: Path, arguments: argparse.Namespace) -> None:
    """Reads, predicts and explains, batch by batch."""
    torch.manual_seed(0)
    model, preprocessing = load_model(arguments.model), Preprocessing()
    paths = sorted(images.iterdir())
    for start in range(0, len(paths), BATCH):
        pixels = torch.stack([preprocessing.pixels(read_image(path)) for path in paths[start : start + BATCH]])
        inputs = preprocessing.normalize(pixels)
        with torch.no_grad():
            targets = model(inputs).argmax(1)
        Saliency(model).attribute(inputs.requires_grad_(), targets, abs=False)


def timed(work: Any, *arguments: Any) -> tuple[float, float]:
    """Returns seconds of wall and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - wall, time.process_time() - processor


def one_process(images: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns images a second of the loop and of the command, and their ratios."""
    times: dict[str, list[tuple[float, float]]] = {"loop": [], "files": [], "shards": []}
    for number in range(arguments.rounds):
        times["loop"].append(timed(bare_loop, images, arguments))
        files = request_of(images, folder / f"files{number}", arguments)
        times["files"].append(timed(_attribute_images.run, files, Report()))
        shards = request_of(images, folder / f"shards{number}", arguments, layout="shards")
        times["shards"].append(timed(_attribute_shards.run, shards, Process(), _attribute_shards.Counts()))
    found = {name: np.median(np.array(each), axis=0) for name, each in times.items()}
    count = len(list(images.iterdir()))
    return {
        "images a second": {name: round(count / each[0], 2) for name, each in found.items()},
        "throughput, of the loop's": {
            name: {"wall": round(found["loop"][0] / found[name][0], 3),
                   "processor": round(found["loop"][1] / found[name][1], 3)} for name in ("files", "shards")
        },
    }  # fmt: skip


def _share(
    rank: int, world: int, images: Path, out: Path, arguments: argparse.Namespace, barrier: Any, told: Any
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    request = request_of(images, out, arguments, layout="shards")
    load_model(arguments.model)
    barrier.wait()
    _, processor = timed(_attribute_shards.run, request, Process(rank, world, rank), _attribute_shards.Counts())
    barrier.wait()
    told.put(processor)


def processes(world: int, images: Path, out: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Returns the seconds of so many processes from their common start to the end of the last.

    The second number is the most processor time that one of them took: what it would be if each had a core of its own.
    """
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(world + 1), context.Queue()
    started = [
        context.Process(target=_share, args=(rank, world, images, out, arguments, barrier, told))
        for rank in range(world)
    ]
    for process in started:
        process.start()
    barrier.wait()
    begin = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - begin
    processor = max(told.get() for _ in started)
    for process in started:
        process.join()
    return seconds, processor


def _peak(images: Path, out: Path, arguments: argparse.Namespace, layout: str, connection: Any) -> None:
    torch.set_num_threads(1)
    request = request_of(images, out, arguments, layout=layout, model="torchvision:squeezenet1_1", size=64)
    if layout == "files":
        _attribute_images.run(request, Report())
    else:
        _attribute_shards.run(request, Process(), _attribute_shards.Counts())
    # Not that of getrusage, which begins with what the parent had.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    connection.send(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def peak_megabytes(images: Path, out: Path, arguments: argparse.Namespace, layout: str) -> int:
    """Returns the peak resident memory of a process of its own over all images."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_peak, args=(images, out, arguments, layout, there))
    process.start()
    found: float = here.recv()
    process.join()
    return round(found)


def main() -> None:
    """Measures what is asked for, and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--images", type=int, default=500, help="images of each run")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turns; medians are reported")
    parser.add_argument("--processes", type=int, default=2, help="processes to compare with one; 1 for none")
    parser.add_argument("--memory", type=int, default=0, help="images of the run whose memory is compared; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"model": arguments.model, "images": arguments.images, "batch": BATCH}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw_pictures(folder / "images", arguments.images, arguments.seed)
        draw_pictures(folder / "warm", BATCH, arguments.seed)
        one = argparse.Namespace(**{**vars(arguments), "rounds": 1})
        one_process(folder / "warm", folder / "warm-out", one)
        report |= one_process(folder / "images", folder, arguments)
        if arguments.processes > 1:
            times = {n: processes(n, folder / "images", folder / f"of{n}", arguments) for n in (1, arguments.processes)}
            report[f"{arguments.processes} processes"] = {
                "images a second": {str(n): round(arguments.images / each[0], 2) for n, each in times.items()},
                "times one": {
                    name: round(times[1][place] / times[arguments.processes][place], 3)
                    for place, name in enumerate(("wall", "processor"))
                },
            }
        if arguments.memory:
            few = max(1, arguments.memory // 10)
            draw_pictures(folder / "few", few, arguments.seed)
            draw_pictures(folder / "many", arguments.memory, arguments.seed)
            report["peak megabytes"] = {
                layout: {str(count): peak_megabytes(folder / name, folder / f"{name}-{layout}", arguments, layout)
                         for name, count in (("few", few), ("many", arguments.memory))}
                for layout in ("files", "shards")
            }  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
