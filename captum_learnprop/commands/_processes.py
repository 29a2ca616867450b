"""Which of several processes this is, by what started them: torchrun, mpirun, or a script that sets two variables."""

from __future__ import annotations

import os
from dataclasses import dataclass

from captum_learnprop.errors import LearnpropError

_VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                                    "OMPI_COMM_WORLD_LOCAL_RANK"))  # fmt: skip
"""Number of the process, count of all, number on its machine: of torchrun and of mpirun."""


@dataclass(frozen=True)
class Process:
    """One of several processes that share out the work and do not talk to each other.

    Attributes:
        rank: Number of this one.
        world: How many there are.
        local: Number of this one on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Process:
        """Returns what the environment says; one process where it says nothing.

        Raises:
            LearnpropError: It names a count and no number below it.
        """
        for rank, world, local in _VARIABLES:
            count = os.environ.get(world, "1")
            if not count.isdecimal() or int(count) <= 1:
                continue
            number = os.environ.get(rank, "")
            if not number.isdecimal() or int(number) >= int(count):
                raise LearnpropError(
                    f"{world}={count} says that there are {count} processes, and {rank}={number or '(nothing)'} is "
                    f"none of 0 to {int(count) - 1}: set both, as torchrun does, or neither"
                )
            own = os.environ.get(local, number)
            return cls(int(number), int(count), int(own) if own.isdecimal() else int(number))
        return cls()

    def device(self, name: str, count: int) -> str:
        """Returns the device of this process: ``cuda`` becomes one of the ``count`` GPUs of its machine."""
        return f"cuda:{self.local % count}" if name == "cuda" and self.world > 1 and count > 0 else name
