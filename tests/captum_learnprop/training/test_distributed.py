"""Two processes, as torchrun starts them, learn what one learns, from the same global batches.

In float64, so that rounding, which Adam can enlarge, hides no fault of the averaging.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from launched import each_launcher, launch

import zennit_rules as zr
from captum_learnprop.training.distributed import Processes, processes

NETS = Path(__file__).parents[2] / "nets"

SCRIPT = """
import sys

import torch
from pathlib import Path

torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from small_nets import images, net

from captum_learnprop.training.terms import OcclusionRegression, RandomizationContrast, Sufficiency
from captum_learnprop.training.trainer import RuleTrainer

objective = OcclusionRegression() + 0.1 * Sufficiency() + 0.1 * RandomizationContrast()
model = net(dtype=torch.float64)
trainer = RuleTrainer(
    model, objective=objective, steps=8, batch_size=5, deletions=8, smoothing=0.05, validate_every=4,
    quantity="contrastive_logit",
)
out = Path(sys.argv[1])
rules = trainer.fit(
    images(20, dtype=torch.float64),
    validation=0.3,
    examples_dir=out / "examples",
    checkpoint=out / "run.safetensors",
    log_dir=out,
)
import os
rules.save(out / f"rules-{{os.environ.get('RANK', '0')}}.safetensors", model)
"""


def written(folder: Path, program: str) -> str:
    """The program in a folder of its own."""
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(program.format(here=str(NETS)))
    return str(script)


@pytest.fixture
def single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> zr.RuleSet:
    """The rules that this process learns."""
    script = written(tmp_path / "one", SCRIPT)
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path / "one")])
    monkeypatch.setattr(sys, "path", sys.path[:])
    runpy.run_path(script)
    return zr.RuleSet.load(tmp_path / "one" / "rules-0.safetensors")


@each_launcher
def test_two_processes_equal_one(launcher: str, single: zr.RuleSet, tmp_path: Path) -> None:
    launch([written(tmp_path / "two", SCRIPT), str(tmp_path / "two")], 2, tmp_path, launcher)
    first, second = sorted((tmp_path / "two").glob("rules-*.safetensors"))
    expected = single
    for path in (first, second):
        rules = zr.RuleSet.load(path)
        assert rules.training["processes"] == 2
        assert rules.training["best_step"] == expected.training["best_step"]
        assert rules.training["validation_loss"] == pytest.approx(expected.training["validation_loss"], abs=1e-8)
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(rules.state_dict()[name], tensor, rtol=0, atol=1e-8)
    # Rank 0 alone writes.
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        "examples", "rules-0.safetensors", "rules-1.safetensors", "run.safetensors", "train.py", "training.csv",
    ]  # fmt: skip


FEW = """
import sys

import torch

torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from small_nets import images, net

from captum_learnprop.training.data import LearnpropError
from captum_learnprop.training.trainer import RuleTrainer

trainer = RuleTrainer(net(), steps=2, batch_size=1, deletions=8, smoothing=0.05)
rules = trainer.fit(images(3), validation=0.3)  # one held-out row, one row per step: rank 1 has none
assert rules.training["steps_done"] == 2
import os
try:
    RuleTrainer(net(int(os.environ["RANK"])), steps=2, deletions=8).fit(images(3))
except LearnpropError as error:
    assert "different models" in str(error)
    open(sys.argv[1] + "/refused-" + os.environ["RANK"], "w").close()
"""


@each_launcher
def test_more_processes_than_rows_and_processes_that_disagree(launcher: str, tmp_path: Path) -> None:
    launch([written(tmp_path / "few", FEW), str(tmp_path / "few")], 2, tmp_path, launcher)
    assert sorted(path.name for path in (tmp_path / "few").glob("refused-*")) == ["refused-0", "refused-1"]


def test_a_plain_program_is_one_process() -> None:
    group = processes(torch.device("cpu"))
    assert group == Processes()
    assert group.main
    tensor = torch.ones(2)
    assert group.sum(tensor) is tensor
    assert group.agree("abc")
    group.barrier()
