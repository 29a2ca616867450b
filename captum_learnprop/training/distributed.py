"""Training under ``torchrun``: which process this is, and sums over all of them.

A program started plainly is one process, and nothing here does anything. Under ``torchrun`` the process group is
joined on first use (gloo on the CPU, nccl on GPUs); one that the program has made itself is used as it is. Folders and
checkpoints are expected on a disk that all processes see.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: Number of this one.
        world: How many there are.
        device: Where tensors must be to be summed.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum over all processes, in each of them; the tensor itself where there is one."""
        if self.world == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def agree(self, digest: str) -> bool:
        """Returns whether all processes hold the same hexadecimal digest; the same answer in each of them."""
        if self.world == 1:
            return True
        number = float(int(digest[:12], 16))
        extremes = torch.tensor([number, -number], dtype=torch.float64, device=self.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        return bool(extremes[0] == -extremes[1])

    def barrier(self) -> None:
        """Waits for the others."""
        if self.world > 1:
            self.sum(torch.zeros(1))


def processes(device: torch.device) -> Processes:
    """Joins the processes that ``torchrun`` started; the group stays until the program ends, for further runs.

    Args:
        device: Where the model is; decides between gloo and nccl.
    """
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size(), device if device.type == "cuda" else "cpu")


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
