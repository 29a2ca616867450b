"""The training log: rows come back from the file as they went in, and a full disk stops nothing."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from captum_learnprop import LearnpropError
from captum_learnprop.training.log import TrainingLog, read_log

ROWS: list[dict[str, float]] = [
    {"step": 0.0, "validation loss": 0.75},
    {"step": 1.0, "lr": 0.03, "loss": 1 / 3},
    {"step": 2.0, "lr": 0.01, "loss": 1e-30, "validation loss": 0.5},
]


def write(folder: Path, rows: list[dict[str, float]], before: list[dict[str, float]] | None = None) -> Path:
    log = TrainingLog(folder, before)
    for row in rows:
        log.add(row)
    log.close()
    return folder / "training.csv"


class TestFile:
    def test_rows_come_back(self, tmp_path: Path) -> None:
        path = write(tmp_path / "new" / "folder", ROWS)
        assert read_log(path) == ROWS
        assert path.read_text().splitlines()[:2] == ["step,validation loss,lr,loss", "0.0,0.75,,"]
        assert [file.name for file in path.parent.iterdir()] == ["training.csv"]

    def test_a_resumed_run_keeps_its_first_rows(self, tmp_path: Path) -> None:
        write(tmp_path, ROWS[:1])
        assert read_log(write(tmp_path, ROWS[1:], ROWS[:1])) == ROWS

    def test_flush_writes_before_the_end(self, tmp_path: Path) -> None:
        log = TrainingLog(tmp_path)
        log.flush()
        assert not list(tmp_path.iterdir())  # no row, no file
        log.add(ROWS[0])
        log.flush()
        log.add(ROWS[1])
        assert read_log(tmp_path / "training.csv") == ROWS[:1]

    def test_without_a_folder(self) -> None:
        log = TrainingLog(None)
        row = dict(ROWS[1])
        log.add(row)
        row["loss"] = 7.0
        log.close()
        assert log.rows == [ROWS[1]]  # a copy

    def test_a_full_disk_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path, ROWS[:1])

        def full(*paths: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.warns(UserWarning, match=r"cannot write the log .*training.csv: .*No space left.*goes on"):
            write(tmp_path, ROWS)
        assert read_log(path) == ROWS[:1]
        assert [file.name for file in tmp_path.iterdir()] == ["training.csv"]

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(LearnpropError, match=r"cannot make the folder .*file"):
            TrainingLog(tmp_path / "file" / "log")

    @pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "step,loss\n1,much\n", "step,loss\n1,2,3\n", "step\n"])
    def test_other_files(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "training.csv"
        path.write_text(text)
        with pytest.raises(LearnpropError, match="no training log"):
            read_log(path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(LearnpropError, match="no training log at"):
            read_log(tmp_path / "training.csv")


class Board:
    """Stands for TensorBoard's writer."""

    made: list[Board] = []  # noqa: RUF012 (emptied by each test)

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        Board.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def board(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = types.ModuleType("torch.utils.tensorboard")
        module.SummaryWriter = Board  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
        Board.made = []

    def test_scalars(self, tmp_path: Path) -> None:
        write(tmp_path, ROWS[:2])
        (board,) = Board.made
        assert board.scalars == [("validation loss", 0.75, 0), ("lr", 0.03, 1), ("loss", 1 / 3, 1)]
        assert board.folder == str(tmp_path)
        assert board.purge_step is None
        assert board.closed

    def test_a_resumed_run_forgets_what_came_after(self, tmp_path: Path) -> None:
        write(tmp_path, [], ROWS)
        assert Board.made[0].purge_step == 3
        assert Board.made[0].scalars == []

    def test_no_folder_no_board(self) -> None:
        TrainingLog(None).close()
        assert Board.made == []
