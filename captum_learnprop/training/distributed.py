"""Training under ``torchrun``: which process this is, and sums over all of them.

A program started plainly is one process, and nothing here does anything. Under ``torchrun`` the process group is
joined on first use (gloo on the CPU, nccl on GPUs); one that the program has made itself is used as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: number of this one.
        world: how many there are.
        device: where tensors must be to be summed.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in each of them; the tensor itself where there is one."""
        if self.world == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(float(flag))).item() > 0)

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world > 1:
            self.sum(torch.zeros(1))


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, for the duration of the context.

    Args:
        device: of the model; decides between gloo and nccl.
    """
    joined = False
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        joined = True
    try:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            yield Processes()
        else:
            yield Processes(dist.get_rank(), dist.get_world_size(), device if device.type == "cuda" else "cpu")
    finally:
        if joined:
            dist.destroy_process_group()
