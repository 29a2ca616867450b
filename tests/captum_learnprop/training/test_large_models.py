"""Half precision, activation checkpointing, models spread over processes: explained and trained, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launched import launch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import captum_learnprop as cl
import zennit_rules as zr
from captum_learnprop.errors import LearnpropError

LRP = "learned_epsilon_gamma_box"
FAMILIES = (
    "learned_gradient", "learned_guided_backprop", LRP, "learned_deeplift", "learned_transformer", "learned_attnlrp",
)  # fmt: skip


class Net(nn.Module):
    """A block with a skip connection, which can run again in the backward pass."""

    def __init__(self, *, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.again = again
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.act, self.out, self.last = nn.ReLU(), nn.ReLU(), nn.Linear(8, 5)

    def block(self, x: Tensor) -> Tensor:
        return self.out(x + self.b(self.act(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = checkpoint(self.block, x, use_reentrant=False) if self.again else self.block(x)
        return self.last(x.mean((2, 3)))


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 3, 16, 16).to(dtype)


def explained(model: nn.Module, rules: zr.RuleSet, x: Tensor) -> Tensor:
    found: Tensor = cl.LearnedPropagation(model, rules=rules).attribute(x[:2], target=torch.tensor([0, 1]))
    return found


def trained(model: nn.Module, x: Tensor, composite: str) -> Tensor:
    rules = cl.RuleTrainer(model, composite, steps=2, deletions=5, batch_size=3).fit(x)
    return explained(model, rules, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("composite", FAMILIES)
def test_models_in_half_precision_are_explained(composite: str, dtype: torch.dtype) -> None:
    rules = zr.RuleSet.build(Net().eval(), images()[:2], composite=composite, gate="feature")
    expected = explained(Net().eval(), rules, images())
    model, x = Net().eval().to(dtype), images(dtype)
    found = explained(model, zr.RuleSet.build(model, x[:2], composite=composite, gate="feature"), x)
    assert found.dtype == dtype
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("composite", FAMILIES)
def test_models_in_bfloat16_train(composite: str) -> None:
    found = trained(Net().eval().bfloat16(), images(torch.bfloat16), composite)
    assert found.isfinite().all()
    assert found.any()


@pytest.mark.parametrize("composite", [name for name in FAMILIES if name != LRP])
def test_activation_checkpointing_changes_nothing(composite: str) -> None:
    plain, again = Net().eval(), Net(again=True).eval()
    torch.testing.assert_close(trained(again, images(), composite), trained(plain, images(), composite))


def test_functions_with_a_rule_that_run_again_are_refused_in_one_sentence() -> None:
    model = Net(again=True).eval()
    rules = zr.RuleSet.build(model, images()[:2], composite=LRP)
    with pytest.raises(LearnpropError, match=r"activation checkpointing.*switch checkpointing off to explain"):
        explained(model, rules, images())
    with pytest.raises(LearnpropError, match="activation checkpointing"):
        trained(model, images(), LRP)


SCRIPT = """
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, {here!r})
import captum_learnprop as cl
import zennit_rules as zr
from test_large_models import Net, images

torch.set_num_threads(1)
dist.init_process_group("gloo")
model, sharded, x = Net().eval(), Net().eval(), images()
wrapped = DistributedDataParallel(model).eval()
fully_shard(sharded.a)
fully_shard(sharded)
for one in (wrapped, sharded):
    for use in (lambda: cl.RuleTrainer(one), lambda: zr.RuleSet.build(one, x[:2])):
        try:
            use()
        except zr.RuleError as error:
            print(f"{{dist.get_rank()}}: {{error}}", flush=True)
rules = cl.RuleTrainer(wrapped.module, steps=2, deletions=5, batch_size=4).fit(x)
print(f"{{dist.get_rank()}}: {{len(rules.sites)}} sites", flush=True)
dist.destroy_process_group()
"""


def test_models_that_are_spread_over_processes_are_refused_in_one_sentence(tmp_path: Path) -> None:
    script = tmp_path / "wrap.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    said, _ = launch([str(script)], 2, tmp_path)
    for rank in range(2):
        lines = [line for line in said.splitlines() if line.startswith(f"{rank}: ")]
        assert len(lines) == 5
        assert all("is a DistributedDataParallel" in line and "pass `model.module`" in line for line in lines[:2])
        assert all("is sharded (FSDP)" in line and "full_state_dict=True" in line for line in lines[2:4])
        assert lines[4] == f"{rank}: 3 sites"
