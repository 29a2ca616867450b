"""Checkpoints: everything a training run needs to go on exactly where it stopped, as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_learnprop.errors import LearnpropError
from captum_learnprop.files import write_bytes
from zennit_rules import rule_file

FORMAT_VERSION = "2"
_KEY = "learnprop-checkpoint"


class CheckpointError(LearnpropError):
    """A checkpoint that cannot be read, or belongs to another run."""


@dataclass
class TrainingState:
    """The place where a training run stands.

    Attributes:
        step: Steps done.
        rules: Parameters by name.
        optimizer: State tensors by ``<parameter number>/<name>``.
        best: The parameters that are kept.
        best_step: The step when they were met.
        lowest: The lowest losses of the held-out rows; empty before the first validation.
        lowest_step: The step when they were met.
        waited: Validations since then, without lower ones.
        rows: The rows of the log.
    """

    step: int
    rules: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor]
    best_step: int
    lowest: list[float]
    waited: int
    rows: list[dict[str, float]] = field(default_factory=list)
    lowest_step: int = 0


def write(path: Path, state: TrainingState, config: Mapping[str, Any]) -> None:
    """Writes a checkpoint as a whole.

    Args:
        path: Where it goes; an earlier one is replaced.
        state: Where the run stands.
        config: What a run must share with this one to go on from here, ready for JSON.

    Raises:
        WriteError: There is no space, no folder, or no permission; an earlier checkpoint is kept.
    """
    groups = {"rules": state.rules, "optimizer": state.optimizer, "best": state.best}
    tensors = {f"{group}|{name}": tensor for group, members in groups.items() for name, tensor in members.items()}
    document = {
        "format_version": FORMAT_VERSION,
        "config": config,
        "step": state.step,
        "best_step": state.best_step,
        "lowest": state.lowest,
        "lowest_step": state.lowest_step,
        "waited": state.waited,
        "rows": state.rows,
    }
    write_bytes(path, rule_file.packed(_KEY, document, tensors))


def read(path: Path, config: Mapping[str, Any]) -> TrainingState:
    """Returns the state in a checkpoint of a run with the same configuration.

    Args:
        path: The checkpoint.
        config: The configuration of this run.

    Raises:
        CheckpointError: It is damaged, of another format, or of a run with other options, which are named.
    """
    try:
        document, tensors = rule_file.read(path, _KEY, "a checkpoint")
        version = document["format_version"]
        if version == FORMAT_VERSION:
            return _state(path, document, tensors, config)
    except CheckpointError:
        raise
    except rule_file.FileFault as error:
        raise CheckpointError(f"{path} is no checkpoint, or damaged (it {error}); delete it to begin anew") from error
    except Exception as error:  # whatever a changed document makes its readers raise: the file is at fault
        raise CheckpointError(f"{path} is no checkpoint, or damaged ({error!r}); delete it to begin anew") from error
    raise CheckpointError(f"{path} has format {version}, this version reads {FORMAT_VERSION}; delete it to begin anew")


def _state(
    path: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> TrainingState:
    stored, wanted = document["config"], json.loads(json.dumps(config))
    odd = sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name))
    if odd:
        differing = ", ".join(f"{name}: {stored.get(name)!r} there, {wanted.get(name)!r} now" for name in odd[:3])
        raise CheckpointError(
            f"{path} is of a run with other options ({differing}); delete it to begin anew, or name another checkpoint"
        )
    groups: dict[str, dict[str, Tensor]] = {"rules": {}, "optimizer": {}, "best": {}}
    for key, tensor in tensors.items():
        group, name = key.split("|", 1)
        groups[group][name] = tensor
    rule_file.check_tensors({key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()})
    return TrainingState(
        step=_number(document, "step", int),
        best_step=_number(document, "best_step", int),
        lowest=[float(loss) for loss in document["lowest"]],
        lowest_step=_number(document, "lowest_step", int),
        waited=_number(document, "waited", int),
        rows=[dict(row) for row in document["rows"]],
        **groups,
    )


def _number(document: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = document[name]
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}")
    return value


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the state of an optimiser as tensors, by ``<parameter number>/<name>``."""
    return {
        f"{number}/{name}": torch.as_tensor(value)
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimiser the state that `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
