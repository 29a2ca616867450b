"""Commands that would do all their work once in each process of ``torchrun``."""

from __future__ import annotations

import os

import click

_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")
"""The variables in which torchrun and mpirun say how many processes they started."""


def one_process(ctx: click.Context) -> None:
    """Refuses to be one of several processes, which would do the same work into the same folder.

    Raises:
        click.UsageError: The program was started by ``torchrun`` or ``mpirun`` with more than one process.
    """
    for name in _COUNTS:
        count = os.environ.get(name, "1")
        if count.isdecimal() and int(count) > 1:
            raise click.UsageError(
                f"{ctx.info_name} is one of {count} processes ({name}={count}), and each would do all of the work into "
                f"the same folder: start it without torchrun, as 'learnprop {ctx.info_name} ...'",
                ctx,
            )
