"""Checkpoints: a run goes on from the file as if it had not stopped, and no other file is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_nets import images, net
from torch import Tensor, nn

from captum_learnprop.training import checkpoint
from captum_learnprop.training.checkpoint import CheckpointError, TrainingState, optimizer_tensors, restore_optimizer
from captum_learnprop.training.trainer import RuleTrainer

CONFIG = {"lr": 0.03, "steps": 6, "objective": [{"term": "Area", "weight": 1.0}], "range": (1, 2)}


def state() -> TrainingState:
    rules = {"features.0::raw": torch.randn(2, 3), "a|b::raw": torch.randn(4, dtype=torch.float64)}
    return TrainingState(
        step=7, rules=rules, optimizer={"0/step": torch.tensor(7.0), "0/exp_avg": torch.randn(2, 3)},
        best={name: tensor + 1 for name, tensor in rules.items()}, best_step=4, lowest=[0.1 + 0.2, 1.0], waited=3,
        rows=[{"step": 1.0, "loss": 1 / 3}, {"step": 2.0, "loss": 1e-300, "validation loss": 0.5}],
    )  # fmt: skip


class TestFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        path, expected = tmp_path / "run.safetensors", state()
        checkpoint.write(path, expected, CONFIG)
        found = checkpoint.read(path, CONFIG)
        for name, value in vars(expected).items():
            if isinstance(value, dict):
                assert getattr(found, name).keys() == value.keys()
                for key, tensor in value.items():
                    torch.testing.assert_close(getattr(found, name)[key], tensor, rtol=0, atol=0)
            else:
                assert getattr(found, name) == value
        assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]

    def test_before_the_first_validation(self, tmp_path: Path) -> None:
        path = tmp_path / "run.safetensors"
        checkpoint.write(path, TrainingState(0, {}, {}, {}, 0, [], 0), {})
        assert checkpoint.read(path, {}).lowest == []

    def test_a_failing_write_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "run.safetensors"
        checkpoint.write(path, state(), CONFIG)
        before = path.read_bytes()

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write(path, TrainingState(9, {}, {}, {}, 0, [0.0], 0), CONFIG)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]

    @pytest.mark.parametrize("kept", [0, 5, 100, -1])
    def test_damaged(self, tmp_path: Path, kept: int) -> None:
        path = tmp_path / "run.safetensors"
        checkpoint.write(path, state(), CONFIG)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match=r"run.safetensors is no checkpoint, or damaged .*delete it"):
            checkpoint.read(path, CONFIG)

    @pytest.mark.parametrize(
        "metadata",
        [None, {"other": "1"}, {"learnprop-checkpoint": "{"}, {"learnprop-checkpoint": "{}"}],
    )
    def test_other_files(self, tmp_path: Path, metadata: dict[str, str] | None) -> None:
        save_file({"a": torch.zeros(1)}, tmp_path / "rules.safetensors", metadata)
        with pytest.raises(CheckpointError, match="no checkpoint, or damaged"):
            checkpoint.read(tmp_path / "rules.safetensors", CONFIG)

    def test_another_format(self, tmp_path: Path) -> None:
        document = json.dumps({"format_version": "3"})
        save_file({"a": torch.zeros(1)}, tmp_path / "run.safetensors", {"learnprop-checkpoint": document})
        with pytest.raises(CheckpointError, match="has format 3, this version reads 2"):
            checkpoint.read(tmp_path / "run.safetensors", CONFIG)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lr": 0.01}, r"lr: 0\.03 there, 0\.01 now"),
            ({"objective": [{"term": "Area", "weight": 2.0}]}, r"objective: .*1\.0.* there, .*2\.0.* now"),
            ({"new": 1}, "new: None there, 1 now"),
            ({"lr": 1, "steps": 2}, r"lr: 0\.03 there, 1 now, steps: 6 there, 2 now"),
        ],
    )
    def test_a_run_with_other_options(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        path = tmp_path / "run.safetensors"
        checkpoint.write(path, state(), CONFIG)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read(path, {**CONFIG, **change})


def test_an_optimiser_goes_on(tmp_path: Path) -> None:
    def start() -> tuple[nn.Parameter, nn.Parameter, torch.optim.Adam]:
        first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))
        return first, second, torch.optim.Adam([first, second], lr=0.1)

    def step(first: nn.Parameter, second: nn.Parameter, optimizer: torch.optim.Adam, number: int) -> None:
        first.grad, second.grad = torch.tensor([1.0, -2.0, 0.1]) / number, torch.full((2, 2), 0.5 * number)
        optimizer.step()

    whole, stopped, resumed = start(), start(), start()
    for number in (1, 2, 3, 4):
        step(*whole, number)
    for number in (1, 2):
        step(*stopped, number)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(stopped[2]).items()}
    assert tensors.keys() == {f"{n}/{name}" for n in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    with torch.no_grad():
        for ours, theirs in zip(resumed[:2], stopped[:2], strict=True):
            ours.copy_(theirs)
    restore_optimizer(resumed[2], tensors)
    for number in (3, 4):
        step(*resumed, number)
    for ours, theirs in zip(resumed[:2], whole[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


class Stopping(nn.Module):
    """A net that is interrupted in the pass of a given number."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.model, self.at, self.passes = net(), at, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == self.at:
            raise KeyboardInterrupt
        output: Tensor = self.model(inputs)
        return output


class TestResume:
    """Runs that stop in any pass of the model, within a step or a validation, end as if they had not."""

    OPTIONS: dict[str, Any] = {  # noqa: RUF012
        "steps": 4, "batch_size": 4, "deletions": 4, "validate_every": 1, "smoothing": 0.05, "patience": None,
        "fill": "colours",
    }  # fmt: skip

    def fit(self, model: Stopping, folder: Path, every: int = 2, **options: Any) -> RuleTrainer:
        trainer = RuleTrainer(model.eval(), **{**self.OPTIONS, **options})
        trainer.rules = trainer.fit(  # type: ignore[attr-defined]
            images(), examples_dir=folder / "examples", checkpoint=folder / "run.safetensors", validation=0.5,
            checkpoint_every=every,
        )  # fmt: skip
        return trainer

    def same(self, first: Any, second: Any) -> None:
        assert first.log == second.log
        for key in ("best_step", "validation_loss", "steps_done", "stopped"):
            assert first.rules.training[key] == second.rules.training[key]
        states = first.rules.state_dict(), second.rules.state_dict()
        for name in states[0]:
            torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=0)

    def test_in_any_pass(self, tmp_path: Path) -> None:
        whole = Stopping()
        expected = self.fit(whole, tmp_path / "whole")
        assert any(tensor.abs().max() > 0.01 for tensor in expected.rules.state_dict().values())  # type: ignore[attr-defined]
        measured = 1 + 12 * 2
        passes = whole.passes - measured
        assert passes == 1 + 1 + 4 * 2  # the sites are found, the start is validated, then steps with validations
        for at in range(1, passes + 1):
            folder = tmp_path / str(at)
            folder.mkdir()
            (folder / "examples").symlink_to(tmp_path / "whole" / "examples")
            with pytest.raises(KeyboardInterrupt):
                self.fit(Stopping(at), folder)
            self.same(self.fit(Stopping(), folder), expected)

    def test_a_run_that_has_stopped_early_does_not_go_on(self, tmp_path: Path) -> None:
        options = {"steps": 60, "lr": 3.0, "schedule": "constant", "patience": 2, "every": 1}
        expected = self.fit(Stopping(), tmp_path, **options)
        assert expected.rules.training["steps_done"] < 60  # type: ignore[attr-defined]
        again = Stopping()
        self.same(self.fit(again, tmp_path, **options), expected)
        assert again.passes == 1  # to find the sites
