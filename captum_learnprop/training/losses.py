"""Losses of rows under the rules, chunk by chunk, and their sums over the processes of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from captum_learnprop.chunks import rows_together
from captum_learnprop.training.batch import Batch
from captum_learnprop.training.distributed import Processes
from captum_learnprop.training.draws import Draws
from captum_learnprop.training.options import TrainingOptions
from captum_learnprop.training.parts import Part
from captum_learnprop.training.quantities import Quantity
from captum_learnprop.training.regions import unpacked
from captum_learnprop.training.rule_maps import RuleMaps
from captum_learnprop.training.terms import Objective

_LOG = logging.getLogger(__name__)

Made = TypeVar("Made")


@dataclass
class Room:
    """The memory there is.

    Attributes:
        rows: Most rows that may go through the model together.
    """

    rows: int = sys.maxsize


@dataclass(frozen=True)
class Losses:
    """What an objective says of the maps of some rows.

    Attributes:
        objective: The terms and their weights.
        quantity: What is explained.
        maps: Makes maps by the rules that are trained.
        random_maps: The same for nets with re-initialised weights; empty where no term asks for them.
        options: Those of the training; the seed and the rows that go through the model together are read.
        processes: Share the rows among them.
        device: Where the model is.
        room: How many rows were seen to fit into memory.
    """

    objective: Objective
    quantity: Quantity
    maps: RuleMaps
    random_maps: list[RuleMaps]
    options: TrainingOptions
    processes: Processes
    device: torch.device
    room: Room = field(default_factory=Room)

    def chunks(
        self, part: Part, positions: Tensor, step: int, then: Callable[[Tensor], Made], *, create_graph: bool
    ) -> Iterator[tuple[Tensor, Made, dict[str, float]]]:
        """Yields rows of this process's share chunk by chunk, with what is made of their losses, and the parts' sums.

        Rows are places in ``positions``, ``(B,)`` int64. Where a chunk is more than the memory of the device holds, it
        is cut in two, and so are those that follow: the memory decides how many rows go together, not the result.

        Args:
            part: Holds the rows.
            positions: Which of them, ``(R,)``.
            step: Decides the random numbers.
            then: From the losses of a chunk, ``(B,)``, to what is yielded.
            create_graph: Whether the loss can be differentiated in the rules.
        """
        mine = torch.arange(len(positions))[self.processes.rank :: self.processes.world]
        if not len(mine):  # more processes than rows
            return
        shape = part.rows(positions[:1])["inputs"].shape[1:]
        while len(mine):
            most = min(self.room.rows, self.options.internal_batch_size)
            chunk = mine[: rows_together(most, shape, self.device)]
            try:
                made = self._made(part, positions, step, chunk, then, create_graph)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                self.room.rows = len(chunk) // 2
                _LOG.info("%d rows do not fit into memory: %d at a time from here on", len(chunk), self.room.rows)
                continue
            yield chunk, *made
            mine = mine[len(chunk) :]

    def _made(
        self,
        part: Part,
        positions: Tensor,
        step: int,
        chunk: Tensor,
        then: Callable[[Tensor], Made],
        create_graph: bool,
    ) -> tuple[Made, dict[str, float]]:
        """Returns what is made of the losses of a chunk, and the parts' sums; its graph is gone afterwards."""
        batch = self._batch(part.rows(positions[chunk]), step, chunk.tolist(), create_graph)
        with torch.set_grad_enabled(create_graph):
            values = self.objective.values(batch)
            losses = self.objective.combine(values)
        sums = {"loss": losses.sum().item(), **{name: value.sum().item() for name, value in values.items()}}
        del batch, values
        return then(losses), sums

    def each(self, part: Part, positions: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss of each of some rows, ``(R,)`` float64, their mean and those of its parts, without a graph.

        All processes get the same.
        """
        values: dict[str, float] = {}
        every = torch.zeros(len(positions), dtype=torch.float64, device=self.device)
        for rows, losses, sums in self.chunks(part, positions, step, Tensor.detach, create_graph=False):
            every[rows.to(self.device)] = losses.double()
            _add(values, sums, len(positions))
        (every,), values = self._over_processes([every], values)
        return every.cpu(), values

    def gradients(
        self, part: Part, positions: Tensor, step: int, parameters: list[torch.nn.Parameter]
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Returns the gradient of the mean loss of some rows in each parameter, and what `mean` gives.

        Both are over all processes.
        """
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        values: dict[str, float] = {}

        def differentiated(losses: Tensor) -> tuple[Tensor | None, ...]:
            found: tuple[Tensor | None, ...]
            found = torch.autograd.grad(losses.sum() / len(positions), parameters, allow_unused=True)
            return found

        for _, found, sums in self.chunks(part, positions, step, differentiated, create_graph=True):
            for total, gradient in zip(gradients, found, strict=True):
                if gradient is not None:
                    total += gradient
            _add(values, sums, len(positions))
        return self._over_processes(gradients, values)

    def _batch(self, rows: dict[str, Tensor], step: int, places: list[int], create_graph: bool) -> Batch:
        rows = {name: tensor.to(self.device) for name, tensor in rows.items()}
        inputs, targets = rows["inputs"], rows["targets"]
        recorded = self.maps.record(inputs, create_graph=create_graph)

        def explain_randomized() -> Tensor:
            maps = self.random_maps[step % len(self.random_maps)]
            return maps.record(inputs, create_graph=create_graph).explain(targets)

        return Batch(
            inputs=inputs,
            targets=targets,
            maps=recorded.explain(targets),
            outputs=recorded.output,
            quantity=self.quantity,
            model=self.maps.plain,
            explain=recorded.explain,
            draws=Draws(self.options.seed, step, places),
            regions=unpacked(rows["regions"], tuple(inputs.shape[1:])) if "regions" in rows else None,
            drops=rows.get("drops"),
            explain_randomized=explain_randomized if self.random_maps else None,
        )

    def _over_processes(
        self, gradients: list[Tensor], values: dict[str, float]
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Returns sums over processes; each holds its share of a mean over the whole batch."""
        if self.processes.world == 1:
            return gradients, values
        names = ["loss", *self.objective.names]
        flat = torch.cat([gradient.flatten().double() for gradient in gradients])
        numbers = torch.tensor([values.get(name, 0.0) for name in names], dtype=torch.float64, device=flat.device)
        total = self.processes.sum(torch.cat([numbers, flat]))
        sizes = [gradient.numel() for gradient in gradients]
        pieces = total[len(names) :].split(sizes)
        summed = [piece.reshape(g.shape).to(g.dtype) for piece, g in zip(pieces, gradients, strict=True)]
        return summed, dict(zip(names, total[: len(names)].tolist(), strict=True))


def _add(values: dict[str, float], sums: dict[str, float], count: int) -> None:
    for name, value in sums.items():
        values[name] = values.get(name, 0.0) + value / count
