"""One training: steps, validations, checkpoints, and when to stop."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError, TrainingWarning
from captum_learnprop.progress import Progress
from captum_learnprop.training import checkpoint as checkpoints
from captum_learnprop.training.announcement import Announcement
from captum_learnprop.training.log import TrainingLog
from captum_learnprop.training.options import FitOptions
from captum_learnprop.training.task import TrainingTask
from zennit_rules import RuleSet

_LOG = logging.getLogger(__name__)

_EPS = 1e-5
"""The epsilon of Adam. Gradients are around 1e-3 and rounding noise below 1e-8: what is only noise must not become a
full step."""

_VALIDATION = 2**31 - 1
"""The number that stands for a step in the random numbers of a validation, which are the same each time."""


def is_above(losses: Tensor, lowest: Tensor) -> bool:
    """Returns whether the mean of losses ``(R,)`` is above that of others of the same rows by a standard error.

    That is the *one-standard-error rule* of Breiman et al., *Classification and Regression Trees*, 1984, for paired
    losses.
    """
    excess = losses - lowest
    error = excess.std().item() / math.sqrt(len(excess)) if len(excess) > 1 else 0.0
    return excess.mean().item() > error


class Run:
    """One training of the rules of a task, from its start or from a checkpoint.

    Args:
        task: What is learned, and from what.
        fit_options: Where the run reads and writes, and what it shows.
        cost: Says what steps cost, after the first one.

    Attributes:
        log: The rows of all steps so far.
    """

    def __init__(self, task: TrainingTask, fit_options: FitOptions, cost: Announcement) -> None:
        self.cost = cost
        self.task, self.options, self.fit_options = task, task.options, fit_options
        self.steps = self.options.steps_for(len(task.training))
        self.losses = task.losses()
        self.parameters = task.rules.parameters()
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.options.lr, eps=_EPS)
        self.state = checkpoints.TrainingState(0, {}, {}, self._snapshot(), 0, [], 0)
        self.log = TrainingLog(None)
        self.seconds = 0.0
        self.stopped: str | None = None
        self.between_steps = True

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.task.rules.state_dict().items()}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one.

        Raises:
            CheckpointError: It is damaged, or belongs to another run.
            LearnpropError: Options of the objective cannot be kept in a checkpoint.
        """
        path = self.fit_options.checkpoint
        if path is None:
            return
        config = self.task.config()
        try:
            json.dumps(config)
        except TypeError as error:
            raise LearnpropError(f"options of the objective cannot be kept in a checkpoint: {error}") from error
        if path.is_file():
            self.state = checkpoints.read(path, config)
            self.task.rules.load_state_dict(self.state.rules)
            checkpoints.restore_optimizer(self.optimizer, self.state.optimizer)
            _LOG.info("goes on from step %d of %s", self.state.step, path)
            self._stop_if_waited()
        self.task.processes.barrier()

    def save(self) -> None:
        """Writes a checkpoint; a disk that is full costs the checkpoint, not the training.

        Warns:
            TrainingWarning: It could not be written.
        """
        path = self.fit_options.checkpoint
        if path is None or not self.task.processes.main:
            return
        self.state.rules = self._snapshot()
        self.state.optimizer = checkpoints.optimizer_tensors(self.optimizer)
        self.state.rows = self.log.rows
        try:
            checkpoints.write(path, self.state, self.task.config())
        except OSError as error:
            warnings.warn(
                f"cannot write the checkpoint {path}: {error}; training goes on", TrainingWarning, stacklevel=2
            )

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Makes all steps that are left, or as many as it takes to stop.

        Raises:
            LearnpropError: The loss is not finite at the very start.

        Warns:
            TrainingWarning: The loss is not finite later on.
        """
        main = self.task.processes.main
        self.log = TrainingLog(self.fit_options.log_dir if main else None, self.state.rows)
        start = time.perf_counter()
        try:
            if self.state.step == 0 and not self.log.rows:
                self._validate_start()
            shown = self.fit_options.show_progress and main
            with Progress(self.steps, "training rules", shown=shown, unit="step") as bar:
                bar.advance(self.state.step, worked=False)
                first = True
                while self.state.step < self.steps and self.stopped is None:
                    begin = time.perf_counter()
                    row = self._step(self.state.step)
                    bar.advance(1)
                    bar.note(f"loss={row['loss']:.4f}")
                    if first:
                        seconds, left = time.perf_counter() - begin, self.steps - self.state.step
                        self.cost.after_step(seconds, left, self.task.device)
                    first = False
                    if self.fit_options.on_step is not None:
                        self.fit_options.on_step(row)
        except KeyboardInterrupt:
            if self.between_steps:  # else the last checkpoint stands: half a step would not end alike
                self.save()
            raise
        finally:
            self.seconds = time.perf_counter() - start
            self.log.close()
            for parameter in self.parameters:
                parameter.grad = None

    def _validate_start(self) -> None:
        self.between_steps = False
        first = self._validate(0)
        if first:
            self.log.add({"step": 0.0, **first})
        self.between_steps = True

    def _step(self, step: int) -> dict[str, float]:
        part = self.task.training
        positions = part.batch(step, self.options.batch_size, self.options.seed)
        gradients, values = self.losses.gradients(part, positions, step, self.parameters)
        row = {"step": float(step + 1), "lr": self.options.rate(step), **values}
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        if not math.isfinite(values["loss"]) or not bool(norm.isfinite()):
            self._stop_at(step + 1, f"loss or gradient is not finite at step {step + 1} (loss {values['loss']:g})")
            self.log.add(row)
            return row
        row["gradient norm"] = float(norm)
        self.between_steps = False
        self._descend(gradients, float(norm), self.options.rate(step))
        self.state.step = step + 1
        if self._is_due(self.options.validate_every):
            row |= self._validate(self.state.step)
        self.log.add(row)
        self.between_steps = True
        if self._is_due(max(1, self.fit_options.checkpoint_every)):
            self.save()
            self.log.flush()
        return row

    def _descend(self, gradients: list[Tensor], norm: float, rate: float) -> None:
        scale = min(1.0, self.options.clip / max(norm, 1e-30))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient * scale
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()

    def _is_due(self, every: int) -> bool:
        """Returns whether what is done every so many steps, and after the last one, is due now."""
        return self.state.step % every == 0 or self.state.step == self.steps

    def _validate(self, step: int) -> dict[str, float]:
        """Returns the loss on the held-out rows, and keeps the state if that is low; without such rows any state."""
        held_out = self.task.held_out
        if not len(held_out):
            self._keep(step)
            return {}
        losses, values = self.losses.each(held_out, torch.arange(len(held_out)), _VALIDATION)
        loss = values["loss"]
        _LOG.info("validation loss %.6g after %d of %d steps", loss, step, self.steps)
        if not math.isfinite(loss):
            self._stop_at(step + 1, f"the validation loss is not finite at step {step} (loss {loss:g})")
        else:
            self._judge(step, losses)
        return {f"validation {name}": value for name, value in values.items()}

    def _judge(self, step: int, losses: Tensor) -> None:
        """Keeps the state of a step if its held-out losses are not above the lowest ones by a standard error.

        On a real net held-out losses stay where they are from some step on, and which step has the lowest is chance;
        the last one has learned with the smallest steps. No state is kept whose losses are above those of the start.
        """
        lowest = torch.tensor(self.state.lowest, dtype=losses.dtype)
        lower = not len(lowest) or bool(losses.mean() < lowest.mean())
        if lower:
            self.state.lowest, self.state.waited, self.state.lowest_step = losses.tolist(), 0, step
        if lower or (losses.mean().item() < self._start_loss() and not is_above(losses, lowest)):
            self._keep(step)
        if not lower:
            self.state.waited += 1
            self._stop_if_waited()

    def _keep(self, step: int) -> None:
        self.state.best, self.state.best_step = self._snapshot(), step

    def _stop_if_waited(self) -> None:
        if self.options.patience is not None and self.state.waited >= self.options.patience:
            self.stopped = f"no lower validation loss since step {self.state.lowest_step}"
            _LOG.info("stops: %s", self.stopped)

    def _stop_at(self, step: int, reason: str) -> None:
        if not len(self.task.held_out):  # the last finite state is the best there is
            self._keep(self.state.step)
        advice = "try a smaller lr, or look for inputs whose map overflows"
        if step == 1:
            raise LearnpropError(f"{reason}; {advice}")
        self.stopped = reason
        warnings.warn(
            f"{reason}; the rules of step {self.state.best_step} are kept. {advice[0].upper()}{advice[1:]}",
            TrainingWarning,
            stacklevel=4,
        )

    def _start_loss(self) -> float:
        return self.log.rows[0]["validation loss"]

    def _kept_loss(self) -> float | None:
        rows = [row for row in self.log.rows if row["step"] == self.state.best_step and "validation loss" in row]
        return rows[-1]["validation loss"] if rows else None

    def finish(self, measuring_seconds: float) -> RuleSet:
        """Returns the best rules, with a summary of how they were made in their ``training``.

        Args:
            measuring_seconds: How long it took to measure the images.
        """
        rules = self.task.rules
        rules.load_state_dict(self.state.best)
        rules.training = {
            **self.task.summary(),
            "steps_done": self.state.step,
            "best_step": self.state.best_step,
            "validation_loss": self._kept_loss(),
            "start_validation_loss": self.log.rows[0].get("validation loss"),
            "stopped": self.stopped,
            "processes": self.task.processes.world,
            "measuring_seconds": round(measuring_seconds, 1),
            "seconds": round(self.seconds, 1),
            "torch": torch.__version__,
        }
        return rules
