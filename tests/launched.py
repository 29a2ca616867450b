"""A program in several processes at once, as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

#: With torchrun itself under ``slow``: it is torch's, and each process that it starts imports torch anew.
each_launcher = pytest.mark.parametrize("launcher", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])

# A process that has imported what all programs import and has run nothing, so that it can be forked: torch refuses that
# where gradients were computed.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["captum_learnprop.training.trainer"])
SECONDS = 300


def launch(arguments: list[str], count: int, folder: Path, launcher: str = "forked") -> tuple[str, str]:
    """Runs ``python ARGUMENTS`` in ``count`` processes and returns what they wrote to stdout and to stderr.

    Arguments are a script, or ``-m`` and a module, and what follows. The folder is for what is written.
    """
    if launcher == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        done = subprocess.run(
            [sys.executable, *torchrun, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout, done.stderr

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}
    group |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in map(str, range(count)):
        environment = {**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(FORKSERVER.Process(target=_run, args=(arguments, environment, folder / f"written-{rank}")))
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        process.kill()  # does nothing to one that has ended
    stdout, stderr = (
        "".join((folder / f"written-{rank}.{end}").read_text() for rank in range(count)) for end in ("out", "err")
    )
    assert [process.exitcode for process in processes] == [0] * count, stderr[-3000:]
    return stdout, stderr


def _run(arguments: list[str], environment: dict[str, str], written: Path) -> None:
    """Becomes a Python process with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    for stream, end in ((sys.stdout, "out"), (sys.stderr, "err")):
        with open(f"{written}.{end}", "w") as file:
            os.dup2(file.fileno(), stream.fileno())
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
