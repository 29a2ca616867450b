"""The training log: one CSV row per step, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captum_learnprop.errors import LearnpropError
from zennit_rules.files import replacing


class TrainingLog:
    """A log that collects rows and writes them to ``training.csv`` in a folder.

    Its columns are those of the first row with their later companions; a step without a validation leaves its cells
    empty.

    Args:
        folder: Where files go; None keeps the rows in memory only.
        rows: The rows of the steps before, when a run is resumed.

    Attributes:
        rows: All rows so far.

    Raises:
        LearnpropError: The folder cannot be made.
    """

    def __init__(self, folder: Path | None, rows: list[dict[str, float]] | None = None) -> None:
        self.rows: list[dict[str, float]] = list(rows or [])
        self._path = None if folder is None else folder / "training.csv"
        self._board: Any = None
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LearnpropError(f"cannot make the folder {folder} for the log: {error}") from error
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        purge = int(self.rows[-1]["step"]) + 1 if self.rows else None
        try:
            self._board = SummaryWriter(str(folder), purge_step=purge)
        except OSError as error:
            self._drop_board(error)

    def add(self, row: Mapping[str, float]) -> None:
        """Keeps a row; ``step`` is its place."""
        self.rows.append(dict(row))
        try:
            for name, value in row.items():
                if self._board is not None and name != "step":
                    self._board.add_scalar(name, value, int(row["step"]))
        except OSError as error:
            self._drop_board(error)

    def _drop_board(self, error: OSError) -> None:
        self._board = None
        warnings.warn(f"cannot write TensorBoard events: {error}; training goes on without", stacklevel=3)

    def flush(self) -> None:
        """Writes what there is; a disk that is full costs the log, not the training."""
        if self._path is None or not self.rows:
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        try:
            with replacing(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)
        except OSError as error:
            warnings.warn(f"cannot write the log {self._path}: {error}; training goes on", stacklevel=2)

    def close(self) -> None:
        """Writes the last rows."""
        self.flush()
        try:
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._drop_board(error)


def read_log(path: str | Path) -> list[dict[str, float]]:
    """Returns the rows of a ``training.csv``; empty cells are left out.

    Raises:
        LearnpropError: There is no such file, or it holds no log.
    """
    path = Path(path)
    if not path.is_file():
        raise LearnpropError(f"no training log at {path}")
    with path.open(newline="", encoding="utf-8") as file:
        try:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        except (TypeError, ValueError) as error:
            raise LearnpropError(f"{path} is no training log: {error}") from error
    if not rows or "step" not in rows[0]:
        raise LearnpropError(f"{path} is no training log: it has no column 'step'")
    return rows
